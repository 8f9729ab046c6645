"""The run folder: which run it belongs to, and which commands may resume it. file_names.py lists its contents."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from nemo_minordpo import file_names
from nemo_minordpo.config import TrainConfig, identity
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines, sha256_of_file, write_text
from nemo_minordpo.flat import differences
from nemo_minordpo.origins import origins_of
from nemo_minordpo.prompts import ways_of_pairs
from nemo_minordpo.records import Manifest, StepMetrics

_DIGEST_OF = "sha256 of "
_WITH_ORIGIN = ("start", "reference", "train", "validation")


@dataclass(frozen=True)
class RunFolder:
    """Paths and bookkeeping of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / file_names.CONFIG

    @property
    def checkpoints(self) -> Path:
        return self.path / file_names.CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.path / file_names.METRICS

    @property
    def nemo(self) -> Path:
        return self.path / file_names.NEMO

    def result(self, config: TrainConfig) -> Path:
        """The trained model as the host writes it: a `.nemo`, or Megatron-Bridge's Hugging Face folder."""
        return self.path / file_names.HF if config.host == "bridge" else self.nemo

    def data(self, split: str) -> Path:
        return self.path / file_names.DATA / split

    def prepare(self, config: TrainConfig, *, inputs: dict[str, list[Path]], make_data: Callable[[], None]) -> None:
        """Make the folder this run's, or resume in it.

        Args:
            config: the run's configuration.
            inputs: files by purpose: `reference`, `tokenizer`, `train`, `validation`.
            make_data: fills `data/`; if it fails, the folder belongs to no run yet.

        Raises:
            UserError: the folder belongs to another run, or contains something else.
        """
        hashes = {name: {str(file): sha256_of_file(file) for file in _files(paths)} for name, paths in inputs.items()}
        settings = identity(config) | {f"{_DIGEST_OF}{name}": _digest(files.values()) for name, files in hashes.items()}
        if self.config.exists():
            self._refuse_another_run(settings)
            make_data()
            return
        # left by a run that never started
        leftovers = {file_names.DATA, file_names.MANIFEST, file_names.LOGS, file_names.FAILURES}
        if self.path.exists() and any(item.name not in leftovers for item in self.path.iterdir()):
            raise UserError(
                f"exp_manager.explicit_log_dir={self.path} is not empty and not a run folder: choose another folder"
            )
        shutil.rmtree(self.path / file_names.DATA, ignore_errors=True)
        make_data()
        manifest = Manifest(
            stage="train",
            inputs={file: sha256 for files in hashes.values() for file, sha256 in files.items()},
            settings=settings,
            prompts=ways_of_pairs(inputs.get("train", [])),
            roles={name: list(files) for name, files in hashes.items()},
            origins=origins_of(path for name in _WITH_ORIGIN for path in inputs.get(name, [])),
        )
        manifest.write(self.path)
        # last: a folder with a config.yaml belongs to a run
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.structured(config)))

    def input_digests(self) -> dict[str, str]:
        """One sha256 each for `reference`, `tokenizer`, `train` and `validation`, as written by :meth:`prepare`."""
        settings = Manifest.read(self.path).settings
        return {key.removeprefix(_DIGEST_OF): value for key, value in settings.items() if key.startswith(_DIGEST_OF)}

    def open_metrics(self, *, after: int) -> TextIO:
        """Open `metrics.jsonl` for appending, without lines of steps after ``after``, which a resumed run repeats.

        The file is replaced, not truncated: an earlier attempt that is still running may have the old one open.
        """
        lines = []
        if self.metrics.exists():
            # a run that starts over samples the answers before its first step again
            lines = [text for _, text in read_lines(self.metrics) if after and _step_of(text, after) <= after]
        write_text(self.metrics, "".join(lines))
        return self.metrics.open("a", encoding="utf-8", buffering=1)

    def _refuse_another_run(self, settings: dict[str, Any]) -> None:
        # for a setting added since the run was started, assume its default
        before = identity(TrainConfig()) | Manifest.read(self.path).settings
        changes = differences(before, json.loads(json.dumps(settings)))
        if changes:
            raise UserError(
                "\n".join([f"{self.path} belongs to a run with other settings:", *changes])
                + "\nChoose another exp_manager.explicit_log_dir, or use that run's settings to resume it"
            )


def _step_of(text: str, limit: int) -> int:
    """The step of a line; beyond `limit` for a torn last line, left by a process that was killed while writing."""
    try:
        return StepMetrics.from_json(text).step
    except (ValueError, TypeError):
        return limit + 1


def _files(paths: list[Path]) -> list[Path]:
    return [
        file
        for path in paths
        for file in (sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path])
    ]


def _digest(hashes: Iterable[str]) -> str:
    """One digest for the contents of files; their order matters, their names do not."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def rank_of_process() -> int:
    """The rank before torch.distributed is initialised: torchrun sets RANK, srun SLURM_PROCID."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
