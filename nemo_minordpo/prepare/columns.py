"""Find the columns of a published preference set."""

from dataclasses import dataclass
from typing import Any

from nemo_minordpo.checked_json import checked_text, found_in
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.conversation import Message, read_messages, with_messages
from nemo_minordpo.prepare.overlap import squeezed
from nemo_minordpo.prepare.tools import read_tools
from nemo_minordpo.prepare.tracked_row import TrackedRow, is_empty

_CONVERSATIONS = ("messages", "conversations", "conversation")  # may end with a response
# If a column is not named: the first of these that is not empty; see TrackedRow.spelt for other spellings.
_NAMES = {
    "prompt": ("prompt", "instruction", "question", "input", *_CONVERSATIONS),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "system": ("system", "system_prompt", "system_message"),
    "input": ("input",),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "chosen_reward": ("chosen_reward", "score_chosen", "chosen_score"),
    "rejected_reward": ("rejected_reward", "score_rejected", "rejected_score"),
}
_WITH_INPUT = "instruction"  # next to this column, "input" is part of the prompt, as in Alpaca
_NO_INPUT = ("<noinput>", "noinput")  # placeholders for no input


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; None = the usual names, see the table above.

    prompt: text, or messages.
    chosen, rejected: text, or messages.
    system: text.
    input: text that follows the prompt, as in Alpaca.
    history: earlier turns, [[user, assistant], ...] as in Alpaca, or messages.
    tools: functions that may be called.
    chosen_reward, rejected_reward: numbers.
    """

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    input: str | None = None
    history: str | None = None
    tools: str | None = None
    chosen_reward: str | None = None
    rejected_reward: str | None = None

    def find(self, row: TrackedRow, column: str) -> tuple[str, Any]:
        """(name, value) of a column; the value is None if a column that was not named is missing or empty.

        Raises:
            UserError: the row lacks a column that was named.
        """
        named = getattr(self, column)
        if named is not None:
            if named not in row:
                raise UserError(f"missing column {named!r} ({found_in(row)})")
            return named, None if is_empty(row[named]) else row[named]
        for name in map(row.spelt, _NAMES[column]):
            if not is_empty(row.get(name)):
                return name, row[name]
        return column, None


def find_prompt(row: TrackedRow, columns: Columns) -> str | list[Message] | None:
    """The prompt, followed by the text of the `input` column; None if the row has no prompt column.

    Raises:
        UserError: it is neither text nor messages.
    """
    name, prompt = columns.find(row, "prompt")
    prompt = with_messages(prompt, "prompt")
    if isinstance(prompt, list):
        turns = read_messages(prompt, "prompt", row)
        if name in map(row.spelt, _CONVERSATIONS) and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns or None
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(f"prompt must be a string or messages: found {type(prompt).__name__}")
    if prompt is None or not (columns.input or row.spelt(_WITH_INPUT) == name):
        return prompt
    name, value = columns.find(row, "input")
    if value is None or (isinstance(value, str) and value.strip().lower() in _NO_INPUT):
        return prompt
    return _with_input(prompt, checked_text(row, name))


def _with_input(prompt: str, more: str) -> str:
    if squeezed(prompt).endswith(squeezed(more)):
        return prompt
    return more if squeezed(more).startswith(squeezed(prompt)) else f"{prompt}\n{more}"


def find_system(row: TrackedRow, columns: Columns) -> str | None:
    """Raises UserError if the system turn is not text."""
    name, value = columns.find(row, "system")
    return None if value is None else checked_text(row, name)


def find_history(row: TrackedRow, columns: Columns) -> list[Message]:
    """The turns before the prompt.

    Raises:
        UserError: they are neither pairs of texts nor messages.
    """
    name, value = columns.find(row, "history")
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{name} must be pairs of turns, or messages: found {type(value).__name__}")
    if all(isinstance(one, dict) for one in value):
        return read_messages(value, name, row)
    if not all(isinstance(one, list) and len(one) == 2 for one in value):
        raise UserError(f"{name} must be pairs of turns, or messages")
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for one in value for role, text in zip(roles, one, strict=True)]
    return read_messages(turns, name, row)


def find_tools(row: TrackedRow, columns: Columns) -> tuple[str, list[dict[str, Any]]]:
    """(name of the column, the functions that may be called).

    Raises:
        UserError: they are in no known form.
    """
    name, value = columns.find(row, "tools")
    return name, [] if value is None else read_tools(value)
