"""How a chat template renders message keys besides role and content: tool_calls, reasoning_content, name."""

from collections.abc import Callable

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.conversation import Message

# Turns -> text; raises UserError if the template rejects them.
Render = Callable[[list[Message]], str]


def unused_keys(turns: list[Message], render: Render) -> list[str]:
    """Keys that the template ignores in at least one of the turns.

    Each turn is tested as the last one, because templates leave out the thoughts of earlier turns on purpose.
    """
    unused = {
        key
        for end, message in enumerate(turns, start=1)
        for key in message.keys() - {"role", "content"}
        if not _has_effect(key, turns[:end], render)
    }
    return sorted(unused)


def _has_effect(key: str, turns: list[Message], render: Render) -> bool:
    *before, last = turns
    with_key = render(turns)
    try:
        return with_key != render([*before, {name: value for name, value in last.items() if name != key}])
    except UserError:  # the template requires the key
        return True


def written_response(turns: list[Message], response: Message, *, prompt: str, end: str, render: Render) -> str:
    """A response as the template writes it after `prompt`, without the `end` of its turn.

    Raises:
        UserError: the response cannot be separated from the text around it.
    """
    whole = render([*turns, response])
    keys = ", ".join(sorted(response.keys() - {"role", "content"}))
    if not whole.startswith(prompt):
        raise UserError(f"the template begins a turn with {keys} differently from its generation prompt")
    if not whole.endswith(end):
        raise UserError(f"the template ends a turn with {keys} differently from other turns")
    return whole[len(prompt) :].removesuffix(end)
