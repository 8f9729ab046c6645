"""Chooses the next token: the likeliest, or one drawn with a random number that belongs to the answer.

B = answers, V = vocabulary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.errors import UserError

_FEWEST_RANKED = 64  # tokens; a confident model's nucleus has far fewer
_BLOCK = 128  # tokens


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn. Temperature 0 is greedy, and then nothing else is read."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def uniforms(self, *, index: int, sample: int, count: int) -> np.ndarray:
        """The random numbers of one answer, one per token: [count], float64, at least 0 and less than 1.

        They depend on the seed, the question and the number of the sample alone, so that an answer does not depend on
        the batch, the order of the questions or an interruption.
        """
        return np.random.default_rng([self.seed, index, sample]).random(count)

    def next_tokens(self, logits: Tensor, uniforms: Sequence[float]) -> Tensor:
        """The next token of each answer, [B], int64.

        Args:
            logits: [B, V], any floating type.
            uniforms: the random number of each answer at this place; not read at temperature 0.
        """
        if self.temperature == 0:
            return _likeliest(logits)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        if self.top_p < 1:
            probabilities = _nucleus(probabilities, self.top_p)
        # float64: in float32 the sum over a large vocabulary would lose its rare tokens
        cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
        places = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        return places.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def sampling_of(*, samples: int, temperature: float, top_p: float | None, seed: int | None) -> Sampling:
    """The user's options.

    Raises:
        UserError: one is out of range, or has no effect.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}: it must be 0 (greedy) or more")
    if temperature == 0:
        for name, given in (("top_p", top_p), ("seed", seed), ("samples", samples if samples > 1 else None)):
            if given is not None:
                raise UserError(
                    f"{name} is {given}, but temperature 0 is greedy: every answer is the same. Set temperature"
                )
        return Sampling()
    sampling = Sampling(temperature=temperature, top_p=1.0 if top_p is None else top_p, seed=seed or 0)
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p is {top_p}: it must be above 0 and at most 1")
    if sampling.seed < 0:
        raise UserError(f"seed is {seed}: it must be 0 or more")
    return sampling


def _likeliest(logits: Tensor) -> Tensor:
    """The first of the likeliest tokens of each row, [B].

    torch's `argmax` compares one value at a time on CPUs, `amax` a vector of them. So the block of tokens with the
    maximum is found first.
    """
    size = logits.shape[-1]
    whole = size - size % _BLOCK
    maxima = logits[:, :whole].unflatten(-1, (whole // _BLOCK, _BLOCK)).amax(dim=-1)
    if whole < size:
        maxima = torch.cat([maxima, logits[:, whole:].amax(dim=-1, keepdim=True)], dim=-1)
    first = maxima.argmax(dim=-1, keepdim=True) * _BLOCK
    tokens = (first + torch.arange(_BLOCK, device=logits.device)).clamp(max=size - 1)
    return tokens.gather(-1, logits.gather(-1, tokens).argmax(dim=-1, keepdim=True)).squeeze(-1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """`probabilities` [B, V] with 0 for all but the fewest likeliest tokens whose sum reaches `top_p`.

    Source: Holtzman et al. 2020.
    """
    size, count = probabilities.shape[-1], _FEWEST_RANKED
    while True:  # sorting the whole vocabulary takes longer than the model's step
        ranked = probabilities.topk(min(count, size)).values
        reached = ranked.cumsum(dim=-1)
        if count >= size or bool((reached[:, -1] >= top_p).all()):
            break
        count *= 8
    last = (reached < top_p).sum(dim=-1, keepdim=True).clamp(max=ranked.shape[-1] - 1)
    return probabilities.masked_fill(probabilities < ranked.gather(-1, last), 0)
