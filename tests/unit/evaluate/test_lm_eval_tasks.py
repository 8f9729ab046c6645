"""The tasks for lm-evaluation-harness judge answers as `minordpo evaluate` does, and name the same version."""

import re
from pathlib import Path

import pytest

from nemo_minordpo.core.gsm8k import ANSWER_RULES, Problem, same_number
from nemo_minordpo.evaluate import lm_eval_tasks
from nemo_minordpo.evaluate.engine import Generation, Request
from nemo_minordpo.evaluate.lm_eval_tasks import gsm8k_minordpo
from nemo_minordpo.evaluate.score import judge

TASK = Path(lm_eval_tasks.__file__).parent / "gsm8k_minordpo.yaml"


@pytest.mark.parametrize(
    ("output", "strict", "flexible", "no_answer"),
    [
        ("So the answer is: 18 = 9 x 2", 1, 1, 0),
        (r"pay \(\boxed{18}\) dollars for the 16 glasses.", 0, 1, 1),
        ("#### 18.00\nfor 16 glasses", 0, 1, 1),
        ("So the answer is: 16\n18", 0, 0, 0),
        ("So the answer is: 18:30\n18", 0, 0, 1),
        ("", 0, 0, 1),
    ],
)
def test_the_harness_judges_as_evaluate_does(output, strict, flexible, no_answer):
    answer = "steps\n#### 18"
    assert gsm8k_minordpo.judge({"question": "Q?", "answer": answer}, [output]) == {
        "strict": strict, "flexible": flexible, "no_answer": no_answer,
    }  # fmt: skip
    one = judge(
        Problem(question="Q?", answer=answer), Request(index=0, sample=0, prompt=[1]),
        Generation(token_ids=[1], text=output, finished=True), sampled=False,
    )  # fmt: skip
    assert (same_number(one.strict, "18"), same_number(one.flexible, "18"), one.strict is None) == (
        bool(strict), bool(flexible), bool(no_answer),
    )  # fmt: skip


def test_the_tasks_have_the_version_of_the_rules():
    (version,) = re.findall(r"^  version: (\S+)", TASK.read_text(), flags=re.MULTILINE)
    assert version == str(ANSWER_RULES)
