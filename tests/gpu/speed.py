"""Measure steps, FP8 and the head on a GPU. Each figure is reported with its goal, and nothing fails.

Models are random, with the sizes of Qwen2.5-1.5B and Qwen2.5-7B (of which 8 of 28 layers, with their Adam state); pairs
have the lengths of GSM8K's, in packed rows.
"""

import copy
import json
import os
import random
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo import host
from nemo_minordpo.files import write_json
from tests.benchmarks import be_the_only_rank
from tests.gpu import (
    MEASURED,
    NotRun,
    kernel_times,
    need_cuda,
    need_nemo,
    need_precision,
    need_transformer_engine,
    runs,
)
from tests.ports import port_for_ranks

_SIZES: dict[str, dict[str, Any]] = {
    "1.5B": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tied": True,
    },
    "7B": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 8,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 4096, "tied": False,
    },
}  # fmt: skip
_PAIRS_OF_STEP = 128
_PAIRS_OF_ALIGNER_STEP, _PAIRS_OF_ALIGNER = 64, 4  # in its step and its micro-batch
_WARM_UP, _TIMED, _PROFILED = 2, 4, 1  # steps; the first ones compile and allocate
_STEPS = _WARM_UP + _TIMED + _PROFILED
_PEAK_OF_HOPPER = 989  # TFLOP/s, dense, from the data sheets
_GOALS = {"utilisation": 0.40, "FP8 over bf16": 1.25, "head memory": 0.10, "pairs over aligner": 4}
_MEDIANS = (
    "step_s", "pairs_per_s", "tokens_per_s", "row_fill", "model_tflops", "matmul_peak_fraction", "peak_memory_gib",
)  # fmt: skip
# for the head: half of a row's places predict a response
_PLACES, _RESPONSE = 8192, 4096


def prepare(folder: Path, model: str) -> str:
    """Create a model and its pairs for the measurements."""
    need_nemo()
    need_cuda()
    work = _prepared(folder, model)
    size = sum(file.stat().st_size for file in (work / runs.NEMO).rglob("*"))
    return f"{size / 2**30:.1f} GiB of weights, {_PAIRS_OF_STEP * _STEPS} pairs"


def step(folder: Path, model: str, precision: str, kernels: str = "fused", *row_lengths: str) -> str:
    """Whole training steps with rows of each length, one of them profiled; the file is written after each length.

    `kernels` are `fused`, with Transformer Engine's (fusions=te), or `single`, the setting of an imported checkpoint.

    One loaded model is measured with all lengths, since loading takes longer than the steps. FP8 costs CPU time per
    layer and row, whatever the row's length; long rows hide it.
    """
    need_nemo()
    need_cuda()
    need_precision(precision)
    if kernels == "fused":
        need_transformer_engine()
    work, row_lengths = _prepared(folder, model), row_lengths or ("8192",)
    started = time.perf_counter()
    trainer = _trainer(work, precision, kernels, capacity=int(row_lengths[0]))
    found: dict[str, Any] = {"set_up_s": time.perf_counter() - started, "rows": {}}
    for length in row_lengths:
        for values in _measure(trainer, capacity=int(length)):
            found["rows"][length] = values
            write_json(folder / _file(model, precision, kernels), found)
    return "; ".join(f"rows of {length}: {_in_words(values)}" for length, values in found["rows"].items())


def fp8_over_bf16(folder: Path, model: str) -> str:
    """Compare the two measurements above."""
    bf16, fp8 = _measured(folder, model, "bf16", "fp8_hybrid")
    words = []
    for length in (length for length in bf16 if length in fp8):
        here, there = fp8[length], bf16[length]
        losses = ", ".join(f"{a:.4f} ({b:.4f})" for a, b in zip(here["losses"], there["losses"], strict=True))
        words.append(
            f"rows of {length}: {there['step_s'] / here['step_s']:.2f}x bf16's pairs/s "
            f"(goal: {_GOALS['FP8 over bf16']:g}x); losses in FP8 (bf16): {losses}"
        )
    return "; ".join(words)


def head(folder: Path) -> str:
    """Ours on places that predict a response, against logits at every place; forward and backward, bf16."""
    need_cuda()
    from nemo_minordpo.core.logprobs import vocab_parallel_log_probs

    torch.manual_seed(0)
    vocab_size, hidden_size = (_SIZES["1.5B"][name] for name in ("vocab_size", "hidden_size"))
    hidden = torch.randn(_PLACES, hidden_size, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(vocab_size, hidden_size, device="cuda", dtype=torch.bfloat16) * 0.02
    targets = torch.arange(_PLACES, device="cuda") * 37 % vocab_size

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
    """NeMo-Aligner's own DPO step in bf16 on the same pairs, against our step measured before."""
    need_nemo()
    need_cuda()
    (bf16,) = _measured(folder, "1.5B", "bf16")
    ours = max(values["pairs_per_s"] for values in bf16.values())
    seconds = _step_of_aligner(folder)
    theirs = _PAIRS_OF_ALIGNER_STEP / seconds
    return (
        f"NeMo-Aligner {seconds:.2f} s per step of {_PAIRS_OF_ALIGNER_STEP} pairs, {theirs:.1f} pairs/s; ours are "
        f"{ours / theirs:.1f}x as many (goal: {_GOALS['pairs over aligner']:g}x)"
    )


def _file(model: str, precision: str, kernels: str) -> Path:
    """File in the checks' folder; its content is included in the results file."""
    return Path(MEASURED) / f"{model}_{precision}_{kernels}.json"


def _measured(folder: Path, model: str, *precisions: str) -> list[dict[str, dict[str, Any]]]:
    """What `step` wrote for each, by row length: with fused kernels if measured, else with single ones."""
    for kernels in ("fused", "single"):
        files = [folder / _file(model, precision, kernels) for precision in precisions]
        if all(file.exists() for file in files):
            return [json.loads(file.read_text())["rows"] for file in files]
    raise NotRun(f"it takes a measured step in {' and in '.join(precisions)}")


def _step_of_aligner(folder: Path) -> float:
    """Median of all steps but the first two, in seconds."""
    from tests.benchmarks.inputs import Inputs
    from tests.benchmarks.run import ALIGNER, Case, Competitor

    work = _prepared(folder, "1.5B")
    inputs = Inputs(hf={"model": work / runs.HF}, nemo={"model": work / runs.NEMO}, pairs={"pairs": work / runs.PAIRS})
    steps = _WARM_UP + 3
    case = Case("model", "pairs", 1, _PAIRS_OF_ALIGNER_STEP, _PAIRS_OF_ALIGNER, steps - 1)
    aligner = Competitor(ALIGNER, case, inputs, work, python=Path(sys.executable))
    try:
        seconds = [aligner.step()["seconds"] for _ in range(steps)]
    finally:
        aligner.close()
    write_json(folder / MEASURED / "aligner.json", {"seconds": seconds, "ready": aligner.ready})
    return statistics.median(seconds[_WARM_UP:])


def _prepared(folder: Path, model: str) -> Path:
    """A folder with pairs and the model, created on the GPU in bfloat16. Unpacked, as every reader would unpack it."""
    work = folder / f"speed_{model}"
    if not (work / runs.NEMO).is_dir():
        from nemo_minordpo.convert.hf_to_nemo import import_hf
        from tests.tiny import write_model

        work.mkdir(exist_ok=True)
        _write_pairs(work / runs.PAIRS)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            write_model(work / runs.HF, **_SIZES[model])
        torch.set_default_dtype(torch.float32)
        import_hf(work / runs.HF, work / runs.NEMO, overwrite=True)
        torch.cuda.empty_cache()
        with tarfile.open(work / runs.NEMO) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (work / runs.NEMO).unlink()
        (work / "unpacked").rename(work / runs.NEMO)
        shutil.rmtree(work / runs.HF)
    return work


def _write_pairs(path: Path) -> None:
    """Prompts of 100 tokens and responses of 150 that diverge in the middle, on average; a word is two tokens."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(str(draw.randint(100, 999)) for _ in range(count))

    with path.open("w") as file:
        for _ in range(_PAIRS_OF_STEP * _STEPS):
            prompt, shared = words(draw.randint(30, 70)), words(draw.randint(12, 62))
            sides = [f"{shared} {words(draw.randint(12, 62))}" for _ in range(2)]
            row = {"prompt": f"{prompt}\n", "chosen_response": sides[0], "rejected_response": sides[1]}
            file.write(json.dumps(row) + "\n")


def _trainer(work: Path, precision: str, kernels: str, *, capacity: int) -> Any:
    """Set up as in `minordpo train` before its first step."""
    be_the_only_rank()
    os.environ["MASTER_PORT"] = str(port_for_ranks())
    host.prepare()
    from nemo_minordpo.config import compose, load
    from nemo_minordpo.train.folder.run_folder import RunFolder
    from nemo_minordpo.train.launch import prepare_run
    from nemo_minordpo.train.set_up import set_up

    optimizer = runs.ADAM if precision == "fp32" else runs.ADAM_WITH_MAIN_WEIGHTS
    job = runs.job(work, f"run_{precision}_{kernels}", optimizer, precision=precision, steps=100)
    more = [
        f"model.global_batch_size={_PAIRS_OF_STEP}", f"model.data.packed_sequence_size={capacity}",
        "model.optim.lr=1e-6", *(["fusions=te"] if kernels == "fused" else []),
    ]  # fmt: skip
    config = load(compose([*job["overrides"], *more]))
    prepare_run(config)
    return set_up(config, RunFolder(Path(config.exp_manager.explicit_log_dir)))


def _measure(trainer: Any, *, capacity: int) -> Iterator[dict[str, Any]]:
    """Medians of the timed steps and losses of all; then the same again with the profile of one more step.

    Args:
        trainer: from :func:`_trainer`; it continues with its current weights and the first pairs of the file.
        capacity: maximum places per row.
    """
    from tests.benchmarks.ours_worker import batches_in_file_order

    trainer.train = copy.copy(trainer.train)
    trainer.train._capacity = capacity
    coming = batches_in_file_order(trainer)
    steps = [trainer._train_step(batch).values for _, batch in zip(range(_WARM_UP + _TIMED), coming, strict=False)]
    found: dict[str, Any] = {
        **{name: statistics.median(values[name] for values in steps[_WARM_UP:]) for name in _MEDIANS},
        "seconds_of_steps": [values["step_s"] for values in steps],
        "losses": [values["loss"] for values in steps],
    }
    yield found
    profiled_step: dict[str, float] = {}
    kernels = kernel_times.profiled(lambda: profiled_step.update(trainer._train_step(next(coming)).values))
    yield {**found, "profile": kernel_times.summary(kernels, wall_s=profiled_step["step_s"])}


def _in_words(values: dict[str, Any]) -> str:
    return (
        f"{values['step_s']:.2f} s per step of {_PAIRS_OF_STEP} pairs, {values['pairs_per_s']:.1f} pairs/s, "
        f"{values['tokens_per_s']:.0f} tokens/s, {values['model_tflops']:.0f} TFLOP/s: "
        f"{values['model_tflops'] / _PEAK_OF_HOPPER:.0%} of H100's and H200's {_PEAK_OF_HOPPER} in bf16 "
        f"(goal: {_GOALS['utilisation']:.0%}), {values['matmul_peak_fraction']:.0%} of what was measured; "
        f"{values['peak_memory_gib']:.1f} GiB; {kernel_times.in_words(values['profile'])}"
    )


def _cost(function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> tuple[float, float]:
    """(seconds, GiB beyond inputs and gradients), forward and backward, for the second of two calls."""
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
