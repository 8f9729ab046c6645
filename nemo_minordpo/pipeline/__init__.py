"""The whole road, from questions to a report: each stage is a command of `minordpo`, run as its own process.

All results lie in one work folder. A stage that ended well leaves a mark there; started again, the pipeline repeats
only the stages whose command line has changed, whose output is gone, or that follow such a stage.

`config.py` is what a YAML may say, `stages.py` the command lines made of it, `process.py` runs one.
"""

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_minordpo.pipeline.config import load_config
from nemo_minordpo.pipeline.process import run_and_keep
from nemo_minordpo.pipeline.stages import Stage, stages_of
from nemo_minordpo.records import write_json

__all__ = ["run_pipeline"]


def run_pipeline(config: Path, overrides: list[str]) -> None:
    """Run the stages that `config` describes, each once.

    Args:
        config: YAML file, or the name of one that the package ships ("demo", "real").
        overrides: `key=value` over the file, dots for inner keys.

    Raises:
        ValueError: a setting is wrong, an input is missing, or a stage failed (with the path of its log).
    """
    settings = load_config(config, overrides)
    stages = stages_of(settings)
    console, start = Console(highlight=False), time.monotonic()
    for number, stage in enumerate(stages, start=1):
        console.rule(f"[bold]{number}/{len(stages)}  {stage.name}")
        seconds = _run_stage(stage, Path(settings.work), console)
        state = "kept, it was done before" if seconds is None else f"done in {_duration(seconds)}"
        console.print(f"[bold]{stage.name}[/bold]: {state}; {_duration(time.monotonic() - start)} since the start\n")
    console.print(f"Report: {Path(settings.work) / 'report' / 'report.md'}", markup=False)


def _run_stage(stage: Stage, work: Path, console: Console) -> float | None:
    """Run a stage unless it is done; seconds, or None when it was done before."""
    mark, log = _mark_of(stage.name, work), work / "logs" / f"{stage.name}.log"
    earlier = _read(mark)
    # What a stage reads is known by the moment at which the stage that wrote it ended.
    key = {"command": stage.command, "after": {name: _read(_mark_of(name, work)).get("ended") for name in stage.after}}
    same = earlier.get("key") == key
    if same and "ended" in earlier and (stage.output is None or stage.output.exists()):
        return None
    command = list(stage.command)
    # A mark, even of a stage that never ended, says that what lies there is the pipeline's own.
    if earlier and not (same and stage.resumes):
        command += _make_room(stage)
    write_json(mark, {"key": key})
    console.print(f"$ {_shown(command)}", style="dim", markup=False, soft_wrap=True)
    start = time.monotonic()
    code = run_and_keep(command, log)
    if code != 0:
        raise ValueError(
            f"stage {stage.name} failed with exit code {code}; what it said is in {log}. "
            "Started again, the pipeline goes on from this stage"
        )
    if stage.output is not None and not stage.output.exists():
        raise ValueError(f"stage {stage.name} ended without its output {stage.output}; what it said is in {log}")
    seconds = time.monotonic() - start
    write_json(mark, {"key": key, "ended": time.time_ns(), "seconds": round(seconds, 1)})
    return seconds


def _make_room(stage: Stage) -> list[str]:
    """What lets the stage write where an earlier one of the pipeline has written."""
    if stage.overwrites:
        return ["--overwrite"]
    if stage.output is not None and stage.output.is_dir():
        shutil.rmtree(stage.output)
    return []


def _mark_of(name: str, work: Path) -> Path:
    return work / "stages" / f"{name}.json"


def _read(mark: Path) -> dict[str, Any]:
    return json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}


def _shown(command: list[str]) -> str:
    ours = command[:3] == [sys.executable, "-m", "nemo_minordpo"]
    return shlex.join(["minordpo", *command[3:]] if ours else command)


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.0f} s"
