"""Read the answers behind a score: what paired tests and the comparison of answers need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nemo_minordpo import file_names
from nemo_minordpo.core.gsm8k import same_number
from nemo_minordpo.errors import UserError
from nemo_minordpo.records import Prediction, SampledScore, Score, prediction_from_json

STRICT, FLEXIBLE = "strict", "flexible"
RULES = (STRICT, FLEXIBLE)


class Problem(NamedTuple):
    """Two models answered the same problem if its number, its text and the expected answer are the same."""

    index: int
    question: str
    gold: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answers, one to each problem."""

    predictions: dict[Problem, Prediction]
    right: dict[str, dict[Problem, bool]]  # rule -> whether the answer is right by it

    @property
    def is_judged_alike(self) -> bool:
        """Whether both rules judge every answer alike."""
        return self.right[STRICT] == self.right[FLEXIBLE]


def read_answers(folder: Path, score: Score) -> Answers | None:
    """The answers that an evaluation wrote; None if there is no file.

    Raises:
        UserError: several answers to a question, a line that is not a prediction, or other answers than the score's.
    """
    path = folder / file_names.PREDICTIONS
    if not path.is_file():
        return None
    if isinstance(score, SampledScore) and score.num_samples > 1:
        raise UserError(f"{path}: {score.num_samples} answers to a question; paired tests need one")
    predictions: dict[Problem, Prediction] = {}
    right: dict[str, dict[Problem, bool]] = {rule: {} for rule in RULES}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            one = prediction_from_json(line.decode())
            problem = Problem(one.index, one.question, one.gold)
            predictions[problem] = one
            for rule in RULES:
                right[rule][problem] = same_number(getattr(one, rule), one.gold)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"{path}:{number}: not a prediction as `minordpo evaluate` writes it ({error})") from error
    found = sum(right[STRICT].values()) / max(len(predictions), 1)
    if len(predictions) != score.num_questions or not math.isclose(found, score.strict_accuracy):
        raise UserError(f"{path}: not the answers that {file_names.SCORE} is about")
    return Answers(predictions=predictions, right=right)


def common_problems(answers: Sequence[Answers]) -> list[Problem]:
    """The problems that all of them answered, in their order."""
    first, *others = answers
    return sorted(problem for problem in first.predictions if all(problem in one.predictions for one in others))
