"""Checkpoints of a run: distributed, atomic, verified, readable at any layout; and the trained model.

`checkpoints/step_000120/` holds model, optimizer and counters in Megatron's torch_dist format. It is written under a
temporary name that includes the attempt's number, synced to disk, and renamed by rank 0 when every rank is done. Its
`files.json` has the size and sha256 of every file; when a run resumes, a checkpoint that does not match is set aside.
Its `progress.json` has the counters for people, and the monitored metric that decides which checkpoints stay.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from nemo_minordpo import file_names
from nemo_minordpo.config import CheckpointSection
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file, write_json
from nemo_minordpo.train.folder.attempt import Attempt
from nemo_minordpo.train.folder.stopping import signals_kept_from_children
from nemo_minordpo.train.hosts.protocol import Host

_FILES, _COUNTERS = "files.json", "progress.json"
# Errors that torch, Megatron and the system raise when reading or writing a checkpoint.
_FAULTS = (OSError, EOFError, KeyError, RuntimeError, UnpicklingError, CheckpointException, CheckpointingException)


@dataclass(frozen=True)
class Counters:
    """The progress of a run, saved in its checkpoints."""

    step: int = 0  # optimizer steps done
    consumed_pairs: int = 0
    reference_noise: float = 0.0  # nats per response, measured before the first step (reference.noise_of_reference)


def newest_intact_checkpoint(folder: Path, attempt: Attempt) -> Path | None:
    """The latest checkpoint whose files are intact; collective.

    Renames damaged ones to `damaged_step_*` and notes them in events.jsonl.
    """
    while True:
        paths = _all(folder)
        if not paths:
            return None
        path = paths[-1]
        fault = _first_of_ranks(_damage(path))
        if not fault:
            return path
        if _is_first_rank():
            attempt.check()
            aside = path.with_name(f"damaged_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            attempt.note("damaged", step=_step_of(path), detail=f"{path}: {fault}; set aside as {aside.name}")
        torch.distributed.barrier()


def save_checkpoint(
    folder: Path,
    *,
    host: Host,
    counters: Counters,
    attempt: Attempt,
    keep: CheckpointSection,
    monitored: float | None,
) -> Path:
    """Write a checkpoint, every rank its part, then remove those that are no longer needed.

    Args:
        folder: folder of all checkpoints.
        host, counters: what to save.
        attempt: the attempt that writes it.
        keep: which checkpoints stay.
        monitored: `keep.monitor` in the validation after this step, if there was one.

    Raises:
        RuntimeError: it could not be written; earlier checkpoints are unchanged.
        ReplacedError: another attempt has taken over the run.
    """
    path = folder / file_names.step_name(counters.step)
    temporary = folder / f".{path.name}.attempt_{attempt.number}.tmp"
    if _is_first_rank():
        attempt.check()
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    try:
        with signals_kept_from_children():
            host.write_state(temporary, asdict(counters))
        torch.distributed.barrier()
        if _is_first_rank():
            # a resumed run reads the counters from the checkpoint itself; `_obsolete` reads the monitored metric here
            (temporary / _COUNTERS).write_text(json.dumps({**asdict(counters), "monitored": monitored}) + "\n")
        torch.distributed.barrier()
        files = _digests_to_disk(temporary)
        if _is_first_rank():
            write_json(temporary / _FILES, files)
            for item in (temporary / _FILES, temporary):
                _to_disk(item)
            attempt.check()
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            _to_disk(folder)
            attempt.note("saved", step=counters.step)
            for old in _obsolete(folder, keep):
                shutil.rmtree(old)
    except _FAULTS as error:
        # the launcher stops the other ranks, none of which can continue without this one
        intact = [other.name for other in _all(folder) if other != path]
        raise RuntimeError(
            f"{path} cannot be written: {_reason(error)}; intact: {', '.join(intact) or 'none before it'}"
        ) from error
    torch.distributed.barrier()
    return path


def save_model(path: Path, *, host: Host, attempt: Attempt) -> None:
    """Write the trained model, a file or a folder.

    It is written in a folder of its own first, because NeMo stages next to its file and fails on leftovers.

    Raises:
        ReplacedError: another attempt has taken over the run.
    """
    staging = path.with_name(f".{path.name}.attempt_{attempt.number}.tmp")
    if _is_first_rank():
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    torch.distributed.barrier()
    host.save_model(staging / path.name)
    torch.distributed.barrier()
    if _is_first_rank():
        attempt.check()
        os.replace(staging / path.name, path)
        shutil.rmtree(staging)
    torch.distributed.barrier()


def remove_leftovers(folder: Path, attempt: Attempt) -> None:
    """Remove unfinished checkpoints of earlier attempts, which would fill the disk; on the first rank only."""
    attempt.check()
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path, *, host: Host) -> Counters:
    """Restore model and optimizer at the current layout, whatever layout wrote the checkpoint.

    Raises:
        UserError: the folder cannot be read as a checkpoint of this model.
    """
    try:
        return Counters(**host.read_state(path))
    except _FAULTS as error:
        raise UserError(
            f"{path} is not a checkpoint of this run ({type(error).__name__}: {error}); "
            "remove the folder to resume from the previous checkpoint"
        ) from error


def _damage(path: Path) -> str:
    """What is wrong with this rank's share of a checkpoint's files; empty if nothing is."""
    try:
        written = json.loads((path / _FILES).read_text(encoding="utf-8"))
        present = {file.name for file in path.iterdir()} - {_FILES}
        if present != written.keys():
            return f"missing or unknown files: {', '.join(sorted(present ^ written.keys()))}"
        for name in _share(sorted(written)):
            size, digest = written[name]
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, {size} were written"
            if sha256_of_file(path / name) != digest:
                return f"the checksum of {name} does not match"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _digests_to_disk(path: Path) -> dict[str, tuple[int, str]]:
    """{file: (bytes, sha256)}; each rank reads its share and syncs it to disk."""
    own = {}
    for name in _share(sorted(file.name for file in path.iterdir())):
        _to_disk(path / name)
        own[name] = ((path / name).stat().st_size, sha256_of_file(path / name))
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return dict(sorted(item for part in parts for item in part.items()))


def _share(names: list[str]) -> list[str]:
    return names[torch.distributed.get_rank() :: torch.distributed.get_world_size()]


def _to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_of_ranks(fault: str) -> str:
    """The fault of the lowest rank that has one, on every rank; empty if none has."""
    faults: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(faults, fault)
    return next((text for text in faults if text), "")


def _obsolete(folder: Path, keep: CheckpointSection) -> list[Path]:
    """All checkpoints but the newest `keep_last` and the best `save_top_k` by the monitored metric."""
    paths = _all(folder)
    values = {path: json.loads((path / _COUNTERS).read_text()).get("monitored") for path in paths}
    sign = 1 if keep.mode == "min" else -1
    ranked = sorted((path for path in paths if values[path] is not None), key=lambda path: sign * values[path])
    needed = {*paths[-keep.keep_last :], *ranked[: keep.save_top_k]}
    return [path for path in paths if path not in needed]


def _reason(error: BaseException) -> str:
    """The system's message if there is one in the chain of exceptions, such as "No space left on device"."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return f"{link.strerror} ({link.filename or 'while writing'})"
        link = link.__cause__ or link.__context__
    return f"{type(error).__name__}: {error}"


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if file_names.STEP.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    match = file_names.STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _is_first_rank() -> bool:
    return torch.distributed.get_rank() == 0
