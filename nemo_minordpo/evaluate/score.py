"""Judge a model's outputs: one prediction per question, one score per model."""

from collections.abc import Sequence

from nemo_minordpo.core.gsm8k import Problem, flexible_answer, gold_answer, same_number, strict_answer
from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.core.repetition import degenerate_reason
from nemo_minordpo.records import Prediction, Score


def judge(index: int, problem: Problem, *, output: str, token_ids: Sequence[int], finished: bool) -> Prediction:
    """Extract the answers from a model's output.

    Args:
        index: place of the question in its file, from 0.
        problem: the question and its worked answer.
        output: what the model wrote.
        token_ids: the tokens of `output`, without the end-of-text token.
        finished: whether the model ended its answer itself.
    """
    return Prediction(
        index=index,
        question=problem.question,
        output=output,
        num_tokens=len(token_ids),
        finished=finished,
        gold=gold_answer(problem.answer),
        strict=strict_answer(output),
        flexible=flexible_answer(output),
        degenerate=degenerate_reason(output, token_ids),
    )


def is_strictly_right(prediction: Prediction) -> bool:
    return same_number(prediction.strict, prediction.gold)


def score(predictions: Sequence[Prediction], *, model: str, questions: str) -> Score:
    """Rates over all predictions; there must be at least one."""
    total = len(predictions)
    num_strict = sum(is_strictly_right(one) for one in predictions)
    num_flexible = sum(same_number(one.flexible, one.gold) for one in predictions)
    return Score(
        model=model,
        questions=questions,
        num_questions=total,
        strict_accuracy=num_strict / total,
        strict_interval_95=wilson_interval(num_strict, total),
        flexible_accuracy=num_flexible / total,
        flexible_interval_95=wilson_interval(num_flexible, total),
        degenerate_rate=sum(one.degenerate is not None for one in predictions) / total,
        no_answer_rate=sum(one.strict is None for one in predictions) / total,
        unfinished_rate=sum(not one.finished for one in predictions) / total,
        mean_tokens=sum(one.num_tokens for one in predictions) / total,
    )
