from nemo_minordpo.core.gsm8k import Problem
from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.evaluate.engine import Generation, Request
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.evaluate.score import is_strictly_right, judge, sampled_score, score


def _judged(output, *, gold="1,000", num_tokens=10, finished=True):
    problem = Problem(question="Q?", answer=f"steps\n#### {gold}")
    return _judge(problem, output, token_ids=list(range(num_tokens)), finished=finished, index=3)


def _judge(problem, output, *, token_ids, finished=False, index=0, sample=0, sampled=False):
    request = Request(index=index, sample=sample, prompt=[1])
    written = Generation(token_ids=token_ids, text=output, finished=finished)
    return judge(problem, request, written, sampled=sampled)


def test_judge_reads_both_answers():
    one = _judged("So the answer is: 1000.00\n#### 7", finished=False)
    assert (one.index, one.question, one.num_tokens, one.finished) == (3, "Q?", 10, False)
    assert (one.gold, one.strict, one.flexible, one.degenerate) == ("1000", "1000", "7", None)
    assert is_strictly_right(one)
    assert not is_strictly_right(_judged("1000"))
    looping = _judge(Problem(question="Q", answer="#### 1"), "a" * 30, token_ids=[5] * 30)
    assert looping.degenerate == "loop"


def test_score_against_values_computed_by_hand():
    predictions = [
        _judged("So the answer is: 1,000", num_tokens=10),  # both right
        _judged("So the answer is: 1000\nor \\boxed{5}", num_tokens=20),  # strict right only
        _judged("maybe 1000", num_tokens=30),  # flexible right only, no strict answer
        _judge(Problem(question="Q?", answer="#### 1"), "no", token_ids=[5] * 40),  # a loop
    ]
    result = score(predictions, model="m", questions="q")
    assert (result.model, result.questions, result.num_questions) == ("m", "q", 4)
    assert (result.strict_accuracy, result.flexible_accuracy) == (0.5, 0.5)
    assert result.strict_interval_95 == wilson_interval(2, 4)
    assert result.flexible_interval_95 == wilson_interval(2, 4)
    assert (result.no_answer_rate, result.degenerate_rate, result.unfinished_rate) == (0.5, 0.25, 0.25)
    assert result.mean_tokens == 25


def test_sampled_score_against_values_computed_by_hand():
    first, second = (Problem(question=question, answer="#### 7") for question in "AB")
    # A: 7, 7, 8, none: the majority is right. B: 7, 8, 8, 7.0 boxed only: strictly 8 wins, flexibly 7 and 8 tie.
    written = ["the answer is 7", "the answer is 7.0", "the answer is 8", "?"], [
        "the answer is 7", "the answer is 8", "the answer is 8", "\\boxed{7}",
    ]  # fmt: skip
    predictions = [
        _judge(problem, output, token_ids=[1] * number, index=index, sample=number, sampled=True, finished=True)
        for index, (problem, outputs) in enumerate(zip((first, second), written, strict=True))
        for number, output in enumerate(outputs)
    ]
    result = sampled_score(
        predictions, sampling=Sampling(temperature=0.5, top_p=0.9, seed=3), num_samples=4, model="m", questions="q"
    )
    assert (result.num_questions, result.num_samples) == (2, 4)
    assert (result.temperature, result.top_p, result.seed) == (0.5, 0.9, 3)
    assert result.strict_accuracy == 3 / 8
    assert result.strict_interval_95 == wilson_interval(3 / 4, 2)
    assert (result.strict_majority_accuracy, result.flexible_majority_accuracy) == (0.5, 0.75)
    assert result.flexible_majority_interval_95 == wilson_interval(1.5, 2)
    # strict: 2 and 1 of 4 are right; pass@2 = 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2
    assert result.strict_pass_at == {"1": 3 / 8, "2": (5 / 6 + 1 / 2) / 2, "4": 1.0}
    assert result.flexible_pass_at == {"1": 0.5, "2": 5 / 6, "4": 1.0}
    assert result.strict_pass_at_interval_95["2"] == wilson_interval(5 / 6 + 1 / 2, 2)
    assert (result.no_answer_rate, result.mean_tokens) == (2 / 8, 1.5)
