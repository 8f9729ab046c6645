"""JSON that a user gave or could have damaged: read with checks, and refused with the reason."""

import json
import sys
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError


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
