"""Layouts of conversations: lists of messages, and Anthropic's dialogues (Human: ... Assistant: ...)."""

import json
import re
from typing import Any

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.overlap import is_telling, squeezed
from nemo_minordpo.prepare.tools import read_calls
from nemo_minordpo.prepare.tracked_row import TrackedRow, is_empty

# Role and content, plus anything else that a template may use: tool_calls, reasoning_content, name.
Message = dict[str, Any]

# ShareGPT's names of roles, and the usual ones.
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
_OF_MESSAGES = ({"role", "content"}, {"from", "value"})
_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HUMAN = re.compile(r"\s*Human:")
_ASSISTANT = "\n\nAssistant:"


def read_messages(value: list[Any], what: str, row: TrackedRow) -> list[Message]:
    """Check messages with role and content (or from and value); their other keys are included unless empty.

    Args:
        value: the value of a column.
        what: the column's name in error messages.
        row: decides which keys to leave out, and records those that were.

    Raises:
        UserError: a message has an unknown role or no text, or there are no messages.
    """
    messages = []
    for one in value:
        if not isinstance(one, dict):
            raise UserError(f"{what} contains something that is not a message: {type(one).__name__}")
        names = ("role", "content") if "role" in one else ("from", "value")
        more = _more_keys(one, names, row)
        role, content = (one.get(name) for name in names)
        known = _ROLES.get(role.lower()) if isinstance(role, str) else None
        if known is None:
            raise UserError(f"{what} has a message with an unknown role: {str(role)[:40]!r}")
        if isinstance(role, str) and role.lower() == "function_call":  # LLaMA-Factory: the call is the whole turn
            more["tool_calls"], content = content, ""
        if "tool_calls" in more:
            more["tool_calls"] = read_calls(more["tool_calls"])
            content = content or ""
        if not isinstance(content, str):
            raise UserError(f"{what} has a message whose content is not text: {type(content).__name__}")
        if not content.strip() and "tool_calls" not in more:
            raise UserError(f"{what} has an empty message")
        messages.append({"role": known, "content": content} | more)
    if not messages:
        raise UserError(f"{what} has no messages")
    return messages


def with_messages(value: Any, what: str) -> Any:
    """The messages if the value is a text of messages in JSON, as in tables without list columns; else the value.

    Raises:
        UserError: the text looks like messages but is not JSON, for example Python's repr of them.
    """
    like = _LIKE_MESSAGES.match(value) if isinstance(value, str) else None
    if like is None:
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if any(all(f"{like[1]}{name}{like[1]}:" in value for name in names) for names in _OF_MESSAGES):
            raise UserError(f"{what} looks like messages but is not JSON") from error
        return value
    messages = found if isinstance(found, list) else [found]
    is_all = all(isinstance(one, dict) and any(names <= one.keys() for names in _OF_MESSAGES) for one in messages)
    return found if is_all else value


def _more_keys(message: dict[str, Any], names: tuple[str, str], row: TrackedRow) -> dict[str, Any]:
    found = {key: value for key, value in message.items() if key not in names and not is_empty(value)}
    left_out = [key for key in found if row.leaves_out(key)]
    for key in left_out:
        row.drop(key, within="messages")
        del found[key]
    return found


def shared_messages(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The common beginning of two conversations: TRL's implicit prompt.

    White space counts only in last turns: two responses may differ in nothing else.
    """
    shared = []
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False), start=1):
        is_last = place in (len(chosen), len(rejected))
        if one != other and (is_last or not _is_same(one, other)):
            break
        shared.append(one)
    return shared


def joined_messages(before: list[Message], after: list[Message], *, short_turns_recur: bool = False) -> list[Message]:
    """Join two parts of a conversation; turns that both parts share appear once.

    The second part may begin with the end of the first, or contain all of it.

    Args:
        before: turns of the first part.
        after: turns of the second part.
        short_turns_recur: whether a short turn ("Go on.") may be in both parts.

    Raises:
        UserError: turns are repeated in any other way, or the parts do not form a conversation.
    """
    for size in range(min(len(before), len(after)), 0, -1):
        if _all_same(before[-size:], after[:size]):
            return [*before, *after[size:]]
    if before and any(_all_same(before, after[start : start + len(before)]) for start in range(len(after))):
        return after
    same = [one for one in before for other in after if _is_same(one, other)]
    if any(is_telling(one["content"]) or not short_turns_recur for one in same):
        raise UserError("turns of the prompt are repeated, but not where one part continues the other")
    if before and after and after[0]["role"] in ("system", before[-1]["role"]):
        raise UserError(f"the parts of the conversation do not fit: {before[-1]['role']}, then {after[0]['role']}")
    return [*before, *after]


def _all_same(some: list[Message], others: list[Message]) -> bool:
    return len(some) == len(others) and all(map(_is_same, some, others))


def _is_same(one: Message, other: Message) -> bool:
    return {**one, "content": squeezed(one["content"])} == {**other, "content": squeezed(other["content"])}


def only_response(messages: list[Message], what: str) -> Message:
    """The only message, which must be the assistant's.

    Raises:
        UserError: there are none or several, or the message has another role.
    """
    if not messages:
        raise UserError("one response is only the beginning of the other, or both are equal")
    if len(messages) > 1:
        raise UserError(f"{what} has more than one turn after the shared ones: only the last turn may differ")
    if messages[0]["role"] != "assistant":
        raise UserError(f"{what} ends with a turn of another role: {messages[0]['role']}")
    return messages[0]


def is_hh(text: str) -> bool:
    """Whether a text is a dialogue in the format of Anthropic's HH."""
    return _HUMAN.match(text) is not None and _ASSISTANT in text


def has_turns(text: str) -> bool:
    """Whether a text contains turns of such a dialogue."""
    return _TURN.search(text) is not None


def split_hh(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two dialogues that differ in the last turn: prompt (up to "Assistant:"), chosen and rejected response.

    Raises:
        UserError: the dialogues differ before the last turn.
    """
    end = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    prompt = chosen[:end]
    if not rejected.startswith(prompt) or _ASSISTANT in rejected[end:]:
        raise UserError("the dialogues differ before the assistant's last turn")
    return prompt, chosen[end:], rejected[end:]


def hh_messages(prompt: str) -> list[Message]:
    """The turns of a dialogue that ends with "Assistant:".

    Raises:
        UserError: a turn is empty, or the dialogue does not end with "Assistant:".
    """
    _, *pieces = _TURN.split(prompt)
    roles, texts = pieces[0::2], [text.strip() for text in pieces[1::2]]
    if roles[-1:] != ["Assistant"] or texts[-1:] != [""]:
        raise UserError("a dialogue must end with 'Assistant:'")
    turns = list(zip(roles[:-1], texts[:-1], strict=True))
    messages = [{"from": role, "value": text} for role, text in turns]
    return read_messages(messages, "dialogue", TrackedRow({})) if turns else []
