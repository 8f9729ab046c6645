"""Find the weights, model config and tokenizer that belong to a `.nemo`, a checkpoint or a run."""

import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_minordpo import file_names
from nemo_minordpo.config.lora import ADAPTER
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.errors import UserError
from nemo_minordpo.sidecars import tokenizer_folder

# checkpoint folders of this project's runs and of NeMo-Aligner's, where names may end in -last
_STEP = re.compile(rf"{file_names.STEP.pattern}|.*step=(\d+).*?(-last)?")
_RANK_FOLDER = re.compile(r"mp_rank_\d+|tp_rank_\d+_pp_rank_\d+")
# settings files that training writes: this project's runs, NeMo-Aligner and NeMo
_RUN_FILES = (file_names.CONFIG, "hparams.yaml")


@dataclass(frozen=True)
class NemoSource:
    """A readable checkpoint and the files that belong to it.

    `config` is None if there is no model config in or above the checkpoint. `tokenizers` are candidate folders for the
    Hugging Face side, best first. `adapters` is a distributed checkpoint or a folder of NeMo's files per rank;
    `weights` are then the weights that the adapters are added to.
    """

    origin: Path
    weights: Path
    config: dict[str, Any] | None
    tokenizers: list[Path]
    adapters: Path | None = None
    base: Path | None = None  # the model that `weights` belong to, if the source has only adapters
    trained_from: Path | None = None  # the model that training started from, as the run's settings or the user name it


@dataclass(frozen=True)
class _Found:
    """Like NemoSource, but `weights` is None for adapters alone."""

    origin: Path
    weights: Path | None
    config: dict[str, Any] | None
    tokenizers: list[Path]
    adapters: Path | None


def open_source(path: Path, *, scratch: Path, base: Path | None = None, only_adapters: bool = False) -> NemoSource:
    """Find out what `path` is; `.nemo` files are unpacked into `scratch`.

    Args:
        path: a `.nemo` (file or folder), a distributed checkpoint's folder, a run's folder, or a folder of
            NeMo-Aligner's results.
        scratch: an existing empty folder with enough space for the weights.
        base: for adapters, the model that they were trained on, of any of these kinds; None = the one that the run
            names.
        only_adapters: for adapters alone, do not open their base; `weights` are then the adapters themselves.

    Raises:
        UserError: `path` is none of these or is damaged, or the base of adapters is missing.
    """
    found = _open(resolve_run(path), scratch=scratch / "source")
    trained_from = _trained_from(found.origin)
    tokenizers = found.tokenizers + ([] if trained_from is None else [tokenizer_folder(trained_from)])
    if found.weights is not None:
        if base is not None:
            raise UserError(f"{found.origin} has all weights of its model; leave out --base={base}")
        return NemoSource(
            found.origin, found.weights, found.config, tokenizers, found.adapters, trained_from=trained_from
        )
    base = base or trained_from
    if only_adapters:
        assert found.adapters is not None
        return NemoSource(found.origin, found.adapters, found.config, tokenizers, found.adapters, base, base)
    if base is None:
        raise UserError(f"{found.origin} contains only adapters: name the model that they were trained on with --base")
    if not base.exists():
        raise UserError(
            f"{found.origin} contains only adapters, and {base}, which they were trained on, does not exist: "
            "pass its path with --base"
        )
    under = _open(resolve_run(base), scratch=scratch / "base")
    if under.weights is None or under.adapters is not None:
        raise UserError(f"{base}: adapters cannot be added to adapters; export it, import that and name the result")
    tokenizers = [*tokenizers, *under.tokenizers]
    return NemoSource(
        found.origin, under.weights, found.config or under.config, tokenizers, found.adapters, under.origin, base
    )


def resolve_run(path: Path) -> Path:
    """Resolve a run's folder to its final `.nemo`, or else its newest complete checkpoint; keep any other path.

    A results folder of NeMo-Aligner resolves to its newest checkpoint, or else (LoRA) to its newest `.nemo`.

    Raises:
        UserError: the path does not exist, or the run has no complete checkpoint.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / file_names.NEMO).exists():
        return path / file_names.NEMO
    folder = path / file_names.CHECKPOINTS
    if not folder.is_dir():
        return path
    complete = {}
    for place in folder.iterdir():
        match = _STEP.fullmatch(place.name)
        finished = not place.with_name(f"{place.name}-unfinished").exists()  # NeMo's mark
        if match and finished and (place / "metadata.json").is_file():
            complete[int(match[1] or match[2]), bool(match[3])] = place
    if complete:
        return complete[max(complete)]
    results = sorted(folder.glob("*.nemo"), key=lambda file: file.stat().st_mtime)
    if results:
        return results[-1]
    hint = ""
    if any(folder.rglob("*.ckpt")):
        hint = "; NeMo's per-rank .ckpt files cannot be read, but the .nemo that it writes at the end can"
    raise UserError(f"{folder}: no complete checkpoint (step_*/metadata.json) in it{hint}")


def rank_files(folder: Path) -> list[Path]:
    """NeMo's weight files per rank in an unpacked `.nemo`, in rank order; [] if there are none."""
    if (folder / file_names.NEMO_RANK_WEIGHTS).is_file():
        return [folder / file_names.NEMO_RANK_WEIGHTS]
    return sorted(
        file for file in folder.glob(f"*/{file_names.NEMO_RANK_WEIGHTS}") if _RANK_FOLDER.fullmatch(file.parent.name)
    )


def _open(path: Path, *, scratch: Path) -> _Found:
    if path.is_file():
        _unpack(path, scratch, _is_config_or_weights)
        if not (scratch / file_names.NEMO_WEIGHTS).is_dir() and _has_adapters(_config_in(path, scratch)):
            _unpack(path, scratch, _is_rank_file)
        return _unpacked(path, scratch)
    if (path / file_names.NEMO_WEIGHTS).is_dir() or rank_files(path):
        return _unpacked(path, path)
    for weights in (path, path / "weights"):  # NeMo 2 has a folder of that name
        if (weights / "metadata.json").is_file():
            return _found(path, weights, _config_above(path))
    raise UserError(
        f"{path}: neither a .nemo, nor a distributed checkpoint (metadata.json), nor a run "
        f"({file_names.NEMO}, {file_names.CHECKPOINTS}/step_*/ or {file_names.CHECKPOINTS}/*step=*/)"
    )


def _unpacked(origin: Path, folder: Path) -> _Found:
    config = _config_in(origin, folder)
    if (folder / file_names.NEMO_WEIGHTS).is_dir():
        return _found(origin, folder / file_names.NEMO_WEIGHTS, config)
    if _has_adapters(config) and rank_files(folder):
        return replace(_found(origin, None, config), adapters=folder)
    raise UserError(
        f"{origin}: no folder {file_names.NEMO_WEIGHTS} in it; checkpoints from before NeMo 1.21 (model_weights.ckpt, "
        "mp_rank_*) must be saved again with a newer NeMo"
    )


def _found(origin: Path, weights: Path | None, config: dict[str, Any] | None) -> _Found:
    # files next to a checkpoint came with it; the path in its config may belong to another machine
    runs = (folder / file_names.NEMO for folder in origin.absolute().parents[:2])
    tokenizers = [folder for folder in map(tokenizer_folder, (origin, *runs)) if folder.is_dir()]
    named = ((config or {}).get("tokenizer") or {}).get("type")
    tokenizers.append(Path(named) if isinstance(named, str) else tokenizer_folder(origin))
    of_adapters = [] if weights is None else [ADAPTER in name for name in Checkpoint(weights).tensors]
    adapters = weights if any(of_adapters) else None
    return _Found(origin, None if all(of_adapters) else weights, config, tokenizers, adapters)


def _config_in(origin: Path, folder: Path) -> dict[str, Any]:
    if not (folder / file_names.MODEL_CONFIG).is_file():
        raise UserError(f"{origin}: no {file_names.MODEL_CONFIG} in it")
    return nemo_config.read_model_config(folder / file_names.MODEL_CONFIG)


def _config_above(path: Path) -> dict[str, Any] | None:
    """The model config of a checkpoint: NeMo's own file, or the settings that training wrote."""
    folders = (path, *path.absolute().parents[:2])
    for folder in folders:
        if (folder / file_names.MODEL_CONFIG).is_file():
            return nemo_config.read_model_config(folder / file_names.MODEL_CONFIG)
    for folder in folders:
        # NeMo-Aligner's settings have the whole model config in `model`, NeMo's in `cfg`
        for section in ("model", "cfg"):
            found = _setting(folder / "hparams.yaml", section)
            if isinstance(found, dict):
                return found
    return None


def _trained_from(origin: Path) -> Path | None:
    """The model that the training run behind `origin` started from."""
    for folder in origin.absolute().parents[:2]:
        for file in _RUN_FILES:
            named = _setting(folder / file, "pretrained_checkpoint.restore_from_path")
            if isinstance(named, str):
                return Path(named)
    return None


def _setting(file: Path, key: str) -> Any:
    """A value from a YAML file; None if there is no such file or key, or the file is unrelated."""
    if not file.is_file():
        return None
    try:
        content = OmegaConf.load(file)
        value = OmegaConf.select(content, key) if isinstance(content, DictConfig) else None
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except Exception:  # yaml's and omegaconf's errors have no common base
        return None


def _has_adapters(config: dict[str, Any]) -> bool:
    return ((config.get("peft") or {}).get("peft_scheme") or "none") != "none"


def _unpack(path: Path, scratch: Path, wanted: Callable[[PurePosixPath], bool]) -> None:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or ".." in name.parts or not wanted(name):
                    continue
                target = scratch / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged or not a .nemo, which is a tar archive ({error})") from error


def _is_config_or_weights(name: PurePosixPath) -> bool:
    return name.parts == (file_names.MODEL_CONFIG,) or name.parts[:1] == (file_names.NEMO_WEIGHTS,)


def _is_rank_file(name: PurePosixPath) -> bool:
    *folder, file = name.parts
    return file == file_names.NEMO_RANK_WEIGHTS and (
        not folder or (len(folder) == 1 and bool(_RANK_FOLDER.fullmatch(folder[0])))
    )
