"""How a prompt begins and what ends a response, in training and in evaluation alike."""

from collections.abc import Sequence
from typing import Any

# Chat templates (ChatML's family, Llama 3's) end a turn with these, whatever the tokenizer calls its end of text.
_ENDS_OF_TURNS = ("<|im_end|>", "<|eot_id|>")


def beginning_of(tokenizer: Any) -> list[int]:
    """[BOS] where this Hugging Face tokenizer puts one before a text of its own accord, else []."""
    first = tokenizer("").input_ids[:1]
    return first if first == [tokenizer.bos_token_id] else []


def missing_beginning(prompt_ids: list[int], beginning: list[int]) -> list[int]:
    """What must be put before a prompt: ``beginning``, or nothing where a rendered chat template has it already.

    Args:
        prompt_ids: encoded with ``add_special_tokens=False``.
        beginning: of :func:`beginning_of`.
    """
    return [] if prompt_ids[: len(beginning)] == beginning else beginning


def end_ids(tokenizer: Any) -> set[int]:
    """The tokens with which a response ends, of a Hugging Face tokenizer; empty when it names none."""
    # Taken from the vocabulary: convert_tokens_to_ids gives the unknown token's id for what is no token.
    vocabulary = tokenizer.get_vocab()
    return {tokenizer.eos_token_id, *map(vocabulary.get, _ENDS_OF_TURNS)} - {None}


def end_texts(tokenizer: Any) -> list[str]:
    """The tokens of :func:`end_ids` as texts."""
    return tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer)))


def split_end(response: str, ends: Sequence[str]) -> tuple[str, str]:
    r"""(the response without its end, the end): "It is 2.<|im_end|>\n" -> ("It is 2.", "<|im_end|>").

    White space and further ends behind the first one belong to neither.

    Args:
        response: may be written with its end, as a chat template prints it.
        ends: texts with which a response ends.

    Returns:
        The response as it is and "" where it has no end.
    """
    body, end = response, ""
    while found := next((text for text in ends if text and body.rstrip().endswith(text)), ""):
        body, end = body.rstrip().removesuffix(found), found
    return body, end
