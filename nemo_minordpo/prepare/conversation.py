"""The layouts in which conversations come: lists of messages, and Anthropic's dialogues (Human: ... Assistant: ...)."""

import re
from typing import Any

from nemo_minordpo.errors import UserError

Message = dict[str, str]

# ShareGPT's names, and what everybody else calls them.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ASSISTANT = "\n\nAssistant:"


def read_messages(value: list[Any], what: str) -> list[Message]:
    """Messages with role and content (or from and value), checked.

    Raises:
        ValueError: it is no list of messages of known roles with text in each; ``what`` names it.
    """
    messages = []
    for one in value:
        if not isinstance(one, dict):
            raise UserError(f"{what} holds what is no message: {type(one).__name__}")
        role, content = (one.get("role"), one.get("content")) if "role" in one else (one.get("from"), one.get("value"))
        known = _ROLES.get(role.lower()) if isinstance(role, str) else None
        if known is None:
            raise UserError(f"{what} has a message of unknown role: {str(role)[:40]!r}")
        if not isinstance(content, str):
            raise UserError(f"{what} has a message whose content is not a text: {type(content).__name__}")
        if not content.strip():
            raise UserError(f"{what} has an empty message")
        messages.append({"role": known, "content": content})
    if not messages:
        raise UserError(f"{what} has no message")
    return messages


def shared_messages(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The beginning that two conversations have in common: TRL's implicit prompt."""
    shared = []
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def only_response(messages: list[Message], what: str) -> str:
    """The text of a single assistant's message.

    Raises:
        ValueError: there are more, or none, or it is another's.
    """
    if not messages:
        raise UserError("one response is only the beginning of the other, or both are equal")
    if len(messages) > 1:
        raise UserError(f"{what} has more than one turn behind what both share: only the last turn may differ")
    if messages[0]["role"] != "assistant":
        raise UserError(f"{what} ends with a turn of another role: {messages[0]['role']}")
    return messages[0]["content"]


def is_hh(text: str) -> bool:
    """Whether a text is a dialogue as Anthropic's HH writes it."""
    return text.startswith("\n\nHuman:") and _ASSISTANT in text


def split_hh(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt (up to "Assistant:"), chosen and rejected response of two dialogues that differ in their last turn.

    Raises:
        ValueError: they differ before it.
    """
    end = chosen.rfind(_ASSISTANT) + len(_ASSISTANT)
    prompt = chosen[:end]
    if not rejected.startswith(prompt) or _TURN.search(rejected, end):
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
    return read_messages([{"from": role, "value": text} for role, text in turns], "dialogue") if turns else []
