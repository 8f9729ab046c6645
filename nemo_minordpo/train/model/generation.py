"""Generates answers with the model in training, token by token, on its own tensor- and pipeline-parallel ranks.

n = prompts in a row, V = vocabulary size, padded.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.core.attention import KeyValueCache
from nemo_minordpo.core.pair_packing import pack


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """Limits on answers and rows.

    stop_ids: tokens that end an answer.
    max_new_tokens: tokens per answer.
    max_length: tokens of prompt and answer together.
    row_capacity: tokens of all prompts in a row; a longer prompt gets a row of its own.
    row_multiple: row lengths are multiples of this.
    """

    stop_ids: frozenset[int]
    max_new_tokens: int
    max_length: int
    row_capacity: int
    row_multiple: int


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    limits: GenerationLimits,
    noise: Callable[[int, int], np.ndarray] | None = None,
) -> list[list[int]]:
    """Generate answers with a model in eval mode; called by, and returned to, every rank of its replica.

    Args:
        model: PairModel.
        prompts: token ids of each prompt, at least one and fewer than `limits.max_length`.
        limits: limits on answers and rows.
        noise: (number of the prompt, position in its answer) -> Gumbel noise [V], to sample at temperature 1.
            None = greedy.

    Returns:
        Token ids of each answer, including the token that ended it, unless the answer was cut.
    """
    lengths = np.asarray([len(prompt) for prompt in prompts])
    answers: list[list[int]] = [[] for _ in prompts]
    for row in pack(lengths, capacity=max(limits.row_capacity, int(lengths.max(initial=1)))):
        if row:
            chosen = _Row([prompts[number] for number in row], numbers=row, limits=limits).written(model, noise)
            for number, answer in zip(row, chosen, strict=True):
                answers[number] = answer
    return answers


@dataclass
class _Row:
    """Prompts that are answered together, in one row."""

    prompts: list[Sequence[int]]
    numbers: list[int]
    limits: GenerationLimits
    answers: list[list[int]] = field(init=False)

    def written(self, model: Any, noise: Callable[[int, int], np.ndarray] | None) -> list[list[int]]:
        self.answers = [[] for _ in self.prompts]
        lengths = np.asarray([len(prompt) for prompt in self.prompts])
        ends = np.cumsum(lengths)
        cache = KeyValueCache(
            torch.from_numpy(np.stack([ends - lengths, ends, ends, ends], axis=1)),
            max_new_tokens=self.limits.max_new_tokens,
        )
        tokens = np.concatenate([np.asarray(prompt) for prompt in self.prompts])
        positions = np.concatenate([np.arange(length) for length in lengths])
        places = ends - 1
        for number in range(self.limits.max_new_tokens):
            drawn = None if noise is None else np.stack([noise(prompt, number) for prompt in self.numbers])
            new = model.next_tokens(
                self._row(tokens), self._row(positions), cache, places=_on_device(places),
                noise=None if drawn is None else _on_device(drawn),
            ).tolist()  # fmt: skip
            for place, token in enumerate(new):
                if self._is_unfinished(place):
                    self.answers[place].append(token)
            if not any(map(self._is_unfinished, range(len(new)))):
                break
            cache.advance()
            tokens, places = np.asarray(new), np.arange(len(new))
            # finished answers continue, ignored, at positions that the model still has
            positions = np.minimum(lengths + number, self.limits.max_length - 1)
        return self.answers

    def _is_unfinished(self, place: int) -> bool:
        answer = self.answers[place]
        ended = bool(answer) and answer[-1] in self.limits.stop_ids
        return not ended and len(self.prompts[place]) + len(answer) < self.limits.max_length

    def _row(self, values: np.ndarray) -> Tensor:
        """[1, S], padded with zeros."""
        length = math.ceil(len(values) / self.limits.row_multiple) * self.limits.row_multiple
        return _on_device(np.pad(values, (0, length - len(values)))[None])


def _on_device(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(torch.device(torch.cuda.current_device()))


def gumbel_noise(seed: int, *, vocab_size: int) -> Callable[[int, int], np.ndarray]:
    """(number of the prompt, position in its answer) -> Gumbel noise [vocab_size], float32, the same at any layout."""

    def noise(prompt: int, place: int) -> np.ndarray:
        return np.random.default_rng([seed, prompt, place]).gumbel(size=vocab_size).astype(np.float32)

    return noise
