"""`minordpo prepare metamath`: make zero-shot pairs from MetaMath_DPO_FewShot.

The prompts contain solved questions before the actual one, in an undocumented layout. The actual question is found
without guessing: through MetaMathQA, which has every chosen response with its question, or by a marker that the user
gives. A prompt whose question is not certain gives no pair.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.checked_json import checked_text
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import question_prompts
from nemo_minordpo.prepare.metamathqa import INDEX_NAME, QuestionIndex, build_index
from nemo_minordpo.prepare.overlap import squeezed
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.rows import Row
from nemo_minordpo.prepare.sources import Source, find_sources
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import Manifest, PreferencePair
from nemo_minordpo.terminal import say

# After the question, before the expected answer: "Answer:", "### Response:", "A: Let's think step by step."
_CUE_WORDS = r"\b(?:answer|solution|response|output|a)[*\s]*:[*\s]*(?:let'?s think step by step[.:]?)?\s*$"
_CUE = re.compile(r"[\s#*]*" + _CUE_WORDS, re.IGNORECASE)
_LINE_CUE = re.compile(r"\n[ \t#*]*" + _CUE_WORDS, re.IGNORECASE)
_LONGEST_CUE = 100
_SOLVED = re.compile(r"####|the answer is\b", re.IGNORECASE)
MAX_QUESTION_CHARACTERS = 4000
_KEPT = "the question was not found: the prompt was left unchanged"


def prepare_metamath(
    sources: list[str],
    output: Path,
    *,
    metamathqa: list[str] | None = None,
    marker: str | None = None,
    keep_few_shot: bool = False,
    subset: str | None = None,
    split: str = "train",
    options: BuildOptions | None = None,
    **settings: Any,
) -> Manifest:
    """Write zero-shot pairs made from few-shot ones to the folder `output`, see `build`.

    Args:
        sources: files, folders or a hub name; rows have `prompt`, `chosen` and `rejected`.
        output: folder, created if missing.
        metamathqa: files, folders or a hub name; rows have `query`, `response` and `original_question`. Among the rows
            whose `response` is a pair's `chosen`, the question is the `query` that the prompt ends with.
        marker: without `metamathqa`: a regular expression that matches before each question, at the start of a line.
        keep_few_shot: leave a prompt unchanged if its question is not found, instead of rejecting the row.
        subset: configuration of a data set on the hub.
        split: split to read from hub names and folders.
        options: options of the build.
        settings: fields of the recipe, see `Recipe`; the question is put into the paper's prompt.

    Raises:
        UserError: neither or both of `metamathqa` and `marker` are given, the marker is not a regular expression, or
            `build` refuses the rows.
    """
    found = find_sources(sources, subset=subset, split=split)
    if (metamathqa is None) == (marker is None):
        raise UserError(_which_way(found))
    recipe = MetaMathRecipe(
        metamathqa=None if metamathqa is None else tuple(find_sources(metamathqa)),
        marker=marker,
        keep_few_shot=keep_few_shot,
        **settings,
    )
    if marker is not None:
        _compiled(marker)  # report a bad marker before doing any work
    options = options or BuildOptions()
    if metamathqa is None and options.num_validation:
        say(
            "without --metamathqa, rewrites of a question are not recognised: "
            "validation may contain rewrites of training questions"
        )
    return build(recipe, found, output, options)


@dataclass(frozen=True, kw_only=True)
class MetaMathRecipe(Recipe):
    metamathqa: tuple[Source, ...] | None = None
    marker: str | None = None
    keep_few_shot: bool = False

    stage = "prepare metamath"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "metamathqa": None if self.metamathqa is None else [source.name for source in self.metamathqa],
            "marker": self.marker,
            "keep_few_shot": self.keep_few_shot,
        }

    def identities(self) -> dict[str, str]:
        return super().identities() | {source.name: source.identity() for source in self.metamathqa or ()}

    def begin(self, scratch: Path, sources: Sequence[Source]) -> dict[str, int]:
        return {} if self.metamathqa is None else build_index(self.metamathqa, scratch / INDEX_NAME)

    def _finder(self, scratch: Path) -> Callable[[str, str], tuple[str, str]]:
        """A function (prompt, chosen) -> (question, original question that it rewrites); it raises UserError."""
        if self.marker is not None:
            marker = _compiled(self.marker)
            return lambda prompt, chosen: (question := question_behind_marker(prompt, chosen, marker=marker), question)
        index = QuestionIndex(scratch / INDEX_NAME)
        return lambda prompt, chosen: question_of_response(prompt, chosen, index=index)

    def open(self, scratch: Path) -> MakePair:
        find, prompted = self._finder(scratch), question_prompts(self.prompting)

        def make(row: TrackedRow, place: str, number: int) -> Made:
            prompt, chosen, rejected = (checked_text(row, name) for name in ("prompt", "chosen", "rejected"))
            digest = hashlib.sha256(prompt.encode()).hexdigest()
            origin = {"source": place, "original_prompt_sha256": digest}
            try:
                question, original = find(prompt, chosen)
            except UserError as error:
                if not self.keep_few_shot:
                    raise
                doubt = str(error)
                pair = PreferencePair(prompt=prompt, chosen_response=chosen, rejected_response=rejected)
                return Made(pair=pair, question=prompt, origin=origin, notes=(_KEPT,), doubt=doubt)
            pair, note = prompted(question, chosen, rejected)
            return Made(pair=pair, question=original, origin=origin, notes=(note,), before=prompt)

        return make


def question_of_response(prompt: str, chosen: str, *, index: QuestionIndex) -> tuple[str, str]:
    """The question that `prompt` ends with and whose response is `chosen`, and the original question that it rewrites.

    White space counts as one space; a cue ("Answer:") may follow the question. The longest match wins.

    Raises:
        UserError: MetaMathQA does not have the response, or the prompt ends with none of its questions.
    """
    candidates = index.questions_of(chosen)
    if not candidates:
        raise UserError("the chosen response is not in MetaMathQA")
    ends = [squeezed(prompt)]
    while (cut := _cut(ends[-1], _CUE)) != ends[-1]:
        ends.append(cut)
    fitting = [
        (query, original) for query, original in candidates if any(_ends_with(end, squeezed(query)) for end in ends)
    ]
    if not fitting:
        raise UserError("the prompt does not end with the question that MetaMathQA has for the chosen response")
    return max(fitting, key=lambda found: len(found[0]))


def _cut(text: str, cue: re.Pattern[str]) -> str:
    found = cue.search(text, max(0, len(text) - _LONGEST_CUE))
    return text[: found.start()].rstrip() if found else text


def _ends_with(text: str, question: str) -> bool:
    """Whether the text ends with the question, which does not begin inside a word or number."""
    return text.endswith(question) and (len(text) == len(question) or not text[-len(question) - 1].isalnum())


def question_behind_marker(prompt: str, chosen: str, *, marker: re.Pattern[str]) -> str:
    """The text after the last marker at the start of a line, without the cue for the answer.

    Raises:
        UserError: the text does not look like a single unanswered question.
    """
    at_line_starts = [
        found for found in marker.finditer(prompt) if found.start() == 0 or prompt[found.start() - 1] == "\n"
    ]
    if not at_line_starts:
        raise UserError("the prompt has no marker at the start of a line")
    question = _cut(prompt[at_line_starts[-1].end() :], _LINE_CUE).strip()
    if not question:
        raise UserError("nothing follows the last marker")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise UserError(f"question too long: more than {MAX_QUESTION_CHARACTERS} characters after the last marker")
    if marker.search(question):
        raise UserError("a second marker is inside a line of the question")
    if _SOLVED.search(question):
        raise UserError("a solved question follows the last marker: it contains '####' or 'The answer is'")
    if chosen.strip() in question:
        raise UserError("the question contains the chosen response")
    return question


def _compiled(marker: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(marker)
    except re.error as error:
        raise UserError(f"marker {marker!r} is not a regular expression: {error}") from error
    if compiled.match(""):
        raise UserError(f"marker {marker!r} matches everywhere: give the text before a question, e.g. 'Question:'")
    return compiled


def _which_way(sources: list[Source]) -> str:
    """The error for a call that does not say how to find the question; it shows the end of the first prompt."""
    choice = (
        "choose one way to find the question in a few-shot prompt: --metamathqa with MetaMathQA-395K, the safer way, "
        "or --marker with a regular expression for the text before each question"
    )
    row: Row | None = next(iter(sources[0].rows()), None)
    try:
        prompt = checked_text(row.fields(), "prompt") if row else ""
    except UserError:
        return choice
    return f"{choice}. The first prompt ends with:\n{prompt[-600:]}"
