"""Log-probabilities of responses with transformers, one sequence at a time: the naive version in each precision."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gpu import runs

_E4M3 = torch.float8_e4m3fn


@torch.no_grad()
def token_log_probs(folder: Path, *, device: str, precision: str = "fp32") -> dict[tuple[int, bool], Tensor]:
    """[response tokens] on the CPU for each (pair, whether rejected) of the training pairs.

    Args:
        folder: from :func:`runs.prepared`.
        device: "cuda" or "cpu".
        precision: fp32 (TF32 products on CUDA, like Transformer Engine), bf16, or fp8_hybrid (bfloat16, with weights
            and inputs of all linear layers except the head rounded to E4M3).
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    tokenizer = AutoTokenizer.from_pretrained(folder / runs.HF)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / runs.HF, attn_implementation="eager").float().to(device)
    if precision != "fp32":
        model = model.bfloat16()
    if precision == "fp8_hybrid":
        _round_to_e4m3(model)
    found = {}
    for pair, line in enumerate((folder / runs.PAIRS).read_text().splitlines()):
        row = json.loads(line)
        start = len(tokenizer(row["prompt"]).input_ids)
        for rejected, side in enumerate(("chosen_response", "rejected_response")):
            ids = [*tokenizer(row["prompt"] + row[side]).input_ids, tokenizer.eos_token_id]
            logits = model(torch.tensor([ids], device=device)).logits[0, start - 1 : -1].float()
            targets = torch.tensor(ids[start:], device=device)
            found[pair, bool(rejected)] = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].cpu()
    return found


def _round_to_e4m3(model: Any) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))


def rounded(tensor: Tensor) -> Tensor:
    """Round to E4M3, scaled so that the largest value maps to E4M3's maximum."""
    scale = torch.finfo(_E4M3).max / tensor.abs().amax().float().clamp(min=1e-12)
    return ((tensor.float() * scale).to(_E4M3).float() / scale).to(tensor.dtype)
