from nemo_minordpo.core.gsm8k import Problem
from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.evaluate.score import is_strictly_right, judge, score


def _judged(output, *, gold="1,000", num_tokens=10, finished=True):
    problem = Problem(question="Q?", answer=f"steps\n#### {gold}")
    return judge(3, problem, output=output, token_ids=list(range(num_tokens)), finished=finished)


def test_judge_reads_both_answers():
    one = _judged("So the answer is: 1000.00\n#### 7", finished=False)
    assert (one.index, one.question, one.num_tokens, one.finished) == (3, "Q?", 10, False)
    assert (one.gold, one.strict, one.flexible, one.degenerate) == ("1000", "1000", "7", None)
    assert is_strictly_right(one)
    assert not is_strictly_right(_judged("1000"))
    looping = judge(0, Problem(question="Q", answer="#### 1"), output="a" * 30, token_ids=[5] * 30, finished=False)
    assert looping.degenerate == "loop"


def test_score_against_values_computed_by_hand():
    predictions = [
        _judged("So the answer is: 1,000", num_tokens=10),  # both right
        _judged("So the answer is: 1000\nor \\boxed{5}", num_tokens=20),  # strict right only
        _judged("maybe 1000", num_tokens=30),  # flexible right only, no strict answer
        judge(0, Problem(question="Q?", answer="#### 1"), output="no", token_ids=[5] * 40, finished=False),  # a loop
    ]
    result = score(predictions, model="m", questions="q")
    assert (result.model, result.questions, result.num_questions) == ("m", "q", 4)
    assert (result.strict_accuracy, result.flexible_accuracy) == (0.5, 0.5)
    assert result.strict_interval_95 == wilson_interval(2, 4)
    assert result.flexible_interval_95 == wilson_interval(2, 4)
    assert (result.no_answer_rate, result.degenerate_rate, result.unfinished_rate) == (0.5, 0.25, 0.25)
    assert result.mean_tokens == 25
