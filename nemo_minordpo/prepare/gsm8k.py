"""`minordpo prepare gsm8k`: make pairs with one wrong calculation from questions with worked answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.checked_json import checked_text
from nemo_minordpo.core.gsm8k import gold_answer, response_from_answer, without_marks
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import question_prompts
from nemo_minordpo.prepare.corruption import corrupt_calculation
from nemo_minordpo.prepare.corruption_plain import corrupt_result, stated_answer
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import Manifest

# Data sets by the keys of question and answer: GSM8K, MetaMathQA, MATH.
_GSM8K, _OTHERS = ("question", "answer"), (("query", "response"), ("problem", "solution"))


def prepare_gsm8k(
    source: Path | str,
    output: Path,
    *,
    options: BuildOptions | None = None,
    **settings: Any,
) -> Manifest:
    """Write preference pairs made from questions with worked answers to the folder `output`, see `build`.

    Chosen is the worked answer; rejected differs from it in the result of one intermediate calculation. A pair
    depends only on its row, its line number and `seed`.

    Args:
        source: rows with `question` and `answer`, as grade_school_math publishes GSM8K; with `query` and `response`,
            as in MetaMathQA; or with `problem` and `solution`, as in MATH.
        output: folder, created if missing.
        options: options of the build.
        settings: fields of the recipe, see `Recipe`; the question is put into the paper's prompt.
    """
    return build(Gsm8kRecipe(**settings), find_sources([source]), output, options or BuildOptions())


@dataclass(frozen=True, kw_only=True)
class Gsm8kRecipe(Recipe):
    stage = "prepare gsm8k"

    def open(self, scratch: Path) -> MakePair:
        prompted = question_prompts(self.prompting)

        def make(row: TrackedRow, place: str, number: int) -> Made:
            question, chosen, rejected = _responses(row, seed=self.seed, row=number - 1)
            pair, note = prompted(question, chosen, rejected)
            return Made(pair=pair, question=str(row.get("original_question") or question), notes=(note,))

        return make


def _responses(fields: dict[str, Any], *, seed: int, row: int) -> tuple[str, str, str]:
    """Question, right response and wrong response.

    Raises:
        UserError: there is no calculation to corrupt.
    """
    for names in _OTHERS:
        if all(name in fields for name in names):
            question, answer = (checked_text(fields, name) for name in names)
            stated_answer(answer)
            return question, answer, corrupt_result(answer, seed=seed, row=row).answer
    question, answer = (checked_text(fields, name) for name in _GSM8K)
    gold_answer(answer)
    try:
        wrong = corrupt_calculation(answer, seed=seed, row=row).answer
    except UserError as no_mark:
        try:
            wrong = corrupt_result(without_marks(answer), seed=seed, row=row).answer
        except UserError as no_equation:
            raise UserError(f"{no_mark}; {no_equation}") from no_equation
    return question, response_from_answer(answer), response_from_answer(wrong)
