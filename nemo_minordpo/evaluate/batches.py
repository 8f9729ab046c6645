"""Whole batches with transformers' own `generate`, for models that continuous batching does not know."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from nemo_minordpo.evaluate.continuous import not_finite
from nemo_minordpo.evaluate.engine import Limits, Request
from nemo_minordpo.evaluate.sampling import Sampling


def whole_batches(
    model: Any,
    requests: Sequence[Request],
    *,
    limits: Limits,
    sampling: Sampling,
    stop_ids: list[int],
    on_tokens: Callable[[int], None],
) -> Iterator[tuple[Request, list[int]]]:
    """Answer requests batch by batch, each as long as its longest answer; see :meth:`Engine.answers`.

    Yields:
        Requests with the token ids of their answers, padded with end-of-text tokens.
    """
    size = limits.batch_size or len(requests)
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        width = max(len(request.prompt) for request in batch)
        padding = stop_ids[0]  # masked, so any token id would do
        ids = torch.tensor([[padding] * (width - len(one.prompt)) + one.prompt for one in batch])
        mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
        # Replaces the folder's own generation_config completely: its sampling settings would only cause warnings, but
        # its repetition penalty (Qwen ships 1.05 and 1.1) would hide the degeneration that we measure.
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=limits.max_new_tokens, eos_token_id=stop_ids, pad_token_id=padding
        )
        chosen = _Chosen(model, batch, limits=limits, sampling=sampling, on_tokens=on_tokens)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            logits_processor=LogitsProcessorList([chosen]),
        )
        yield from zip(batch, written[:, width:].tolist(), strict=True)


class _Chosen:
    """A logits processor that leaves `generate` no choice: all tokens but the one that `sampling` chose get -inf."""

    def __init__(
        self,
        model: Any,
        batch: Sequence[Request],
        *,
        limits: Limits,
        sampling: Sampling,
        on_tokens: Callable[[int], None],
    ) -> None:
        self._model, self._sampling, self._on_tokens = model, sampling, on_tokens
        numbers = [
            sampling.uniforms(index=one.index, sample=one.sample, count=limits.max_new_tokens) for one in batch
        ]  # fmt: skip
        self._uniforms = zip(*numbers, strict=True)  # by place

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.stack(scores.aminmax()).isfinite().all():
            raise not_finite(self._model)
        self._on_tokens(len(scores))
        tokens = self._sampling.next_tokens(scores, next(self._uniforms))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
