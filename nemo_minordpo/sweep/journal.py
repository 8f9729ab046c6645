"""Which stages are done: the work folder has one file per stage that has started."""

import shutil
import time
from pathlib import Path
from typing import Any

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.files import write_json
from nemo_minordpo.sweep.stage import Stage


class Journal:
    """The journal of one work folder.

    An entry, even of a stage that never ended, marks the stage's output as written by the sweep.
    """

    def __init__(self, work: Path) -> None:
        self.work = work

    def is_done(self, stage: Stage) -> bool:
        """Whether it succeeded with the same command and the same inputs, and its output still exists."""
        entry = self._read(stage.name)
        there = stage.output is None or stage.output.exists()
        return entry.get("key") == self._key(stage) and "ended" in entry and there

    def begin(self, stage: Stage) -> None:
        write_json(self._path(stage.name), {"key": self._key(stage)})

    def end(self, stage: Stage, *, seconds: float) -> None:
        entry = {"key": self._key(stage), "ended": time.time_ns(), "seconds": round(seconds, 1)}
        write_json(self._path(stage.name), entry)

    def seconds(self, stage: Stage) -> float:
        """How long a completed stage took."""
        return self._read(stage.name)["seconds"]

    def make_room(self, stage: Stage) -> list[str]:
        """Let a stage replace the sweep's earlier output; returns extra arguments for its command."""
        entry = self._read(stage.name)
        if not entry or (stage.resumes and entry.get("key") == self._key(stage)):
            return []
        if stage.overwrites:
            return ["--overwrite"]
        if stage.output is not None and stage.output.is_dir():
            shutil.rmtree(stage.output)
        return []

    def _key(self, stage: Stage) -> dict[str, Any]:
        # A stage's inputs are identified by the times at which the stages that wrote them ended.
        return {"command": stage.command, "after": {name: self._read(name).get("ended") for name in stage.after}}

    def _path(self, name: str) -> Path:
        return self.work / "stages" / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        return read_json_object(path) if path.is_file() else {}
