"""Steps, FP8 and the head, measured on a GPU. These measure: what is slow is told beside its goal, and fails nothing.

The model is a random one with the sizes of Qwen2.5-1.5B in packed rows of pairs as long as GSM8K's.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo import host
from tests.benchmarks import be_the_only_rank
from tests.gpu import NotRun, need_cuda, need_nemo, need_precision, runs

_SIZES: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_PAIRS_A_STEP, _STEPS, _ROW = 64, 6, 8192
_PAIRS_OF_ALIGNER = 4  # a micro-batch of its own
_GOALS = {"peak fraction": 0.40, "FP8 over bf16": 1.25, "head memory": 0.10, "pairs over aligner": 4}
# of the head: half of a row's places predict a response
_PLACES, _RESPONSE = 8192, 4096


def step(folder: Path, precision: str) -> str:
    """Whole steps of training, the first two not counted: they compile and allocate."""
    need_nemo()
    need_cuda()
    need_precision(precision)
    work = _prepared(folder)
    found = _measure(work, precision)
    (work / f"{precision}.json").write_text(json.dumps(found))
    words = [
        f"{found['step_s']:.2f} s a step of {_PAIRS_A_STEP} pairs",
        f"{found['pairs_per_s']:.1f} pairs/s",
        f"{found['tokens_per_s']:.0f} tokens/s",
        f"{found['model_tflops']:.0f} TFLOP/s",
        f"{found['matmul_peak_fraction']:.0%} of the measured bf16 peak (goal: {_GOALS['peak fraction']:.0%})",
        f"{found['peak_memory_gib']:.1f} GiB",
    ]
    return "; ".join(words)


def fp8_over_bf16(folder: Path) -> str:
    """The two measurements above beside each other."""
    files = [folder / "speed" / f"{precision}.json" for precision in ("bf16", "fp8_hybrid")]
    if not all(file.exists() for file in files):
        raise NotRun("it takes a measured step in bf16 and in FP8")
    bf16, fp8 = (json.loads(file.read_text()) for file in files)
    ratio = bf16["step_s"] / fp8["step_s"]
    losses = ", ".join(f"{here:.4f} ({there:.4f})" for here, there in zip(fp8["losses"], bf16["losses"], strict=True))
    return f"{ratio:.2f}x bf16's pairs/s (goal: {_GOALS['FP8 over bf16']:g}x); losses in FP8 (bf16): {losses}"


def head(folder: Path) -> str:
    """Ours on the places that predict a response, against logits of every place; forward and backward, bf16."""
    need_cuda()
    from nemo_minordpo.core.logprobs import vocab_parallel_log_probs

    torch.manual_seed(0)
    hidden = torch.randn(_PLACES, _SIZES["hidden_size"], device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(_SIZES["vocab_size"], _SIZES["hidden_size"], device="cuda", dtype=torch.bfloat16) * 0.02
    targets = torch.arange(_PLACES, device="cuda") * 37 % _SIZES["vocab_size"]

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return vocab_parallel_log_probs(hidden[-_RESPONSE:], weight, targets[-_RESPONSE:], group=None)

    def naive(hidden: Tensor, weight: Tensor) -> Tensor:
        return (hidden @ weight.T).float().log_softmax(dim=-1).gather(1, targets[:, None])[-_RESPONSE:, 0]

    (our_s, our_gib), (naive_s, naive_gib) = (_cost(function, hidden, weight) for function in (ours, naive))
    return (
        f"{our_s * 1e3:.1f} ms, {our_gib:.2f} GiB; naive {naive_s * 1e3:.1f} ms, {naive_gib:.2f} GiB: "
        f"{our_gib / naive_gib:.2f} of its memory (goal: {_GOALS['head memory']:g})"
    )


def beside_aligner(folder: Path) -> str:
    """NeMo-Aligner's own DPO step in bf16 on the same pairs, beside ours of the step measured before."""
    need_nemo()
    need_cuda()
    file = folder / "speed/bf16.json"
    if not file.exists():
        raise NotRun("it takes a measured step in bf16")
    theirs, ours = _step_of_aligner(file.parent), json.loads(file.read_text())["step_s"]
    return (
        f"NeMo-Aligner {theirs:.2f} s, {_PAIRS_A_STEP / theirs:.1f} pairs/s; ours are "
        f"{theirs / ours:.1f}x as many (goal: {_GOALS['pairs over aligner']:g}x)"
    )


def _step_of_aligner(work: Path) -> float:
    """Seconds, the median of all steps but the first two."""
    from tests.benchmarks.inputs import Inputs
    from tests.benchmarks.run import ALIGNER, Case, Competitor

    inputs = Inputs(hf={"model": work / runs.HF}, nemo={"model": work / runs.NEMO}, pairs={"pairs": work / runs.PAIRS})
    case = Case("model", "pairs", 1, _PAIRS_A_STEP, _PAIRS_OF_ALIGNER, _STEPS - 1)
    aligner = Competitor(ALIGNER, case, inputs, work, python=Path(sys.executable))
    try:
        return statistics.median([aligner.step()["seconds"] for _ in range(_STEPS)][2:])
    finally:
        aligner.close()


def _prepared(folder: Path) -> Path:
    """A folder with the model, which is made on the GPU and kept in bfloat16, and pairs."""
    work = folder / "speed"
    if not (work / runs.NEMO).exists():
        from nemo_minordpo.convert.hf_to_nemo import import_hf
        from tests.tiny import write_model

        work.mkdir(exist_ok=True)
        _write_pairs(work / runs.PAIRS)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            write_model(work / runs.HF, tied=True, **_SIZES)
        torch.set_default_dtype(torch.float32)
        import_hf(work / runs.HF, work / runs.NEMO, overwrite=True)
        torch.cuda.empty_cache()
    return work


def _write_pairs(path: Path) -> None:
    """Prompts of about 100 tokens, and responses of about 150 that part in their middle."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(str(draw.randint(100, 999)) for _ in range(count))

    with path.open("w") as file:
        for _ in range(_PAIRS_A_STEP * _STEPS):
            prompt, shared = words(draw.randint(15, 35)), words(draw.randint(5, 30))
            sides = [f"{shared} {words(draw.randint(5, 30))}" for _ in range(2)]
            row = {"prompt": f"{prompt}\n", "chosen_response": sides[0], "rejected_response": sides[1]}
            file.write(json.dumps(row) + "\n")


def _measure(work: Path, precision: str) -> dict:
    """Medians of the steps that count, and the losses of all of them."""
    be_the_only_rank()
    host.prepare()
    from nemo_minordpo.config import compose, load
    from nemo_minordpo.core.losses import LOSSES
    from nemo_minordpo.train import run
    from nemo_minordpo.train.launch import prepare_run
    from nemo_minordpo.train.run_folder import RunFolder
    from tests.benchmarks.ours_worker import batches_in_file_order

    optimizer = runs.ADAM if precision == "fp32" else runs.ADAM_WITH_MAIN_WEIGHTS
    job = runs.job(work, f"run_{precision}", optimizer, precision=precision, steps=_STEPS)
    sizes = [f"model.global_batch_size={_PAIRS_A_STEP}", f"model.data.packed_sequence_size={_ROW}"]
    config = load(compose([*job["overrides"], *sizes, "model.optim.lr=1e-6"]), loss_names=tuple(LOSSES))
    prepare_run(config)
    trainer = run.set_up(config, RunFolder(Path(config.exp_manager.explicit_log_dir)))
    steps = [trainer._train_step(coming).values for coming in batches_in_file_order(trainer)]
    names = ("step_s", "pairs_per_s", "tokens_per_s", "model_tflops", "matmul_peak_fraction", "peak_memory_gib")
    medians = {name: statistics.median(values[name] for values in steps[2:]) for name in names}
    return {**medians, "losses": [values["loss"] for values in steps]}


def _cost(function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> tuple[float, float]:
    """Seconds, and GiB beyond inputs and gradients, forward and backward; the second of two calls."""
    leaves = [leaf.detach().requires_grad_() for leaf in (hidden, weight)]
    seconds = gib = 0.0
    for _ in range(2):
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        function(*leaves).sum().backward()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    return seconds, gib
