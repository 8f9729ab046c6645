"""How a prompt begins, in training and in evaluation alike."""

from typing import Any


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
