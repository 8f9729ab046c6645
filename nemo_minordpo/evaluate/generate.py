"""Greedy generation with a model from a Hugging Face folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from nemo_minordpo.core.boundaries import beginning_of, end_ids, missing_beginning
from nemo_minordpo.core.finite import require_finite_tensors
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import find_weights, load_causal_lm, load_tokenizer
from nemo_minordpo.terminal import say

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A model's response to one prompt, without the token that ended it."""

    token_ids: list[int]
    text: str
    finished: bool  # True: the model ended it; False: cut at the token limit


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A model ready for greedy generation, as `load_generator` returns it."""

    model: Any
    tokenizer: Any
    stop_ids: list[int]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, the same as in training.

        Starts with one beginning-of-text token if the tokenizer adds it by default, even if the chat template wrote
        it too. No other special token is added.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        return missing_beginning(ids, beginning_of(self.tokenizer)) + ids

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, on_token: Callable[[], None]
    ) -> list[Generation]:
        """Continue each prompt greedily until the model ends it or `max_new_tokens` is reached.

        Apart from rounding of the logits, a response does not depend on the rest of the batch.

        Args:
            prompts: token ids; padded here, on the left.
            max_new_tokens: the limit for each prompt.
            on_token: called after every token, for progress.

        Raises:
            ValueError: logits are not finite.
        """
        width = max(len(prompt) for prompt in prompts)
        padding = self.stop_ids[0]  # masked, so any token id would do
        ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # Replaces the folder's own generation_config completely: its sampling settings would only cause warnings, but
        # its repetition penalty (Qwen ships 1.05 and 1.1) would hide the degeneration that we measure.
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self.stop_ids, pad_token_id=padding
        )
        logits = _FiniteLogits(self.model.device)
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                logits_processor=LogitsProcessorList([logits]),
                stopping_criteria=[_Tick(on_token)],
            )
        if not logits.all_finite:
            raise UserError(
                f"the model's logits are not finite in {_name(self.model.dtype)}, though its weights are: "
                "try another dtype"
            )
        return [self._generation(row) for row in written[:, width:].tolist()]

    def _generation(self, row: list[int]) -> Generation:
        length = next((place for place, token in enumerate(row) if token in self.stop_ids), None)
        token_ids = row[:length]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(token_ids=token_ids, text=text, finished=length is not None)


class _Tick:
    """A stopping criterion that never stops: generate() calls it after every token."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._on_token()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _FiniteLogits:
    """A processor that changes nothing; it records, on the device, whether all logits were finite."""

    def __init__(self, device: torch.device) -> None:
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._finite = self._finite & scores.isfinite().all()
        return scores

    @property
    def all_finite(self) -> bool:
        return bool(self._finite)


def load_generator(folder: Path, *, dtype: str, device: str) -> Generator:
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
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; a Hugging Face folder is needed (minordpo export-hf writes one)"
        )
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
    return Generator(model=model, tokenizer=tokenizer, stop_ids=stop_ids)


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
