"""Answers of a model from a Hugging Face folder, computed by transformers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from nemo_minordpo.core.boundaries import end_ids
from nemo_minordpo.core.finite import require_finite_tensors
from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.attention import GROUPED
from nemo_minordpo.evaluate.batches import whole_batches
from nemo_minordpo.evaluate.continuous import Batch
from nemo_minordpo.evaluate.engine import Generation, Limits, Request, Text
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.evaluate.slots import slots_that_fit
from nemo_minordpo.host.packed import pack_linear_layers
from nemo_minordpo.hugging_face import find_weights, load_causal_lm, load_tokenizer
from nemo_minordpo.terminal import say

_ROWS = 64  # about as many as matrix products on CPUs have
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersEngine:
    """A model and tokenizer of transformers; see :class:`~nemo_minordpo.evaluate.engine.Engine`."""

    def __init__(self, model: Any, text: Text) -> None:
        self.name = "transformers"
        self.model, self.text = model, text
        self.dtype, self.device = _name(model.dtype), model.device.type
        self.context = getattr(model.config, "max_position_embeddings", None)
        self.num_embeddings = model.get_input_embeddings().num_embeddings
        self._attention = model.config._attn_implementation

    @torch.inference_mode()
    def answers(
        self, requests: Sequence[Request], *, limits: Limits, sampling: Sampling, on_tokens: Callable[[int], None]
    ) -> Iterator[tuple[Request, Generation]]:
        """See :meth:`Engine.answers`."""
        stop_ids = self.text.stop_ids
        length = max(len(request.prompt) for request in requests) + limits.max_new_tokens
        batch_size = limits.batch_size or slots_that_fit(self.model, capacity=length)
        limits = replace(limits, batch_size=batch_size)
        reason = why_whole_batches(self.model, length=length)
        grouped = self._attention == "sdpa" and not reason
        self.model.config._attn_implementation = GROUPED if grouped else self._attention
        if reason:
            say(f"{reason}: every batch is as slow as its longest answer")
            written = whole_batches(
                self.model, requests, limits=limits, sampling=sampling, stop_ids=stop_ids, on_tokens=on_tokens
            )
        else:
            written = Batch(self.model, requests, limits=limits, sampling=sampling, stop_ids=stop_ids).run(on_tokens)
        for request, token_ids in written:
            yield request, self.text.generation(token_ids)


def why_whole_batches(model: Any, *, length: int) -> str:
    """Why continuous batching would not give the answers of this model; empty if it does.

    Args:
        model: of transformers.
        length: most tokens of a prompt and its answer.
    """
    kind, window = model.config.model_type, getattr(model.config, "sliding_window", None)
    # transformers 5 names it rope_parameters
    rotary = getattr(model.config, "rope_scaling", None) or getattr(model.config, "rope_parameters", None) or {}
    scaling = rotary.get("rope_type")
    if not getattr(model, "_supports_attention_backend", False):
        return f"{kind} models do not support attention from outside in transformers {transformers.__version__}"
    if window is not None and length > window:
        return f"prompts and answers of {length} tokens exceed the sliding window of {window}"
    if scaling in ("dynamic", "longrope"):
        return f"positions of the kind {scaling!r} depend on the longest answer of a batch"
    return ""


def load_transformers(folder: Path, *, dtype: str, device: str) -> TransformersEngine:
    """Load model and tokenizer from an exported Hugging Face folder; nothing is downloaded.

    Args:
        folder: contains config.json, weights and tokenizer files.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored; float32 on a CPU.
        device: a torch device, or "auto": CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: the folder has no complete causal language model with its tokenizer, a weight is not finite, or an
            option is unknown.
    """
    if dtype not in ("auto", *_DTYPES):
        raise UserError(f"dtype is {dtype!r}: choose auto, {', '.join(_DTYPES)}")
    place = _device(device)
    torch_dtype = _DTYPES.get(dtype, torch.float32 if place.type == "cpu" else "auto")
    tokenizer = load_tokenizer(folder)
    if note := find_weights(folder).note:
        say(note)
    model, loading = load_causal_lm(folder, torch_dtype=torch_dtype, output_loading_info=True)
    if loading["missing_keys"]:
        names = sorted(loading["missing_keys"])
        raise UserError(f"{folder}: {len(names)} weights are missing and would be random, the first is {names[0]!r}")
    stop_ids = _stop_ids(model, tokenizer)
    if not stop_ids:
        raise UserError(f"{folder}: neither generation_config.json nor the tokenizer names an end-of-text token")
    model = model.to(place).eval()
    require_finite_tensors(model.named_parameters(), where=f"{folder}, weights in {_name(model.dtype)}")
    if place.type == "cpu":
        pack_linear_layers(model, rows=_ROWS)
    return TransformersEngine(model, Text(tokenizer=tokenizer, stop_ids=stop_ids))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: "Torch not compiled with CUDA enabled"
        raise UserError(f"device {name!r} cannot be used here ({error}); 'auto' picks an available one") from error
    return device


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    named = model.generation_config.eos_token_id
    return sorted(end_ids(tokenizer) | set(named if isinstance(named, list) else [named]) - {None})
