"""Find prompts that their responses repeat; differences in white space do not matter."""

import re
from collections.abc import Iterator

from rapidfuzz.distance import Prefix

from nemo_minordpo.errors import UserError

CJK = "\u2e80-\u9fff\uac00-\ud7af"  # written without spaces: each character counts as a word
_WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
_WITHIN_A_WORD = re.compile(rf"[^\W{CJK}]{{2}}")
_FIRST_WORD = re.compile(r"\s*(\S+)")
_LINE = re.compile(r"^[^\S\n]*(\S+)", re.MULTILINE)
_FEWEST_WORDS = 4
_MOST_LABEL_WORDS = 4
_ASKING = (":", "=", "?", "\uff1a", "\uff1f")  # the last two: full-width colon and question mark


def squeezed(text: str) -> str:
    """The text with each run of white space replaced by one space."""
    return " ".join(text.split())


def is_telling(text: str) -> bool:
    """Whether a response that begins with the text repeats it, rather than beginning alike by chance ("Hello")."""
    return text.rstrip().endswith(_ASKING) or len(_WORD.findall(text[:1000])) >= _FEWEST_WORDS


def rest_behind(text: str, beginning: str) -> str | None:
    """What follows `beginning` in `text`; None if `text` does not start with it.

    `beginning` must end at the end of a word: "High" does not start with "Hi".
    """
    first = _FIRST_WORD.match(beginning)
    if first is None:
        return None
    if text.startswith(beginning):
        rest = text[len(beginning) :]
    elif not text.lstrip().startswith(first.group(1)):
        return None
    else:
        words = beginning.split()
        pieces = text.split(None, len(words) - 1)
        if len(pieces) != len(words) or pieces[:-1] != words[:-1] or not pieces[-1].startswith(words[-1]):
            return None
        rest = pieces[-1][len(words[-1]) :]
        if beginning[-1].isspace():
            rest = rest.lstrip()
    return None if _WITHIN_A_WORD.fullmatch(beginning[-1] + rest[:1]) else rest


def without_prompt(prompt: str, *, chosen: str, rejected: str) -> tuple[str, str] | None:
    """Both responses without the prompt, or the end of it, that both begin with; None if they do not.

    The end of a prompt is its last lines, or the words before a colon at its very end ("Answer:").

    Raises:
        UserError: it is unclear what is prompt and what is response.
    """
    for beginning in _beginnings(prompt, opening=chosen.lstrip()):
        chosen_rest, rejected_rest = rest_behind(chosen, beginning), rest_behind(rejected, beginning)
        if chosen_rest is None and rejected_rest is None:
            continue
        telling = is_telling(beginning)
        if chosen_rest is not None and rejected_rest is not None:
            if telling:
                return chosen_rest, rejected_rest
            if beginning is prompt:
                raise UserError("both responses begin with the prompt, which is so short that this may be chance")
        elif telling and beginning is prompt:
            raise UserError("one response begins with the prompt, the other does not")
    shared = squeezed(chosen[: Prefix.similarity(chosen, rejected)])
    if shared and is_telling(prompt) and squeezed(prompt) in shared:
        raise UserError("both responses repeat the prompt after the same opening words")
    return None


def _beginnings(prompt: str, *, opening: str) -> Iterator[str]:
    """The prompt, then each end of it whose first word starts `opening`, longest first."""
    yield prompt
    for line in _LINE.finditer(prompt):
        if opening.startswith(line.group(1)):
            yield prompt[line.start(1) :]
    stripped = prompt.rstrip()
    if stripped.endswith(_ASKING):
        last_line = stripped.rfind("\n") + 1
        words = stripped[last_line:].rsplit(None, _MOST_LABEL_WORDS)[1:]
        starts = [len(stripped)]
        for word in reversed(words):
            starts.append(stripped.rindex(word, 0, starts[-1]))
        yield from (prompt[start:] for start in reversed(starts[1:]))
