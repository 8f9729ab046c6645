"""`minordpo prepare choices`: pairs of a right and a wrong option, from multiple choice such as ARC and HellaSwag."""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nemo_minordpo.checked_json import checked_text
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import Manifest, PreferencePair


class Question(NamedTuple):
    """A question with its options; `prompt` is the text before the option if no template is used."""

    text: str
    prompt: str
    options: list[str]
    right: int


def prepare_choices(
    sources: list[str],
    output: Path,
    *,
    subset: str | None = None,
    split: str = "train",
    options: BuildOptions | None = None,
    **settings: Any,
) -> Manifest:
    """Write pairs of the right and a wrong option of each question to the folder `output`, see `build`.

    This follows Pal et al. 2024 (Smaug). A pair depends only on its row, its line number and `seed`.

    Args:
        sources: files, globs, folders, or a name on the hub: rows with `question`, `choices` and `answerKey` (ARC;
            OpenBookQA's `question_stem`), or `ctx`, `endings` and `label` (HellaSwag).
        output: folder, created if missing.
        subset: configuration of a data set on the hub, for example ARC-Challenge.
        split: split to read from hub names and folders.
        options: options of the build.
        settings: fields of the recipe, see `Recipe`.
    """
    found = find_sources(sources, subset=subset, split=split)
    return build(ChoicesRecipe(**settings), found, output, options or BuildOptions())


@dataclass(frozen=True, kw_only=True)
class ChoicesRecipe(Recipe):
    stage = "prepare choices"

    def open(self, scratch: Path) -> MakePair:
        chat = self.prompting.open()

        def make(row: TrackedRow, place: str, number: int) -> Made:
            asked = read_question(row)
            right = asked.options[asked.right]
            draw = random.Random(f"{self.seed}:{number - 1}")
            wrong = draw.choice([option for option in asked.options if option != right])
            if chat is None:
                # The space belongs to the response: tokenizers join it to the word that follows.
                pair, note = _plain(asked.prompt, f" {right}", f" {wrong}"), ""
            else:
                pair, note = chat.pair([{"role": "user", "content": asked.text}], chosen=right, rejected=wrong)
            return Made(pair=pair, question=asked.text, origin={"source": place}, notes=(note,))

        return make


def _plain(prompt: str, right: str, wrong: str) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen_response=right, rejected_response=wrong)


def read_question(row: dict[str, Any]) -> Question:
    """Read a row in ARC's or HellaSwag's layout.

    Raises:
        UserError: the row is in neither layout, or its right option is missing or the only one.
    """
    asked = _hellaswag(row) if "endings" in row else _arc(row)
    if not 0 <= asked.right < len(asked.options):
        raise UserError(f"the answer is not among the options: number {asked.right} of {len(asked.options)}")
    if len(set(asked.options)) < 2:
        raise UserError("fewer than two different options")
    return asked


def _arc(row: dict[str, Any]) -> Question:
    question = row.get("question")
    nested = question if isinstance(question, dict) else row  # the original jsonl has the options inside the question
    stem = "question_stem" if "question_stem" in row else "stem" if nested is question else "question"
    text = checked_text(nested, stem).strip()
    labels, options = _labelled(nested.get("choices"))
    key = checked_text(row, "answerKey").strip()
    if key not in labels:
        raise UserError(f"the answer is not among the options: {key[:20]!r} of {', '.join(labels)[:60]}")
    return Question(text, f"Question: {text}\nAnswer:", options, labels.index(key))


def _labelled(choices: Any) -> tuple[list[str], list[str]]:
    """Labels and texts, from {"text": [...], "label": [...]} or [{"text": ..., "label": ...}, ...]."""
    if isinstance(choices, dict) and all(isinstance(choices.get(name), list) for name in ("text", "label")):
        if len(choices["text"]) != len(choices["label"]):
            raise UserError(f"choices: {len(choices['text'])} texts, but {len(choices['label'])} labels")
        choices = [
            {"text": text, "label": label} for text, label in zip(choices["text"], choices["label"], strict=True)
        ]
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise UserError(f"choices must be texts with labels: found {type(choices).__name__}")
    return [checked_text(one, "label") for one in choices], [checked_text(one, "text").strip() for one in choices]


def _hellaswag(row: dict[str, Any]) -> Question:
    endings, label = row["endings"], row.get("label")
    if not isinstance(endings, list):
        raise UserError(f"endings must be a list: found {type(endings).__name__}")
    if isinstance(label, bool) or not re.fullmatch(r"[0-9]{1,4}", str(label)):
        raise UserError("no label: the test split has no right answers")
    context = _without_headings(checked_text(row, "ctx"))
    if "activity_label" in row:
        context = f"{checked_text(row, 'activity_label')}: {context}"
    options = [_without_headings(checked_text({"ending": one}, "ending")) for one in endings]
    return Question(context, context, options, int(str(label)))


def _without_headings(text: str) -> str:
    """A text without WikiHow's "[header]", "[title]" and "[step]", as lm-evaluation-harness reads HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.replace(" [title]", ". "))
    return " ".join(text.split())
