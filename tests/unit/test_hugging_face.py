"""Hugging Face folders: the files that transformers reads, and folders from transformers 5 read by transformers 4."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import find_weights, load_causal_lm, load_tokenizer

VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|user|>": 3, "one": 4, "two": 5}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model as transformers 4 saves it, in a single file."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(VOCAB),
        max_position_embeddings=64, rope_theta=50000.0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def put(folder, name, factor, *, keep=lambda tensor: True):
    """Write the model's tensors times a factor to a file of this name."""
    tensors = {name: tensor * factor for name, tensor in load_file(folder / "one").items() if keep(name)}
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file(tensors, folder / name, {"format": "pt"})


def shard(folder, *, first, second, index=None):
    """Write two files: the embedding in the first, the rest in the second, times these factors."""
    put(folder, SHARDS[0], first, keep=lambda name: "embed" in name)
    put(folder, SHARDS[1], second, keep=lambda name: "embed" not in name)
    places = {name: SHARDS["embed" not in name] for name in load_file(folder / "one")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index or places}))


@pytest.mark.parametrize(
    ("present", "factors", "read", "unread"),
    [
        ({"shards": 3}, (3, 3), list(SHARDS), []),
        (
            {"single": 2, "shards": 3, "bin": 5},
            (2, 2),
            ["model.safetensors"],
            [*SHARDS, "model.safetensors.index.json", "pytorch_model.bin"],
        ),
        (
            {"single": 2, "bin": 5, "fp16": 7},
            (2, 2),
            ["model.safetensors"],
            ["model.fp16.safetensors", "pytorch_model.bin"],
        ),
        (
            {"shards": 3, "bin": 5, "mistral": 7},
            (3, 3),
            list(SHARDS),
            ["consolidated.safetensors", "pytorch_model.bin"],
        ),
        ({"bin": 5, "fp16": 7}, (5, 5), ["pytorch_model.bin"], ["model.fp16.safetensors"]),
    ],
)
def test_the_files_are_those_that_transformers_reads(model, present, factors, read, unread):
    names = {
        "single": "model.safetensors", "bin": "pytorch_model.bin", "fp16": "model.fp16.safetensors",
        "mistral": "consolidated.safetensors",
    }  # fmt: skip
    wanted = load_file((model / "model.safetensors").rename(model / "one"))
    for what, factor in present.items():
        if what == "shards":
            shard(model, first=factor, second=factor)
        else:
            put(model, names[what], factor)
    found = find_weights(model)
    assert [path.name for path in found.read] == read
    assert found.unread == unread
    loaded = load_causal_lm(model).state_dict()
    for name, factor in zip(("model.embed_tokens.weight", "lm_head.weight"), factors, strict=True):
        assert torch.equal(loaded[name], wanted[name] * factor)
    if unread:
        assert found.note is not None
        assert f"{model}: reading weights from {found.index.name if found.index else read[0]}, like" in found.note
        assert all(name in found.note for name in unread[:3])
        assert found.note.endswith(" and 1 more") == (len(unread) > 3)
    else:
        assert found.note is None


def test_an_outdated_index_is_ignored_or_refused(model):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "gone.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in find_weights(model).read] == ["model.safetensors"]
    (model / "model.safetensors").rename(model / "other.safetensors")
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file, but model\.safetensors\.index\.json"):
        find_weights(model)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"weight_map": {"a": "b"}}',
        '{"metadata": {}}',
        '{"metadata": {}, "weight_map": {"a": 1}}',
        '{"metadata": {}, "weight_map": {}}',
        '{"metadata": {}, "weight_map": ["a"]}',
        "\xff",
    ],
)
def test_a_damaged_index(model, content):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        find_weights(model)


def test_links_to_nowhere(model):
    weights = model / "model.safetensors"
    weights.unlink()
    weights.symlink_to(model / "blob")
    with pytest.raises(UserError, match=r"found: model\.safetensors \(a broken symbolic link\)"):
        find_weights(model)
    (model / "pytorch_model.bin").touch()
    assert find_weights(model).unread == ["model.safetensors (a broken symbolic link)"]


def test_adapters_next_to_weights_are_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UserError, match=r"contains adapter_config\.json, so transformers would load the model"):
        load_causal_lm(model)


def save_tokenizer(folder, **config):
    """A tokenizer that adds no beginning token by default; `config` is its tokenizer_config.json."""
    tokenizer: Any = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B", special_tokens=[("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "TokenizersBackend"},
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True},
        {"tokenizer_class": "LlamaTokenizer", "backend": "tokenizers"},
    ],
)
def test_tokenizers_of_transformers_5_follow_their_file(tmp_path, config):
    folder = save_tokenizer(tmp_path / "newer", **config, extra_special_tokens=["<|user|>"], chat_template="{{ 1 }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer("one two").input_ids == [4, 5, 2]
    assert tokenizer("<|user|>one").input_ids == [3, 4, 2]  # a special token, which is split off
    assert tokenizer.additional_special_tokens == ["<|user|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == ("<s>", "</s>", "{{ 1 }}")
    assert len(tokenizer) == len(VOCAB)


def test_tokenizers_of_transformers_4_follow_its_rules(tmp_path):
    folder = save_tokenizer(tmp_path / "older", tokenizer_class="LlamaTokenizer")
    assert load_tokenizer(folder)("one").input_ids == AutoTokenizer.from_pretrained(folder)("one").input_ids == [1, 4]
    listed = save_tokenizer(tmp_path / "list", tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens=[])
    assert load_tokenizer(listed)("one").input_ids == [4, 2]
    named = save_tokenizer(
        tmp_path / "named", tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens={"user_token": "<|user|>"}
    )
    assert load_tokenizer(named).user_token == "<|user|>"


def test_a_template_in_a_separate_file_comes_first(tmp_path):
    folder = save_tokenizer(tmp_path / "two", tokenizer_class="TokenizersBackend", chat_template="old")
    (folder / "chat_template.jinja").write_text("new")
    assert load_tokenizer(folder).chat_template == "new"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tokenizer_class": "MistralCommonBackend"}, "MistralCommonBackend.*; transformers 5 wrote it: use the"),
        ({"tokenizer_class": "LlamaTokenizer", "backend": "sentencepiece"}, "'sentencepiece' needs transformers 5"),
        ({"tokenizer_class": "NoSuchTokenizer"}, "NoSuchTokenizer does not exist or is not currently imported.*[)]$"),
        ({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": "<|user|>"}, "str"),
    ],
)
def test_an_unreadable_tokenizer_is_refused_with_the_reason(tmp_path, config, said):
    folder = save_tokenizer(tmp_path / "odd", **config)
    with pytest.raises(UserError, match=f"odd: transformers .* cannot load a Hugging Face tokenizer from it .*{said}"):
        load_tokenizer(folder)


def test_a_missing_folder_is_not_looked_up_on_a_hub(tmp_path):
    with pytest.raises(UserError, match="gone: no such tokenizer folder"):
        load_tokenizer(tmp_path / "gone")


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3])
def test_rotary_settings_of_transformers_5(model, scaling):
    """transformers 4 does not know their new names, and would silently use its default base."""
    config = json.loads((model / "config.json").read_text())
    frequencies = []
    for change in (
        {"rope_theta": 50000.0, "rope_scaling": scaling},
        {"rope_parameters": {"rope_theta": 50000.0, **(scaling or {"rope_type": "default"})}},
        {},
    ):
        older = {key: value for key, value in config.items() if not key.startswith("rope_")}
        (model / "config.json").write_text(json.dumps(older | change))
        frequencies.append(load_causal_lm(model).model.rotary_emb.inv_freq)
    assert torch.equal(frequencies[0], frequencies[1])
    assert not torch.equal(frequencies[0], frequencies[2])


def test_rotary_settings_that_transformers_4_cannot_follow(model):
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json has per-layer rope_parameters, which need transformers 5"):
        load_causal_lm(model)


@pytest.mark.parametrize(("used", "window"), [(False, None), (True, 16)])
def test_a_window_that_is_not_used_is_none(tmp_path, used, window):
    """Published Qwen2 models have a size and `use_sliding_window: false`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(
        hidden_size=16, intermediate_size=16, vocab_size=32, sliding_window=16, use_sliding_window=used, **sizes
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"sliding_window": 16}))
    assert load_causal_lm(tmp_path).config.sliding_window == window
