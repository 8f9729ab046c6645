"""What the stages hand over to one another: records, and the files that hold them.

Stages never import one another; they meet in these files. All of them are UTF-8 JSON or JSON lines,
written under a temporary name and renamed, so that a reader finds a whole file or none.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_origin

from nemo_minordpo import __version__
from nemo_minordpo.errors import UserError
from nemo_minordpo.provenance import installed_versions, source_commit

_R = TypeVar("_R", bound="_Record")
_AS_JSON = {tuple: list, float: int | float}  # type of a field -> as JSON has it, where that is another
_MOST_BITS = 63  # of a whole number in a record: more can only be damage


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
        """Read one line of `pairs.jsonl`; other keys of the object are left unread.

        Raises:
            ValueError: the reason, without the place: the caller knows file and line.
        """
        row = object_with_texts(text, ("prompt", "chosen_response", "rejected_response"))
        for name in ("chosen_reward", "rejected_reward"):
            value = row.get(name)
            if value is not None:
                checked_number(value, name)
        if row["chosen_response"] == row["rejected_response"]:
            raise UserError("chosen_response and rejected_response are equal: nothing can be learnt from the pair")
        names = cls.__dataclass_fields__
        return cls(**{name: row[name] for name in names if name in row})


@dataclass(kw_only=True)
class Manifest:
    """Where a stage's output came from; `manifest.json` beside it."""

    stage: str
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    inputs: dict[str, str] = field(default_factory=dict)  # path -> sha256
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> rows, where rows can be rejected
    unread: dict[str, int] = field(default_factory=dict)  # column that is in no pair -> rows in which it is not empty
    prompts: list[dict[str, Any]] = field(default_factory=list)  # of the pairs trained on: see prompts.py
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    version: str = __version__
    commit: str | None = field(default_factory=source_commit)
    packages: dict[str, str] = field(default_factory=installed_versions)
    python: str = platform.python_version()

    def write(self, folder: Path) -> None:
        write_json(folder / "manifest.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises UserError where there is none, or one that is damaged."""
        path = folder / "manifest.json"
        try:
            return cls(**read_json_object(path))
        except TypeError as error:
            raise UserError(f"{path}: not a manifest as `minordpo` writes it ({error})") from error


class _Record:
    """A record that is read back as it was written."""

    @classmethod
    def from_json(cls: type[_R], text: str) -> _R:
        """Raises ValueError or TypeError where ``text`` is not one, or has a field of another type."""
        record = cls(**parse_json(text))
        for one in fields(cls):  # pyright: ignore[reportArgumentType]  # every record is a dataclass
            _check_type(getattr(record, one.name), one.type, name=one.name)
        return record


@dataclass(frozen=True, kw_only=True)
class StepMetrics(_Record):
    """One line of a run's `metrics.jsonl`.

    `values` holds the names of core/metrics.py (rewards are beta-free log-ratios in nats) and the loop's own.
    """

    split: str  # "train", "validation" or "watch"
    step: int  # optimizer steps done, 1 = after the first; 0: a look at the answers before it
    epoch: int
    consumed_pairs: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunEvent(_Record):
    """One line of a run's `events.jsonl`: begun (set-up), started, saved, damaged, alarm, stopped, complete."""

    time: str  # UTC
    attempt: int
    job: str
    event: str
    step: int  # optimizer steps done
    detail: str = ""
    max_steps: int = 0  # of the whole run; `started` alone says it


@dataclass(frozen=True, kw_only=True)
class WatchedAnswer(_Record):
    """What a model in training answered; a line of a run's `watch/step_*.jsonl`."""

    prompt: str
    output: str
    num_tokens: int  # without the one that ended it
    finished: bool  # True: the model ended its answer; False: cut at a limit
    degenerate: str | None  # the reason, as core/repetition.py names it; None = healthy


@dataclass(frozen=True, kw_only=True)
class Failure(_Record):
    """What broke on a rank; a file of a run's `failures/`."""

    time: str  # UTC
    job: str
    rank: int
    node: str
    error: str  # one line
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered question; a line of `predictions.jsonl`. Numbers are strings as core/gsm8k.py normalises them."""

    index: int  # place of the question in the file, from 0
    question: str
    output: str
    num_tokens: int
    finished: bool  # True: the model ended its answer; False: cut at the token limit
    gold: str
    strict: str | None  # the number after "the answer is"; None = not found, or not readable
    flexible: str | None  # a boxed number, else after ####, else the stated one, else the last; None likewise
    degenerate: str | None  # the reason, as core/repetition.py names it; None = healthy


@dataclass(frozen=True, kw_only=True)
class Score(_Record):
    """`score.json`: what `evaluate` says of a model on a set of questions. Rates are fractions of `num_questions`."""

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


def _check_type(value: Any, kind: Any, *, name: str) -> None:
    """Raises UserError where a value of JSON is not of the type of its field, or none that can be shown."""
    kind = kind if isinstance(kind, UnionType) else get_origin(kind) or kind
    if not isinstance(value, _AS_JSON.get(kind, kind)):
        raise UserError(f"field {name!r} holds a value of another type: {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UserError(f"field {name!r} holds a whole number of {value.bit_length()} bits")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"field {name!r} holds half a surrogate pair: not valid Unicode text") from error


def parse_json(text: str) -> Any:
    """The value of a text of JSON that a user gave.

    Raises:
        UserError: it is none, or one that Python does not read; the reason, without the place.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError("invalid JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and whole numbers of thousands of digits
        raise UserError(f"invalid JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a user gave, or could have damaged.

    Raises:
        UserError: with the path.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        value = parse_json(path.read_bytes().decode())
    except (UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


def object_with_texts(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    """A line of JSON as an object whose fields ``names`` are texts with something in them.

    Raises:
        ValueError: the reason, without the place.
    """
    row = parse_json(text)
    if not isinstance(row, dict):
        raise UserError(f"a JSON object was expected, not {type(row).__name__}")
    for name in names:
        checked_text(row, name)
    return row


def checked_text(row: dict[str, Any], name: str) -> str:
    """The text of a field.

    Raises:
        ValueError: it is not a text with something in it; the reason, without the place.
    """
    if name not in row:
        raise UserError(f"missing field {name!r} (found: {', '.join(sorted(map(str, row))) or 'none'})")
    if not isinstance(row[name], str):
        raise UserError(f"field {name!r} must be a string, not {type(row[name]).__name__}")
    if not row[name].strip():
        raise UserError(f"empty field {name!r}")
    try:
        row[name].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"field {name!r} holds half a surrogate pair: not valid Unicode text") from error
    return row[name]


def checked_number(value: Any, name: str) -> float:
    """A finite number that a float can hold.

    Raises:
        UserError: it is something else; the reason, without the place.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"field {name!r} must be a number, not {type(value).__name__}")
    if not abs(value) <= sys.float_info.max:  # false for NaN, too
        raise UserError(f"field {name!r} must be a finite number, not {value!r:.40}")
    return value


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: old there, new now` of each flat setting that is not the same, in the order of the keys."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"  {key}: {before.get(key)} there, {now.get(key)} now" for key in keys]


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON object a line, whole or not at all; dataclasses are taken as they are. Returns the count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    count = 0
    with temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(to_json_line(row))
            count += 1
    os.replace(temporary, path)
    return count


def to_json_line(row: Any) -> str:
    """A record or a plain value as one line of JSON."""
    value = row if isinstance(row, dict | list) else asdict(row)
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank.

    Raises:
        ValueError: the file is missing or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number + 1}: not UTF-8 text ({error})") from error


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as data:  # hashlib.file_digest would do, from Python 3.11 on
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Guard for what a user made: an output that exists is replaced only when asked for.

    Raises:
        ValueError: `path` exists (a folder: and is not empty) and `overwrite` is False.
    """
    exists = any(path.iterdir()) if path.is_dir() else path.exists()
    if exists and not overwrite:
        raise UserError(f"{path} exists already: choose another place, or pass --overwrite to replace it")


def utc_now() -> str:
    """ISO 8601, to the microsecond: texts that sort as times do."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
