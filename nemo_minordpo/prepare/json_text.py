"""Read one large JSON text value by value."""

import io
import json
import re
from typing import IO, Any

from nemo_minordpo.errors import UserError

_BLOCK = 1 << 20  # characters read at a time
_SPACE = re.compile(r"[ \t\r\n]*")


class GrowingText:
    """A JSON text, read in pieces: memory holds about one value at a time."""

    def __init__(self, data: IO[bytes], *, name: str, max_characters: int):
        self._data, self._name = io.TextIOWrapper(data, encoding="utf-8-sig"), name
        self._max_characters = max_characters  # limit per value
        self._text, self._start = "", 0
        self._scan = json.JSONDecoder().raw_decode

    def take(self, character: str) -> bool:
        """Skip white space, then `character`; False if something else follows."""
        self._pass_space()
        if not self._text.startswith(character, self._start):
            return False
        self._start += 1
        return True

    def take_value(self, number: int) -> Any:
        """The next value; `number` names it in errors.

        Raises:
            UserError: the value is damaged, cut off, too long or nested too deeply.
        """
        self._pass_space()
        characters = _BLOCK
        while True:
            try:
                value, end = self._scan(self._text, self._start)
                fault = "the text ends here"
            except RecursionError as error:
                raise UserError(f"{self._name}: row {number} is nested too deeply") from error
            except ValueError as error:  # damaged, or continued in the next block
                value, end, fault = None, len(self._text), str(error)
            if end < len(self._text):  # a value at the end of the text may continue in the next block: 12|34
                self._start = end
                return value
            if len(self._text) - self._start > self._max_characters or not self._grow(characters):
                raise UserError(f"{self._name}: damaged at row {number}, nothing after it can be read: {fault}")
            characters *= 2  # so a long value is retried only a few times

    def is_at_end(self) -> bool:
        self._pass_space()
        return self._start == len(self._text)

    def _pass_space(self) -> None:
        while True:
            rest = _SPACE.match(self._text, self._start)
            assert rest is not None
            self._start = rest.end()
            if self._start < len(self._text) or not self._grow(_BLOCK):
                return

    def _grow(self, characters: int) -> bool:
        try:
            more = self._data.read(characters)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name}: not UTF-8 text: {error}") from error
        self._text, self._start = self._text[self._start :] + more, 0
        return bool(more)
