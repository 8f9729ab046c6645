"""Detect generations that have degenerated into repetition.

Three independent signs, calibrated on the 8792 gold answers of GSM8K: with SmolLM2's tokenizer (49152 tokens) none of
them shows any sign (highest share of repeated 4-grams 0.48, highest compression 3.4), while every synthetic loop shows
at least one. The first sign catches the loops of over-trained models; only the other two catch lists that keep
counting ("Step 17 ..."). Smaller vocabularies split text into more tokens, and their 4-grams repeat sooner: with single
letters as tokens, 27 of the gold answers would be flagged. So compare rates only between models with one tokenizer.
"""

import zlib
from collections.abc import Sequence

_LONGEST_PERIOD = 64  # tokens
_FEWEST_REPEATS = 4
_SHORTEST_LOOP = 24  # tokens; shorter repeats are ordinary: many tokenizers split "10000000" into one 1 and seven 0
_TRAILING_IGNORED = 8  # tokens after the loop: leaving the loop at the very end does not count
_REPEATED_4GRAMS = 0.6
_FEWEST_COMPRESSED = 64  # tokens; compression is meaningless on shorter texts
_COMPRESSION = 4.0


def degenerate_reason(text: str, token_ids: Sequence[int]) -> str | None:
    """Why a generated text counts as degenerate; None if it does not.

    Args:
        text: the generated text.
        token_ids: the tokens it was decoded from, without the end-of-text token.

    Returns:
        "loop": the text ends in a unit of at most 64 tokens, repeated at least 4 times over at least 24 tokens (up to 8
        tokens at the end are ignored).
        "repeated 4-grams": at least 24 tokens, and at least 60 % of the 4-grams occurred before.
        "compressible": at least 64 tokens, and zlib shrinks the text to a quarter or less.
    """
    if any(_ends_in_loop(token_ids, end) for end in range(len(token_ids), len(token_ids) - _TRAILING_IGNORED - 1, -1)):
        return "loop"
    if len(token_ids) >= _SHORTEST_LOOP and repeated_4grams(token_ids) >= _REPEATED_4GRAMS:
        return "repeated 4-grams"
    raw = text.encode("utf-8", errors="replace")
    if len(token_ids) >= _FEWEST_COMPRESSED and len(raw) >= _COMPRESSION * len(zlib.compress(raw)):
        return "compressible"
    return None


def repeated_4grams(token_ids: Sequence[int]) -> float:
    """Share of 4-grams that occurred earlier in the text; 0 if there are fewer than two."""
    total = len(token_ids) - 3
    return 1 - len({tuple(token_ids[i : i + 4]) for i in range(total)}) / total if total > 1 else 0.0


def _ends_in_loop(token_ids: Sequence[int], end: int) -> bool:
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(_FEWEST_REPEATS * period, _SHORTEST_LOOP)
        if length > end:
            # A longer period needs at least as many tokens.
            return False
        if all(token_ids[i] == token_ids[i - period] for i in range(end - 1, end - 1 - (length - period), -1)):
            return True
    return False
