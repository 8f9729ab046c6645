"""When a generation has degenerated into repeating itself.

Three independent signs, calibrated on the 8792 gold answers of GSM8K: with the 49152 tokens of SmolLM2 none shows any
(highest share of repeated 4-grams 0.48, highest compression 3.4), while every synthetic loop shows at least one. The
loops that over-trained models fall into are caught by the first; lists that count on ("Step 17 ...") only by the
other two. Small vocabularies cut text finer, and finer 4-grams repeat sooner: with letters for tokens 27 of the gold
answers would be flagged. So compare rates between models of one tokenizer.
"""

import zlib
from collections.abc import Sequence

_LONGEST_PERIOD = 64  # tokens
_FEWEST_REPEATS = 4
_SHORTEST_LOOP = 24  # tokens; below it ordinary text repeats: "10000000" is one 1 and seven 0 for many tokenizers
_TRAILING_IGNORED = 8  # tokens after the loop: a cut or an escape at the very end does not heal the text
_REPEATED_4GRAMS = 0.6
_FEWEST_COMPRESSED = 64  # tokens; zlib says nothing about short texts
_COMPRESSION = 4.0


def degenerate_reason(text: str, token_ids: Sequence[int]) -> str | None:
    """Why a generated text counts as degenerate, or None when it is healthy.

    Args:
        text: the generated text.
        token_ids: the tokens it was decoded from, without the end-of-text token.

    Returns:
        "loop": it ends in at least 4 repeats, together at least 24 tokens, of at most 64 tokens (up to 8 tokens at
        the end are ignored); "repeated 4-grams": at least 24 tokens, and at least 60 % of the 4-grams have been
        there before; "compressible": at least 64 tokens, and zlib shrinks the text to a quarter or less; or None.
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
    """The share of the 4-grams that have been there before; 0 with fewer than two of them."""
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
