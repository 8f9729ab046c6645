"""Log-probabilities of all responses under the reference, cached in a folder: evaluated once, read by every run.

An entry is two files, named by the digest of its key: `DIGEST.safetensors` with the columns `chosen` and `rejected`
([N], float64, nats), and `DIGEST.json` with the key in plain words and the checksum of the columns. The latter is
written last; without it, the entry does not exist.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save

from nemo_minordpo.config import DECLARED, TrainConfig, value_of
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file, whole_file, write_json
from nemo_minordpo.flat import differences, flatten
from nemo_minordpo.provenance import code_version
from nemo_minordpo.terminal import say
from nemo_minordpo.train.folder.run_folder import RunFolder

_WAIT_S = 2.0  # between attempts to get a lock that another run holds


@dataclass(frozen=True, kw_only=True)
class ReferenceKey:
    """Everything that the log-probabilities depend on, except rounding (layout, packing).

    weights: sha256 of the checkpoint, and of any adapters that training starts from, with their scale.
    tokenizer: sha256 of its files.
    pairs: sha256 of the tokenised pairs, in order; covers the files, the length limit and EOS.
    settings: the settings declared with `reference`, by key; model settings as the model was built.
    code: digest of our own code, and versions of the packages used in the computation.
    """

    weights: str
    tokenizer: str
    pairs: str
    settings: dict[str, Any]
    code: str

    @property
    def in_words(self) -> dict[str, Any]:
        """Flat, as written next to an entry."""
        return flatten({name: value for name, value in vars(self).items() if name != "settings"} | self.settings)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.in_words, sort_keys=True).encode()).hexdigest()[:24]


def reference_key(config: TrainConfig, folder: RunFolder, split: str, model_config: Any) -> ReferenceKey:
    """The key of a split of a prepared run folder.

    Args:
        config: the run's.
        folder: prepared by launch.prepare_run; it has the digests of the inputs, and the tokenised pairs.
        split: train or validation.
        model_config: the configuration that the model was built with.
    """
    digests = folder.input_digests()
    return ReferenceKey(
        weights=digests["reference"],
        tokenizer=digests["tokenizer"],
        pairs=_digest_of_pairs(folder.data(split)),
        settings={
            key: model_config[name] if (name := key.removeprefix("model.")) in model_config else value_of(config, key)
            for key, setting in DECLARED.items()
            if setting.reference
        },
        code=code_version("train"),
    )


def reference_folder(config: TrainConfig) -> Path:
    """The folder of the entries: as set, or next to the run folder, where all runs of an experiment find them."""
    chosen = config.model.dpo.reference_cache
    return Path(chosen) if chosen else Path(config.exp_manager.explicit_log_dir).absolute().parent / "reference_cache"


class ReferenceCache:
    """The cache entries in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, key: ReferenceKey) -> bool:
        return self._description(key).exists()

    def read(self, key: ReferenceKey, *, num_pairs: int) -> np.ndarray:
        """Read and verify the entry of ``key``: [N, 2], float64, nats, chosen and rejected.

        Raises:
            UserError: the entry is damaged, or does not match its name.
        """
        columns = self._columns(key)
        advice = f"delete {columns} and {self._description(key).name} to evaluate it again"
        try:
            description = json.loads(self._description(key).read_text(encoding="utf-8"))
            other = differences(description["key"], key.in_words)
            checksum = description["sha256"]
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self._description(key)} cannot be read ({error}); {advice}") from error
        if other:
            raise UserError("\n".join([f"{columns} is stale: it was evaluated for another run:", *other, advice]))
        if not columns.is_file() or sha256_of_file(columns) != checksum:
            raise UserError(f"{columns} is damaged: its checksum does not match; {advice}")
        loaded = load_file(columns)
        if loaded.keys() != {"chosen", "rejected"}:
            raise UserError(f"{columns}: columns chosen and rejected expected, not {sorted(loaded)}; {advice}")
        values = np.stack([loaded["chosen"], loaded["rejected"]], axis=1)
        if values.shape != (num_pairs, 2) or not np.isfinite(values).all():
            raise UserError(f"{columns}: {num_pairs} finite pairs expected, not {values.shape}; {advice}")
        return values

    def write(self, key: ReferenceKey, values: np.ndarray, *, layout: str) -> None:
        """Write an entry, atomically.

        Args:
            key: key of the entry.
            values: [N, 2], float64, nats.
            layout: layout of the ranks that evaluated it, for information only.
        """
        columns = self._columns(key)
        chosen, rejected = (np.ascontiguousarray(column) for column in values.T)
        content = save({"chosen": chosen, "rejected": rejected})
        with whole_file(columns, "wb") as out:
            out.write(content)
        checksum = hashlib.sha256(content).hexdigest()
        write_json(
            self._description(key),
            {"key": key.in_words, "sha256": checksum, "num_pairs": len(values), "evaluated_at": layout},
        )

    def lock(self, key: ReferenceKey) -> FileLock:
        """The lock held by the run that evaluates an entry; the system releases it if that run dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{key.digest}.lock")

    def why_missing(self, key: ReferenceKey) -> str:
        """A message that says how the most similar entry differs from ``key``."""
        others = []
        for path in self.folder.glob("*.json"):
            try:
                others.append(differences(json.loads(path.read_text(encoding="utf-8"))["key"], key.in_words))
            except (OSError, KeyError, TypeError, AttributeError, ValueError):
                continue  # not an entry; only a hint is lost
        if not others:
            return "nothing cached yet"
        names = ", ".join(line.split(":")[0].strip() for line in min(others, key=len))
        return f"the most similar of {len(others)} cached entries differs in: {names}"

    def _columns(self, key: ReferenceKey) -> Path:
        return self.folder / f"{key.digest}.safetensors"

    def _description(self, key: ReferenceKey) -> Path:
        return self.folder / f"{key.digest}.json"


def load_or_evaluate(
    cache: ReferenceCache, key: ReferenceKey, *, num_pairs: int, evaluate: Callable[[], np.ndarray], layout: str
) -> np.ndarray:
    """Read an entry of the cache, or evaluate and write it; other runs that need it meanwhile wait.

    Called by every rank. Rank 0 checks the cache and the other ranks follow, so that no rank waits in a collective for
    long.

    Args:
        cache, key, num_pairs: as in :meth:`ReferenceCache.read`.
        evaluate: collective; returns [N, 2] on every rank.
        layout: as in :meth:`ReferenceCache.write`.
    """
    is_first = torch.distributed.get_rank() == 0
    lock = cache.lock(key) if is_first else None
    waiting = False
    while True:
        has_entry, holds_lock = _agree(*_state_of_entry(cache, key, lock))
        if has_entry:
            values = cache.read(key, num_pairs=num_pairs)
            break
        if holds_lock:
            if is_first:
                say(f"reference log-probabilities: {cache.why_missing(key)}; evaluating {num_pairs} pairs")
            values = evaluate()
            if is_first:
                cache.write(key, values, layout=layout)
            break
        if is_first and not waiting:
            say(f"waiting for another run to evaluate the reference ({cache.folder / key.digest}.lock)")
        waiting = True
        time.sleep(_WAIT_S)
    if lock is not None:
        lock.release()
    return values


def _state_of_entry(cache: ReferenceCache, key: ReferenceKey, lock: FileLock | None) -> tuple[bool, bool]:
    """(the entry exists, we hold the lock); (False, False) on ranks other than 0, which have no lock."""
    if lock is None or cache.has(key):
        return lock is not None, False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False, False
    return cache.has(key), True  # another run may have written it in between


def _agree(*flags: bool) -> list[bool]:
    """Rank 0's flags, on every rank."""
    agreed = torch.tensor(flags, dtype=torch.int32, device=torch.cuda.current_device())
    torch.distributed.broadcast(agreed, src=0)
    return [bool(flag) for flag in agreed.tolist()]


def _digest_of_pairs(data: Path) -> str:
    names = ("tokens", "starts", "prompt_lengths")
    return hashlib.sha256("".join(sha256_of_file(data / f"{name}.npy") for name in names).encode()).hexdigest()
