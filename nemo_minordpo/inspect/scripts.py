"""Which scripts a text is written in, by the Unicode names of its letters."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

# Unicode names of letters begin with one of these words; their places are the codes of :func:`main_script`.
SCRIPTS = (
    "none", "other", "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Han", "Kana", "Hangul", "Devanagari", "Bengali",
    "Tamil", "Telugu", "Thai", "Georgian", "Armenian", "Ethiopic",
)  # fmt: skip
NONE = 0
_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana"}
_FEWEST_LETTERS = 5  # fewer say nothing about a text: "42", "x = 3"
_SHARE = 0.1  # of a text's letters that a script needs to count as used


@cache
def _script(character: str) -> str | None:
    """None if it is not a letter."""
    if not character.isalpha():
        return None
    words = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")
    name = _NAMES.get(words[0], words[0].capitalize())
    return name if name in SCRIPTS else "other"


def letters_of(text: str) -> Counter[str]:
    """Script -> number of letters of the text."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _script(character):
            found[script] += count
    return found


def main_script(letters: Counter[str]) -> int:
    """Place in SCRIPTS of the script with most letters; NONE if there are too few."""
    return SCRIPTS.index(letters.most_common(1)[0][0]) if letters.total() >= _FEWEST_LETTERS else NONE


def differ(texts: Sequence[Counter[str]]) -> bool:
    """Whether two of the texts have no script in common; Kana counts as Han, texts with few letters do not count."""
    used = []
    for letters in texts:
        total = letters.total()
        if total >= _FEWEST_LETTERS:
            used.append(
                {"Han" if name == "Kana" else name for name, count in letters.items() if count >= _SHARE * total}
            )
    return any(not one & other for place, one in enumerate(used) for other in used[:place])
