"""Generate word problems in GSM8K's format: questions with worked answers, and nothing to download.

A problem is a short story of two to four calculations with whole, positive results. The answer has one line per
calculation with GSM8K's calculator marks (`Tom has 12 + 5 = <<12+5=17>>17 apples.`) and ends with `#### 17`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_minordpo import DEFAULT_SEED
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import refuse_existing, write_jsonl
from nemo_minordpo.prepare.arithmetic_stories import FAMILIES, Story
from nemo_minordpo.records import Manifest

# The stories allow many millions of distinct questions; the limit keeps the search for unused ones short.
MAX_PROBLEMS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and its worked answer: one line of GSM8K's jsonl."""

    question: str
    answer: str


def arithmetic_problems(seed: int) -> Iterator[Problem]:
    """Yield problems forever without repeating a question; a seed always gives the same problems in the same order."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        story = Story(rng)
        rng.choice(FAMILIES)(story)
        question = " ".join(story.sentences)
        if question not in seen:
            seen.add(question)
            yield Problem(question=question, answer="\n".join([*story.steps, f"#### {story.result}"]))


def write_arithmetic(
    output: Path, *, num_train: int, num_test: int, seed: int = DEFAULT_SEED, overwrite: bool = False
) -> Manifest:
    """Write `train.jsonl`, `test.jsonl` and `manifest.json`; no question is in both files.

    The test problems are drawn first, so they do not depend on `num_train`.

    Args:
        output: folder, created if missing.
        num_train: problems in `train.jsonl`, at least 1.
        num_test: problems in `test.jsonl`, at least 1.
        seed: together with the two numbers, determines the problems.
        overwrite: replace existing files.

    Raises:
        UserError: a number is below 1, their sum exceeds `MAX_PROBLEMS`, or `output` is not empty.
    """
    for name, value in (("num_train", num_train), ("num_test", num_test)):
        if value < 1:
            raise UserError(f"{name} = {value}: at least 1 problem is needed")
    if num_train + num_test > MAX_PROBLEMS:
        raise UserError(f"num_train + num_test = {num_train + num_test}: at most {MAX_PROBLEMS} problems can be made")
    refuse_existing(output, overwrite=overwrite)
    problems = arithmetic_problems(seed)
    counts = {}
    for split, count in (("test", num_test), ("train", num_train)):
        counts[split] = write_jsonl(output / f"{split}.jsonl", (next(problems) for _ in range(count)))
    manifest = Manifest(
        stage="prepare arithmetic",
        settings={"num_train": num_train, "num_test": num_test, "seed": seed},
        counts=counts,
    )
    manifest.write(output)
    return manifest
