"""Each planted mistake in the weights is named, with the affected layers; correct weights have none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_convert_round_trip import read_all, rewrite, unpack
from tiny_hf import config_of, write_hf
from torch import Tensor

from nemo_minordpo.convert import mapping
from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.diagnosis import compare_epsilons, compare_rotation, compare_weights
from nemo_minordpo.convert.facts import facts_from_config
from nemo_minordpo.convert.hf_folder import HfWeights
from nemo_minordpo.convert.hf_to_nemo import import_hf

LAYERS = 3
ATTENTION, MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."


def named(hf: Path, wrong: Path, tmp_path: Path, **options: Any) -> list[str]:
    """Findings for a `.nemo` made from `wrong` but compared with `hf`."""
    import_hf(wrong, tmp_path / "wrong.nemo", overwrite=True, **options)
    shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
    checkpoint = Checkpoint(unpack(tmp_path / "wrong.nemo", tmp_path / "unpacked") / "model_weights")
    facts = facts_from_config(json.loads((hf / "config.json").read_text()), where="config.json")
    return [str(finding) for finding in compare_weights(checkpoint, HfWeights(hf, facts), facts)]


def swapped(tensors: dict[str, Tensor], one: str, other: str, layers: range) -> dict[str, Tensor | None]:
    names = [(one.format(layer), other.format(layer)) for layer in layers]
    return {a: tensors[b] for a, b in names} | {b: tensors[a] for a, b in names}


def paired(part: Tensor) -> Tensor:
    """Turn the halves (0, 1) and (2, 3) of a head of size 4 into pairs (0, 2) and (1, 3)."""
    return part.reshape(-1, 4, *part.shape[1:])[:, [0, 2, 1, 3]].reshape(part.shape)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", "qwen2")


@pytest.fixture
def wrong(hf: Path, tmp_path: Path) -> Path:
    return shutil.copytree(hf, tmp_path / "wrong")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_right_weights(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    hf = write_hf(tmp_path / "hf", dtype=dtype, tie_word_embeddings=tied, torch_dtype=str(dtype)[6:])
    assert named(hf, hf, tmp_path) == []
    assert named(hf, hf, tmp_path, dtype="float32") == []  # float32 can represent every bfloat16


SWAPS = {
    "gate and up are swapped": (MLP + "gate_proj.weight", MLP + "up_proj.weight"),
    "keys and values are swapped": (ATTENTION + "k_proj.weight", ATTENTION + "v_proj.weight"),
}


@pytest.mark.parametrize("said", SWAPS)
@pytest.mark.parametrize(
    ("layers", "where"), [(range(LAYERS), "in every layer"), (range(1, 2), "in layer 1 of 3")], ids=["all", "one"]
)
def test_swaps(hf: Path, wrong: Path, tmp_path: Path, said: str, layers: range, where: str) -> None:
    rewrite(wrong, swapped(read_all(hf), *SWAPS[said], layers))
    (found,) = named(hf, wrong, tmp_path)
    assert found.endswith(f"{where}: {said}")
    assert all(name.removeprefix("model.layers.{}.") in found for name in SWAPS[said])


def test_swapped_norms(hf: Path, wrong: Path, tmp_path: Path) -> None:
    names = [f"model.layers.{{}}.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")]
    rewrite(wrong, swapped(read_all(hf), names[0], names[1], range(2)))
    first, second = named(hf, wrong, tmp_path)
    assert first == (
        "input_layernorm.weight in layers 0, 1 of 3: holds the weights of post_attention_layernorm: "
        "the two norms are swapped"
    )
    assert second.startswith(
        "post_attention_layernorm.weight in layers 0, 1 of 3: holds the weights of input_layernorm"
    )


def test_mistakes_are_seen_through_rounding(hf: Path, wrong: Path, tmp_path: Path) -> None:
    rewrite(wrong, swapped(read_all(hf), *SWAPS["gate and up are swapped"], range(LAYERS)))
    found = named(hf, wrong, tmp_path, dtype="bfloat16")
    assert "mlp.gate_proj.weight, mlp.up_proj.weight in every layer: gate and up are swapped" in found
    assert "mlp.down_proj.weight in every layer: rounded to bfloat16 in the checkpoint only" in found


def plain(parts: list[Tensor], facts: Any) -> Tensor:
    return torch.cat(parts)


def rotated(parts: list[Tensor], facts: Any) -> Tensor:
    q, k, v = parts
    return mapping.join_qkv([paired(q), paired(k), v], facts)


@pytest.mark.parametrize(
    ("join", "said"),
    [
        (plain, "QKV order: [q; k; v] concatenated plainly instead of interleaved by group"),
        (rotated, "rotary halves interleaved (q and k permuted)"),
    ],
)
def test_wrong_layouts(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: Callable[..., Tensor], said: str
) -> None:
    monkeypatch.setattr(mapping, "QKV", mapping.Layout(join, mapping.split_qkv))
    import_hf(hf, tmp_path / "wrong.nemo")
    monkeypatch.undo()
    unpacked = unpack(tmp_path / "wrong.nemo", tmp_path / "unpacked")
    facts = facts_from_config(json.loads((hf / "config.json").read_text()), where="config.json")
    findings = compare_weights(Checkpoint(unpacked / "model_weights"), HfWeights(hf, facts), facts)
    assert [str(finding) for finding in findings] == [
        f"{', '.join(f'self_attn.{part}_proj.{kind}' for part in 'qkv')} in every layer: {said}"
        for kind in ("weight", "bias")
    ]


def test_interleaving_is_recognised_in_both_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For heads of size 8 the permutation is not its own inverse."""
    hf = write_hf(tmp_path / "hf", head_dim=8)
    for order, said in (
        ([0, 4, 1, 5, 2, 6, 3, 7], "interleaved (q"),
        ([0, 2, 4, 6, 1, 3, 5, 7], "interleaved the other"),
    ):

        def join(parts: list[Tensor], facts: Any, order: list[int] = order) -> Tensor:
            q, k = (part.reshape(-1, 8, 24)[:, order].reshape(-1, 24) for part in parts[:2])
            return mapping.join_qkv([q, k, parts[2]], facts)

        monkeypatch.setattr(mapping, "QKV", mapping.Layout(join, mapping.split_qkv))
        import_hf(hf, tmp_path / "wrong.nemo", overwrite=True)
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
        unpacked = unpack(tmp_path / "wrong.nemo", tmp_path / "unpacked")
        facts = facts_from_config(json.loads((hf / "config.json").read_text()), where="config.json")
        (finding,) = compare_weights(Checkpoint(unpacked / "model_weights"), HfWeights(hf, facts), facts)
        assert said in str(finding)


def test_transposed(hf: Path, wrong: Path, tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    rewrite(wrong, {name: read_all(hf)[name].T.contiguous()})
    assert named(hf, wrong, tmp_path) == ["self_attn.o_proj.weight in layer 2 of 3: transposed"]


def test_other_numbers(hf: Path, wrong: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensor = read_all(hf)[name]
    rewrite(wrong, {name: tensor + 0.01})
    assert named(hf, wrong, tmp_path) == [
        "mlp.down_proj.weight in layer 0 of 3: different numbers (another model, or trained since)"
    ]
    rewrite(wrong, {name: tensor * (1 + 2e-7)})
    assert "by less than 1e-5 of the largest value: float32 rounding" in named(hf, wrong, tmp_path)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding(hf: Path, tmp_path: Path, dtype: str) -> None:
    found = named(hf, hf, tmp_path, dtype=dtype)
    assert len(found) == 10  # rows of the mapping table; norms and biases, too
    assert all(f"rounded to {dtype} in the checkpoint only" in line for line in found)
    half = shutil.copytree(hf, tmp_path / "half")
    rewrite(half, {name: tensor.to(getattr(torch, dtype)) for name, tensor in read_all(hf).items()})
    assert all(f"rounded to {dtype} in the Hugging Face side" in line for line in named(half, hf, tmp_path))
    # the same numbers, stored in the wider type
    rewrite(half, {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in read_all(hf).items()})
    assert all(f"rounded to {dtype} in the checkpoint" in line for line in named(hf, half, tmp_path))


def test_a_dropped_head(hf: Path, wrong: Path, tmp_path: Path) -> None:
    rewrite(wrong, {"lm_head.weight": None})
    (wrong / "config.json").write_text(json.dumps(config_of("qwen2", tie_word_embeddings=True)))
    assert named(hf, wrong, tmp_path) == [
        "lm_head.weight: missing in the checkpoint, which uses the embedding instead: the head was dropped"
    ]


def test_an_untied_head(tmp_path: Path) -> None:
    tied = write_hf(tmp_path / "tied", tie_word_embeddings=True)
    untied = shutil.copytree(tied, tmp_path / "untied")
    (untied / "config.json").write_text(json.dumps(config_of(tie_word_embeddings=False)))
    embedding = read_all(tied)["model.embed_tokens.weight"]
    rewrite(untied, {"lm_head.weight": embedding.clone()})
    assert named(tied, untied, tmp_path) == []
    rewrite(untied, {"lm_head.weight": embedding * 1.01})
    (found,) = named(tied, untied, tmp_path)
    assert found.startswith("lm_head.weight: separate from the embedding in the checkpoint")
    assert "the head was untied" in found


def test_a_smaller_vocabulary_and_a_missing_tensor(hf: Path, tmp_path: Path) -> None:
    small = write_hf(tmp_path / "small", vocab_size=100)  # Llama has no biases
    found = named(hf, small, tmp_path)
    assert "model.embed_tokens.weight: shape (128, 24) instead of (131, 24)" in found
    biases = ", ".join(f"self_attn.{part}_proj.bias" for part in "qkv")
    assert f"{biases} in every layer: missing in the checkpoint" in found


def frequencies(base: float, size: int = 16) -> Tensor:
    return 1.0 / base ** (torch.arange(0, size, 2) / size)


def test_rotation() -> None:
    right = frequencies(10000.0)
    assert compare_rotation(right, right.clone()) == ""
    assert compare_rotation(right, frequencies(500000.0)) == ("wrong rotary base: NeMo uses 500000, Hugging Face 10000")
    assert "NeMo rotates 0.5 times as far" in compare_rotation(right, right / 2)
    scaled = torch.where(torch.arange(8) > 4, right / 8, right)
    assert "rope_scaling" in compare_rotation(scaled, right)
    assert "rotate 8 of a head's dimensions instead of 16" in compare_rotation(right, right[:4])
    # a head of size 2 has one frequency, which does not determine the base
    assert compare_rotation(frequencies(10.0, 2), frequencies(20.0, 2)) == ""


def test_epsilons() -> None:
    assert compare_epsilons({1e-5}, {1e-5}) == ""
    assert compare_epsilons({1e-5}, {1e-6}) == ("wrong rms_norm_eps: NeMo's norms have [1e-06], Hugging Face's [1e-05]")
