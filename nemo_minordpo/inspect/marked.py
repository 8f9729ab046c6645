"""Two texts side by side in HTML, with what only one of them has marked."""

import re
from html import escape

from rapidfuzz.distance import Levenshtein, Prefix

from nemo_minordpo.prepare.overlap import CJK

_BEFORE, _SHOWN = 200, 1400  # characters before the first difference, and in all
_PIECE = re.compile(rf"[{CJK}]|[^\W{CJK}]+|\s+|[^\w\s]")
# invisible, or able to change the direction of the text around them; U+200D joins emoji and stays
_INVISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
_INVISIBLE |= {
    code: f"[U+{code:04X}]"
    for code in (
        0x61C,
        0xAD,
        0xFEFF,
        *range(0x80, 0xA0),
        0x200B,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}


def visible(text: str) -> str:
    """The text with control characters as visible signs."""
    return text.translate(_INVISIBLE)


def marked(one: str, other: str) -> tuple[str, str]:
    """HTML of both texts around their first difference, word by word; what only one has is in <mark>."""
    start = max(0, Prefix.similarity(one, other) - _BEFORE)
    parts = [_PIECE.findall(visible(text[start : start + _SHOWN])) for text in (one, other)]
    written: list[list[str]] = [[], []]
    for code in Levenshtein.opcodes(*parts):
        spans = ((code.src_start, code.src_end), (code.dest_start, code.dest_end))
        for pieces, (first, end), out in zip(parts, spans, written, strict=True):
            text = escape("".join(pieces[first:end]))
            out.append(text if code.tag == "equal" or not text else f"<mark>{text}</mark>")
    first, second = ("".join(out).replace("</mark><mark>", "") for out in written)
    return _framed(first, start, len(one)), _framed(second, start, len(other))


def end_of(text: str) -> str:
    """HTML of the end of a text: long prompts show examples first, and ask at their end."""
    start = max(0, len(text) - _SHOWN)
    return _framed(escape(visible(text[start:])), start, len(text))


def _framed(body: str, start: int, length: int) -> str:
    """A block of text, with what is left out before and after."""
    before = f"<i>[{start:,} characters]</i> " if start else ""
    left = length - start - _SHOWN
    after = f" <i>[{left:,} characters]</i>" if left > 0 else ""
    return f'<pre dir="auto">{before}{body}{after}</pre>'
