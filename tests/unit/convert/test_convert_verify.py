"""The figures of a verification, worked by hand, and the choice of texts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_minordpo.convert.tokenizers import tokenizer_problems
from nemo_minordpo.convert.verify import _hf_model, _sample, compare_logits
from tests.tiny import write_model

WANTED = [torch.tensor([[1.0, 2.0], [4.0, 3.0]]), torch.tensor([[0.0, -1.0]])]


def test_figures_worked_by_hand() -> None:
    """Differences 0, 0.5, 0, 2, 0, 0 over three tokens; for the second token the argmax differs."""
    found = [torch.tensor([[1.0, 2.5], [4.0, 5.0]]), torch.tensor([[0.0, -1.0]])]
    result = compare_logits(found, WANTED, tolerance=2.0)
    assert result.max_difference == 2.0
    assert result.mean_difference == pytest.approx(2.5 / 6)
    assert result.argmax_agreement == pytest.approx(2 / 3)
    assert result.num_tokens == 3
    assert result.passed
    assert not compare_logits(found, WANTED, tolerance=1.99).passed
    assert not replace(result, mean_tolerance=0.4).passed
    assert replace(result, mean_tolerance=0.42).passed


def test_nan_never_passes() -> None:
    found = [WANTED[0], torch.tensor([[0.0, float("nan")]])]
    assert not compare_logits(found, WANTED, tolerance=1e9).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hugging_face_folder_that_is_not_finite_is_refused_by_tensor(tmp_path: Path, value: float) -> None:
    write_model(tmp_path, num_hidden_layers=2)
    _hf_model(tmp_path, torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite: model\.layers\.1\.mlp\.down_proj\.weight$"):
        _hf_model(tmp_path, torch.float32)


def test_pairs_are_drawn_by_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} ", "chosen_response": "right", "rejected_response": "wrong"} for i in range(50)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {f"{i} right" for i in range(50)}
    drawn = [_sample(file, 8, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    for sample in drawn:
        assert len(set(sample)) == 8
        assert set(sample) <= texts
    assert set(_sample(file, 50, 3)) == set(_sample(file, 99, 3)) == texts
    # every pair has a chance, including the last ones
    assert {text for seed in range(60) for text in _sample(file, 8, seed)} == texts


def test_a_missing_tokenizer_is_not_a_difference(tmp_path: Path) -> None:
    assert tokenizer_problems([tmp_path / "nowhere"], tmp_path, []) is None
