"""Answers of a model from a Hugging Face folder, computed by vLLM."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, GenerationConfig
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # installed on GPU machines only

from nemo_minordpo.core.boundaries import end_ids
from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.engine import Generation, Limits, Request, Text
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.hugging_face import load_tokenizer

# Requests that vLLM gets at once. Their answers are saved when the last of them is there.
_AT_ONCE = 1024


class VllmEngine:
    """A model that vLLM has loaded; see :class:`~nemo_minordpo.evaluate.engine.Engine`."""

    def __init__(self, folder: Path, *, dtype: str, limits: Limits) -> None:
        """Load the folder onto the GPU.

        Args:
            folder: contains config.json, weights and tokenizer files.
            dtype: "float32", "bfloat16", "float16", or "auto": as stored.
            limits: on the answers.
        """
        batch = {} if limits.batch_size is None else {"max_num_seqs": limits.batch_size}
        # "vllm": no sampling settings from the folder, such as a repetition penalty
        self._llm = LLM(
            model=str(folder), dtype=dtype, enable_prefix_caching=True, generation_config="vllm", seed=0, **batch
        )
        loaded = self._llm.llm_engine.model_config
        config, tokenizer = AutoConfig.from_pretrained(folder, local_files_only=True), load_tokenizer(folder)
        self.name = "vllm"
        self.text = Text(tokenizer=tokenizer, stop_ids=sorted(end_ids(tokenizer) | _named_ends(folder, config)))
        self.dtype, self.device = str(loaded.dtype).removeprefix("torch."), "cuda"
        self.context, self.num_embeddings = loaded.max_model_len, config.vocab_size

    def answers(
        self, requests: Sequence[Request], *, limits: Limits, sampling: Sampling, on_tokens: Callable[[int], None]
    ) -> Iterator[tuple[Request, Generation]]:
        """See :meth:`Engine.answers`."""
        for start in range(0, len(requests), _AT_ONCE):
            some = requests[start : start + _AT_ONCE]
            written = self._llm.generate(
                [{"prompt_token_ids": request.prompt} for request in some],
                [self._parameters(request, limits, sampling) for request in some],
                use_tqdm=False,
            )
            for request, (one,) in zip(some, (each.outputs for each in written), strict=True):
                if not math.isfinite(one.cumulative_logprob):
                    raise UserError(f"vLLM's log-probabilities are not finite in {self.dtype}: try another dtype")
                on_tokens(len(one.token_ids))
                yield request, replace(self.text.generation(one.token_ids), finished=one.finish_reason == "stop")

    def _parameters(self, request: Request, limits: Limits, sampling: Sampling) -> Any:
        numbers = np.random.SeedSequence([sampling.seed, request.index, request.sample])
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=int(numbers.generate_state(1)[0]),
            max_tokens=limits.max_new_tokens,
            stop_token_ids=self.text.stop_ids,
            logprobs=1,  # for their sum, which shows whether all were finite
            detokenize=False,
        )


def _named_ends(folder: Path, config: Any) -> set[int]:
    """The end-of-text tokens that the folder names."""
    if (folder / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    named = config.eos_token_id
    return set(named if isinstance(named, list) else [named]) - {None}
