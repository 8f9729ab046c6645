"""A pair as text -> its two token sequences, or the reason why it cannot be used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_minordpo.config import DataSection
from nemo_minordpo.core.boundaries import beginning_of, end_ids, end_texts, missing_beginning, split_end
from nemo_minordpo.errors import UserError
from nemo_minordpo.records import PreferencePair

_LARGEST_REWARD = float(np.finfo(np.float32).max) / 2  # so that the difference of two rewards is finite
OVERLONG = "longer than model.data.seq_length"


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A tokenised pair.

    chosen, rejected: prompt, response and its end.
    prompt_length: tokens.
    reward_margin: ground-truth reward of chosen minus rejected, unscaled.
    num_cut: how many of the two responses had text after their end, which was cut.
    """

    chosen: list[int]
    rejected: list[int]
    prompt_length: int
    reward_margin: float
    num_cut: int


def encode(pairs: Sequence[PreferencePair], *, tokenizer: Any, data: DataSection) -> Iterator[EncodedPair | str]:
    """Tokenise pairs; yields the tokens of each, or the reason why it cannot be used.

    With `data.append_eos` every response has exactly one end: its own if the text has one, as chat templates write it,
    with any white space and further ends after it cut; else EOS.

    Args:
        pairs: encoded in one call, on all cores.
        tokenizer: a fast Hugging Face tokenizer.
        data: length limit, EOS, default rewards.
    """
    written = [(pair.chosen_response, pair.rejected_response) for pair in pairs]
    ends = end_texts(tokenizer) if data.append_eos else []
    ended = [tuple("".join(split_end(text, ends)) for text in texts) for texts in written]
    texts = [pair.prompt + response for pair, responses in zip(pairs, ended, strict=True) for response in responses]
    prompts, wholes = _ids(tokenizer, [pair.prompt for pair in pairs]), _ids(tokenizer, texts)
    beginning, stops = beginning_of(tokenizer), end_ids(tokenizer)
    for number, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
        start = missing_beginning(prompt, beginning)
        try:
            chosen, rejected = (
                _sequence(prompt, whole, start, stops=stops, eos=tokenizer.eos_token_id if data.append_eos else None)
                for whole in wholes[2 * number : 2 * number + 2]
            )
            _check(chosen, rejected, seq_length=data.seq_length)
            margin = _reward_margin(pair, data)
        except UserError as error:
            yield str(error)
            continue
        yield EncodedPair(
            chosen=chosen,
            rejected=rejected,
            prompt_length=len(start) + len(prompt),
            reward_margin=margin,
            num_cut=sum(before != after for before, after in zip(written[number], ended[number], strict=True)),
        )


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids


def _sequence(prompt: list[int], whole: list[int], start: list[int], *, stops: set[int], eos: int | None) -> list[int]:
    """``start`` + ``whole``, + ``eos`` unless that is None or ``whole`` ends with one of ``stops``."""
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the last tokens of the prompt merge with the first of the response: "
            "end the prompt, or start the response, at a token boundary (such as a line break)"
        )
    if not start and not prompt:
        raise UserError("the prompt has no tokens: nothing predicts the first token of the response")
    if len(whole) == len(prompt):
        raise UserError("the response has no tokens")
    return [*start, *whole, *([] if eos is None or whole[-1] in stops else [eos])]


def _check(chosen: list[int], rejected: list[int], *, seq_length: int) -> None:
    if max(len(chosen), len(rejected)) > seq_length:
        raise UserError(OVERLONG)
    if chosen == rejected:
        raise UserError("chosen_response and rejected_response have the same tokens")


def _reward_margin(pair: PreferencePair, data: DataSection) -> float:
    """Ground-truth reward of chosen minus rejected; in JSON, either can be NaN, Infinity or an integer of any size."""
    rewards = {
        "chosen_reward": data.default_chosen_reward if pair.chosen_reward is None else pair.chosen_reward,
        "rejected_reward": data.default_rejected_reward if pair.rejected_reward is None else pair.rejected_reward,
    }
    for name, value in rewards.items():
        # `not <=` also catches NaN; rewards are stored in float32
        if not abs(value) <= _LARGEST_REWARD:
            raise UserError(f"field {name!r} is {str(value)[:20]}: a finite float32 number expected")
    return rewards["chosen_reward"] - rewards["rejected_reward"]
