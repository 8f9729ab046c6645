"""Continuous batching: an answer that ends gives its place in the batch to the next question.

What all prompts begin with is read once, and so is a prompt that several samples share. The last token of a prompt is
read together with the newest tokens of the other answers, so that the output layer is computed for these alone.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.engine import Limits, Request
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.evaluate.slots import SlotCache

# Prompts of up to this many tokens, padding included, are read together; a few keep a CPU busy.
_READ_TOGETHER = {"cpu": 256, "cuda": 8192}


@dataclass(kw_only=True)
class _Answer:
    request: Request
    uniforms: np.ndarray  # [max_new_tokens]
    token_ids: list[int] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """The last token of prompt and answer, which the model has not read yet."""
        return self.token_ids[-1] if self.token_ids else self.request.prompt[-1]

    @property
    def place(self) -> int:
        """The place of :attr:`newest`."""
        return len(self.request.prompt) + len(self.token_ids) - 1


class Batch:
    """The answers that are being written; answer i is in slot i of the cache."""

    def __init__(
        self, model: Any, requests: Sequence[Request], *, limits: Limits, sampling: Sampling, stop_ids: Sequence[int]
    ) -> None:
        self._model, self._limits, self._sampling, self._stop_ids = model, limits, sampling, frozenset(stop_ids)
        self._device = model.device
        self._waiting = deque(requests)
        self._slots = min(limits.batch_size or len(requests), len(requests))
        self._answers: list[_Answer | None] = [None] * self._slots
        self._prompts: list[list[int]] = [[]] * self._slots  # the prompt whose tokens each slot holds
        # one more slot, the last, holds what all prompts begin with
        self._cache = SlotCache(
            slots=self._slots + 1, capacity=max(len(one.prompt) for one in requests) + limits.max_new_tokens,
            device=model.device, dtype=model.dtype,
        )  # fmt: skip
        self._shared = common_beginning([request.prompt for request in requests])
        self._prefill([self._slots], [requests[0].prompt[: self._shared]], start=0)

    def run(self, on_tokens: Callable[[int], None]) -> Iterator[tuple[Request, list[int]]]:
        """Write all answers; see :meth:`Engine.answers`.

        Yields:
            Requests with the token ids of their answers, including the token that ended one.
        """
        while True:
            self._admit()
            self._close_gaps()
            answers = [answer for answer in self._answers if answer is not None]  # all of them
            if not answers:
                return
            tokens = self._next_tokens(answers)
            on_tokens(len(tokens))
            for slot, (answer, token) in enumerate(zip(answers, tokens, strict=True)):
                answer.token_ids.append(token)
                if token in self._stop_ids or len(answer.token_ids) == self._limits.max_new_tokens:
                    self._answers[slot] = None
                    yield answer.request, answer.token_ids

    def _admit(self) -> None:
        """Give free slots to waiting requests."""
        new: list[int] = []  # slots whose prompts are read next
        for slot, answer in enumerate(self._answers):
            if answer is not None or not self._waiting:
                continue
            request = self._waiting.popleft()
            uniforms = self._sampling.uniforms(
                index=request.index, sample=request.sample, count=self._limits.max_new_tokens
            )
            self._answers[slot] = _Answer(request=request, uniforms=uniforms)
            source = self._prompts.index(request.prompt) if request.prompt in self._prompts else None
            own = len(request.prompt) - self._shared
            if source in new or (len(new) + 1) * own > _READ_TOGETHER.get(self._device.type, 0):
                self._read(new)
                new = []
            if source is None:
                new.append(slot)
            else:
                self._cache.copy(source, slot, length=len(request.prompt) - 1)
            self._prompts[slot] = request.prompt
        self._read(new)

    def _close_gaps(self) -> None:
        """Move answers from the last slots to free ones, which there are once no request is waiting."""
        while None in self._answers:
            last = self._answers.pop()
            if last is not None:
                gap = self._answers.index(None)
                self._cache.copy(len(self._answers), gap, length=last.place)
                self._answers[gap] = last

    def _read(self, slots: list[int]) -> None:
        """Read the prompts of these slots, apart from their last token."""
        for slot in slots:
            self._cache.copy(self._slots, slot, length=self._shared)
        self._prefill(slots, [self._prompts[slot][self._shared : -1] for slot in slots], start=self._shared)

    def _prefill(self, slots: list[int], tokens: Sequence[Sequence[int]], *, start: int) -> None:
        """Read tokens into slots from place `start` on.

        Shorter rows are padded on the right, where no token of the row can see the padding; the answer overwrites it.
        """
        length = max(map(len, tokens), default=0)
        if length:
            mask = self._cache.prefill(slots, start=start, length=length)
            padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in tokens], device=self._device)
            places = torch.arange(start, start + length, device=self._device).expand_as(padded)
            self._forward(self._model.base_model, padded, places, mask)  # no output layer

    def _next_tokens(self, answers: Sequence[_Answer]) -> list[int]:
        places = [answer.place for answer in answers]
        mask = self._cache.decode(places)
        newest = torch.tensor([[answer.newest] for answer in answers], device=self._device)
        read = self._forward(self._model, newest, torch.tensor(places, device=self._device)[:, None], mask)
        logits = read.logits[:, -1]
        if not torch.stack(logits.aminmax()).isfinite().all():
            raise not_finite(self._model)
        uniforms = [answer.uniforms[len(answer.token_ids)] for answer in answers]
        return self._sampling.next_tokens(logits, uniforms).tolist()

    def _forward(self, module: Any, tokens: Tensor, places: Tensor, mask: Tensor) -> Any:
        return module(
            input_ids=tokens, position_ids=places, attention_mask=mask, past_key_values=self._cache,
            cache_position=places[0], use_cache=True,
        )  # fmt: skip


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts begin with, without the last token of any."""
    first, last = min(prompts), max(prompts)  # sorted like words, so all others lie between these two
    pairs = zip(first, last, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(same, min(map(len, prompts)) - 1)


def not_finite(model: Any) -> UserError:
    """The error when a model with finite weights has logits that are not."""
    name = str(model.dtype).removeprefix("torch.")
    return UserError(f"the model's logits are not finite in {name}, though its weights are: try another dtype")
