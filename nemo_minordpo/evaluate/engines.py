"""Chooses the engine that answers questions."""

import importlib.util
from pathlib import Path

import torch

from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.engine import Engine, Limits
from nemo_minordpo.terminal import say

ENGINES = ("auto", "transformers", "vllm")


def load_engine(folder: Path, *, name: str, dtype: str, device: str, limits: Limits) -> Engine:
    """Load a Hugging Face folder.

    Args:
        folder: contains config.json, weights and tokenizer files.
        name: one of `ENGINES`; "auto" is vLLM if it is installed and the device is a GPU, else transformers.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored; float32 on a CPU.
        device: a torch device, or "auto": CUDA if there is a GPU, else the CPU.
        limits: on the answers.

    Raises:
        UserError: the folder is not a model, an option is unknown, or the engine is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"engine is {name!r}: choose {', '.join(ENGINES)}")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json there; a Hugging Face folder is needed (minordpo export-hf writes one)"
        )
    has_vllm = importlib.util.find_spec("vllm") is not None
    if name == "vllm" and not has_vllm:
        raise UserError("engine is 'vllm', but the package vllm is not installed here: install it, or choose another")
    if name == "vllm" and device not in ("auto", "cuda"):
        raise UserError(f"engine is 'vllm', which chooses the device itself: device {device!r} needs 'transformers'")
    if name == "auto" and has_vllm and device in ("auto", "cuda") and torch.cuda.is_available():
        say("answering with vLLM, which is installed; --engine transformers for transformers")
        name = "vllm"
    # loaded only if chosen: vLLM is not installed everywhere
    if name == "vllm":
        from nemo_minordpo.evaluate.vllm_engine import VllmEngine

        return VllmEngine(folder, dtype=dtype, limits=limits)
    from nemo_minordpo.evaluate.generate import load_transformers

    return load_transformers(folder, dtype=dtype, device=device)
