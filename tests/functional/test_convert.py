"""import-hf, verify and export-hf on tiny random models, with the real transformers and NeMo.

Importing NeMo takes 12 s per process, so one process (`python test_convert.py FOLDER`, below) makes the models, runs
everything and writes `results.json`; the tests read it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

LAYERS, HIDDEN, VOCAB = 3, 48, 403
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# name -> (transformers' config class, differences from the default sizes)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("LlamaConfig", {}),
    "llama-tied-bfloat16": ("LlamaConfig", {"tie_word_embeddings": True, "torch_dtype": "bfloat16"}),
    "llama-linear-rope": ("LlamaConfig", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama31-rope": ("LlamaConfig", {"rope_scaling": LLAMA31, "rope_theta": 500000.0}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 16}),
    "qwen2-gqa-tied": ("Qwen2Config", {"tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6}),
    "qwen15-mha": ("Qwen2Config", {"num_key_value_heads": 6}),
    "mistral": ("MistralConfig", {"sliding_window": 20}),
    "mistral-wide-heads": ("MistralConfig", {"head_dim": 16, "sliding_window": None}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3-tied-bfloat16": (
        "Qwen3Config",
        {"head_dim": 12, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6},
    ),
}
# Tensors per layer.
TENSORS = {"LlamaConfig": 9, "MistralConfig": 9, "Qwen2Config": 12, "Qwen3Config": 11}
# Wrong versions of "llama-gqa" -> the swapped tensors.
SWAPS = {
    "gate and up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "key and value": ("self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "the two norms": ("input_layernorm.weight", "post_attention_layernorm.weight"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("convert")
    run = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_logits_match_transformers(results: dict[str, Any], name: str) -> None:
    result = results["verified"][name]
    assert result["max_difference"] <= 1e-4
    assert result["argmax_agreement"] == 1.0
    assert result["num_tokens"] > (50 if name == "mistral" else 100)  # texts are cut to the sliding window
    assert result["largest_logit"] > 0.1  # control: there was something to compare


@pytest.mark.parametrize("name", MODELS)
def test_export_restores_every_bit(results: dict[str, Any], name: str) -> None:
    assert results["differing_tensors"][name] == []
    assert results["num_tensors"][name] == LAYERS * TENSORS[MODELS[name][0]] + (2 if "tied" in name else 3)


@pytest.mark.parametrize("what", SWAPS)
def test_a_wrong_model_is_noticed(results: dict[str, Any], what: str) -> None:
    message = results["refused"][what]
    assert "is not the model of" in message
    assert "logits differ by at most" in message


def test_another_rotary_base_is_named(results: dict[str, Any]) -> None:
    assert "rotary_base: 20000.0 instead of 10000.0" in results["refused"]["rotary base"]


def test_the_tensor_comparison_notices_a_swap(results: dict[str, Any]) -> None:
    names = [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in SWAPS["gate and up"]]
    assert results["differing_tensors"]["control: gate and up"] == sorted(names)


def test_norms_in_transformer_engines_spec(results: dict[str, Any]) -> None:
    """Emulated: NeMo's choice of a spec omits the norms, and ours adds Transformer Engine's."""
    assert results["specs"] == {"qwen3": ["TENorm", "TENorm"], "llama": ["IdentityOp", "IdentityOp"]}


def test_verify_as_a_command(results: dict[str, Any]) -> None:
    right, wrong = results["command"]["right"], results["command"]["wrong"]
    assert right["exit_code"] == 0
    assert "argmax equal for 100.00% of" in right["output"]
    assert wrong["exit_code"] != 0
    assert "is not the model of" in wrong["output"]


def test_import_and_export_as_commands(tmp_path: Path) -> None:
    _make_model(tmp_path / "hf", *MODELS["qwen2-gqa-tied"])
    nemo, back = tmp_path / "base.nemo", tmp_path / "back"
    imported = _command("import-hf", tmp_path / "hf", nemo)
    assert imported.returncode == 0, imported.stderr
    assert f"38 hf tensors, 72,912 parameters, 109 padded vocab rows -> {nemo}" in imported.stdout
    exported = _command("export-hf", nemo, back)
    assert exported.returncode == 0, exported.stderr
    assert _differing(tmp_path / "hf", back) == []
    again = _command("export-hf", nemo, back)
    assert again.returncode != 0
    assert f"{back} exists already" in " ".join(again.stderr.split())
    assert "Traceback" not in again.stderr


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_minordpo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 3,  # fewer tokens than rows, as in Qwen
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([f"{a} plus {b} is {a + b}" for a in range(30) for b in range(30)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>").save_pretrained(folder)


def _make_model(folder: Path, config_class: str, changes: dict[str, Any]) -> None:
    import transformers

    values = {
        "hidden_size": HIDDEN, "intermediate_size": 80, "num_hidden_layers": LAYERS, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, config_class)(**{**values, **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases start at 0 and norms at 1, which would hide a mistake
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
    model.to(config.torch_dtype or torch.float32).save_pretrained(folder)
    _tokenizer(folder)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _differing(a: Path, b: Path) -> list[str]:
    first, second = _read(a), _read(b)
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not torch.equal(first[name], second[name])
        or first[name].dtype != second[name].dtype
    )  # fmt: skip


def _with_swapped(source: Path, target: Path, one: str, other: str) -> Path:
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(source, target)
    tensors = _read(source)
    swapped = {}
    for name, tensor in tensors.items():
        partner = name.replace(one, other) if one in name else name.replace(other, one)
        swapped[partner] = tensor
    save_file(swapped, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _specs_with_transformer_engine() -> dict[str, list[str]]:
    """Classes of query and key norms in the spec that NeMo gets, for a model with such norms and one without."""
    import types
    from unittest import mock

    import megatron.core.models.gpt.gpt_layer_specs as layer_specs
    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as gpt_model

    from nemo_minordpo.layers import specs

    def chosen_by_nemo(spec_name: str, transformer_config: Any, use_te: bool, *unused: Any) -> Any:
        return layer_specs.get_gpt_layer_local_spec()

    norm = type("TENorm", (), {})
    found = {}
    with (
        mock.patch.object(gpt_model, "get_specs", chosen_by_nemo),
        mock.patch.object(layer_specs, "TENorm", norm, create=True),
    ):
        specs.install(local_norm=None)
        for name, has_norms in (("qwen3", True), ("llama", False)):
            spec = gpt_model.get_specs("", types.SimpleNamespace(qk_layernorm=has_norms), True, None, False)
            attention = spec.submodules.self_attention.submodules
            found[name] = [attention.q_layernorm.__name__, attention.k_layernorm.__name__]
    return found


def _main(folder: Path) -> None:
    from typer.testing import CliRunner

    from nemo_minordpo.__main__ import app
    from nemo_minordpo.convert import verify as verification
    from nemo_minordpo.convert.hf_to_nemo import import_hf
    from nemo_minordpo.convert.nemo_to_hf import export_hf

    results: dict[str, Any] = {"verified": {}, "differing_tensors": {}, "num_tensors": {}, "refused": {}}
    for name, (config_class, changes) in MODELS.items():
        hf, nemo, back = folder / name, folder / f"{name}.nemo", folder / f"{name}-back"
        _make_model(hf, config_class, changes)
        import_hf(hf, nemo)
        found = verification.verify(hf, nemo)
        tokens = verification._tokenize(hf, list(verification.TEXTS), limit=256)
        largest = max(logits.abs().max().item() for logits in verification._hf_logits(hf, tokens, dtype=torch.float32))
        results["verified"][name] = {**vars(found), "largest_logit": largest}
        results["num_tensors"][name] = export_hf(nemo, back).counts["hf_tensors"]
        results["differing_tensors"][name] = _differing(hf, back)

    hf = folder / "llama-gqa"
    wrong = {what: _with_swapped(hf, folder / what.replace(" ", "-"), *names) for what, names in SWAPS.items()}
    wrong["rotary base"] = _with_swapped(hf, folder / "base", "gate_proj", "gate_proj")
    config = json.loads((hf / "config.json").read_text())
    (wrong["rotary base"] / "config.json").write_text(json.dumps({**config, "rope_theta": 20000.0}))
    for what, path in wrong.items():
        import_hf(path, path.with_suffix(".nemo"))
        try:
            results["refused"][what] = str(verification.verify(hf, path.with_suffix(".nemo")))
        except ValueError as error:
            results["refused"][what] = str(error)
    results["differing_tensors"]["control: gate and up"] = _differing(hf, wrong["gate and up"])

    results["specs"] = _specs_with_transformer_engine()
    results["command"] = {}
    for what, path in (("right", hf), ("wrong", wrong["gate and up"])):
        ran = CliRunner().invoke(app, ["verify", str(hf), str(path.with_suffix(".nemo")), "--text", "1 plus 1 is 2"])
        results["command"][what] = {"exit_code": ran.exit_code, "output": ran.output}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
