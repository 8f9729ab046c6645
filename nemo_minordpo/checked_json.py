"""Read JSON supplied or possibly damaged by a user; reject it with the reason if it is invalid."""

import json
import sys
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError


def parse_json(text: str) -> Any:
    """Parse JSON from a user.

    Raises:
        UserError: the text is not JSON, or not JSON that Python can read. The caller adds the location.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError("invalid JSON: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or integers with thousands of digits
        raise UserError(f"invalid JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: the file is missing or contains anything else; the message has the path.
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
    """Parse a line of JSON as an object with non-empty strings in the fields ``names``.

    Raises:
        UserError: the line is anything else. The caller adds the location.
    """
    row = parse_json(text)
    if not isinstance(row, dict):
        raise UserError(f"a JSON object was expected, not {type(row).__name__}")
    for name in names:
        checked_text(row, name)
    return row


def checked_text(row: dict[str, Any], name: str) -> str:
    """The value of a field that must be a non-empty string.

    Raises:
        UserError: it is anything else. The caller adds the location.
    """
    if name not in row:
        raise UserError(f"missing field {name!r} ({found_in(row)})")
    if not isinstance(row[name], str):
        raise UserError(f"field {name!r} must be a string, not {type(row[name]).__name__}")
    if not row[name].strip():
        raise UserError(f"empty field {name!r}")
    try:
        row[name].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"field {name!r} contains half a surrogate pair: not valid Unicode text") from error
    return row[name]


def found_in(row: dict[str, Any]) -> str:
    """`found: a, b`: the fields of a row, for the message that another is missing."""
    return f"found: {', '.join(sorted(map(str, row))) or 'none'}"


def checked_number(value: Any, name: str) -> float:
    """A finite number that fits in a float.

    Raises:
        UserError: it is anything else. The caller adds the location.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"field {name!r} must be a number, not {type(value).__name__}")
    if not abs(value) <= sys.float_info.max:  # also rejects NaN
        raise UserError(f"field {name!r} must be a finite number, not {value!r:.40}")
    return value
