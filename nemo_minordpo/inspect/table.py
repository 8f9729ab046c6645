"""What was found of all pairs: one array per measure and flag."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_minordpo.inspect.duplicates import NO_PAIR, earlier_equal, earlier_in_other_file, near_pairs, near_prompts
from nemo_minordpo.inspect.kinds import FLAGS, MEASURES, MODEL, OF_PAIR, OF_TEXT, OF_TOKENS, TEST, TOKENIZER
from nemo_minordpo.inspect.lines import pair_at
from nemo_minordpo.inspect.measuring import Measured
from nemo_minordpo.inspect.test_set import NO_ITEM, TestSet
from nemo_minordpo.records import PreferencePair

# name of a measure -> metric of `minordpo score`
OF_MODEL = {
    "chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected", "logp_margin": "logps/margin",
    "ches": "ches/total", "ches_per_token": "ches/per_token",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """N pairs of some files, in order.

    files: as given.
    file, line, offset: [N]: place in `files`, number from 1, bytes.
    values: measure -> [N], float64, NaN = not known for this pair.
    flags: flag -> [N], bool.
    earlier: flag -> [N]: the earlier pair that the flag is about, or NO_PAIR.
    scripts: [N, 3], places in SCRIPTS: prompt, chosen, rejected.
    test: [N]: place of a question in `tests`, or NO_ITEM.
    invalid: (file:line, reason) of lines that are not pairs.
    """

    files: list[Path]
    file: np.ndarray
    line: np.ndarray
    offset: np.ndarray
    scripts: np.ndarray
    test: np.ndarray
    values: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    earlier: dict[str, np.ndarray]
    invalid: list[tuple[str, str]] = field(default_factory=list)
    tests: TestSet | None = None

    def __len__(self) -> int:
        return len(self.line)

    def place(self, pair: int) -> str:
        return f"{self.files[self.file[pair]]}:{self.line[pair]}"

    def pair(self, number: int) -> PreferencePair:
        """Its texts, read again."""
        return pair_at(self.files[self.file[number]], int(self.offset[number]))

    def like(self, flag: str, pair: int) -> str:
        """The place of the earlier pair, or of the question, that a flag of this pair is about; "" without one."""
        if flag in self.earlier and self.earlier[flag][pair] != NO_PAIR:
            return self.place(self.earlier[flag][pair])
        if FLAGS[flag].needs == TEST and self.tests is not None and self.test[pair] != NO_ITEM:
            return self.tests.places[self.test[pair]]
        return ""


def table_of(
    files: list[Path],
    results: Sequence[Measured],
    *,
    tests: TestSet | None,
    seq_length: int | None,
    scores: dict[str, dict[str, float]] | None,
) -> PairTable:
    """The table of all parts.

    Args:
        files: as given.
        results: of each part, in order.
        tests: the test set; None = none.
        seq_length: tokens from which a pair is overlong; None = no tokenizer.
        scores: place of a pair -> its metrics by `minordpo score`; None = no model.
    """
    pairs = np.concatenate([one.pairs for one in results])
    values = dict(zip((*OF_TEXT, *OF_TOKENS), pairs["values"].T, strict=True))
    flags = dict(zip(OF_PAIR, pairs["flags"].T, strict=True))
    earlier = _earlier(pairs)
    flags |= {name: found != NO_PAIR for name, found in earlier.items()}
    if tests is not None:
        flags["in_test"] = pairs["test_exact"]
        flags["near_test"] = (pairs["test"] != NO_ITEM) & ~pairs["test_exact"]
    if seq_length is None:
        values = {name: column for name, column in values.items() if MEASURES[name].needs != TOKENIZER}
    else:
        longest = values["prompt_tokens"] + np.maximum(values["chosen_tokens"], values["rejected_tokens"])
        flags |= {"overlong": longest > seq_length, "not_tokenizable": np.isnan(longest)}
    result = PairTable(
        files=files, file=pairs["file"], line=pairs["line"], offset=pairs["offset"], scripts=pairs["scripts"],
        test=pairs["test"], earlier=earlier, tests=tests, values=values, flags=flags,
        invalid=[(f"{one.part.path}:{line}", reason) for one in results for line, reason in one.invalid],
    )  # fmt: skip
    if scores is not None:
        _add_scores(result, scores)
    for kinds, found in ((MEASURES, values), (FLAGS, flags)):  # in the order of their definition
        ordered: dict[str, Any] = {name: found[name] for name in kinds if name in found}
        found.clear()
        found.update(ordered)
    return result


def _earlier(pairs: np.ndarray) -> dict[str, np.ndarray]:
    files = pairs["file"]
    near_prompt, near_elsewhere = near_prompts(pairs)
    return {
        "duplicate": earlier_equal(pairs["texts"]),
        "near_duplicate": near_pairs(pairs),
        "duplicate_prompt": earlier_equal(pairs["prompt"]),
        "near_duplicate_prompt": near_prompt,
        "prompt_in_other_file": earlier_in_other_file(pairs["prompt"], files=files),
        "near_prompt_in_other_file": near_elsewhere,
    }


def _add_scores(table: PairTable, scores: dict[str, dict[str, float]]) -> None:
    """Add what the model says; pairs that `minordpo score` left out have NaN, and none of the flags."""
    found = [scores.get(table.place(pair), {}) for pair in range(len(table))]
    for name, metric in OF_MODEL.items():
        table.values[name] = np.array([one.get(metric, np.nan) for one in found])
    table.flags["chosen_less_likely"] = table.values["logp_margin"] < 0
    table.flags["chosen_less_likely_per_token"] = np.array([one.get("logps/average_accuracy") == 0 for one in found])


def known_names(*, tests: bool, tokenizer: bool, model: bool) -> set[str]:
    """The measures and flags that are known with these options."""
    given = {"": True, TEST: tests, TOKENIZER: tokenizer or model, MODEL: model}
    return {name for kinds in (MEASURES, FLAGS) for name, kind in kinds.items() if given[kind.needs]}
