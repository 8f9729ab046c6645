"""`minordpo prepare hf`: make pairs from published preference data."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import ChatTemplate
from nemo_minordpo.prepare.columns import Columns
from nemo_minordpo.prepare.conversation import Message
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.rendering import unused_keys
from nemo_minordpo.prepare.row_formats import Preference, read_preference
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import Manifest, PreferencePair

_INVERTED = "chosen has the lower reward"
_TEXT = ("role", "content")  # keys of every turn


def prepare_preference(
    sources: list[str],
    output: Path,
    *,
    subset: str | None = None,
    split: str = "train",
    options: BuildOptions | None = None,
    **settings: Any,
) -> Manifest:
    r"""Write the pairs of a published preference set to the folder `output`, see `build`.

    Recognised layouts, row by row:
    - prompt, chosen, rejected as strings;
    - chosen and rejected as messages after a prompt of messages (TRL's explicit prompt), or as whole conversations
      whose common beginning is the prompt (implicit; UltraFeedback also has the user's turn as a string);
    - `instruction` followed by an `input` and preceded by a `history` (Alpaca), or `conversations` as the prompt;
    - `instruction` and `completions` with scores, as UltraFeedback: the best against the worst;
    - chosen and rejected as dialogues "\n\nHuman: ...\n\nAssistant: ..." with a common beginning (Anthropic's HH);
    - NeMo-Aligner's own: prompt as a string or messages, chosen_response, rejected_response and their rewards.
    Each may also have a `system` column and `tools`; see columns.py. A prompt that both responses or conversations
    repeat is removed once. Unread columns that carry meaning stop the build.

    Args:
        sources: files, globs, folders, or a name on the hub.
        output: folder, created if missing.
        subset: configuration of a data set on the hub.
        split: split to read from hub names and folders.
        options: options of the build.
        settings: fields of the recipe, see `PreferenceRecipe`; prompting "plain" uses strings as they are, messages
            need "chat".
    """
    found = find_sources(sources, subset=subset, split=split)
    return build(PreferenceRecipe(**settings), found, output, options or BuildOptions())


@dataclass(frozen=True, kw_only=True)
class PreferenceRecipe(Recipe):
    columns: Columns = field(default_factory=Columns)

    stage = "prepare hf"

    def settings(self) -> dict[str, Any]:
        columns = {f"{name}_column": value for name, value in asdict(self.columns).items()}
        return super().settings() | columns

    def open(self, scratch: Path) -> MakePair:
        chat = self.prompting.open()

        def make(row: TrackedRow, place: str, number: int) -> Made:
            found = read_preference(row, self.columns)
            pair, note = _plain_pair(found, row) if chat is None else _chat_pair(found, row, chat)
            pair = replace(pair, chosen_reward=found.chosen_reward, rejected_reward=found.rejected_reward)
            return Made(
                pair=pair,
                question=found.question(),
                origin={"source": place},
                notes=(found.note, note, _inverted(found)),
            )

        return make


def _inverted(found: Preference) -> str:
    if found.chosen_reward is None or found.rejected_reward is None:
        return ""
    return _INVERTED if found.chosen_reward < found.rejected_reward else ""


def _plain_pair(found: Preference, row: TrackedRow) -> tuple[PreferencePair, str]:
    if not isinstance(found.prompt, str):
        raise UserError(
            "messages, history and a system turn need a chat template: --template chat and --tokenizer "
            "(or leave the column out: --ignore-columns)"
        )
    if found.tools:
        row.drop_column(found.tools_column)
    for key in found.chosen.keys() | found.rejected.keys():
        if key not in _TEXT:
            row.drop(key, within="messages")
    chosen, rejected = found.chosen["content"], found.rejected["content"]
    return PreferencePair(prompt=found.prompt, chosen_response=chosen, rejected_response=rejected), ""


def _chat_pair(found: Preference, row: TrackedRow, chat: ChatTemplate) -> tuple[PreferencePair, str]:
    turns = found.turns()
    if turns[-1]["role"] not in ("user", "tool"):
        raise UserError("the conversation before the response does not end with the user's turn")
    if found.tools:
        with_tools = chat.with_tools(found.tools)
        if with_tools.render(turns) == chat.render(turns):
            row.drop_column(found.tools_column)
        chat = with_tools
    turns = _used(turns, row, chat)
    chosen, rejected = (_used([*turns, one], row, chat)[-1] for one in (found.chosen, found.rejected))
    if found.is_cut:
        chosen, rejected = (one | {"content": one["content"].strip()} for one in (chosen, rejected))
    return chat.pair(turns, chosen=_plain(chosen), rejected=_plain(rejected))


def _used(turns: list[Message], row: TrackedRow, chat: ChatTemplate) -> list[Message]:
    """The turns without the keys that the template does not use.

    Raises:
        UserError: a turn contains nothing else.
    """
    unused = unused_keys(turns, chat.render)
    for key in unused:
        row.drop(key, within="messages")
    used = [{key: value for key, value in message.items() if key not in unused} for message in turns]
    if any(len(message) == len(_TEXT) and not message["content"].strip() for message in used):
        raise UserError(f"the chat template does not use {', '.join(unused)}, and a turn contains nothing else")
    return used


def _plain(response: Message) -> str | Message:
    return response["content"] if len(response) == len(_TEXT) else response
