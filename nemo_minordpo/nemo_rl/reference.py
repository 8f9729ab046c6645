"""The reference's log-probabilities in NeMo-RL, evaluated once per sequence instead of at every step.

NeMo-RL evaluates the reference at every step, after swapping its weights in. Its log-probabilities never change, so
every epoch but the first, and every run with another loss, beta or learning rate, can read them.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import model_files
from nemo_minordpo.terminal import say

_PARTS = ("dtensor_cfg", "megatron_cfg")  # NeMo-RL's two ways to compute a model


class CachedReference:
    """A policy of NeMo-RL whose reference is read from a folder; everything else is the policy's.

    A row of the table is the log-probabilities of a sequence, by the digest of its tokens. The file is named by what
    else they depend on: the reference's weights, its precision, and whether DTensor or Megatron computes it.
    """

    def __init__(self, policy: Any, folder: Path, *, config: Mapping[str, Any]) -> None:
        """Open the cache.

        Args:
            policy: of NeMo-RL.
            folder: of the cache; several runs may share it.
            config: the section `policy` of NeMo-RL's configuration.

        Raises:
            UserError: the file in the folder is damaged.
        """
        self._policy = policy
        facts = reference_facts(config)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{digest}.sqlite"
        try:
            self._table = sqlite3.connect(self._path, timeout=60)
            with self._table:
                self._table.execute("CREATE TABLE IF NOT EXISTS facts (facts TEXT PRIMARY KEY)")
                self._table.execute("CREATE TABLE IF NOT EXISTS reference (tokens BLOB PRIMARY KEY, log_probs BLOB)")
                self._table.execute("INSERT OR IGNORE INTO facts VALUES (?)", (json.dumps(facts, sort_keys=True),))
            (rows,) = self._table.execute("SELECT count(*) FROM reference").fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path}: damaged ({error}); delete it") from error
        say(f"reference log-probabilities: {rows} sequences are cached in {self._path}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def get_reference_policy_logprobs(self, data: Any, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        """As the policy's; evaluates the batch only if one of its sequences is not cached.

        Args:
            data: `input_ids` [B, S] and `input_lengths` [B].
            arguments: passed on.
            options: passed on.

        Returns:
            `reference_logprobs` [B, S], float32, nats, 0 after a sequence's end.
        """
        ids, lengths = data["input_ids"], data["input_lengths"].tolist()
        keys = [_key(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        rows = [self._read(key) for key in keys]
        if None in rows:
            evaluated = self._policy.get_reference_policy_logprobs(data, *arguments, **options)["reference_logprobs"]
            self._write(keys, [row[:length] for row, length in zip(evaluated, lengths, strict=True)])
            rows = [self._read(key) for key in keys]  # what another run may have stored first
        result = torch.zeros(ids.shape, dtype=torch.float32)
        for target, row in zip(result, rows, strict=True):
            assert row is not None
            values = np.frombuffer(row, dtype="<f4")
            target[: len(values)] = torch.from_numpy(values.copy())
        return {"reference_logprobs": result}

    def _read(self, key: bytes) -> bytes | None:
        row = self._table.execute("SELECT log_probs FROM reference WHERE tokens = ?", (key,)).fetchone()
        return row and row[0]

    def _write(self, keys: list[bytes], rows: list[Tensor]) -> None:
        for row in rows:
            if not row.isfinite().all():
                raise FloatingPointError("the reference's log-probabilities are not finite")
        values = [row.detach().cpu().numpy().astype("<f4").tobytes() for row in rows]
        with self._table:
            self._table.executemany("INSERT OR IGNORE INTO reference VALUES (?, ?)", zip(keys, values, strict=True))


def reference_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the reference's log-probabilities depend on, apart from the tokens.

    Args:
        config: the section `policy` of NeMo-RL's configuration. A folder of weights counts with the sizes and times of
            its files, a name on the hub as the name.
    """
    name = str(config["model_name"])
    files = model_files(Path(name)) if Path(name).is_dir() else []
    return {
        "model": name,
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "checkpoint": str(config.get("pretrained_checkpoint")),
        "precision": config["precision"],
        "computed by": [part for part in _PARTS if (config.get(part) or {}).get("enabled")],
    }


def _key(tokens: Tensor) -> bytes:
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).digest()
