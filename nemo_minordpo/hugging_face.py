"""Read Hugging Face folders as transformers does: weight files, tokenizer, model.

All stages use this module, so that all read the same files. transformers 4 silently ignores keys that it does not know,
and transformers 5 writes such keys: the rotary base would become 10,000, and a tokenizer might add a BOS. This module
reads folders of transformers 5 correctly with transformers 4, too.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED, _PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_IN_ORDER = (WEIGHTS, INDEX, _PICKLED, _PICKLED_INDEX)  # transformers takes the first that exists
# Files that may be mistaken for the weights.
_LOOKS_LIKE_WEIGHTS = re.compile(r".*\.(safetensors|gguf)|(pytorch_model|consolidated).*\.(bin|pth?)|.*\.index\.json")
_ADAPTERS = "adapter_config.json"
_MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The weight files of a folder.

    read: the files with weights, in the order that transformers reads them; if tensors share a name, the last one wins.
    index: the index file; None if there is a single weight file.
    names: the tensors listed in the index; None = all tensors in the file.
    unread: names of other files in the folder that resemble weights.
    """

    read: list[Path]
    index: Path | None
    names: frozenset[str] | None
    unread: list[str]

    @property
    def note(self) -> str | None:
        """One line for the user about files that are not read; None if all are read."""
        if not self.unread:
            return None
        source = self.index or self.read[0]
        return f"{source.parent}: reading weights from {source.name}, like transformers, not from {self._others()}"

    def _others(self) -> str:
        shown, more = self.unread[:3], len(self.unread) - 3
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def find_weights(folder: Path) -> WeightFiles:
    """The files that transformers reads when it loads the folder; `model.safetensors` takes precedence over all others.

    Raises:
        UserError: there are none; the index is damaged or lists a missing file; or the folder contains adapters, so
            that transformers would load the model that they name.
    """
    if (folder / _ADAPTERS).is_file():
        raise UserError(
            f"{folder}: contains {_ADAPTERS}, so transformers would load the model named there and add adapters: "
            f"merge them into the weights or, if the weights are complete, remove {_ADAPTERS}"
        )
    similar = sorted(path.name for path in folder.iterdir() if _LOOKS_LIKE_WEIGHTS.fullmatch(path.name))
    first = next((folder / name for name in _IN_ORDER if (folder / name).is_file()), None)
    if first is None:
        found = ", ".join(name + _broken(folder / name) for name in similar)
        raise UserError(f"{folder}: contains neither {WEIGHTS} nor {INDEX}" + (f"; found: {found}" if found else ""))
    places = _read_index(first) if first.suffix == ".json" else None
    read = [first] if places is None else [folder / name for name in sorted(set(places.values()))]
    for path in read:
        if not path.is_file():
            raise UserError(f"{path}: no such file{_broken(path)}, but {first.name} lists it; download it again")
    taken = {first, *read}
    return WeightFiles(
        read=read,
        index=None if places is None else first,
        names=None if places is None else frozenset(places),
        unread=[name + _broken(folder / name) for name in similar if folder / name not in taken],
    )


def load_tokenizer(folder: Path, *, needs_eos: bool = False) -> Any:
    """Load the tokenizer of a folder, as `AutoTokenizer` would.

    Args:
        folder: Hugging Face folder.
        needs_eos: require an EOS token, with which training ends responses.

    Raises:
        UserError: the folder is missing, the installed transformers cannot load a tokenizer from it, or the tokenizer
            has no EOS token.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder")
    return find_tokenizer(folder, needs_eos=needs_eos, local_files_only=True)


def find_tokenizer(name: Path | str, *, needs_eos: bool = False, **options: Any) -> Any:
    """Like `load_tokenizer`, but also accepts a name on the Hugging Face hub.

    Args:
        name: path of a folder, or name on the hub.
        needs_eos: as in `load_tokenizer`.
        options: for `AutoTokenizer.from_pretrained`.
    """
    tokenizer = _tokenizer(name, options)
    if needs_eos and tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no EOS token, which training needs to end responses")
    return tokenizer


def _tokenizer(name: Path | str, options: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config: Mapping[str, Any] = {}
    try:
        config = get_tokenizer_config(name, **options)
        if _has_transformers_5():
            return transformers.AutoTokenizer.from_pretrained(name, **options)
        return _tokenizer_class(config).from_pretrained(name, **_special_tokens(config), **options)
    except Exception as error:  # file readers raise anything
        raise UserError(
            f"{name}: transformers {transformers.__version__} cannot load a Hugging Face tokenizer from it "
            f"({error}){_advice(config)}"
        ) from error


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that determine a model's output; manifests and optimizer checkpoints do not."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in _MODEL_FILES and path.name != file_names.MANIFEST
    )


def load_causal_lm(folder: Path, **options: Any) -> Any:
    """Load the model of a folder, as `AutoModelForCausalLM` would.

    Args:
        folder: Hugging Face folder.
        options: for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        UserError: there are no weights, there are adapters, or the installed transformers cannot load the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    find_weights(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not _has_transformers_5():
            for key, value in _rotary_settings(getattr(config, "rope_parameters", None)).items():
                setattr(config, key, value)
        if not getattr(config, "use_sliding_window", True):
            # Qwen2 keeps the size of a window that it does not use, and transformers warns of it
            config.sliding_window = None
        return AutoModelForCausalLM.from_pretrained(folder, config=config, local_files_only=True, **options)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a causal language model ({error})") from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        places = content["weight_map"]
        if not places or not all(isinstance(file, str) for file in places.values()):
            raise TypeError("weight_map must map tensor names to file names")
        content["metadata"]  # transformers requires it
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); download it again") from error
    return places


def _broken(path: Path) -> str:
    return " (a broken symbolic link)" if path.is_symlink() and not path.exists() else ""


def _has_transformers_5() -> bool:
    import transformers

    return int(transformers.__version__.partition(".")[0]) >= 5


def _tokenizer_class(config: Mapping[str, Any]) -> Any:
    """The class that loads a tokenizer in transformers 4, given its `tokenizer_config.json`.

    transformers 5 follows `tokenizer.json` and saves nothing else. In particular the config no longer has
    `add_bos_token`, for which the classes of transformers 4 have their own defaults.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name, backend = config.get("tokenizer_class"), config.get("backend")
    if backend not in (None, "tokenizers"):
        raise UserError(f"backend {backend!r} needs transformers 5")
    if backend is None and name != "TokenizersBackend":
        return AutoTokenizer
    # named as in the config, to avoid a warning about a different class
    return type(str(name), (PreTrainedTokenizerFast,), {})


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """`extra_special_tokens` for transformers 4, where it is a mapping and a list has a different name."""
    extra = config.get("extra_special_tokens")
    if not isinstance(extra, list):
        return {}
    return {"extra_special_tokens": {}, **({"additional_special_tokens": extra} if extra else {})}


def _advice(config: Mapping[str, Any]) -> str:
    if "backend" in config or str(config.get("tokenizer_class")).endswith("Backend"):
        return "; transformers 5 wrote it: use the tokenizer files that the model was published with"
    return ""


def _rotary_settings(parameters: Any) -> dict[str, Any]:
    """`rope_parameters` of transformers 5 under the names that transformers 4 reads."""
    if not isinstance(parameters, dict):
        return {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UserError("config.json has per-layer rope_parameters, which need transformers 5")
    settings = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    scaling = {key: value for key, value in parameters.items() if key not in settings}
    return settings | {"rope_scaling": scaling if scaling.get("rope_type", "default") != "default" else None}
