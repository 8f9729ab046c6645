"""How a prompt begins and how a response ends, for training and evaluation alike."""

from collections.abc import Sequence
from typing import Any

# Chat templates (the ChatML family, Llama 3) end a turn with these, whatever the tokenizer's end-of-text token is.
_ENDS_OF_TURNS = ("<|im_end|>", "<|eot_id|>")


def beginning_of(tokenizer: Any) -> list[int]:
    """[BOS] if this Hugging Face tokenizer prepends one by default, else []."""
    first = tokenizer("").input_ids[:1]
    return first if first == [tokenizer.bos_token_id] else []


def missing_beginning(prompt_ids: list[int], beginning: list[int]) -> list[int]:
    """Tokens to prepend to a prompt: ``beginning``, or nothing if the rendered chat template already starts with it.

    Args:
        prompt_ids: encoded with ``add_special_tokens=False``.
        beginning: from :func:`beginning_of`.
    """
    return [] if prompt_ids[: len(beginning)] == beginning else beginning


def end_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that end a response for a Hugging Face tokenizer; empty if it has none."""
    # Read from the vocabulary: convert_tokens_to_ids returns the unknown token's id for anything that is not a token.
    vocabulary = tokenizer.get_vocab()
    return {tokenizer.eos_token_id, *map(vocabulary.get, _ENDS_OF_TURNS)} - {None}


def end_texts(tokenizer: Any) -> list[str]:
    """The tokens of :func:`end_ids` as text."""
    return tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer)))


def split_end(response: str, ends: Sequence[str]) -> tuple[str, str]:
    r"""Split a response from its end token: "It is 2.<|im_end|>\n" -> ("It is 2.", "<|im_end|>").

    White space and further end tokens after the first are dropped.

    Args:
        response: may include its end token, as a chat template prints it.
        ends: end tokens as text.

    Returns:
        (response, end); the response unchanged and "" if it has no end token.
    """
    body, end = response, ""
    while found := next((text for text in ends if text and body.rstrip().endswith(text)), ""):
        body, end = body.rstrip().removesuffix(found), found
    return body, end
