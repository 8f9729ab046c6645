"""Find questions of a test set inside prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_minordpo.checked_json import checked_text, parse_json
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines
from nemo_minordpo.inspect.shingles import is_in, shingles
from nemo_minordpo.prepare.chunk import question_digest
from nemo_minordpo.prepare.overlap import squeezed

NO_ITEM = -1
_COLUMNS = ("question", "prompt", "problem", "query")
_CONTAINED = 0.8  # of a question's shingles, in the prompt
_MOST_HOLDERS = 20  # shingles of more questions say nothing about one of them: templates, "how many"
_FEWEST = 16  # shingles; a shorter question has to be the whole prompt


class TestSet:
    """The questions of some files, and which of them a prompt contains.

    A prompt contains a question if it has all its text, white space and capitals aside; it nearly does if it has at
    least 80 % of its shingles, not counting those of more than 20 questions.
    """

    __test__ = False  # not a test of pytest

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises UserError if a line has no question, or there are none."""
        self.places: list[str] = []
        self._texts: list[str] = []
        for path in files:
            for number, line in read_lines(path):
                self.places.append(f"{path}:{number}")
                self._texts.append(_normal(_question(line, self.places[-1])))
        if not self._texts:
            raise UserError("the test set has no questions")
        self._of_digest = {question_digest(text, seed=0): item for item, text in enumerate(self._texts)}
        found = [shingles(text) for text in self._texts]
        values, holders = np.concatenate(found), np.repeat(np.arange(len(found)), [len(one) for one in found])
        order = np.argsort(values, kind="stable")
        values, holders = values[order], holders[order]
        _, counts = np.unique(values, return_counts=True)
        rare = np.repeat(counts <= _MOST_HOLDERS, counts)
        values, self._holders = values[rare], holders[rare]
        self._values, self._starts, self._counts = np.unique(values, return_index=True, return_counts=True)
        self._sizes = np.bincount(self._holders, minlength=len(found))

    def find(self, prompt: str, found: np.ndarray, digest: bytes) -> tuple[int, bool]:
        """(the question that the prompt contains most of, whether it is all there); (NO_ITEM, False) without one.

        Args:
            prompt: its text.
            found: its shingles.
            digest: its question_digest with seed 0.
        """
        if digest in self._of_digest:
            return self._of_digest[digest], True
        hits = np.searchsorted(self._values, found[is_in(found, self._values)])
        if not len(hits):
            return NO_ITEM, False
        counts = self._counts[hits]
        # the places from each start on, as many as there are holders
        places = np.arange(counts.sum()) + np.repeat(self._starts[hits] + counts - np.cumsum(counts), counts)
        holders = self._holders[places]
        contained = np.bincount(holders, minlength=len(self._sizes)) / np.maximum(self._sizes, _FEWEST)
        best = int(contained.argmax())
        if contained[best] < _CONTAINED:
            return NO_ITEM, False
        return best, self._texts[best] in _normal(prompt)

    def text(self, item: int) -> str:
        """The question as it is compared."""
        return self._texts[item]


def _normal(text: str) -> str:
    return squeezed(text).lower()


def _question(line: str, place: str) -> str:
    try:
        row = parse_json(line)
        name = next((name for name in _COLUMNS if isinstance(row, dict) and name in row), None)
        if name is None:
            raise UserError(f"no question: one of the fields {', '.join(_COLUMNS)} is needed")
        return checked_text(row, name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
