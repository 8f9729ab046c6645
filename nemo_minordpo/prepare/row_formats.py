"""Read rows in the layouts of published preference data."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nemo_minordpo.checked_json import checked_number, checked_text
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.columns import Columns, find_history, find_prompt, find_system, find_tools
from nemo_minordpo.prepare.conversation import (
    Message,
    has_turns,
    hh_messages,
    is_hh,
    joined_messages,
    only_response,
    read_messages,
    shared_messages,
    split_hh,
    with_messages,
)
from nemo_minordpo.prepare.overlap import rest_behind, squeezed, without_prompt
from nemo_minordpo.prepare.tracked_row import TrackedRow

REPEATED = "both responses began with the prompt or its end, which was removed"
_OF_COMPLETION = ("response", "overall_score")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A row, independent of its original layout.

    prompt: text, or the conversation before the response.
    chosen, rejected: one assistant turn each.
    tools: functions that may be called, from the column `tools_column`.
    is_cut: the responses were cut out of longer texts; white space around them belongs to neither part.
    note: anything unusual about the row.
    """

    prompt: str | list[Message]
    chosen: Message
    rejected: Message
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tools_column: str = "tools"
    is_cut: bool = False
    note: str = ""

    def turns(self) -> list[Message]:
        """The prompt as a conversation."""
        return _turns(self.prompt)

    def question(self) -> str:
        """The user's turns, which are the same for all rows of a question in any layout."""
        turns = [{"role": "user", "content": self.prompt}]
        with suppress(UserError):  # a dialogue with empty turns, which gives no pair
            turns = self.turns()
        return "\n".join(message["content"] for message in turns if message["role"] == "user")


class _Parts(NamedTuple):
    prompt: str | list[Message]
    chosen: Message
    rejected: Message
    is_cut: bool = False
    repeats: bool = False


def read_preference(row: TrackedRow, columns: Columns) -> Preference:
    """Read a row in any known layout.

    Raises:
        UserError: the layout is unknown or the row contradicts itself; the message says why.
    """
    if "completions" in row and columns.chosen is None and row.spelt("chosen") not in row:
        chosen, rejected, rewards = _best_and_worst(row)
    else:
        chosen, rejected = (_response(row, columns, name) for name in ("chosen", "rejected"))
        rewards = tuple(_reward(*columns.find(row, name)) for name in ("chosen_reward", "rejected_reward"))
    prompt = find_prompt(row, columns)
    if isinstance(chosen, str) and isinstance(rejected, str):
        parts = _of_texts(prompt, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        parts = _of_messages(prompt, chosen, rejected)
    else:
        raise UserError("one of chosen and rejected is a string, the other is messages")
    parts = _without_repetition(parts)
    _check_responses(parts)
    tools_column, tools = find_tools(row, columns)
    return Preference(
        prompt=_with_earlier_turns(parts.prompt, history=find_history(row, columns), system=find_system(row, columns)),
        chosen=parts.chosen,
        rejected=parts.rejected,
        chosen_reward=rewards[0],
        rejected_reward=rewards[1],
        tools=tools,
        tools_column=tools_column,
        is_cut=parts.is_cut,
        note=REPEATED if parts.repeats else "",
    )


def _response(row: TrackedRow, columns: Columns, column: str) -> str | list[Message]:
    name, value = columns.find(row, column)
    if value is None:
        raise UserError(f"missing or empty: column {name!r}")
    value = with_messages(value, column)
    if isinstance(value, dict):  # NeMo-Aligner writes a response as one message
        value = [value]
    if isinstance(value, list):
        return read_messages(value, column, row)
    if not isinstance(value, str):
        raise UserError(f"{column} must be a string or messages: found {type(value).__name__}")
    return value


def _best_and_worst(row: TrackedRow) -> tuple[str, str, tuple[float, float]]:
    """Texts and scores of the best and the worst of UltraFeedback's completions; the first wins a tie."""
    completions = row["completions"]
    if not isinstance(completions, list):
        raise UserError(f"completions must be a list: found {type(completions).__name__}")
    scored = []
    for one in completions:
        if not isinstance(one, dict):
            raise UserError(f"completions contains something that is not an object: {type(one).__name__}")
        score = _reward("overall_score", one.get("overall_score"))
        if score is not None:
            scored.append((score, checked_text(one, "response")))
        for key in one.keys() - set(_OF_COMPLETION):
            row.drop(key, within="completions")
    if len({score for score, _ in scored}) < 2:
        raise UserError("no two completions with different overall_score: none is better")
    best, worst = max(scored, key=lambda one: one[0]), min(scored, key=lambda one: one[0])
    return best[1], worst[1], (best[0], worst[0])


def _reward(name: str, value: Any) -> float | None:
    return None if value is None else checked_number(value, name)


def _of_texts(prompt: str | list[Message] | None, chosen: str, rejected: str) -> _Parts:
    """Split texts: a prompt with its responses, or whole dialogues."""
    if is_hh(chosen) != is_hh(rejected):
        raise UserError("one of chosen and rejected is a dialogue (Human: ... Assistant: ...), the other is not")
    if is_hh(chosen):
        return _of_dialogues(prompt, chosen, rejected)
    if prompt is None:
        raise UserError(
            "no prompt, or an empty one: name its column, unless chosen and rejected are dialogues like Anthropic's HH"
        )
    return _Parts(prompt, _assistant(chosen), _assistant(rejected), is_cut=isinstance(prompt, str) and is_hh(prompt))


def _of_dialogues(prompt: str | list[Message] | None, chosen: str, rejected: str) -> _Parts:
    dialogue, chosen, rejected = split_hh(chosen, rejected)
    parts = _Parts(dialogue, _assistant(chosen), _assistant(rejected), is_cut=True, repeats=prompt is not None)
    if isinstance(prompt, list):
        return parts._replace(prompt=joined_messages(prompt, hh_messages(dialogue)))
    if prompt is not None and rest_behind(dialogue, prompt) is None and not _is_asked(prompt, hh_messages(dialogue)):
        raise UserError("the prompt is neither the beginning nor a turn of the dialogues in chosen and rejected")
    return parts


def _of_messages(prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]) -> _Parts:
    """An explicit prompt precedes the responses; an implicit one is the common beginning of both conversations."""
    shared = shared_messages(chosen, rejected)
    chosen_turn = only_response(chosen[len(shared) :], "chosen")
    rejected_turn = only_response(rejected[len(shared) :], "rejected")
    if isinstance(prompt, str):
        if shared and not _is_asked(prompt, shared):
            raise UserError("the prompt is not one of the user's turns that chosen and rejected share")
        conversation = shared or _turns(prompt)
    else:
        conversation = joined_messages(prompt or [], shared)
    if not conversation:
        raise UserError("no prompt, or an empty one: there is no prompt column, and chosen and rejected share no turn")
    return _Parts(conversation, chosen_turn, rejected_turn)


def _is_asked(prompt: str, messages: list[Message]) -> bool:
    return squeezed(prompt) in [squeezed(message["content"]) for message in messages if message["role"] == "user"]


def _without_repetition(parts: _Parts) -> _Parts:
    """Remove the prompt, or the last turn before the responses, from the start of both responses."""
    askings = [parts.prompt] if isinstance(parts.prompt, str) else []
    if not askings or (is_hh(askings[0]) and askings[0].rstrip().endswith("Assistant:")):
        askings += [message["content"] for message in _turns(parts.prompt)[-1:]]
    for asking in askings:
        found = without_prompt(asking, chosen=parts.chosen["content"], rejected=parts.rejected["content"])
        if found is not None:
            chosen, rejected = found
            return parts._replace(
                chosen=parts.chosen | {"content": chosen},
                rejected=parts.rejected | {"content": rejected},
                is_cut=True,
                repeats=True,
            )
    return parts


def _check_responses(parts: _Parts) -> None:
    is_dialogue = isinstance(parts.prompt, str) and is_hh(parts.prompt)
    for name, response in (("chosen", parts.chosen), ("rejected", parts.rejected)):
        if not response["content"].strip() and "tool_calls" not in response:
            raise UserError(f"{name} is empty, or nothing but the prompt")
        if is_dialogue and has_turns(response["content"]):
            raise UserError(f"turns follow the response in {name}")


def _with_earlier_turns(
    prompt: str | list[Message], *, history: list[Message], system: str | None
) -> str | list[Message]:
    if not history and system is None:
        return prompt
    turns = joined_messages(history, _turns(prompt), short_turns_recur=True)
    if system is None:
        return turns
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if squeezed(turns[0]["content"]) != squeezed(system):
        raise UserError("two system turns: one in the conversation, one in the system column")
    return turns


def _turns(prompt: str | list[Message]) -> list[Message]:
    if isinstance(prompt, list):
        return prompt
    return hh_messages(prompt) if is_hh(prompt) else [{"role": "user", "content": prompt}]


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
