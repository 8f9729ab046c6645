"""`minordpo prepare hf`: preference data as it is published, in pairs out."""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import ChatTemplate, Prompting
from nemo_minordpo.prepare.conversation import (
    Message,
    hh_messages,
    is_hh,
    only_response,
    read_messages,
    shared_messages,
    split_hh,
)
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.records import Manifest, PreferencePair, checked_text

# Where a column is not named, the first of these that a row has.
_NAMES = {
    "prompt": ("prompt", "instruction", "question"),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "system": (),
    "chosen_reward": ("chosen_reward", "score_chosen", "chosen_score"),
    "rejected_reward": ("rejected_reward", "score_rejected", "rejected_score"),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; None = the usual ones, see the table above."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    chosen_reward: str | None = None
    rejected_reward: str | None = None

    def find(self, row: dict[str, Any], column: str) -> tuple[str, Any]:
        """(name, value) of a column; the value is None where a column that was not named is missing or null.

        Raises:
            ValueError: the row lacks a column that was named.
        """
        named = getattr(self, column)
        if named is not None:
            if named not in row:
                raise UserError(f"missing column {named!r} (found: {', '.join(sorted(map(str, row))) or 'none'})")
            return named, row[named]
        for name in _NAMES[column]:
            if row.get(name) is not None:
                return name, row[name]
        return column, None


class Preference(NamedTuple):
    """A row, whatever its layout was: the prompt is a text or a conversation that ends with the user's turn."""

    prompt: str | list[Message]
    chosen: str
    rejected: str
    chosen_reward: float | None
    rejected_reward: float | None


def prepare_preference(
    sources: list[str],
    output: Path,
    *,
    columns: Columns | None = None,
    prompting: Prompting | None = None,
    subset: str | None = None,
    split: str = "train",
    seed: int = 1234,
    options: BuildOptions | None = None,
) -> Manifest:
    r"""Write the pairs of a published preference set into the folder `output`, see `build`.

    Layouts that are recognised, row by row:
    - prompt, chosen, rejected as strings;
    - chosen and rejected as messages behind a prompt of messages (TRL's explicit prompt), or as whole conversations
      whose common beginning is the prompt (implicit; UltraFeedback has the user's turn as a string, too);
    - `instruction` and `completions` with scores, as UltraFeedback: the best against the worst;
    - chosen and rejected as dialogues "\n\nHuman: ...\n\nAssistant: ..." with a common beginning (Anthropic's HH);
    - NeMo-Aligner's own: prompt as a string or messages, chosen_response, rejected_response and their rewards.

    Args:
        sources: files, globs, folders, or a name on the hub.
        output: folder, made when it is not there.
        columns: names of columns.
        prompting: "plain" takes strings as they are; messages need "chat".
        subset: configuration of a data set of the hub.
        split: of hub names and folders.
        seed: of the split.
        options: of the build.
    """
    recipe = PreferenceRecipe(seed=seed, columns=columns or Columns(), prompting=prompting or Prompting())
    return build(recipe, find_sources(sources, subset=subset, split=split), output, options or BuildOptions())


@dataclass(frozen=True, kw_only=True)
class PreferenceRecipe(Recipe):
    columns: Columns = field(default_factory=Columns)

    stage = "prepare hf"

    def settings(self) -> dict[str, Any]:
        columns = {f"{name}_column": value for name, value in asdict(self.columns).items()}
        return super().settings() | columns

    def open(self, scratch: Path) -> MakePair:
        chat = self.prompting.open()

        def make(row: dict[str, Any], place: str, number: int) -> Made:
            found = read_preference(row, self.columns)
            pair, note = _pair(found, chat)
            return Made(pair=pair, question=_question(found.prompt), origin={"source": place}, note=note)

        return make


def read_preference(row: dict[str, Any], columns: Columns) -> Preference:
    """A row of any layout that is known.

    Raises:
        ValueError: it is of none, with the reason.
    """
    if "completions" in row and columns.chosen is None and "chosen" not in row:
        chosen, rejected, *rewards = _best_and_worst(row["completions"])
    else:
        chosen, rejected = (_needed(columns.find(row, name)) for name in ("chosen", "rejected"))
        rewards = [_reward(*columns.find(row, name)) for name in ("chosen_reward", "rejected_reward")]
    _, prompt = columns.find(row, "prompt")
    if isinstance(prompt, list):
        prompt = read_messages(prompt, "prompt")
    elif prompt is not None and not isinstance(prompt, str):
        raise UserError(f"prompt must be a string or messages: found {type(prompt).__name__}")
    chosen, rejected = (_as_list_or_text(value, name) for value, name in ((chosen, "chosen"), (rejected, "rejected")))
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _of_texts(prompt, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _of_messages(prompt, chosen, rejected)
    else:
        raise UserError("one of chosen and rejected is a string, the other one messages")
    system = columns.find(row, "system")[1]
    if system:
        prompt = _with_system(prompt, checked_text({"system": system}, "system"))
    return Preference(prompt, chosen, rejected, *rewards)


def _needed(found: tuple[str, Any]) -> Any:
    name, value = found
    if value is None:
        raise UserError(f"missing or null: column {name!r}")
    return value


def _as_list_or_text(value: Any, name: str) -> str | list[Message]:
    if isinstance(value, dict):  # NeMo-Aligner writes a response as one message
        value = [value]
    if isinstance(value, list):
        return read_messages(value, name)
    if not isinstance(value, str):
        raise UserError(f"{name} must be a string or messages: found {type(value).__name__}")
    return value


def _of_texts(prompt: Any, chosen: str, rejected: str) -> tuple[Any, str, str]:
    if prompt is None:
        if not (is_hh(chosen) and is_hh(rejected)):
            raise UserError("no prompt: name its column, unless chosen and rejected are dialogues as Anthropic's HH")
        prompt, chosen, rejected = split_hh(chosen, rejected)
    return prompt, chosen, rejected


def _of_messages(prompt: Any, chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """An explicit prompt stands before the responses; an implicit one is what both conversations begin with."""
    shared = shared_messages(chosen, rejected)
    chosen_text = only_response(chosen[len(shared) :], "chosen")
    rejected_text = only_response(rejected[len(shared) :], "rejected")
    if isinstance(prompt, str):
        if shared and prompt.strip() not in [message["content"].strip() for message in shared]:
            raise UserError("the prompt is not one of the turns that chosen and rejected share")
        conversation = shared or [{"role": "user", "content": prompt}]
    elif prompt and shared[: len(prompt)] == prompt:  # repeated in the conversations
        conversation = shared
    else:
        conversation = [*(prompt or []), *shared]
    if not conversation:
        raise UserError("no prompt: chosen and rejected begin with different turns, and there is no prompt column")
    return conversation, chosen_text, rejected_text


def _with_system(prompt: Any, system: str) -> list[Message]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns[0]["role"] == "system":
        raise UserError("two system turns: one in the conversation, one in the system column")
    return [{"role": "system", "content": system}, *turns]


def _best_and_worst(completions: Any) -> tuple[str, str, float, float]:
    """Texts and scores of the best and the worst of UltraFeedback's completions; of equals the first counts."""
    if not isinstance(completions, list):
        raise UserError(f"completions must be a list: found {type(completions).__name__}")
    scored = []
    for one in completions:
        if not isinstance(one, dict):
            raise UserError(f"completions holds what is no object: {type(one).__name__}")
        score = _reward("overall_score", one.get("overall_score"))
        if score is not None:
            scored.append((score, checked_text(one, "response")))
    if len({score for score, _ in scored}) < 2:
        raise UserError("no two completions with different overall_score: none is better")
    best, worst = max(scored, key=lambda one: one[0]), min(scored, key=lambda one: one[0])
    return best[1], worst[1], best[0], worst[0]


def _reward(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number: found {type(value).__name__}")
    if not -1e300 < value < 1e300 or math.isnan(value):
        raise UserError(f"{name} must be a finite number")
    return value


def _pair(found: Preference, chat: ChatTemplate | None) -> tuple[PreferencePair, str]:
    if chat is None:
        if not isinstance(found.prompt, str):
            raise UserError("messages need a chat template: --template chat and --tokenizer")
        pair = PreferencePair(prompt=found.prompt, chosen_response=found.chosen, rejected_response=found.rejected)
        return _with_rewards(pair, found), ""
    prompt, chosen, rejected = found.prompt, found.chosen, found.rejected
    if isinstance(prompt, str) and is_hh(prompt):
        prompt, chosen, rejected = hh_messages(prompt), chosen.strip(), rejected.strip()
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not prompt or prompt[-1]["role"] != "user":
        raise UserError("the conversation before the response does not end with the user's turn")
    pair, note = chat.pair(prompt, chosen=chosen, rejected=rejected)
    return _with_rewards(pair, found), note


def _with_rewards(pair: PreferencePair, found: Preference) -> PreferencePair:
    return replace(pair, chosen_reward=found.chosen_reward, rejected_reward=found.rejected_reward)


def _question(prompt: str | list[Message]) -> str:
    """What the rows of one question have in common, whatever their layout is: the user's turns."""
    if isinstance(prompt, str) and is_hh(prompt):
        with suppress(ValueError):
            prompt = hh_messages(prompt)
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt if message["role"] == "user")
