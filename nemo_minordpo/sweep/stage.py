"""A stage of an experiment: a command line with its inputs and its output."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.config import hydra_value
from nemo_minordpo.flat import flatten

_OURS = [sys.executable, "-m", "nemo_minordpo"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the experiment."""

    name: str
    command: list[str]
    output: Path | None  # None = nothing but its log
    after: tuple[str, ...] = ()  # stages whose output it reads
    overwrites: bool = False  # accepts --overwrite
    resumes: bool = False  # after an interruption, the same command resumes
    run: str = ""  # the run it belongs to; empty = shared by all runs

    @property
    def words(self) -> list[str]:
        """The arguments of `minordpo`; empty if the command is another program."""
        return self.command[len(_OURS) :] if self.command[: len(_OURS)] == _OURS else []

    @property
    def kind(self) -> str:
        """The stage's name without its run; stages of one kind take about the same time."""
        return self.name.partition(f"-{self.run}")[0] if self.run else self.name


def stage_of(
    command: str,
    arguments: list[str],
    *,
    output: Path,
    name: str | None = None,
    after: tuple[str, ...] = (),
    resumes: bool = False,
) -> Stage:
    """A `minordpo` command that accepts --overwrite."""
    return Stage(
        name=name or command,
        command=minordpo(command, *arguments),
        output=output,
        after=after,
        overwrites=True,
        resumes=resumes,
    )


def minordpo(*arguments: str) -> list[str]:
    return [*_OURS, *arguments]


def arguments_of(values: dict[str, Any]) -> list[str]:
    """{"num_train": 20, "overwrite": True, "limit": None, "of": [1, 2]} -> --num-train 20 --overwrite --of 1 --of 2."""
    arguments = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                arguments.append(flag)
            elif one is not None and one is not False:
                arguments += [flag, str(one)]
    return arguments


def hydra(values: dict[str, Any]) -> list[str]:
    """Nested settings as Hydra overrides: {"trainer": {"devices": 2}} -> ["trainer.devices=2"]."""
    return [f"{key}={hydra_value(value)}" for key, value in flatten(values).items()]
