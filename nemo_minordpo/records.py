"""The records that stages exchange, and the files that hold them.

Stages never import one another; they communicate through these files: UTF-8 JSON or JSON lines, written by files.py.
"""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_origin

from nemo_minordpo import __version__
from nemo_minordpo.checked_json import checked_number, object_with_texts, parse_json, read_json_object
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MANIFEST
from nemo_minordpo.files import write_json
from nemo_minordpo.provenance import installed_versions, source_commit

_R = TypeVar("_R", bound="_Record")
_AS_JSON = {tuple: list, float: int | float}  # type of a field -> its type in JSON, if different
OF_LOG_RATIOS = ("rewards/", "deviation/", "dpo/", "dpop/", "minordpo/")  # beginnings of metrics that need a reference
_MOST_BITS = 63  # a longer integer in a record can only be damage


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One prompt with a better and a worse response; names as in NeMo-Aligner's jsonl.

    The prompt is the exact text before the response, chat template included.
    Rewards are the ground-truth rewards that upstream's rpo losses read; None = the configured default.
    """

    prompt: str
    chosen_response: str
    rejected_response: str
    chosen_reward: float | None = None
    rejected_reward: float | None = None

    @classmethod
    def from_json(cls, text: str) -> "PreferencePair":
        """Read one line of `pairs.jsonl`; unknown keys are ignored.

        Raises:
            ValueError: the reason only; the caller adds file and line.
        """
        row = object_with_texts(text, ("prompt", "chosen_response", "rejected_response"))
        for name in ("chosen_reward", "rejected_reward"):
            value = row.get(name)
            if value is not None:
                checked_number(value, name)
        if row["chosen_response"] == row["rejected_response"]:
            raise UserError("chosen_response and rejected_response are equal: the pair teaches nothing")
        names = cls.__dataclass_fields__
        return cls(**{name: row[name] for name in names if name in row})


@dataclass(kw_only=True)
class Manifest:
    """Provenance of a stage's output: the `manifest.json` in its folder."""

    stage: str
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    inputs: dict[str, str] = field(default_factory=dict)  # path -> sha256
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> number of rejected rows
    unread: dict[str, int] = field(default_factory=dict)  # column that no pair uses -> rows in which it is not empty
    prompts: list[dict[str, Any]] = field(default_factory=list)  # prompt formats of the training pairs: see prompts.py
    roles: dict[str, list[str]] = field(default_factory=dict)  # what inputs are for -> those inputs
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)  # input -> how it was made: see origins.py
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    version: str = __version__
    commit: str | None = field(default_factory=source_commit)
    packages: dict[str, str] = field(default_factory=installed_versions)
    python: str = platform.python_version()

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises UserError if there is no manifest, or it is damaged."""
        path = folder / MANIFEST
        try:
            return cls(**read_json_object(path))
        except TypeError as error:
            raise UserError(f"{path}: not a manifest as `minordpo` writes it ({error})") from error


class _Record:
    """A record that can be read back exactly as it was written."""

    @classmethod
    def from_json(cls: type[_R], text: str) -> _R:
        """Raises ValueError or TypeError if ``text`` is not such a record, or a field has the wrong type."""
        record = cls(**parse_json(text))
        for one in fields(cls):  # pyright: ignore[reportArgumentType]  # every record is a dataclass
            _check_type(getattr(record, one.name), one.type, name=one.name)
        return record


@dataclass(frozen=True, kw_only=True)
class StepMetrics(_Record):
    """One line of a run's `metrics.jsonl`.

    `values` has the metrics of core/metrics.py (rewards are beta-free log-ratios in nats) and of the training loop.
    """

    split: str  # "train", "validation" or "watch"
    step: int  # optimizer steps done; 0 = answers sampled before the first
    epoch: int
    consumed_pairs: int
    values: dict[str, float]

    @property
    def has_reference(self) -> bool:
        """Whether rewards are log-ratios: without a reference, training logs log-probabilities in their place."""
        values = self.values
        return "logps/chosen" not in values or values.get("rewards/chosen") != values["logps/chosen"]


@dataclass(frozen=True, kw_only=True)
class RunEvent(_Record):
    """One line of a run's `events.jsonl`: begun (set-up), started, saved, damaged, alarm, stopped, complete."""

    time: str  # UTC
    attempt: int
    job: str
    event: str
    step: int  # optimizer steps done
    detail: str = ""
    max_steps: int = 0  # length of the whole run; set only in `started`


@dataclass(frozen=True, kw_only=True)
class WatchedAnswer(_Record):
    """An answer of the model during training; a line of a run's `watch/step_*.jsonl`."""

    prompt: str
    output: str
    num_tokens: int  # without the token that ended it
    finished: bool  # True: the model ended its answer; False: cut at a limit
    degenerate: str | None  # the reason, as core/repetition.py names it; None = healthy


@dataclass(frozen=True, kw_only=True)
class Failure(_Record):
    """An error on a rank; a file in a run's `failures/`."""

    time: str  # UTC
    job: str
    rank: int
    node: str
    error: str  # one line
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Prediction(_Record):
    """One answered question; a line of `predictions.jsonl`. Numbers are strings as core/gsm8k.py normalises them."""

    index: int  # position of the question in the file, from 0
    question: str
    output: str
    num_tokens: int
    finished: bool  # True: the model ended its answer; False: cut at the token limit
    gold: str
    strict: str | None  # the number after "the answer is"; None = not found, or unreadable
    flexible: str | None  # the boxed number, else the one after ####, else the stated one, else the last; None likewise
    degenerate: str | None  # the reason, as core/repetition.py names it; None = healthy


@dataclass(frozen=True, kw_only=True)
class SampledPrediction(Prediction):
    """One of several answers to a question, drawn at a temperature above 0; a line of `predictions.jsonl`."""

    sample: int  # number of the answer to its question, from 0


@dataclass(frozen=True, kw_only=True)
class Score(_Record):
    """`score.json`: a model's result on a set of questions. Rates are fractions of all answers."""

    model: str
    questions: str
    num_questions: int
    strict_accuracy: float
    strict_interval_95: tuple[float, float]  # Wilson
    flexible_accuracy: float
    flexible_interval_95: tuple[float, float]
    degenerate_rate: float
    no_answer_rate: float  # no strict answer found
    unfinished_rate: float
    mean_tokens: float


@dataclass(frozen=True, kw_only=True)
class SampledScore(Score):
    """`score.json` of answers drawn at a temperature above 0.

    The intervals of all accuracies are Wilson's for `num_questions`: more samples are not more questions. They are too
    wide rather than too narrow, because a question with several samples scores between 0 and 1.
    """

    num_samples: int  # answers per question
    temperature: float
    top_p: float
    seed: int
    strict_majority_accuracy: float  # maj@N: the number that most answers name is right (core/samples.py)
    strict_majority_interval_95: tuple[float, float]
    flexible_majority_accuracy: float
    flexible_majority_interval_95: tuple[float, float]
    strict_pass_at: dict[str, float]  # k -> pass@k, with k as text
    strict_pass_at_interval_95: dict[str, tuple[float, float]]
    flexible_pass_at: dict[str, float]
    flexible_pass_at_interval_95: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class PairScore(_Record):
    """`pair_score.json`: log-probabilities of pairs under a model; metrics by the names of docs/metrics.md."""

    model: str
    reference: str | None
    num_pairs: int
    metrics: dict[str, float]  # means over the pairs
    intervals_95: dict[str, tuple[float, float]]  # accuracies: Wilson; others: Student's t; empty for one pair


def score_from_json(text: str) -> Score:
    """A `score.json`, of greedy or of sampled answers.

    Raises:
        ValueError, TypeError: it is not a score.
    """
    return _greedy_or_sampled(text, Score, SampledScore, only_sampled="num_samples")


def prediction_from_json(text: str) -> Prediction:
    """A line of `predictions.jsonl`, greedy or sampled.

    Raises:
        ValueError, TypeError: it is not a prediction.
    """
    return _greedy_or_sampled(text, Prediction, SampledPrediction, only_sampled="sample")


def _greedy_or_sampled(text: str, greedy: type[_R], sampled: type[_R], *, only_sampled: str) -> _R:
    """The record in `text`; the field `only_sampled` tells which of the two it is."""
    value = parse_json(text)
    return (sampled if isinstance(value, dict) and only_sampled in value else greedy).from_json(text)


def _check_type(value: Any, kind: Any, *, name: str) -> None:
    """Raises UserError if a JSON value does not have its field's type, or cannot be printed."""
    kind = kind if isinstance(kind, UnionType) else get_origin(kind) or kind
    if not isinstance(value, _AS_JSON.get(kind, kind)):
        raise UserError(f"field {name!r} has a value of the wrong type: {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UserError(f"field {name!r} has an integer of {value.bit_length()} bits")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"field {name!r} contains half a surrogate pair: not valid Unicode") from error


def utc_now() -> str:
    """ISO 8601 with microseconds: strings that sort chronologically."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
