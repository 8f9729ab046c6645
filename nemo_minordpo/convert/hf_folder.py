"""Hugging Face model folders: weights read and written tensor by tensor, every other file copied byte for byte."""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_minordpo.convert.facts import ModelFacts
from nemo_minordpo.convert.mapping import mapping_table

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # transformers' own limit, "5GB"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# What a model folder holds beside its weights: how text becomes tokens, how chats become text, how to generate.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
SIDECARS = ("config.json", "generation_config.json", *TOKENIZER_FILES, "LICENSE")
_SIDECAR_FOLDERS = ("additional_chat_templates",)
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))

# Rotary frequencies that transformers before 4.32 saved although they follow from the config.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"


class HfWeights:
    """The tensors of a Hugging Face folder, checked against a model's facts when opened, read one at a time."""

    def __init__(self, folder: Path, facts: ModelFacts) -> None:
        """Open the files' headers and compare names, shapes and types with what the config promises.

        Raises:
            ValueError: no safetensors, a damaged file, a missing or unknown tensor, a wrong shape or type.
        """
        self.folder = folder
        self._files = _locate(folder)
        self.dtypes: dict[str, torch.dtype] = {}
        self._handles: dict[Path, Any] = {}
        self._check(_expected_shapes(facts))

    def read(self, name: str) -> Tensor:
        try:
            return self._open(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{self._files[name]}: {name} cannot be read ({error})") from error

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = _open_safetensors(path)
        return self._handles[path]

    def _check(self, expected: dict[str, tuple[int, ...]]) -> None:
        missing = sorted(set(expected) - set(self._files))
        if missing:
            raise ValueError(f"{self.folder}: {_some(missing)} missing, though config.json calls for it")
        unknown = sorted(name for name in set(self._files) - set(expected) if not name.endswith(_DERIVED_SUFFIX))
        if unknown == ["lm_head.weight"]:  # known unless the model is tied
            self._require_tied_head()
        elif unknown:
            raise ValueError(f"{self.folder}: {_some(unknown)} present, but such a model has no place for it")
        for name, shape in expected.items():
            path = self._files[name]
            try:
                header = self._open(path).get_slice(name)
            except SafetensorError as error:
                raise ValueError(f"{path}: {name} is not in it, though {INDEX} says so ({error})") from error
            if tuple(header.get_shape()) != shape:
                found = tuple(header.get_shape())
                raise ValueError(f"{path}: {name} has shape {found}, but config.json makes it {shape}")
            if header.get_dtype() not in _SAFETENSORS_DTYPES:
                known = ", ".join(_SAFETENSORS_DTYPES)
                raise ValueError(f"{path}: {name} has type {header.get_dtype()}; {known} can be converted")
            self.dtypes[name] = _SAFETENSORS_DTYPES[header.get_dtype()]

    def _require_tied_head(self) -> None:
        if not torch.equal(self.read("lm_head.weight"), self.read("model.embed_tokens.weight")):
            raise ValueError(
                f"{self.folder}: lm_head.weight differs from model.embed_tokens.weight, but config.json says "
                "tie_word_embeddings=true, under which it would be ignored: set it to false, or remove lm_head.weight"
            )


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> int:
    """Write tensors as `model.safetensors`, or as numbered shards with an index when they exceed one shard.

    Args:
        folder: where to; existing.
        tensors: names and tensors; taken one by one, so that no more than a shard is in memory.
        max_shard_bytes: a shard is closed before it would exceed this (one larger tensor makes one larger shard).

    Returns:
        Bytes of all tensors.
    """
    shards: list[dict[str, Tensor]] = [{}]
    sizes, places, files = [0], {}, []

    def close() -> None:
        files.append(folder / f"shard-{len(files)}.safetensors")
        files[-1].touch()
        mode = files[-1].stat().st_mode  # safetensors would leave the file to its owner alone
        save_file(shards[-1], files[-1], metadata={"format": "pt"})
        files[-1].chmod(mode)
        shards[-1].clear()

    for name, tensor in tensors:
        if sizes[-1] and sizes[-1] + tensor.nbytes > max_shard_bytes:
            close()
            shards.append({})
            sizes.append(0)
        # a slice shares its storage with its neighbours, which safetensors refuses
        shards[-1][name] = tensor.clone(memory_format=torch.contiguous_format)
        sizes[-1] += tensor.nbytes
        places[name] = len(files)
    close()
    if len(files) == 1:
        files[0].rename(folder / WEIGHTS)
        return sizes[0]
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for path, name in zip(files, names, strict=True):
        path.rename(folder / name)
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: names[number] for name, number in places.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum(sizes)


def copy_sidecars(source: Path, target: Path) -> list[str]:
    """Copy config, tokenizer, chat template and generation config byte for byte; returns the names copied.

    Raises:
        ValueError: `source` holds no tokenizer.
    """
    require_tokenizer(source)
    copied = [name for name in SIDECARS if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    for name in _SIDECAR_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
            copied.append(name)
    return copied


def require_tokenizer(folder: Path) -> None:
    """Raise ValueError unless `folder` holds a tokenizer."""
    if not has_tokenizer(folder):
        wanted = ", ".join(" + ".join(names) for names in _TOKENIZERS)
        raise ValueError(f"{folder}: no tokenizer in it (one of: {wanted}); copy the model's tokenizer files there")


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)


def parse_dtype(name: str | None) -> torch.dtype | None:
    """A type by its name on the command line; None stays None.

    Raises:
        ValueError: unknown name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
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


def _locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index or from the single file's header."""
    index = folder / INDEX
    if index.is_file():
        places = _read_index(index)
        for name in sorted(set(places.values())):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: no such file, though {INDEX} names it")
        return {name: folder / file for name, file in places.items()}
    single = folder / WEIGHTS
    if not single.is_file():
        hint = ""
        with suppress(StopIteration):
            hint = f" ({next(folder.glob('*.bin')).name} is pickled: save the model with safe_serialization first)"
        raise ValueError(f"{folder}: neither {WEIGHTS} nor {INDEX} is in it{hint}")
    return dict.fromkeys(_open_safetensors(single).keys(), single)


def _read_index(path: Path) -> Mapping[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or incomplete ({error}); fetch it again") from error


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more + (" is" if len(names) == 1 else " are")
