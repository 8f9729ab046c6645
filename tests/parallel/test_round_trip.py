"""What NeMo loaded and saved at a layout is exported with the bits that were imported."""

import pytest
import torch
from safetensors.torch import load_file

from nemo_minordpo.convert.nemo_to_hf import export_hf
from tests.parallel.round_trip import ARCHITECTURES, LAYOUTS, architectures_of

CASES = [(layout, name) for layout in LAYOUTS for name in architectures_of(layout)]


def test_every_architecture_is_there():
    """And every one at TP1, at a TP that divides it, and at PP2."""
    assert len(CASES) == 4 * len(ARCHITECTURES) - 1  # no TP x PP of the nine heads


@pytest.mark.parametrize(("layout", "name"), CASES, ids=[f"{layout}-{name}" for layout, name in CASES])
def test_every_bit_comes_back(runs, tmp_path, layout, name):
    folder = runs.path / "architectures"
    manifest = export_hf(folder / layout / f"{name}.nemo", tmp_path / "back", tokenizer=folder / name)
    wanted, found = load_file(folder / name / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert manifest.counts["hf_tensors"] == len(found) > 18
    assert wanted.keys() == found.keys()
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype
        assert torch.equal(found[key], wanted[key]), key
    assert (tmp_path / "back" / "config.json").read_bytes() == (folder / name / "config.json").read_bytes()
