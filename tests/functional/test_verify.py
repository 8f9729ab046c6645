"""`minordpo verify` with the real transformers and NeMo: correct models pass, and every planted mistake is named.

Importing NeMo takes 12 s per process, so one process (`python test_verify.py FOLDER`, below) makes the models and
verifies them all; the tests read the messages.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

LAYERS, VOCAB = 3, 403
ATTENTION, MLP = "model.layers.{}.self_attn.{}_proj.weight", "model.layers.{}.mlp.{}_proj.weight"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
KINDS = ("embedding", "norm before attention", "attention", "norm before MLP", "MLP", "final norm", "head")

# mistake -> (expected messages, kinds of modules that differ on equal inputs)
MISTAKES: dict[str, tuple[list[str], set[str]]] = {
    "rotary base": (
        [
            "settings: rotary_base: 20000.0 instead of 10000.0",
            "running: wrong rotary base: NeMo uses 20000, Hugging Face 10000",
            "weights: all equal",
        ],
        {"attention"},
    ),
    "epsilon": (
        [
            "settings: layernorm_epsilon: 1e-06 instead of 1e-05",
            "running: wrong rms_norm_eps: NeMo's norms have [1e-06], Hugging Face's [1e-05]",
            "weights: all equal",
        ],
        {"norm before attention", "norm before MLP"},  # after the last layer, values are too large to show it
    ),
    "gate and up": (
        ["weights: mlp.gate_proj.weight, mlp.up_proj.weight in every layer: gate and up are swapped"],
        {"MLP"},
    ),
    "QKV order": (
        [
            "weights: self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight in every layer: "
            "QKV order: [q; k; v] concatenated plainly instead of interleaved by group"
        ],
        {"attention"},
    ),
    "keys and values of a layer": (["v_proj.weight in layer 1 of 3: keys and values are swapped"], {"attention"}),
    "interleaved halves": (["in every layer: rotary halves interleaved (q and k permuted)"], {"attention"}),
    "dropped head": (["weights: lm_head.weight: missing in the checkpoint", "the head was dropped"], {"head"}),
    "untied head": (
        ["weights: lm_head.weight: separate from the embedding in the checkpoint", "the head was untied"],
        {"head"},
    ),
    "rounding": (["in every layer: rounded to bfloat16 in the checkpoint only"], set(KINDS)),
    "template": (
        [": the chat template differs: '<user>Hi</s>\\n<assistant>Hello</s>\\n' instead of '<user>Hi<|im_end|>"],
        set(),
    ),
    "end of a turn": ([": eos_token is '<|endoftext|>' instead of '<|im_end|>'", "weights: all equal"], set()),
    "one token": (["2 tokens have different ids"], set()),
    # the config is right, but the model does not follow it
    "base of the running model": (["running: wrong rotary base: NeMo uses 5000, Hugging Face 10000"], set()),
}
IN_BFLOAT16 = ("gate and up", "rotary base")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("verify")
    run = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "messages.json").read_text())


@pytest.mark.parametrize(
    "name",
    ["right", "right, in bfloat16", "right, on pairs", "right, tied", "right, a run", "right, of transformers 5"],
)
def test_the_right_model_passes(messages: dict[str, Any], name: str) -> None:
    assert messages[name].startswith("logits differ by at most ")
    assert messages[name].endswith("tokens")  # nothing to add
    bound = "bfloat16, tolerance" if "bfloat16" in name else "float32, tolerance 0.0001)"
    assert bound in messages[name]
    assert ("x transformers' own rounding, of mean" in messages[name]) == ("bfloat16" in name)


def test_rounding_that_the_model_enlarges_is_allowed(messages: dict[str, Any]) -> None:
    """Logits a thousand times as large: beyond 1e-4, but not beyond transformers' own rounding; a mistake is."""
    text = messages["right, large logits"]
    assert text.startswith("logits differ by at most ")
    assert "x transformers' own rounding, of mean" in text
    largest, tolerance = _numbers(text)
    assert 1e-4 < largest <= tolerance
    assert "is not the model of" in messages["epsilon, large logits"]
    largest, tolerance = _numbers(messages["epsilon, large logits"])
    assert largest > tolerance > 1e-4


def _numbers(message: str) -> tuple[float, float]:
    largest, rest = message.partition("at most ")[2].split(" (mean ")
    return float(largest), float(rest.partition("tolerance ")[2].partition(":")[0])


def test_texts_of_pairs_are_drawn(messages: dict[str, Any]) -> None:
    tokens = {name: int(messages[name].rpartition(" of ")[2].split()[0]) for name in ("right", "right, on pairs")}
    assert tokens["right, on pairs"] > tokens["right"] + 3 * 10
    assert "pairs.jsonl:2: missing field 'prompt'" in messages["bad pairs"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(messages: dict[str, Any], mistake: str) -> None:
    expected, kinds = MISTAKES[mistake]
    text = messages[mistake]
    assert "is not the model of" in text
    assert "logits differ by at most" in text
    for words in expected:
        assert words in text
    differing = {kind for kind in KINDS if f"  {kind}: differs" in text}
    equal = {kind for kind in KINDS if f"  {kind}: equal" in text}
    assert differing | equal == set(KINDS)
    if mistake != "base of the running model":
        assert differing == kinds


@pytest.mark.parametrize("mistake", ["template", "end of a turn", "one token"])
def test_tokenizers_are_compared_even_if_the_logits_are_equal(messages: dict[str, Any], mistake: str) -> None:
    assert "argmax equal for 100.00%" in messages[mistake]


def test_an_epsilon_too_small_to_show_in_logits(messages: dict[str, Any]) -> None:
    assert "argmax equal for 100.00%" in messages["epsilon"]


@pytest.mark.parametrize("mistake", IN_BFLOAT16)
def test_in_bfloat16_mistakes_stand_out_from_rounding(messages: dict[str, Any], mistake: str) -> None:
    assert "is not the model of" in messages[f"{mistake}, in bfloat16"]
    largest, tolerance = _numbers(messages[f"{mistake}, in bfloat16"])
    assert largest > 3 * tolerance


def test_another_architecture_is_refused_at_once(messages: dict[str, Any]) -> None:
    assert "its model_config.yaml has num_query_groups: 6 instead of 2" in messages["other heads"]
    assert "logits" not in messages["other heads"]


def test_a_checkpoint_without_a_config_cannot_be_restored(messages: dict[str, Any]) -> None:
    assert "no model_config.yaml in or above it, which NeMo needs to restore it" in messages["no config"]


# --- below: the process that verifies ---


def _make_model(folder: Path, *, tied: bool = False) -> Path:
    import transformers
    from test_convert import _tokenizer

    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms start at 1, which would hide a mistake
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
    model.save_pretrained(folder)
    _tokenizer(folder)
    _change_tokenizer(folder, chat_template=TEMPLATE)
    return folder


def _change_tokenizer(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _copy(hf: Path, name: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A copy of a model with other weights or settings."""
    folder = shutil.copytree(hf, hf.with_name(name))
    tensors, config = load_file(hf / "model.safetensors"), json.loads((hf / "config.json").read_text())
    change(tensors, config)
    save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _swap(names: tuple[str, str], block: str, layers: range) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        for layer in layers:
            a, b = (block.format(layer, name) for name in names)
            tensors[a], tensors[b] = tensors[b], tensors[a]

    return change


def _drop_head(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    del tensors["lm_head.weight"]
    config["tie_word_embeddings"] = True


def _untie_head(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.1
    config["tie_word_embeddings"] = False


def _as_transformers_5_saves(hf: Path) -> Path:
    """The rotary base where transformers 4 does not look (it would use 10,000), and an unknown tokenizer class."""

    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        del config["rope_theta"], config["rope_scaling"]
        config["rope_parameters"] = {"rope_theta": 20000.0, "rope_type": "default"}

    folder = _copy(hf, "newer", change)
    _change_tokenizer(folder, tokenizer_class="TokenizersBackend", extra_special_tokens=["<|im_end|>"])
    return folder


def _rotated(parts: list[torch.Tensor], facts: Any) -> torch.Tensor:
    """QKV with the halves of each head (of size 8) interleaved."""
    from nemo_minordpo.convert import mapping

    q, k = (part.reshape(-1, 8, 48)[:, [0, 4, 1, 5, 2, 6, 3, 7]].reshape(-1, 48) for part in parts[:2])
    return mapping.join_qkv([q, k, parts[2]], facts)


def _main(folder: Path) -> None:
    from nemo_minordpo.convert import mapping, restored
    from nemo_minordpo.convert import verify as verification
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    messages: dict[str, str] = {}

    def verify(name: str, hf: Path, nemo: Path, **options: Any) -> None:
        try:
            messages[name] = str(verification.verify(hf, nemo, **options))
        except ValueError as error:
            messages[name] = str(error)

    def imported(hf: Path, name: str, **options: Any) -> Path:
        import_hf(hf, folder / f"{name}.nemo", **options)
        return folder / f"{name}.nemo"

    hf, tied = _make_model(folder / "hf"), _make_model(folder / "tied", tied=True)
    base = imported(hf, "base")
    verify("right", hf, base)
    verify("right, tied", tied, imported(tied, "tied"))
    verify("right, in bfloat16", hf, base, dtype="bfloat16")
    verify("right, of transformers 5", newer := _as_transformers_5_saves(hf), imported(newer, "newer"))
    pair = {"prompt": "1 plus 2 ", "chosen_response": "is 3, and 3 plus 4 is 7, is it?", "rejected_response": "is"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n" + '{"chosen_response": "is"}\n')
    verify("bad pairs", hf, base, pairs=folder / "pairs.jsonl")
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 9)
    verify("right, on pairs", hf, base, pairs=folder / "pairs.jsonl", num_samples=3)

    wrong = {
        "rotary base": _copy(hf, "rope", lambda tensors, config: config.update(rope_theta=20000.0)),
        "epsilon": _copy(hf, "eps", lambda tensors, config: config.update(rms_norm_eps=1e-6)),
        "gate and up": _copy(hf, "gate", _swap(("gate", "up"), MLP, range(LAYERS))),
        "keys and values of a layer": _copy(hf, "kv", _swap(("k", "v"), ATTENTION, range(1, 2))),
        "dropped head": _copy(hf, "dropped", _drop_head),
    }
    for mistake, other in wrong.items():
        verify(mistake, hf, imported(other, mistake))
    for mistake in IN_BFLOAT16:
        verify(f"{mistake}, in bfloat16", hf, folder / f"{mistake}.nemo", dtype="bfloat16")
    verify("untied head", tied, imported(_copy(tied, "untied", _untie_head), "untied"))
    verify("rounding", hf, imported(hf, "rounded", dtype="bfloat16"))
    right = mapping.QKV
    for mistake, join in (("QKV order", lambda parts, facts: torch.cat(parts)), ("interleaved halves", _rotated)):
        mapping.QKV = mapping.Layout(join, mapping.split_qkv)
        wrong_nemo = imported(hf, mistake)
        mapping.QKV = right
        verify(mistake, hf, wrong_nemo)

    for mistake, changes in (
        ("template", {"chat_template": TEMPLATE.replace("<|im_end|>", "</s>\n")}),
        ("end of a turn", {"eos_token": "<|endoftext|>"}),
        ("one token", {}),
    ):
        nemo = imported(hf, mistake)
        tokenizer_folder = nemo.with_suffix(".tokenizer")
        _change_tokenizer(tokenizer_folder, **changes)
        if mistake == "one token":
            tokenizer = json.loads((tokenizer_folder / "tokenizer.json").read_text())
            ids = tokenizer["model"]["vocab"]
            ids["1"], ids["2"] = ids["2"], ids["1"]
            (tokenizer_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        verify(mistake, hf, nemo)

    restore = restored.restore

    def misled(*arguments: Any, **named: Any) -> Any:
        model = restore(*arguments, **named)
        model.model.rotary_pos_emb.inv_freq = 1.0 / 5000.0 ** (torch.arange(0, 8, 2) / 8)
        return model

    verification.restore = misled
    verify("base of the running model", hf, base)
    verification.restore = restore

    _verify_sources(folder, hf, base, verify)
    (folder / "messages.json").write_text(json.dumps(messages))


def _verify_large_logits(folder: Path, hf: Path, verify: Callable[..., None]) -> None:
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    loud = _copy(hf, "loud", lambda tensors, config: tensors["lm_head.weight"].mul_(1e3))
    wrong = _copy(loud, "loud_epsilon", lambda tensors, config: config.update(rms_norm_eps=1e-4))
    for name, other in (("right", loud), ("epsilon", wrong)):
        import_hf(other, folder / f"{name}-loud.nemo")
        verify(f"{name}, large logits", loud, folder / f"{name}-loud.nemo")


def _verify_sources(folder: Path, hf: Path, base: Path, verify: Callable[..., None]) -> None:
    """A checkpoint in a run folder, one without its run folder, and a model with other shapes."""
    import tarfile

    from nemo_minordpo.convert.hf_to_nemo import import_hf

    with tarfile.open(base) as archive:
        archive.extractall(folder / "unpacked")
    weights = folder / "unpacked" / "model_weights"
    shutil.copytree(weights, folder / "run" / "checkpoints" / "step_000003")
    # a file that training adds, pickled from classes that verify cannot load
    (folder / "run" / "checkpoints" / "step_000003" / "common.pt").write_bytes(b"no pickle")
    shutil.copy(folder / "unpacked" / "model_config.yaml", folder / "run")
    verify("right, a run", hf, folder / "run")
    verify("no config", hf, shutil.copytree(weights, folder / "a" / "b" / "alone"))
    heads = _copy(hf, "heads", lambda tensors, config: config.update(num_key_value_heads=6))
    tensors = load_file(heads / "model.safetensors")
    wide = {name: t.repeat(3, 1) if ".k_" in name or ".v_" in name else t for name, t in tensors.items()}
    save_file(wide, heads / "model.safetensors", {"format": "pt"})
    import_hf(heads, folder / "heads.nemo")
    verify("other heads", hf, folder / "heads.nemo")
    _verify_large_logits(folder, hf, verify)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
