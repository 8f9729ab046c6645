"""How a prompt begins and what ends a response, in training and in evaluation alike."""

from typing import Any

# Chat templates of the ChatML family end a turn with it, whatever the tokenizer calls its end of text.
_END_OF_TURN = "<|im_end|>"


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
    found = {tokenizer.eos_token_id, tokenizer.get_vocab().get(_END_OF_TURN)}
    return found - {None}
