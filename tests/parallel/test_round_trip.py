"""Models that NeMo loaded and saved at a layout export bit for bit as imported, and NeMo's files match ours."""

import pickle
import tarfile

import pytest
import torch
from safetensors.torch import load_file

from nemo_minordpo.convert.nemo_to_hf import export_hf
from tests.parallel.round_trip import ARCHITECTURES, LAYOUTS, architectures_of

RUNS_OF = ("round trips",)

CASES = [(layout, name) for layout in LAYOUTS for name in architectures_of(layout)]


def test_every_architecture_is_there():
    """Each at TP1, at a TP that divides it, and at PP2."""
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


def layout_of(nemo):
    """{tensor: (shape, chunks)} and the other objects of a `.nemo`."""
    with tarfile.open(nemo) as archive:
        metadata = pickle.load(archive.extractfile("./model_weights/.metadata")).state_dict_metadata
    tensors = {key: value for key, value in metadata.items() if hasattr(value, "chunks")}
    return {
        key: (tuple(value.size), sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in value.chunks))
        for key, value in tensors.items()
    }, metadata.keys() - tensors.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_checkpoint_is_laid_out_as_nemo_writes_it(runs, name):
    """As at TP=1, except for embedding and head, which are split as for eight ranks."""
    folder = runs.path / "architectures"
    (ours, our_objects), (theirs, their_objects) = (
        layout_of(folder / part) for part in (f"{name}.nemo", f"one/{name}.nemo")
    )
    for table in ours.keys() & {"model.embedding.word_embeddings.weight", "model.output_layer.weight"}:
        ((rows, width), chunks), (size, _) = ours.pop(table), theirs.pop(table)
        assert (rows, width) == size
        assert chunks == [((start, 0), (rows // 8, width)) for start in range(0, rows, rows // 8)]
    assert ours == theirs
    assert len(ours) >= 7
    # NeMo without Transformer Engine requests fewer extra states than with it
    assert their_objects < our_objects
