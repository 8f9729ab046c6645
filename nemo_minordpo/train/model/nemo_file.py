"""The contents of a `.nemo`, a tar archive or a folder it was unpacked into: model config and tensor names."""

import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_minordpo import file_names
from nemo_minordpo.config.lora import ADAPTER
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MODEL_CONFIG, NEMO_RANK_WEIGHTS, NEMO_WEIGHTS

_PREFIX = "model."


@dataclass(frozen=True)
class NemoFile:
    """Contents of a `.nemo`.

    config: `model_config.yaml`.
    tensors: name, without `model.`, -> shape, layers first, in its distributed checkpoint; {} if it has none.
    has_rank_files: it has one file of weights per rank, as NeMo writes adapters.
    """

    path: Path
    config: DictConfig
    tensors: dict[str, tuple[int, ...]]
    has_rank_files: bool

    @property
    def adapters(self) -> dict[str, tuple[int, ...]]:
        """The `tensors` of adapters."""
        return {name: shape for name, shape in self.tensors.items() if ADAPTER in name}


def read_nemo(path: Path, *, setting: str) -> NemoFile:
    """Open a `.nemo`, without reading weights.

    Args:
        path: the file, or a folder it was unpacked into.
        setting: the setting that names it, for error messages.

    Raises:
        UserError: it is missing, damaged, or not a `.nemo`.
    """
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in path.iterdir() if file.is_file()]
        names += [str(file.relative_to(path)) for file in path.glob(f"*/{NEMO_RANK_WEIGHTS}")]
        names += [f"{NEMO_WEIGHTS}/.metadata"] if (path / NEMO_WEIGHTS / ".metadata").is_file() else []
        return _nemo_file(path, names, lambda name: (path / name).read_bytes())
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file or folder")
    try:
        with tarfile.open(path) as archive:
            members = {str(PurePosixPath(member.name)): member for member in archive.getmembers()}

            def read(name: str) -> bytes:
                content = archive.extractfile(members[name])
                assert content is not None, name
                return content.read()

            return _nemo_file(path, [name for name, member in members.items() if member.isfile()], read)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a .nemo checkpoint ({error}); make one with `minordpo import-hf`") from error


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of a `.nemo`; a file is unpacked into a temporary one. Only for adapters, which are small."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            content = archive.extractfile(member) if member.isfile() and ".." not in name.parts else None
            if content is not None:
                target = Path(folder, *name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)
        yield Path(folder)


def _nemo_file(path: Path, names: list[str], read: Callable[[str], bytes]) -> NemoFile:
    if MODEL_CONFIG not in names:
        raise UserError(f"{path} has no {MODEL_CONFIG}: a .nemo file, or a folder it was extracted to, expected")
    if path.is_dir() and (path / file_names.CHECKPOINTS).is_dir():
        raise UserError(f"{path} is a run folder: give the model in it, {path / file_names.NEMO}")
    metadata = f"{NEMO_WEIGHTS}/.metadata"
    return NemoFile(
        path=path,
        config=_config(read(MODEL_CONFIG), path),
        tensors=_shapes(read(metadata), path) if metadata in names else {},
        has_rank_files=any(PurePosixPath(name).name == NEMO_RANK_WEIGHTS for name in names),
    )


def _config(content: bytes, path: Path) -> DictConfig:
    try:
        loaded: Any = OmegaConf.create(content.decode())
    except Exception as error:  # yaml's and omegaconf's errors share no base
        raise UserError(f"{path}: {MODEL_CONFIG} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: {MODEL_CONFIG} is not a mapping of settings")
    return loaded


def _shapes(content: bytes, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        described = pickle.loads(content).state_dict_metadata
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
        raise UserError(f"{path}: {NEMO_WEIGHTS}/.metadata is damaged ({type(error).__name__}: {error})") from error
    return {
        name.removeprefix(_PREFIX): tuple(value.size)
        for name, value in described.items()
        if name.startswith(_PREFIX) and isinstance(value, TensorStorageMetadata)
    }
