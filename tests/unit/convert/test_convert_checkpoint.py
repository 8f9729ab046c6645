"""The distributed checkpoint against torch's own reader and writer, and with parts missing."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from nemo_minordpo.convert.checkpoint import Checkpoint, Chunk, StoredTensor, write_checkpoint

STACKED = torch.arange(3 * 4 * 5, dtype=torch.float32).reshape(3, 4, 5)
VECTOR = torch.arange(7, dtype=torch.bfloat16)


def chunks_of(tensor: Tensor, *, axis: int, size: int, layers: bool = True) -> list[Chunk]:
    """A grid of chunks: one per layer, and `size` rows or columns wide along `axis`."""

    def grid() -> Iterator[Chunk]:
        for layer in range(tensor.shape[0]) if layers else [None]:
            for start in range(0, tensor.shape[axis], size):
                offsets, sizes = [0] * tensor.ndim, list(tensor.shape)
                offsets[axis], sizes[axis] = start, min(size, tensor.shape[axis] - start)
                if layer is not None:
                    offsets[0], sizes[0] = layer, 1
                block = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
                yield Chunk(tuple(offsets), tuple(sizes), lambda block=block: block)

    return list(grid())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Split as by two tensor-parallel ranks: `stacked` by columns, `vector` by rows."""
    folder = tmp_path / "model_weights"
    tensors = [
        StoredTensor("stacked", (3, 4, 5), torch.float32, chunks_of(STACKED, axis=2, size=3)),
        StoredTensor("vector", (7,), torch.bfloat16, chunks_of(VECTOR, axis=0, size=4, layers=False)),
    ]
    write_checkpoint(folder, tensors, ["norm._extra_state/shard_0_1"])
    return folder


def test_read_back_whole_and_by_layer(written: Path) -> None:
    checkpoint = Checkpoint(written)
    assert checkpoint.tensors == {"stacked": (3, 4, 5), "vector": (7,)}
    assert checkpoint.dtype("vector") == torch.bfloat16
    assert torch.equal(checkpoint.read("stacked"), STACKED)
    assert torch.equal(checkpoint.read("vector"), VECTOR)
    for layer in range(3):
        assert torch.equal(checkpoint.read("stacked", layer=layer), STACKED[layer])


def test_torch_reads_what_was_written(written: Path) -> None:
    state = {"model.stacked": torch.zeros(3, 4, 5), "model.vector": torch.zeros(7, dtype=torch.bfloat16)}
    dcp.load(state, checkpoint_id=written)
    assert torch.equal(state["model.stacked"], STACKED)
    assert torch.equal(state["model.vector"], VECTOR)


def test_what_torch_wrote_is_read_and_other_prefixes_are_left_out(tmp_path: Path) -> None:
    dcp.save({"model.stacked": STACKED, "optimizer.state.exp_avg": VECTOR}, checkpoint_id=tmp_path / "theirs")
    (tmp_path / "theirs" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    checkpoint = Checkpoint(tmp_path / "theirs")
    assert checkpoint.tensors == {"stacked": (3, 4, 5)}
    assert torch.equal(checkpoint.read("stacked", layer=1), STACKED[1])


def test_extra_state_is_a_list_of_one_none(written: Path) -> None:
    metadata = pickle.loads((written / ".metadata").read_bytes())
    key = "model.norm._extra_state/shard_0_1"
    assert isinstance(metadata.state_dict_metadata[key], BytesStorageMetadata)
    (place,) = [value for index, value in metadata.storage_data.items() if index.fqn == key]
    data = (written / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
    assert torch.load(io.BytesIO(data), weights_only=True) == [None]


def test_files_that_megatron_needs(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "common.pt",
        "metadata.json",
    ]
    assert json.loads((written / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert torch.load(written / "common.pt", weights_only=True) == {}


def test_a_block_of_another_size_or_type_is_refused(tmp_path: Path) -> None:
    for wrong in (torch.zeros(8, dtype=torch.bfloat16), torch.zeros(7)):
        chunk = Chunk((0,), (7,), lambda wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"model\.vector: read .*, but planned for"):
            write_checkpoint(tmp_path / str(wrong.dtype), [StoredTensor("vector", (7,), torch.bfloat16, [chunk])], [])


def test_a_gap_between_chunks_is_noticed(tmp_path: Path) -> None:
    chunks = chunks_of(VECTOR, axis=0, size=4, layers=False)[:1]
    write_checkpoint(tmp_path / "gap", [StoredTensor("vector", (7,), torch.bfloat16, chunks)], [])
    with pytest.raises(ValueError, match=r"model\.vector: the stored chunks do not cover"):
        Checkpoint(tmp_path / "gap").read("vector")


def test_damage_is_named(written: Path) -> None:
    data = written / "__0_0.distcp"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.vector: a file is missing or damaged"):
        Checkpoint(written).read("vector")
    data.unlink()
    with pytest.raises(ValueError, match=r"model\.stacked: a file is missing or damaged"):
        Checkpoint(written).read("stacked")
    (written / ".metadata").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"\.metadata: unreadable"):
        Checkpoint(written)
    (written / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"\.metadata: unreadable"):
        Checkpoint(written)


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"sharded_backend": "zarr"}', "format 'zarr'"), ("{}", "format None; only"), ("no json", "invalid JSON")],
)
def test_other_formats_are_refused(written: Path, content: str, said: str) -> None:
    (written / "metadata.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        Checkpoint(written)


def test_no_distributed_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metadata\.json"):
        Checkpoint(tmp_path)


def test_the_names_of_nemo_2_are_read(tmp_path: Path) -> None:
    dcp.save({"module.stacked": STACKED, "optimizer.state.stacked": STACKED}, checkpoint_id=tmp_path / "nemo2")
    (tmp_path / "nemo2" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    checkpoint = Checkpoint(tmp_path / "nemo2")
    assert list(checkpoint.tensors) == ["stacked"]
    assert torch.equal(checkpoint.read("stacked", layer=1), STACKED[1])


def test_other_names_are_refused(tmp_path: Path) -> None:
    dcp.save({"transformer.stacked": STACKED}, checkpoint_id=tmp_path / "other")
    (tmp_path / "other" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    with pytest.raises(ValueError, match=r"starts with 'model\.' or 'module\.' \(found: transformer\.stacked"):
        Checkpoint(tmp_path / "other")
