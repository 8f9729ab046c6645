"""Where the weights, the model config and the tokenizer lie that belong to a `.nemo`, a checkpoint or a run."""

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

from nemo_minordpo.config.lora import ADAPTER
from nemo_minordpo.convert import nemo_config as model_config
from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.errors import UserError
from nemo_minordpo.sidecars import tokenizer_folder

WEIGHTS_FOLDER, RANK_FILE = "model_weights", "model_weights.ckpt"
RUN_RESULT, RUN_CHECKPOINTS = "model.nemo", "checkpoints"
# of this project's runs, and of NeMo-Aligner's, whose folders may end in -last
_STEP = re.compile(r"step_(\d+)|.*step=(\d+).*?(-last)?")
_RANK_FOLDER = re.compile(r"mp_rank_\d+|tp_rank_\d+_pp_rank_\d+")
# what a training writes down of itself: this project's runs, NeMo-Aligner's and NeMo's
_RUN_FILES = ("config.yaml", "hparams.yaml")


@dataclass(frozen=True)
class NemoSource:
    """A checkpoint that can be read, and what is known of it.

    `config` is None when no model config lies in or above the checkpoint; `tokenizers` are the folders where the
    Hugging Face side may be, best first. With `adapters`, a distributed checkpoint or a folder of NeMo's files of
    single ranks, `weights` are those that the adapters are added to.
    """

    origin: Path
    weights: Path
    config: dict[str, Any] | None
    tokenizers: list[Path]
    adapters: Path | None = None
    base: Path | None = None  # the model whose weights they are, where adapters lie alone


@dataclass(frozen=True)
class _Found:
    """As NemoSource, but of adapters alone `weights` are None."""

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
        scratch: existing empty folder with room for the weights.
        base: of adapters: the model that they were trained on, any of the same kinds; None = the one that the run
            names.
        only_adapters: of adapters that lie alone, their base is not opened; `weights` are those of the adapters.

    Raises:
        ValueError: `path` is none of these, or is damaged; or adapters whose base is not there.
    """
    found = _open(resolve_run(path), scratch=scratch / "source")
    trained_from = _trained_from(found.origin)
    tokenizers = found.tokenizers + ([] if trained_from is None else [tokenizer_folder(trained_from)])
    if found.weights is not None:
        if base is not None:
            raise UserError(f"{found.origin} has all weights of its model; leave out --base={base}")
        return NemoSource(found.origin, found.weights, found.config, tokenizers, found.adapters)
    base = base or trained_from
    if only_adapters:
        assert found.adapters is not None
        return NemoSource(found.origin, found.adapters, found.config, tokenizers, found.adapters, base)
    if base is None:
        raise UserError(f"{found.origin} holds adapters alone: name the model that they were trained on with --base")
    if not base.exists():
        raise UserError(
            f"{found.origin} holds adapters alone, and {base}, on which they were trained, is not there: "
            "say with --base where it is"
        )
    under = _open(resolve_run(base), scratch=scratch / "base")
    if under.weights is None or under.adapters is not None:
        raise UserError(f"{base}: adapters cannot be added to adapters; export it, import that and name the result")
    tokenizers = [*tokenizers, *under.tokenizers]
    return NemoSource(
        found.origin, under.weights, found.config or under.config, tokenizers, found.adapters, under.origin
    )


def resolve_run(path: Path) -> Path:
    """For a run's folder its final `.nemo`, or else its newest complete checkpoint; any other path as it is.

    A results folder of NeMo-Aligner stands for its newest checkpoint, or else (LoRA) for its newest `.nemo`.

    Raises:
        ValueError: no such path, or a run without a complete checkpoint.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / RUN_RESULT).exists():
        return path / RUN_RESULT
    folder = path / RUN_CHECKPOINTS
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
        hint = "; NeMo's .ckpt files of single ranks cannot be read, the .nemo can that it writes at the end"
    raise UserError(f"{folder}: no complete checkpoint (step_*/metadata.json) in it{hint}")


def rank_files(folder: Path) -> list[Path]:
    """NeMo's weights rank by rank in an unpacked `.nemo`, in the order of the ranks; [] when there are none."""
    if (folder / RANK_FILE).is_file():
        return [folder / RANK_FILE]
    return sorted(file for file in folder.glob(f"*/{RANK_FILE}") if _RANK_FOLDER.fullmatch(file.parent.name))


def _open(path: Path, *, scratch: Path) -> _Found:
    if path.is_file():
        _unpack(path, scratch, _is_config_or_weights)
        if not (scratch / WEIGHTS_FOLDER).is_dir() and _has_adapters(_config_in(path, scratch)):
            _unpack(path, scratch, _is_rank_file)
        return _unpacked(path, scratch)
    if (path / WEIGHTS_FOLDER).is_dir() or rank_files(path):
        return _unpacked(path, path)
    for weights in (path, path / "weights"):  # NeMo 2 has a folder of that name
        if (weights / "metadata.json").is_file():
            return _found(path, weights, _config_above(path))
    raise UserError(
        f"{path}: neither a .nemo, nor a distributed checkpoint (metadata.json), nor a run "
        f"({RUN_RESULT}, {RUN_CHECKPOINTS}/step_*/ or {RUN_CHECKPOINTS}/*step=*/)"
    )


def _unpacked(origin: Path, folder: Path) -> _Found:
    config = _config_in(origin, folder)
    if (folder / WEIGHTS_FOLDER).is_dir():
        return _found(origin, folder / WEIGHTS_FOLDER, config)
    if _has_adapters(config) and rank_files(folder):
        return replace(_found(origin, None, config), adapters=folder)
    raise UserError(
        f"{origin}: no folder {WEIGHTS_FOLDER} in it; checkpoints from before NeMo 1.21 (model_weights.ckpt, "
        "mp_rank_*) must be saved again with a newer NeMo"
    )


def _found(origin: Path, weights: Path | None, config: dict[str, Any] | None) -> _Found:
    # what lies beside a checkpoint came with it; the path in its config may be another machine's
    runs = (folder / RUN_RESULT for folder in origin.absolute().parents[:2])
    tokenizers = [folder for folder in map(tokenizer_folder, (origin, *runs)) if folder.is_dir()]
    named = ((config or {}).get("tokenizer") or {}).get("type")
    tokenizers.append(Path(named) if isinstance(named, str) else tokenizer_folder(origin))
    of_adapters = [] if weights is None else [ADAPTER in name for name in Checkpoint(weights).tensors]
    adapters = weights if any(of_adapters) else None
    return _Found(origin, None if all(of_adapters) else weights, config, tokenizers, adapters)


def _config_in(origin: Path, folder: Path) -> dict[str, Any]:
    if not (folder / model_config.FILE).is_file():
        raise UserError(f"{origin}: no {model_config.FILE} in it")
    return model_config.read_model_config(folder / model_config.FILE)


def _config_above(path: Path) -> dict[str, Any] | None:
    """The model config that belongs to a checkpoint: NeMo's own file, or what a training wrote down of itself."""
    folders = (path, *path.absolute().parents[:2])
    for folder in folders:
        if (folder / model_config.FILE).is_file():
            return model_config.read_model_config(folder / model_config.FILE)
    for folder in folders:
        # NeMo-Aligner's settings have the whole model config in `model`, NeMo's in `cfg`
        for section in ("model", "cfg"):
            found = _setting(folder / "hparams.yaml", section)
            if isinstance(found, dict):
                return found
    return None


def _trained_from(origin: Path) -> Path | None:
    """The model that the training started from, of whose output `origin` is."""
    for folder in origin.absolute().parents[:2]:
        for file in _RUN_FILES:
            named = _setting(folder / file, "pretrained_checkpoint.restore_from_path")
            if isinstance(named, str):
                return Path(named)
    return None


def _setting(file: Path, key: str) -> Any:
    """A value of a YAML file; None where there is no such file or key, or the file is of another kind."""
    if not file.is_file():
        return None
    try:
        content = OmegaConf.load(file)
        value = OmegaConf.select(content, key) if isinstance(content, DictConfig) else None
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except Exception:  # yaml's and omegaconf's errors share no base
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
        raise UserError(f"{path}: damaged or no .nemo, which is a tar archive ({error})") from error


def _is_config_or_weights(name: PurePosixPath) -> bool:
    return name.parts == (model_config.FILE,) or name.parts[:1] == (WEIGHTS_FOLDER,)


def _is_rank_file(name: PurePosixPath) -> bool:
    *folder, file = name.parts
    return file == RANK_FILE and (not folder or (len(folder) == 1 and bool(_RANK_FOLDER.fullmatch(folder[0]))))
