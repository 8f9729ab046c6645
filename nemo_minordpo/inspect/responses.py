"""Signs of a bad response in its text: a refusal, an end in the middle of a sentence."""

import re

from nemo_minordpo.core.boundaries import split_end
from nemo_minordpo.core.template_marks import ENDS

_SEARCHED = 300  # characters from the beginning: later, a refusal is about something else
_CANNOT = (
    r"(?:can ?not|can't|could not|couldn't|won't|will not|am unable to|'m unable to|am not able to|'m not able to|"
    r"am not comfortable|'m not comfortable|am not going to|'m not going to|must decline to|have to decline to)"
)
_ACT = (
    r"(?:help|assist|provide|answer|fulfill?|comply|do (?:that|this|so)|engage|discuss|support|create|creating|"
    r"generate|generating|write|writing|give|giving|offer|share|produce|continue|respond|participate|encourage|promote|condone)"
)
_REFUSAL = re.compile(
    rf"\b(?:sorry|afraid|apologi[sz]e|unfortunately|regret)\b,?(?: (?:but|that))?,? I ?{_CANNOT}"
    rf"|\bI ?{_CANNOT},? (?:\w+ ){{0,2}}{_ACT}\b"
    r"|\bI (?:must|have to|need to|will have to) (?:\w+ )?decline\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model|assistant)\b[^.!?]{0,60}"
    r"\bI (?:do not|don't|can't|cannot|am not|am unable|won't)",
    re.IGNORECASE,
)

_SHORTEST = 40  # characters; shorter responses often are a name or a phrase without a full stop
_LIST_LINE = re.compile(r"\s*(?:[-*+\u2022#|>]|\d+[.)]|[A-Za-z][.)]\s)")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese, Khmer: no full stop
_OPEN = ",;:-\u2013\u2014([{\u201c\u2018\u3001\uff0c\uff1a\uff1b"


def is_refusal(response: str) -> bool:
    """Whether the response begins with a refusal in English."""
    return _REFUSAL.search(response[:_SEARCHED].replace("\u2019", "'")) is not None


def seems_cut(response: str) -> bool:
    """Whether the response ends without the end of a sentence.

    That is: in a letter, in a mark that something has to follow, or inside a block of code. Numbers, closing brackets
    and other marks may end an answer. Short responses, and last lines of a list, a heading or a table, are not judged.
    """
    text = split_end(response, ENDS)[0].rstrip()
    if text.count("```") % 2:
        return True
    last = text.rsplit("\n", 1)[-1]
    if len(text) < _SHORTEST or _LIST_LINE.match(last):
        return False
    return (text[-1].isalpha() and not _UNSPACED.match(text[-1])) or text[-1] in _OPEN
