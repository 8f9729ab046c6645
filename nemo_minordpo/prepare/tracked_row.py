"""A row that records which of its columns are read, so that none is lost silently."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from nemo_minordpo.prepare.overlap import is_telling, squeezed
from nemo_minordpo.records import PreferencePair

# Columns, and keys of messages, known to affect the question or the answer; normalised by `_spelling`.
_MEANING = frozenset(
    {
        "prompt", "instruction", "question", "query", "problem", "input", "context", "passage", "document", "documents",
        "article", "background", "history", "chathistory", "messages", "conversation", "conversations", "dialogue",
        "choices", "options", "initialreasonsteps", "chattemplatekwargs",
        "system", "systemprompt", "systemmessage", "tools", "functions", "toolcalls", "functioncall",
        "reasoning", "reasoningcontent", "thinking", "chosenreasoning", "rejectedreasoning", "chosenthinking",
        "rejectedthinking", "chosen", "chosenresponse", "rejected", "rejectedresponse",
        "image", "images", "imageurl", "video", "videos", "audio", "audios",
    }
)  # fmt: skip
_NO_TEXT = ("role", "from", "type")  # keys of messages and their parts that contain no text
_EMPTY_JSON = ("[]", "{}", "null")
_LONGEST_NAME = 80  # characters shown


class Unread(NamedTuple):
    """What a row has and its pair does not.

    names: columns ("id"), and keys within columns ("name in messages"), that are not empty.
    lost: those that are known to carry meaning and that the user did not ask to leave out.
    """

    names: list[str]
    lost: list[str]


class TrackedRow(dict[str, Any]):
    """The columns of a row, without those to leave out; records which are read."""

    def __init__(self, columns: Mapping[str, Any], *, left_out: Iterable[str] = ()):
        self._left_out = frozenset(map(_spelling, left_out))
        super().__init__({name: value for name, value in columns.items() if not self.leaves_out(name)})
        self._spellings = {_spelling(name): name for name in reversed(list(self))}  # the first of equal spellings wins
        self._read: set[str] = set()
        self._unused: dict[str, bool] = {  # name -> whether meaning is lost
            name: False for name, value in columns.items() if name not in self and not _says_nothing(value)
        }

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def spelt(self, name: str) -> str:
        """The row's own spelling of a column: "Prompt" for "prompt" if there is no "prompt"."""
        return name if name in self else self._spellings.get(_spelling(name), name)

    def leaves_out(self, name: str) -> bool:
        """Whether the user asked to leave out columns and keys of this name."""
        return _spelling(name) in self._left_out

    def drop(self, key: str, *, within: str) -> None:
        """Record that a key inside a column is not used."""
        self._unused[f"{key} in {within}"] = _has_meaning(key) and not self.leaves_out(key)

    def drop_column(self, name: str) -> None:
        """Record that a column was read but has no effect."""
        self._read.discard(name)

    def unread(self, pair: PreferencePair, *, question: str) -> Unread:
        """What the row has and the pair made from it does not.

        Args:
            pair: its prompt may have been rendered by a chat template.
            question: the user's question as it was in the row.
        """
        unread = {name: value for name, value in self.items() if name not in self._read and not _says_nothing(value)}
        texts = (question, pair.chosen_response, pair.rejected_response, pair.prompt)
        lost = [name for name, value in unread.items() if _has_meaning(name) and not _is_repeated(value, texts)]
        lost += [name for name, is_lost in self._unused.items() if is_lost]
        return Unread(list(map(_shown, [*unread, *self._unused])), list(map(_shown, lost)))


def _has_meaning(name: str) -> bool:
    return _spelling(name) in _MEANING


def _shown(name: str) -> str:
    return (name if name.isprintable() else repr(name)[1:-1])[:_LONGEST_NAME]


def _says_nothing(value: Any) -> bool:
    return is_empty(value) or value in _EMPTY_JSON or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether a value is null, white space, or contains nothing else."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None


@lru_cache(maxsize=4096)
def _spelling(name: str) -> str:
    """Equal for "system_prompt", "System Prompt" and "systemPrompt"."""
    return re.sub(r"[\W_]", "", name).lower()


def _is_repeated(value: Any, texts: Iterable[str]) -> bool:
    """Whether the pair's texts already contain all of a column, for example "messages" next to "chosen".

    A conversation may end with a response that is not the pair's.
    """
    is_conversation = isinstance(value, list) and all(isinstance(one, dict) and _role(one) for one in value)
    if is_conversation and _role(value[-1]) in ("assistant", "gpt"):
        value = value[:-1]
    texts = list(map(squeezed, texts))
    for text in map(squeezed, texts_in(value)):
        is_within = any(text in one for one in texts) and (is_conversation or is_telling(text))
        if not is_within and text not in texts:
            return False
    return True


def _role(message: dict[str, Any]) -> Any:
    return message.get("role", message.get("from"))


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value at any depth, except roles and types; numbers as text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key not in _NO_TEXT:
                yield from texts_in(one)
    elif value is not None:
        yield str(value)
