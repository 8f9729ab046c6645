"""Read and write Megatron's distributed checkpoints (`torch_dist`) with torch.distributed.checkpoint alone.

On disk every model key starts with `model.`; training checkpoints also have `optimizer.` keys. This module calls
torch's readers and writers directly: `save` and `load` need a process group or guess one, and hold everything in memory
at once.
"""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError

PREFIX = "model."
_NEMO_2_PREFIX = "module."  # in NeMo 2's checkpoints; the rest of the name is the same
BACKEND = "torch_dist"


@dataclass(frozen=True)
class Chunk:
    """A block of a stored tensor. `load` is called once, just before writing, so only one block is in memory.

    Blocks with a lower `turn` are written first; blocks of the same turn keep the order of their tensors.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    load: Callable[[], Tensor]
    turn: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to write: its name without the prefix, its full shape, and the chunks that cover it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[Chunk]


def write_checkpoint(folder: Path, tensors: list[StoredTensor], empty_objects: list[str]) -> None:
    """Write a checkpoint that Megatron-Core can load at any tensor- and pipeline-parallel size.

    Args:
        folder: must not exist, or be empty; created.
        tensors: the tensors to write.
        empty_objects: names (without prefix) of sharded objects with content None, packed as Megatron-Core does.
    """
    blocks = sorted(((t, chunk) for t in tensors for chunk in t.chunks), key=lambda block: block[1].turn)
    loaders = {(PREFIX + tensor.name, chunk.offsets): chunk.load for tensor, chunk in blocks}
    items = [_tensor_item(tensor, chunk) for tensor, chunk in blocks]
    items += [WriteItem(index=MetadataIndex(PREFIX + name), type=WriteItemType.BYTE_IO) for name in empty_objects]
    planner = _WritePlanner(loaders)
    # no copy-ahead: with CUDA, torch would reorder the blocks by size
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1, per_thread_copy_ahead=0)
    writer.set_up_storage_writer(True)
    (plan,) = writer.prepare_global_plan([writer.prepare_local_plan(SavePlan(items))])
    results = writer.write_data(plan, planner).wait()
    described: dict[str, Any] = {PREFIX + name: BytesStorageMetadata() for name in empty_objects}
    described |= {PREFIX + tensor.name: _describe(tensor) for tensor in tensors}
    writer.finish(Metadata(described, planner_data={key: (key,) for key in described}), [results])
    torch.save({}, folder / "common.pt")
    versions = {"sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": BACKEND, **versions}))


class Checkpoint:
    """The model in a distributed checkpoint, read tensor by tensor, whatever parallel layout wrote it.

    `tensors` maps names (without `prefix`) to their shapes, including the layer axis.
    """

    def __init__(self, folder: Path) -> None:
        """Read the checkpoint's table of contents.

        Raises:
            UserError: not a distributed checkpoint in torch's format, damaged, or without a model.
        """
        self.folder = folder
        _require_torch_dist(folder)
        self._reader = FileSystemReader(folder)
        try:
            metadata = self._reader.read_metadata()
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
            raise UserError(f"{folder / '.metadata'}: unreadable ({error}); is the checkpoint complete?") from error
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        keys = metadata.state_dict_metadata
        self.prefix = PREFIX if any(key.startswith(PREFIX) for key in keys) else _NEMO_2_PREFIX
        self._described: dict[str, TensorStorageMetadata] = {
            key.removeprefix(self.prefix): value
            for key, value in keys.items()
            if key.startswith(self.prefix) and isinstance(value, TensorStorageMetadata)
        }
        if not self._described:
            first = ", ".join(sorted(keys)[:3])
            raise UserError(
                f"{folder}: no tensor's name starts with {PREFIX!r} or {_NEMO_2_PREFIX!r} (found: {first}, ...); "
                "expected a checkpoint of NeMo's GPT model"
            )
        self.tensors = {name: tuple(value.size) for name, value in self._described.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._described[name].properties.dtype

    def has_equal_rows(self, one: str, other: str, *, num_rows: int) -> bool:
        """Whether the first rows of two tensors are equal, as they are for a tied head."""
        return torch.equal(self.read(one)[:num_rows], self.read(other)[:num_rows])

    def read(self, name: str, *, layer: int | None = None) -> Tensor:
        """One tensor, or layer `layer` (from 0) of a tensor with a layer axis.

        Raises:
            UserError: the chunks do not cover the tensor, or a file of the checkpoint is missing or damaged.
        """
        described = self._described[name]
        offsets, sizes = [0] * len(described.size), list(described.size)
        if layer is not None:
            offsets[0], sizes[0] = layer, 1
        region = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(self.prefix + name, described, [region])
        if sum(item.lengths.numel() for item in items) != torch.Size(sizes).numel():
            raise UserError(f"{self.folder}: {self.prefix}{name}: the stored chunks do not cover the tensor exactly")
        target = torch.empty(sizes, dtype=described.properties.dtype)
        try:
            self._reader.read_data(LoadPlan(items), _ReadPlanner(target)).wait()
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.folder}: {self.prefix}{name}: a file is missing or damaged ({reason})") from error
        return target if layer is None else target[0]


def _require_torch_dist(folder: Path) -> None:
    path = folder / "metadata.json"
    if not path.is_file():
        raise UserError(f"{folder}: no metadata.json, so this is not a distributed checkpoint of Megatron-Core")
    backend = read_json_object(path).get("sharded_backend")
    if backend != BACKEND:
        raise UserError(f"{path}: format {backend!r}; only {BACKEND!r} can be read: save again with dist_ckpt_format")


def _tensor_item(tensor: StoredTensor, chunk: Chunk) -> WriteItem:
    offsets = torch.Size(chunk.offsets)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets, torch.Size(chunk.sizes)),
        properties=TensorProperties(dtype=tensor.dtype),
        size=torch.Size(tensor.shape),
    )
    return WriteItem(index=MetadataIndex(PREFIX + tensor.name, offsets), type=WriteItemType.SHARD, tensor_data=data)


def _describe(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), chunks)


class _WritePlanner(DefaultSavePlanner):
    """Give the writer each block when its turn comes."""

    def __init__(self, loaders: dict[tuple[str, tuple[int, ...]], Callable[[], Tensor]]) -> None:
        super().__init__()
        self._loaders = loaders

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            # Megatron-Core stores an object as a one-element list; torch's own planner would pickle the bytes again.
            packed = io.BytesIO()
            torch.save([None], packed)
            return packed
        data, offsets = write_item.tensor_data, write_item.index.offset
        assert data is not None
        assert offsets is not None
        block = self._loaders[write_item.index.fqn, tuple(offsets)]()
        if block.dtype != data.properties.dtype or block.numel() != data.chunk.sizes.numel():
            raise ValueError(
                f"{write_item.index.fqn}: read {block.dtype} {tuple(block.shape)}, "
                f"but planned for {data.properties.dtype} {tuple(data.chunk.sizes)}"
            )
        return block.reshape(data.chunk.sizes).contiguous()


class _ReadPlanner(DefaultLoadPlanner):
    """Read into the one requested tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass  # already read in place
