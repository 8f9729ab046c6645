"""A tiny random Qwen2 with NeMo, Megatron-Core and, if installed, Transformer Engine.

Bounds that are not a multiple of a naive version's error were chosen before anything ran on a GPU.
"""

import json
from pathlib import Path

import torch

from nemo_minordpo import host
from tests.comparison import largest
from tests.gpu import NotRun, bounded, need_cuda, need_nemo, need_precision, need_transformer_engine, runs
from tests.gpu.separate_sequences import token_log_probs

_LOCAL = "log_probs_local.pt"
# Variants of the same run, by their additional settings. All but LoRA give the same curve.
WAYS: dict[str, list[str]] = {
    "plain": [],
    "rows": ["model.data.packed_sequence_size=160"],
    "recomputed": [
        "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
        "model.activations_checkpoint_num_layers=1",
    ],
    "selective": ["model.activations_checkpoint_granularity=selective"],
    "fusions": ["fusions=te"],
    "adamw": ["model.optim.name=adamw"],
    # start from the same adapters as on the CPU
    "lora": [
        "model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=16", "+model.use_cpu_initialization=true",
    ],
}  # fmt: skip
# Nats per token, root mean square: a few times the rehearsal's values
_LOG_PROB_CEILINGS = {"fp32": 2e-3, "bf16": 1e-2, "fp8_hybrid": 5e-2}
_LEAST_NOISE_OF_FP8 = 1e-3  # nats per response, from differences in rounding; 0.13 in the rehearsal
_FP8_WARM_UP = 3  # steps until delayed scaling has seen every tensor


def conversion(folder: Path) -> str:
    """Import, verify with NeMo, export: logits within verify's bound, weights bit for bit the same."""
    need_nemo()
    runs.prepared(folder)
    from safetensors.torch import load_file

    from nemo_minordpo.convert.nemo_to_hf import export_hf
    from nemo_minordpo.convert.verify import verify

    words = str(verify(folder / runs.HF, folder / runs.NEMO))
    export_hf(folder / runs.NEMO, folder / "exported", overwrite=True)
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("exported", runs.HF))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in theirs):
        raise AssertionError("the exported weights are not those that were imported")
    layers = "Transformer Engine" if host.has_transformer_engine() else "local layers"
    return f"{layers}: {words}; exported: the same bits"


def log_probs_of_local_layers(folder: Path) -> str:
    """Packed pairs in float32 with local layers, against separate sequences with transformers on the CPU, per token."""
    need_nemo()
    runs.without_transformer_engine()
    runs.prepared(folder)
    runs.do(folder, "local", [runs.job(folder, "local", runs.SGD, log_probs=str(folder / _LOCAL))])
    found, expected = _read(folder / _LOCAL), token_log_probs(folder, device="cpu")

    def largest_difference(log_probs: dict[tuple[int, bool], torch.Tensor]) -> float:
        return largest((log_probs[key] - expected[key]).abs().max().item() for key in found)

    return bounded(
        "largest difference, nats per token:", largest_difference(found), 5e-5 if host.has_cuda() else 5e-6,
        controls={"scored one token late": largest_difference(_one_token_late(expected))},
    )  # fmt: skip


def log_probs(folder: Path, precision: str) -> str:
    """Packed pairs against float32 with local layers; at most twice the error of transformers in the same dtype.

    Transformers has no FP8, so the weight and input of each linear layer are rounded to E4M3 with separate scales.
    Float32 means Transformer Engine, which uses TF32 products; transformers then does the same.
    """
    need_nemo()
    need_cuda()
    if precision == "fp32":
        need_transformer_engine()
    need_precision(precision)
    if not (folder / _LOCAL).exists():
        raise NotRun("the float32 log-probabilities of local layers are missing")
    optimizer = runs.SGD if precision == "fp32" else runs.ADAM_WITH_MAIN_WEIGHTS
    path = folder / f"log_probs_{precision}.pt"
    runs.do(
        folder,
        precision,
        [
            runs.job(
                folder, f"log_probs_{precision}", [*optimizer, "model.optim.lr=1e-30"], precision=precision,
                log_probs=str(path), steps_before=_FP8_WARM_UP if precision == "fp8_hybrid" else 0,
            )
        ],
    )  # fmt: skip
    exact = _read(folder / _LOCAL)
    naive = token_log_probs(folder, device="cuda", precision=precision)
    return bounded(
        "nats per token:", _rms(_read(path), exact), 2 * _rms(naive, exact), ceiling=_LOG_PROB_CEILINGS[precision],
        controls={"scored one token late": _rms(_one_token_late(exact), exact)},
    )  # fmt: skip


def packed(folder: Path) -> str:
    """Packed pairs against separate, unpadded sequences: loss, metrics and gradients; the worst of random pairs."""
    need_nemo()
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError:
        raise NotRun("hypothesis is not installed") from None
    runs.without_transformer_engine()
    runs.prepared(folder)
    runs.do(folder, "packed", [runs.job(folder, "packed", runs.SGD, separate=10)])
    bounds = {"torch.float32": 1e-4 if host.has_cuda() else 1e-5, "torch.float64": 1e-10}
    errors = json.loads((folder / "packed/separate.json").read_text())
    return "; ".join(
        bounded(
            f"{dtype.removeprefix('torch.')}:", largest(found[name] for name in ("loss", "metrics", "gradients")), bound
        )
        for dtype, bound in bounds.items()
        if (found := errors.get(dtype))
    )


def cached_reference(folder: Path, precision: str) -> str:
    """Cached against live reference. Log-ratios are differences, so noise shows up in them."""
    need_nemo()
    need_precision(precision)
    runs.prepared(folder)
    cached, live = f"cached_{precision}", f"live_{precision}"
    optimizer = runs.SGD if precision == "fp32" else runs.ADAM_WITH_MAIN_WEIGHTS
    live_too = [*optimizer, "model.dpo.reference_log_probs=live"]
    jobs = [runs.job(folder, name, more, precision=precision) for name, more in ((cached, optimizer), (live, live_too))]
    runs.do(folder, f"reference_{precision}", jobs)
    bound = (1e-3 if host.has_cuda() else 1e-5) if precision == "fp32" else 5e-2
    lines = runs.metrics(folder, cached)
    expected = runs.metrics(folder, live)
    words = bounded(
        "largest difference of 8 steps:", runs.largest_difference(lines, expected), bound,
        controls={"one step late": runs.largest_difference(runs.one_step_late(expected), expected)},
    )  # fmt: skip
    noise = lines[0].values["reference_noise"]
    if precision == "fp8_hybrid" and not noise > _LEAST_NOISE_OF_FP8:
        raise AssertionError(
            f"noise of the cached reference {noise:.1e}: moved scales change nothing, so none were found"
        )
    undecided = sum(line.values["minordpo/rejected_undecided"] for line in lines[1:]) / len(lines[1:])
    return f"{words}; noise of what is cached {noise:.1e} nats, in which {undecided:.0%} of the pairs lie after step 1"


def validation(folder: Path, precision: str) -> str:
    """Frozen weights, dropout in training only, live reference: log-ratios in validation are 0."""
    need_nemo()
    need_precision(precision)
    runs.prepared(folder)
    name = f"validation_{precision}"
    settings = [
        *_adam(precision), "model.optim.lr=1e-30", "+model.hidden_dropout=0.1", "model.dpo.reference_log_probs=live",
        f"model.data.data_prefix.validation=[{folder / runs.PAIRS}]",
    ]  # fmt: skip
    runs.do(folder, name, [runs.job(folder, name, settings, precision=precision, steps=1)])

    def reward_of(split: str) -> float:
        (line,) = (line for line in runs.metrics(folder, name, split=split))
        return largest(abs(line.values[key]) for key in ("rewards/chosen", "rewards/rejected"))

    return bounded("nats per response:", reward_of("validation"), 1e-6, controls={"with dropout": reward_of("train")})


def resume(folder: Path, precision: str, way: str = "plain") -> str:
    """Stopped after step 4 of 8 without a checkpoint of it and restarted, against an uninterrupted run."""
    need_nemo()
    need_precision(precision)
    runs.prepared(folder)
    whole, stopped = f"whole_{precision}_{way}", f"stopped_{precision}_{way}"
    optimizer = [*_adam(precision), *WAYS[way], "trainer.dpo.save_interval=3"]
    jobs = [
        runs.job(folder, whole, optimizer, precision=precision),
        runs.job(folder, stopped, optimizer, precision=precision, dies_after=4),
        runs.job(folder, stopped, optimizer, precision=precision),
    ]
    runs.do(folder, f"resume_{precision}_{way}", jobs)
    # a GPU sums in no fixed order, which changes steps slightly; on CPUs every bit is the same
    bound = 0.0 if not host.has_cuda() else 1e-4 if precision == "fp32" else 1e-3
    expected = runs.metrics(folder, whole)
    return bounded(
        "largest difference of 8 steps:", runs.largest_difference(runs.metrics(folder, stopped), expected), bound,
        controls={"one step late": runs.largest_difference(runs.one_step_late(expected), expected)},
    )  # fmt: skip


def twenty_steps(folder: Path, precision: str, way: str = "plain") -> str:
    """MinorDPO on this device and on the CPU: rewards of each step, relative to the CPU's largest."""
    need_nemo()
    if not host.has_cuda():
        raise NotRun("no CUDA device to compare with the CPU")
    need_precision(precision)
    if way == "fusions":
        need_transformer_engine()
    runs.prepared(folder)
    on_cpu, adapters = ("on_cpu_lora", WAYS["lora"]) if way == "lora" else ("on_cpu", [])
    if not (folder / on_cpu / "checkpoints/step_000020").exists():
        runs.do_on_cpu(folder, on_cpu, [runs.job(folder, on_cpu, [*runs.ADAM, *adapters], steps=20)])
    name = f"steps_{precision}_{way}"
    runs.do(folder, name, [runs.job(folder, name, [*_adam(precision), *WAYS[way]], precision=precision, steps=20)])
    found, expected = (_rewards(folder, run) for run in (name, on_cpu))
    last = f"last step {found[-1, 0]:+.3f} / {found[-1, 1]:+.3f}, CPU's {expected[-1, 0]:+.3f} / {expected[-1, 1]:+.3f}"
    bound = {"fp32": 1e-2, "bf16": 0.1, "fp8_hybrid": 0.25}[precision]

    def error(found: torch.Tensor) -> float:
        return ((found - expected).abs().max() / expected.abs().max()).item()

    late = torch.cat([expected[:1], expected[:-1]])
    controls = {"one step late": error(late), "rejected for chosen": error(expected.flip(1))}
    return f"{bounded('rewards:', error(found), bound, controls=controls)}; {last}"


def large_biases(folder: Path, precision: str, way: str = "plain") -> str:
    """Norm of the first gradient, of a model with biases as large as Qwen2.5's on pairs of several blocks of places."""
    need_nemo()
    if not host.has_cuda():
        raise NotRun("no CUDA device to compare with the CPU")
    need_precision(precision)
    folder = runs.prepared(folder / "large_biases", biases=20.0, longer_by=60)
    rows = ["model.data.packed_sequence_size=2048"]
    if not (folder / "on_cpu" / "checkpoints/step_000002").exists():
        runs.do_on_cpu(folder, "on_cpu", [runs.job(folder, "on_cpu", [*runs.ADAM, *rows], steps=2)])
    name = f"large_{precision}_{way}"
    overrides = [*_adam(precision), *WAYS[way], *rows]
    runs.do(folder, name, [runs.job(folder, name, overrides, precision=precision, steps=2)])
    found, expected = (
        [line.values["grad_norm"] for line in runs.metrics(folder, run) if "grad_norm" in line.values]
        for run in (name, "on_cpu")
    )
    error, late = (abs(norm / expected[0] - 1) for norm in (found[0], expected[1]))
    return bounded(f"norm {found[0]:.3f}, CPU's {expected[0]:.3f}:", error, 0.1, controls={"the next step's": late})


def _adam(precision: str) -> list[str]:
    return runs.ADAM if precision == "fp32" else runs.ADAM_WITH_MAIN_WEIGHTS


def _rewards(folder: Path, name: str) -> torch.Tensor:
    """[steps, 2], for chosen and rejected responses."""
    names = ("rewards/chosen", "rewards/rejected")
    return torch.tensor([[line.values[key] for key in names] for line in runs.metrics(folder, name)])


def _read(path: Path) -> dict[tuple[int, bool], torch.Tensor]:
    """Token log-probabilities by (pair, whether it is the rejected response), as the worker wrote them."""
    found = torch.load(path, map_location="cpu", weights_only=False)
    return {key: tokens.float() for key, (tokens, _) in found.items()}


def _one_token_late(log_probs: dict[tuple[int, bool], torch.Tensor]) -> dict[tuple[int, bool], torch.Tensor]:
    """Control: each token gets the log-probability of the one before it."""
    return {key: tokens.roll(1) for key, tokens in log_probs.items()}


def _rms(found: dict[tuple[int, bool], torch.Tensor], exact: dict[tuple[int, bool], torch.Tensor]) -> float:
    """Root mean square error over all tokens of the responses in `exact`."""
    return torch.cat([found[key] - exact[key] for key in exact]).square().mean().sqrt().item()
