"""MinorDPO with SGD in plain PyTorch and transformers, one sequence at a time: what every host must compute."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_minordpo.config import OptimSection, ScheduleSection
from nemo_minordpo.train.schedule import learning_rate

BETA, LR, SEED, BATCH = 0.1, 5e-3, 1234, 8


def load(folder: Path) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    return model, AutoTokenizer.from_pretrained(folder)


def sequence(tokenizer: Any, row: dict[str, Any], side: str) -> tuple[list[int], int]:
    """(token ids, prompt length), as a reader of the documentation would compute them."""
    prompt = tokenizer(row["prompt"]).input_ids
    return [*tokenizer(row["prompt"] + row[side]).input_ids, tokenizer.eos_token_id], len(prompt)


def token_log_probs(model: Any, ids: list[int], prompt_length: int) -> torch.Tensor:
    logits = model(torch.tensor([ids])).logits[0].float()
    log_probs = logits.log_softmax(-1)
    return torch.stack([log_probs[place - 1, ids[place]] for place in range(prompt_length, len(ids))])


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_rows(rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    steps = -(-len(rows) // BATCH)
    order = np.random.default_rng([SEED, step // steps]).permutation(len(rows))
    return [rows[i] for i in order[step % steps * BATCH : (step % steps + 1) * BATCH]]


def trained(folder: Path, pairs: Path, *, num_steps: int) -> tuple[Any, list[dict[str, float]]]:
    """The policy after some steps from a Hugging Face folder, and the metrics of each step."""
    policy, tokenizer = load(folder)
    reference, _ = load(folder)
    optimizer = torch.optim.SGD(policy.parameters(), lr=LR)
    optim = OptimSection(lr=LR, sched=ScheduleSection())
    lines = []
    for step in range(num_steps):
        losses, chosen_rewards, rejected_rewards = [], [], []
        for row in step_rows(read_rows(pairs), step):
            ratios = []
            for side in ("chosen_response", "rejected_response"):
                ids, prompt_length = sequence(tokenizer, row, side)
                with torch.no_grad():
                    under_reference = token_log_probs(reference, ids, prompt_length).double().sum()
                ratios.append(token_log_probs(policy, ids, prompt_length).double().sum() - under_reference)
            penalty = ratios[1] if ratios[1] > 0 else torch.zeros(())
            losses.append(torch.log1p(torch.exp(-BETA * (ratios[0] - penalty))))
            chosen_rewards.append(ratios[0].item())
            rejected_rewards.append(ratios[1].item())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, max_steps=num_steps, optim=optim)
        optimizer.step()
        lines.append(
            {
                "loss": loss.item(),
                "rewards/chosen": float(np.mean(chosen_rewards)),
                "rewards/rejected": float(np.mean(rejected_rewards)),
                "grad_norm": norm.item(),
            }
        )
    return policy, lines
