"""Measure the pairs of a part: one unit of work for a process."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nemo_minordpo.config import DataSection
from nemo_minordpo.core.template_marks import templated_twice
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import load_tokenizer
from nemo_minordpo.inspect.kinds import OF_PAIR, OF_TEXT, OF_TOKENS
from nemo_minordpo.inspect.lines import Part, read_pair
from nemo_minordpo.inspect.responses import is_refusal, seems_cut
from nemo_minordpo.inspect.scripts import differ, letters_of, main_script
from nemo_minordpo.inspect.shingles import SKETCH, is_in, shingles, sketch
from nemo_minordpo.inspect.test_set import NO_ITEM, TestSet
from nemo_minordpo.pairs.encoding import encode
from nemo_minordpo.prepare.chunk import question_digest
from nemo_minordpo.prepare.statistics import measure
from nemo_minordpo.records import PreferencePair

_AT_ONCE = 256  # pairs that the tokenizer encodes per call
_NO_LIMIT = 1 << 30  # tokens; the length is checked later, and shown
# Held in memory per pair until the end.
PAIR = np.dtype(
    [
        ("file", np.int32), ("line", np.int64), ("offset", np.int64),
        ("texts", "S16"), ("prompt", "S16"),  # digests
        ("sketches", np.uint32, (2, SKETCH)),  # of the prompt without what most prompts share; of both responses
        ("values", np.float64, len(OF_TEXT) + len(OF_TOKENS)), ("flags", np.bool_, len(OF_PAIR)),
        ("scripts", np.uint8, 3),  # places in SCRIPTS: prompt, chosen, rejected
        ("test", np.int32), ("test_exact", np.bool_),
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result for a part.

    pairs: [P], PAIR.
    invalid: (line, reason) of every line that is not a pair.
    """

    part: Part
    pairs: np.ndarray
    invalid: list[tuple[int, str]]


class Measuring:
    """What a process needs to measure pairs.

    Args:
        common: sorted shingles that are left out of prompts, see :func:`~.workers.common_shingles`.
        tests: the test set; None = none.
        tokenizer: Hugging Face folder; None = no tokens.
    """

    def __init__(self, *, common: np.ndarray, tests: TestSet | None, tokenizer: Path | None) -> None:
        self._common, self._tests = common, tests
        self._tokenizer = None if tokenizer is None else load_tokenizer(tokenizer, needs_eos=True)

    def measure(self, part: Part) -> Measured:
        invalid: list[tuple[int, str]] = []
        rows = []
        read = self._pairs(part, invalid)
        while block := list(islice(read, _AT_ONCE)):
            tokens = self._tokens([pair for _, _, pair in block])
            rows += [
                (part.file, number, offset, *self._of(pair, lengths))
                for (number, offset, pair), lengths in zip(block, tokens, strict=True)
            ]
        return Measured(part=part, pairs=np.array(rows, dtype=PAIR), invalid=invalid)

    @staticmethod
    def _pairs(part: Part, invalid: list[tuple[int, str]]) -> Iterator[tuple[int, int, PreferencePair]]:
        for number, offset, line in part.lines():
            try:
                yield number, offset, read_pair(line)
            except UserError as error:
                # the reason may quote keys that are not valid Unicode
                invalid.append((number, str(error).encode(errors="backslashreplace").decode()))

    def _of(self, pair: PreferencePair, lengths: tuple[float, ...]) -> tuple[Any, ...]:
        texts = (pair.prompt, pair.chosen_response, pair.rejected_response)
        found = shingles(pair.prompt)
        prompt = question_digest(pair.prompt, seed=0)
        test, exact = (NO_ITEM, False) if self._tests is None else self._tests.find(pair.prompt, found, prompt)
        responses = [sketch(shingles(text)) for text in texts[1:]]
        letters = [letters_of(text) for text in texts]
        return (
            _texts_digest(texts), prompt,
            (sketch(found[~is_in(found, self._common)]), np.minimum(*responses)),
            (*measure(pair), *(len(text.split()) for text in texts), len(texts[1]) / len(texts[2]), *lengths),
            _flags(pair, other_script=differ(letters)), tuple(map(main_script, letters)), test, exact,
        )  # fmt: skip

    def _tokens(self, pairs: list[PreferencePair]) -> list[tuple[float, ...]]:
        """OF_TOKENS of each pair; NaN without a tokenizer, or if training refuses the pair."""
        unknown = (math.nan,) * len(OF_TOKENS)
        if self._tokenizer is None:
            return [unknown] * len(pairs)
        found = encode(pairs, tokenizer=self._tokenizer, data=DataSection(seq_length=_NO_LIMIT))
        return [
            unknown
            if isinstance(one, str)
            else (one.prompt_length, len(one.chosen) - one.prompt_length, len(one.rejected) - one.prompt_length)
            for one in found
        ]


def _flags(pair: PreferencePair, *, other_script: bool) -> tuple[bool, ...]:
    """The values of OF_PAIR."""
    responses = (pair.chosen_response, pair.rejected_response)
    refusals, cuts = [is_refusal(one) for one in responses], [seems_cut(one) for one in responses]
    rewards = (pair.chosen_reward, pair.rejected_reward)
    values = {
        "same_words": len({"".join(one.split()).lower() for one in responses}) == 1,
        "other_script": other_script,
        "refusal": any(refusals), "chosen_refusal": refusals[0], "rejected_refusal": refusals[1],
        "cut": any(cuts), "chosen_cut": cuts[0], "rejected_cut": cuts[1],
        "templated_twice": bool(templated_twice(pair.prompt, *responses)),
        "nul": any("\0" in text for text in (pair.prompt, *responses)),
        "lower_reward": rewards[0] is not None and rewards[1] is not None and rewards[0] < rewards[1],
    }  # fmt: skip
    return tuple(values[name] for name in OF_PAIR)


def _texts_digest(texts: tuple[str, str, str]) -> bytes:
    """Equal for texts that differ only in white space."""
    return hashlib.blake2b("\0".join(" ".join(text.split()) for text in texts).encode(), digest_size=16).digest()
