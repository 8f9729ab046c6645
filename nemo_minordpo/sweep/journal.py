"""What is done already: a file for each stage that began, in the work folder."""

import shutil
import time
from pathlib import Path
from typing import Any

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.files import write_json
from nemo_minordpo.sweep.stages import Stage


class Journal:
    """The journal of one work folder.

    An entry, even of a stage that never ended, says that what lies there is the sweep's own.
    """

    def __init__(self, work: Path) -> None:
        self.work = work

    def is_done(self, stage: Stage) -> bool:
        """Whether it ended well with the same command after the same stages, and its output is still there."""
        entry = self._read(stage.name)
        there = stage.output is None or stage.output.exists()
        return entry.get("key") == self._key(stage) and "ended" in entry and there

    def begin(self, stage: Stage) -> None:
        write_json(self._path(stage.name), {"key": self._key(stage)})

    def end(self, stage: Stage, *, seconds: float) -> None:
        entry = {"key": self._key(stage), "ended": time.time_ns(), "seconds": round(seconds, 1)}
        write_json(self._path(stage.name), entry)

    def seconds(self, stage: Stage) -> float:
        """How long a stage took that is done."""
        return self._read(stage.name)["seconds"]

    def make_room(self, stage: Stage) -> list[str]:
        """Let a stage write where an earlier one of the sweep has written; returns more arguments for it."""
        entry = self._read(stage.name)
        if not entry or (stage.resumes and entry.get("key") == self._key(stage)):
            return []
        if stage.overwrites:
            return ["--overwrite"]
        if stage.output is not None and stage.output.is_dir():
            shutil.rmtree(stage.output)
        return []

    def _key(self, stage: Stage) -> dict[str, Any]:
        # What a stage reads is known by the moment at which the stage that wrote it ended.
        return {"command": stage.command, "after": {name: self._read(name).get("ended") for name in stage.after}}

    def _path(self, name: str) -> Path:
        return self.work / "stages" / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        return read_json_object(path) if path.is_file() else {}
