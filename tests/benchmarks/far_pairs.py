"""Right and wrong answers that are not close: the wrong answer to a problem is the worked answer to another one.

    python -m tests.benchmarks.far_pairs problems/train.jsonl far.jsonl
    minordpo prepare answers far.jsonl pairs

The file has two rows per problem, in the form that `minordpo prepare answers` reads.
"""

import argparse
import itertools
import json
from pathlib import Path

from nemo_minordpo.core.gsm8k import gold_answer, response_from_answer


def rows_of(problems: list[dict[str, str]]) -> list[dict[str, object]]:
    """Each problem with its own answer, and with that of the next problem whose number is another.

    Raises:
        ValueError: all problems have one number.
    """
    rows = []
    for place, problem in enumerate(problems):
        following = itertools.chain(problems[place + 1 :], problems[:place])
        number = gold_answer(problem["answer"])
        other = next((one for one in following if gold_answer(one["answer"]) != number), None)
        if other is None:
            raise ValueError(f"all {len(problems)} problems have the answer {number}")
        for answer, is_correct in ((problem["answer"], True), (other["answer"], False)):
            rows.append(
                {"question": problem["question"], "response": response_from_answer(answer), "is_correct": is_correct}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", type=Path, help="GSM8K's format")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    problems = [json.loads(line) for line in given.problems.read_text(encoding="utf-8").splitlines()]
    with given.output.open("x", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows_of(problems))


if __name__ == "__main__":
    main()
