"""Judge a model's outputs: one prediction per answer, one score per model."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from nemo_minordpo.core.gsm8k import Problem, flexible_answer, gold_answer, same_number, strict_answer
from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.core.repetition import degenerate_reason
from nemo_minordpo.core.samples import majority_share, pass_at_k, sizes_of_k
from nemo_minordpo.evaluate.engine import Generation, Request
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.records import Prediction, SampledPrediction, SampledScore, Score


def judge(problem: Problem, request: Request, written: Generation, *, sampled: bool) -> Prediction:
    """Extract the answers from a model's output.

    Args:
        problem: the question and its worked answer.
        request: which answer it is.
        written: what the model wrote.
        sampled: whether the answer was drawn, rather than the likeliest.
    """
    one = Prediction(
        index=request.index,
        question=problem.question,
        output=written.text,
        num_tokens=len(written.token_ids),
        finished=written.finished,
        gold=gold_answer(problem.answer),
        strict=strict_answer(written.text),
        flexible=flexible_answer(written.text),
        degenerate=degenerate_reason(written.text, written.token_ids),
    )
    return SampledPrediction(**vars(one), sample=request.sample) if sampled else one


def is_strictly_right(prediction: Prediction) -> bool:
    return same_number(prediction.strict, prediction.gold)


def score(predictions: Sequence[Prediction], *, model: str, questions: str) -> Score:
    """Rates over all greedy answers; there must be at least one."""
    return Score(**_rates(predictions, num_questions=len(predictions)), model=model, questions=questions)


def sampled_score(
    predictions: Sequence[Prediction], *, sampling: Sampling, num_samples: int, model: str, questions: str
) -> SampledScore:
    """Rates over all drawn answers, maj@N and pass@k.

    Args:
        predictions: `num_samples` for each question, sorted by question.
        sampling: how they were drawn.
        num_samples: N.
        model: for the record.
        questions: for the record.
    """
    by_question = [list(group) for _, group in groupby(predictions, key=lambda one: one.index)]
    assert {len(group) for group in by_question} == {num_samples}
    results: dict[str, Any] = {}
    for rule in ("strict", "flexible"):
        answers = [[getattr(one, rule) for one in group] for group in by_question]
        golds = [group[0].gold for group in by_question]
        majority = [majority_share(given, gold) for given, gold in zip(answers, golds, strict=True)]
        right = [sum(same_number(one, gold) for one in given) for given, gold in zip(answers, golds, strict=True)]
        passed = {
            str(k): [pass_at_k(num_samples=num_samples, num_right=count, k=k) for count in right]
            for k in sizes_of_k(num_samples)
        }
        results |= {
            f"{rule}_majority_accuracy": _mean(majority),
            f"{rule}_majority_interval_95": wilson_interval(sum(majority), len(majority)),
            f"{rule}_pass_at": {k: _mean(values) for k, values in passed.items()},
            f"{rule}_pass_at_interval_95": {
                k: wilson_interval(sum(values), len(values)) for k, values in passed.items()
            },
        }
    rates = _rates(predictions, num_questions=len(by_question))
    return SampledScore(
        **rates, **asdict(sampling), **results, num_samples=num_samples, model=model, questions=questions
    )


def _rates(predictions: Sequence[Prediction], *, num_questions: int) -> dict[str, Any]:
    """The fields of a score that are means over all answers."""
    strict = [is_strictly_right(one) for one in predictions]
    flexible = [same_number(one.flexible, one.gold) for one in predictions]
    per_question = num_questions / len(predictions)
    return {
        "num_questions": num_questions,
        "strict_accuracy": _mean(strict),
        "strict_interval_95": wilson_interval(sum(strict) * per_question, num_questions),
        "flexible_accuracy": _mean(flexible),
        "flexible_interval_95": wilson_interval(sum(flexible) * per_question, num_questions),
        "degenerate_rate": _mean([one.degenerate is not None for one in predictions]),
        "no_answer_rate": _mean([one.strict is None for one in predictions]),
        "unfinished_rate": _mean([not one.finished for one in predictions]),
        "mean_tokens": _mean([one.num_tokens for one in predictions]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
