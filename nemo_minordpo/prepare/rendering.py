"""What a chat template makes of what messages hold besides role and content: tool_calls, reasoning_content, name."""

from collections.abc import Callable

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.conversation import Message

# Turns -> text; raises UserError where the template refuses them.
Render = Callable[[list[Message]], str]


def unused_keys(turns: list[Message], render: Render) -> list[str]:
    """Keys of which the template leaves out what at least one of the turns holds.

    A turn is looked at where it is the last one: templates leave out the thoughts of earlier turns on purpose.
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
    except UserError:  # it cannot do without
        return True


def written_response(turns: list[Message], response: Message, *, prompt: str, end: str, render: Render) -> str:
    """A response as the template writes it behind `prompt`, without the `end` of its turn.

    Raises:
        UserError: it cannot be told apart from what surrounds it.
    """
    whole = render([*turns, response])
    keys = ", ".join(sorted(response.keys() - {"role", "content"}))
    if not whole.startswith(prompt):
        raise UserError(f"the template's generation prompt is not how it begins a turn with {keys}")
    if not whole.endswith(end):
        raise UserError(f"the template does not end a turn with {keys} as others")
    return whole[len(prompt) :].removesuffix(end)
