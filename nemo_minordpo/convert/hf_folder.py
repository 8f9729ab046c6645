"""Read and write the weights of Hugging Face folders, one tensor in memory at a time.

Reading opens the file anew for each tensor, because pages read through a memory map stay resident as long as the map
exists. Writing lays out the files before any tensor is available; safetensors' own writer cannot do that, since it
needs all tensors of a file at once.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_minordpo.convert.facts import ModelFacts
from nemo_minordpo.convert.mapping import mapping_table
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import INDEX, WEIGHTS, find_weights

MAX_SHARD_BYTES = 5 * 10**9  # transformers' own limit, "5GB"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SAFETENSORS_NAMES = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}

# Rotary frequencies, which transformers before 4.32 saved although they follow from the config.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"


class HfWeights:
    """The tensors of a Hugging Face folder, checked against the model's facts on opening and read one at a time."""

    def __init__(self, folder: Path, facts: ModelFacts) -> None:
        """Read the files' headers and check names, shapes and types against the config.

        Raises:
            UserError: no safetensors, a damaged file, a missing or unknown tensor, or a wrong shape or type.
        """
        self.folder, self.found = folder, find_weights(folder)
        if (first := self.found.read[0]).suffix != ".safetensors":
            raise UserError(f"{first}: pickled weights: load the model and save it with safe_serialization=True first")
        self._files = self._places()
        self.dtypes: dict[str, torch.dtype] = {}
        self._check(_expected_shapes(facts))

    def read(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            with _open_safetensors(path) as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: {name} cannot be read ({error})") from error

    def _places(self) -> dict[str, Path]:
        """Tensor name -> file, as transformers reads them: tensors missing from an index are ignored."""
        names = {name: path for path in self.found.read for name in _open_safetensors(path).keys()}  # noqa: SIM118
        return {name: path for name, path in names.items() if self.found.names is None or name in self.found.names}

    def _check(self, expected: dict[str, tuple[int, ...]]) -> None:
        missing = sorted(set(expected) - set(self._files))
        if missing:
            raise UserError(f"{self.folder}: {_some(missing)} missing, but config.json requires it")
        unknown = sorted(name for name in set(self._files) - set(expected) if not name.endswith(_DERIVED_SUFFIX))
        if unknown == ["lm_head.weight"]:  # known unless the model is tied
            self._require_tied_head()
        elif unknown:
            raise UserError(f"{self.folder}: {_some(unknown)} present, but not part of such a model")
        files = {path: _open_safetensors(path) for path in {self._files[name] for name in expected}}
        for name, shape in expected.items():
            path = self._files[name]
            header = files[path].get_slice(name)
            if (found := tuple(header.get_shape())) != shape:
                raise UserError(f"{path}: {name} has shape {found}, but config.json implies {shape}")
            if header.get_dtype() not in _SAFETENSORS_DTYPES:
                known = ", ".join(_SAFETENSORS_DTYPES)
                raise UserError(f"{path}: {name} has type {header.get_dtype()}; only {known} can be converted")
            self.dtypes[name] = _SAFETENSORS_DTYPES[header.get_dtype()]

    def _require_tied_head(self) -> None:
        if not torch.equal(self.read("lm_head.weight"), self.read("model.embed_tokens.weight")):
            raise UserError(
                f"{self.folder}: lm_head.weight differs from model.embed_tokens.weight, but config.json says "
                "tie_word_embeddings=true, which would ignore lm_head.weight: set it to false, or remove lm_head.weight"
            )


@dataclass
class _Shard:
    """A safetensors file being written: eight bytes for the header's length, the header, then the tensors in turn."""

    path: Path
    described: dict[str, Tensor] = field(default_factory=dict)  # on the meta device
    places: dict[str, int] = field(default_factory=dict)  # first byte in the file

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.described.values())

    def lay_out(self) -> None:
        """Write the header."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # widest types first, so that each tensor starts at a multiple of its type's size
        for name, tensor in sorted(self.described.items(), key=lambda item: -item[1].itemsize):
            start, end = end, end + tensor.nbytes
            dtype = _SAFETENSORS_NAMES[tensor.dtype]
            header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
            self.places[name] = start
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self.path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
        self.places = {name: 8 + len(encoded) + start for name, start in self.places.items()}

    def write(self, name: str, tensor: Tensor) -> None:
        wanted = self.described[name]
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"{name}: read {tensor.dtype} {tuple(tensor.shape)}, "
                f"but planned for {wanted.dtype} {tuple(wanted.shape)}"
            )
        with self.path.open("r+b") as file:
            file.seek(self.places.pop(name))
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def write_weights(
    folder: Path,
    described: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write tensors as `model.safetensors`, or as numbered shards with an index if they exceed one shard.

    Args:
        folder: an existing folder.
        described: all tensors by name, on the meta device: their types and shapes determine the layout of the files.
        tensors: the same names with their tensors, in any order; one is in memory at a time.
        max_shard_bytes: maximum size of a shard (a single larger tensor gets a larger shard).

    Returns:
        Bytes of all tensors.

    Raises:
        ValueError: `tensors` do not match `described`.
    """
    shards = _plan_shards(folder, described, max_shard_bytes=max_shard_bytes)
    shard_of = {name: shard for shard in shards for name in shard.described}
    for shard in shards:
        shard.lay_out()
    for name, tensor in tensors:
        shard_of[name].write(name, tensor)
        del tensor  # before the next one is read
    missing = sorted(name for shard in shards for name in shard.places)
    if missing:
        raise ValueError(f"{folder}: {_some(missing)} planned, but never written")
    total = sum(shard.num_bytes for shard in shards)
    if len(shards) > 1:
        places = {name: shard.path.name for name, shard in shard_of.items()}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _plan_shards(folder: Path, described: Mapping[str, Tensor], *, max_shard_bytes: int) -> list[_Shard]:
    shards = [_Shard(folder / WEIGHTS)]
    for name, tensor in described.items():
        if shards[-1].described and shards[-1].num_bytes + tensor.nbytes > max_shard_bytes:
            shards.append(_Shard(folder))
        shards[-1].described[name] = tensor
    if len(shards) > 1:
        for number, shard in enumerate(shards, start=1):
            shard.path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
    return shards


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The type named on the command line; None stays None.

    Raises:
        UserError: unknown name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _expected_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    return {
        name.format(layer): shape
        for row in mapping_table(facts)
        for layer in row.layers(facts)
        for name, shape in row.hf.items()
    }


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error}); download it again") from error


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more + (" is" if len(names) == 1 else " are")
