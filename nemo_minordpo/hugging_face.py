"""Hugging Face folders as transformers reads them: which files hold the weights, the tokenizer, the model.

Every stage reads them here, so that all take the same files. transformers 4 passes over what it does not know, and
transformers 5 writes names that it does not know: the rotary base is 10,000 then, and a tokenizer gets another
beginning. What transformers 5 wrote is read here with transformers 4, too.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED, _PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_IN_ORDER = (WEIGHTS, INDEX, _PICKLED, _PICKLED_INDEX)  # transformers takes the first that is there
# What a reader of the folder may take for its weights.
_LOOKS_LIKE_WEIGHTS = re.compile(r".*\.(safetensors|gguf)|(pytorch_model|consolidated).*\.(bin|pth?)|.*\.index\.json")
_ADAPTERS = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """Of a folder.

    read: the files with weights, in the order in which transformers reads them: of two tensors of one name the later
        one counts.
    index: what names them; None where there is one file.
    names: the tensors that the index names, none of which stands for all in the file.
    unread: names of other files in the folder that look like weights.
    """

    read: list[Path]
    index: Path | None
    names: frozenset[str] | None
    unread: list[str]

    @property
    def note(self) -> str | None:
        """One line for people about what is not read; None where all is."""
        if not self.unread:
            return None
        source = self.index or self.read[0]
        return f"{source.parent}: weights are read from {source.name}, as transformers does, not from {self._others()}"

    def _others(self) -> str:
        shown, more = self.unread[:3], len(self.unread) - 3
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def find_weights(folder: Path) -> WeightFiles:
    """The files that transformers reads when it loads the folder: `model.safetensors` first, whatever else is there.

    Raises:
        UserError: there are none, or the index is damaged or names a file that is not there; or the folder holds
            adapters, for which transformers would load the model that they name.
    """
    if (folder / _ADAPTERS).is_file():
        raise UserError(
            f"{folder}: {_ADAPTERS} is in it, so that transformers loads the model which that names and adds adapters: "
            f"merge them into the weights, or, if the weights are whole, take {_ADAPTERS} away"
        )
    similar = sorted(path.name for path in folder.iterdir() if _LOOKS_LIKE_WEIGHTS.fullmatch(path.name))
    first = next((folder / name for name in _IN_ORDER if (folder / name).is_file()), None)
    if first is None:
        found = ", ".join(name + _broken(folder / name) for name in similar)
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX} is in it" + (f"; found: {found}" if found else ""))
    places = _read_index(first) if first.suffix == ".json" else None
    read = [first] if places is None else [folder / name for name in sorted(set(places.values()))]
    for path in read:
        if not path.is_file():
            raise UserError(f"{path}: no such file{_broken(path)}, though {first.name} names it; fetch it again")
    taken = {first, *read}
    return WeightFiles(
        read=read,
        index=None if places is None else first,
        names=None if places is None else frozenset(places),
        unread=[name + _broken(folder / name) for name in similar if folder / name not in taken],
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as `AutoTokenizer` gives it.

    Raises:
        UserError: there is no such folder, or none in it that can be loaded with the transformers here.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder")
    return find_tokenizer(folder, local_files_only=True)


def find_tokenizer(name: Path | str, **options: Any) -> Any:
    """As `load_tokenizer`, by the path of a folder or a name on the Hugging Face hub.

    Args:
        name: what to load.
        options: of `AutoTokenizer.from_pretrained`.
    """
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config: Mapping[str, Any] = {}
    try:
        config = get_tokenizer_config(name, **options)
        if _has_transformers_5():
            return transformers.AutoTokenizer.from_pretrained(name, **options)
        return _tokenizer_class(config).from_pretrained(name, **_special_tokens(config), **options)
    except Exception as error:  # whatever the files' readers have to say
        raise UserError(
            f"{name}: no Hugging Face tokenizer can be loaded from it with transformers {transformers.__version__} "
            f"({error}){_advice(config)}"
        ) from error


def load_causal_lm(folder: Path, **options: Any) -> Any:
    """The model of a folder, as `AutoModelForCausalLM` gives it.

    Args:
        folder: Hugging Face folder.
        options: of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        UserError: there are no weights, or adapters beside them; or the transformers here cannot load what is there.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    find_weights(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not _has_transformers_5():
            for key, value in _rotary_settings(getattr(config, "rope_parameters", None)).items():
                setattr(config, key, value)
        return AutoModelForCausalLM.from_pretrained(folder, config=config, local_files_only=True, **options)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a causal language model ({error})") from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        places = content["weight_map"]
        if not places or not all(isinstance(file, str) for file in places.values()):
            raise TypeError("names of tensors and of files expected in weight_map")
        content["metadata"]  # without which transformers reads none
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); fetch it again") from error
    return places


def _broken(path: Path) -> str:
    return " (a link to a file that is not there)" if path.is_symlink() and not path.exists() else ""


def _has_transformers_5() -> bool:
    import transformers

    return int(transformers.__version__.partition(".")[0]) >= 5


def _tokenizer_class(config: Mapping[str, Any]) -> Any:
    """What loads a tokenizer with transformers 4, by its `tokenizer_config.json`.

    transformers 5 does whatever `tokenizer.json` says and saves no more than that: `add_bos_token`, for which the
    classes of transformers 4 have defaults of their own, is not in the config any more.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name, backend = config.get("tokenizer_class"), config.get("backend")
    if backend not in (None, "tokenizers"):
        raise UserError(f"backend {backend!r} needs transformers 5")
    if backend is None and name != "TokenizersBackend":
        return AutoTokenizer
    # under the name that the config gives it, or a warning says that it is another class
    return type(str(name), (PreTrainedTokenizerFast,), {})


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """`extra_special_tokens` as transformers 4 has it: a mapping, a list of such tokens goes by another name."""
    extra = config.get("extra_special_tokens")
    if not isinstance(extra, list):
        return {}
    return {"extra_special_tokens": {}, **({"additional_special_tokens": extra} if extra else {})}


def _advice(config: Mapping[str, Any]) -> str:
    if "backend" in config or str(config.get("tokenizer_class")).endswith("Backend"):
        return "; transformers 5 wrote it: take the tokenizer files that the model was published with"
    return ""


def _rotary_settings(parameters: Any) -> dict[str, Any]:
    """`rope_parameters` of transformers 5 under the names that transformers 4 looks for."""
    if not isinstance(parameters, dict):
        return {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UserError("rope_parameters of config.json differ by layer, which needs transformers 5")
    settings = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    scaling = {key: value for key, value in parameters.items() if key not in settings}
    return settings | {"rope_scaling": scaling if scaling.get("rope_type", "default") != "default" else None}
