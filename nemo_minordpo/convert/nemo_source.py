"""Where the weights, the model config and the tokenizer lie that belong to a `.nemo`, a checkpoint or a run."""

import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_minordpo.convert import model_config
from nemo_minordpo.sidecars import tokenizer_folder

WEIGHTS_FOLDER = "model_weights"
RUN_RESULT, RUN_CHECKPOINTS = "model.nemo", "checkpoints"
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class NemoSource:
    """A checkpoint that can be read, and what is known of it.

    `config` is None when no model_config.yaml lies in or above the checkpoint; `tokenizers` are the folders where
    the Hugging Face side may be, best first.
    """

    origin: Path
    weights: Path
    config: dict[str, Any] | None
    tokenizers: list[Path]


def open_source(path: Path, *, scratch: Path) -> NemoSource:
    """Find out what `path` is; a `.nemo` file is unpacked into `scratch`.

    Args:
        path: a `.nemo` (file or folder), a distributed checkpoint's folder, or a run's folder.
        scratch: existing empty folder with room for the weights.

    Raises:
        ValueError: `path` is none of these, or is damaged.
    """
    path = resolve_run(path)
    if path.is_file():
        _unpack(path, scratch)
        return _unpacked(path, scratch)
    if (path / WEIGHTS_FOLDER).is_dir():
        return _unpacked(path, path)
    if (path / "metadata.json").is_file():
        places = (folder / model_config.FILE for folder in (path, *path.absolute().parents[:2]))
        found = next((place for place in places if place.is_file()), None)
        return _source(path, weights=path, config=found)
    raise ValueError(
        f"{path}: neither a .nemo, nor a distributed checkpoint (metadata.json), nor a run "
        f"({RUN_RESULT} or {RUN_CHECKPOINTS}/step_*/)"
    )


def resolve_run(path: Path) -> Path:
    """For a run's folder its final `.nemo`, or else its newest complete checkpoint; any other path as it is.

    Raises:
        ValueError: no such path, or a run without a complete checkpoint.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if (path / RUN_RESULT).exists():
        return path / RUN_RESULT
    if not (path / RUN_CHECKPOINTS).is_dir():
        return path
    steps = {
        int(match[1]): folder for folder in path.glob(f"{RUN_CHECKPOINTS}/*") if (match := _STEP.fullmatch(folder.name))
    }
    complete = {step: folder for step, folder in steps.items() if (folder / "metadata.json").is_file()}
    if not complete:
        raise ValueError(f"{path / RUN_CHECKPOINTS}: no complete checkpoint (step_*/metadata.json) in it")
    return complete[max(complete)]


def _unpacked(origin: Path, folder: Path) -> NemoSource:
    config = folder / model_config.FILE
    if not config.is_file():
        raise ValueError(f"{origin}: no {model_config.FILE} in it")
    if not (folder / WEIGHTS_FOLDER).is_dir():
        raise ValueError(
            f"{origin}: no folder {WEIGHTS_FOLDER} in it; checkpoints from before NeMo 1.21 (model_weights.ckpt, "
            "mp_rank_*) must be saved again with a newer NeMo"
        )
    return _source(origin, weights=folder / WEIGHTS_FOLDER, config=config)


def _source(origin: Path, *, weights: Path, config: Path | None) -> NemoSource:
    content = model_config.read_model_config(config) if config else None
    # what lies beside a checkpoint came with it; the path in its config may be another machine's
    runs = (folder / RUN_RESULT for folder in origin.absolute().parents[:2])
    tokenizers = [folder for folder in map(tokenizer_folder, (origin, *runs)) if folder.is_dir()]
    named = ((content or {}).get("tokenizer") or {}).get("type")
    tokenizers.append(Path(named) if isinstance(named, str) else tokenizer_folder(origin))
    return NemoSource(origin, weights, content, tokenizers)


def _unpack(path: Path, scratch: Path) -> None:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or not _wanted(name):
                    continue
                target = scratch / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: damaged or no .nemo, which is a tar archive ({error})") from error


def _wanted(name: PurePosixPath) -> bool:
    """The model config and the weights' own files; never a path that leaves the folder."""
    return name.parts == (model_config.FILE,) or (name.parts[:1] == (WEIGHTS_FOLDER,) and ".." not in name.parts)
