"""The layouts in which conversations come: lists of messages, and Anthropic's dialogues (Human: ... Assistant: ...)."""

import json
import re
from typing import Any

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.overlap import is_telling, squeezed
from nemo_minordpo.prepare.tools import read_calls
from nemo_minordpo.prepare.tracked_row import TrackedRow, is_empty

# Role and content, and whatever else a template may have a use for: tool_calls, reasoning_content, name.
Message = dict[str, Any]

# ShareGPT's names, and what everybody else calls them.
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
    """Messages with role and content (or from and value), checked, and their further keys that hold something.

    Args:
        value: what a column holds.
        what: the column, for messages.
        row: says which keys are to be left out, and is told which were.

    Raises:
        ValueError: it is no list of messages of known roles with text in each; ``what`` names it.
    """
    messages = []
    for one in value:
        if not isinstance(one, dict):
            raise UserError(f"{what} holds what is no message: {type(one).__name__}")
        names = ("role", "content") if "role" in one else ("from", "value")
        more = _more_keys(one, names, row)
        role, content = (one.get(name) for name in names)
        known = _ROLES.get(role.lower()) if isinstance(role, str) else None
        if known is None:
            raise UserError(f"{what} has a message of unknown role: {str(role)[:40]!r}")
        if isinstance(role, str) and role.lower() == "function_call":  # LLaMA-Factory: the call is all of its turn
            more["tool_calls"], content = content, ""
        if "tool_calls" in more:
            more["tool_calls"] = read_calls(more["tool_calls"])
            content = content or ""
        if not isinstance(content, str):
            raise UserError(f"{what} has a message whose content is not a text: {type(content).__name__}")
        if not content.strip() and "tool_calls" not in more:
            raise UserError(f"{what} has an empty message")
        messages.append({"role": known, "content": content} | more)
    if not messages:
        raise UserError(f"{what} has no message")
    return messages


def with_messages(value: Any, what: str) -> Any:
    """The messages where a text holds nothing else, in JSON: tables without lists have them so. Else the value.

    Raises:
        ValueError: a text of messages that is no JSON, such as what Python prints of them; ``what`` names it.
    """
    like = _LIKE_MESSAGES.match(value) if isinstance(value, str) else None
    if like is None:
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if any(all(f"{like[1]}{name}{like[1]}:" in value for name in names) for names in _OF_MESSAGES):
            raise UserError(f"{what} is a text that looks like messages and is not JSON") from error
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
    """The beginning that two conversations have in common: TRL's implicit prompt.

    White space counts in last turns alone: two responses may differ in nothing else.
    """
    shared = []
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False), start=1):
        is_last = place in (len(chosen), len(rejected))
        if one != other and (is_last or not _is_same(one, other)):
            break
        shared.append(one)
    return shared


def joined_messages(before: list[Message], behind: list[Message], *, short_turns_recur: bool = False) -> list[Message]:
    """One conversation of two parts, what both hold once.

    The second part may repeat the end of the first one, or the whole of it, with more turns around it.

    Args:
        before: turns.
        behind: turns.
        short_turns_recur: a short turn ("Go on.") may be in both.

    Raises:
        ValueError: turns stand twice otherwise, or the parts are none of one conversation.
    """
    for size in range(min(len(before), len(behind)), 0, -1):
        if _all_same(before[-size:], behind[:size]):
            return [*before, *behind[size:]]
    if before and any(_all_same(before, behind[start : start + len(before)]) for start in range(len(behind))):
        return behind
    same = [one for one in before for other in behind if _is_same(one, other)]
    if any(is_telling(one["content"]) or not short_turns_recur for one in same):
        raise UserError("turns of the prompt stand twice, and not where one part would go on with the other")
    if before and behind and behind[0]["role"] in ("system", before[-1]["role"]):
        raise UserError(f"the parts of the conversation do not fit: {before[-1]['role']}, then {behind[0]['role']}")
    return [*before, *behind]


def _all_same(some: list[Message], others: list[Message]) -> bool:
    return len(some) == len(others) and all(map(_is_same, some, others))


def _is_same(one: Message, other: Message) -> bool:
    return {**one, "content": squeezed(one["content"])} == {**other, "content": squeezed(other["content"])}


def only_response(messages: list[Message], what: str) -> Message:
    """A single assistant's message.

    Raises:
        ValueError: there are more, or none, or it is another's.
    """
    if not messages:
        raise UserError("one response is only the beginning of the other, or both are equal")
    if len(messages) > 1:
        raise UserError(f"{what} has more than one turn behind what both share: only the last turn may differ")
    if messages[0]["role"] != "assistant":
        raise UserError(f"{what} ends with a turn of another role: {messages[0]['role']}")
    return messages[0]


def is_hh(text: str) -> bool:
    """Whether a text is a dialogue as Anthropic's HH writes it."""
    return _HUMAN.match(text) is not None and _ASSISTANT in text


def has_turns(text: str) -> bool:
    """Whether turns of such a dialogue follow in a text."""
    return _TURN.search(text) is not None


def split_hh(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt (up to "Assistant:"), chosen and rejected response of two dialogues that differ in their last turn.

    Raises:
        ValueError: they differ before it, or go on behind it.
    """
    end = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    prompt = chosen[:end]
    if not rejected.startswith(prompt) or _ASSISTANT in rejected[end:]:
        raise UserError("the dialogues differ before the assistant's last turn")
    return prompt, chosen[end:], rejected[end:]


def hh_messages(prompt: str) -> list[Message]:
    """The turns of a dialogue that ends with "Assistant:".

    Raises:
        ValueError: turns without a text, or not in turn.
    """
    _, *pieces = _TURN.split(prompt)
    roles, texts = pieces[0::2], [text.strip() for text in pieces[1::2]]
    if roles[-1:] != ["Assistant"] or texts[-1:] != [""]:
        raise UserError("a dialogue must end with 'Assistant:'")
    turns = list(zip(roles[:-1], texts[:-1], strict=True))
    messages = [{"from": role, "value": text} for role, text in turns]
    return read_messages(messages, "dialogue", TrackedRow({})) if turns else []
