"""The schedule: phases one after another; within a phase, lanes in parallel; within a lane, checks in order.

Checks in one lane share files or must run in order for another reason. The most informative ones come first.

On an H200 with 16 cores, preparation takes 53 s, the longest lane of comparisons 105 s and the measurements about
300 s: 460 of the 480 s of `--minutes 8` (docs/gpu.md).
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

_NUMERICS, _TRAINING, _SPEED = "tests.gpu.numerics", "tests.gpu.training", "tests.gpu.speed"
_CORES_OF_LANE = 2


@dataclass(frozen=True)
class Check:
    """A row of the table.

    target: MODULE:FUNCTION, called with the shared folder and the arguments.
    limit_s: time limit in seconds, after which it fails.
    """

    name: str
    target: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 180.0


@dataclass(frozen=True)
class Phase:
    """Lanes that start when the previous phase has ended.

    until: fraction of the total time after which the phase ends, if a later phase has work for a GPU.
    alone: run one check at a time, with all cores.
    """

    name: str
    lanes: tuple[tuple[Check, ...], ...]
    until: float = 1.0
    alone: bool = False


def training(name: str, function: str, *arguments: str, limit_s: float = 180.0) -> Check:
    """A check of tests/gpu/training.py."""
    return Check(name, f"{_TRAINING}:{function}", arguments, limit_s)


def step(model: str, precision: str, kernels: str, *row_lengths: str) -> Check:
    """A measurement of tests/gpu/speed.py."""
    name = {"fp8_hybrid": "FP8"}.get(precision, precision)
    arguments = (model, precision, kernels, *row_lengths)
    return Check(f"step, {model}, {name}, {kernels} kernels", f"{_SPEED}:step", arguments, limit_s=150)


_PREPARATION = (
    Check("stack", "tests.gpu.stack:stack"),
    training("import, verify, export", "conversion"),
)
_CORRECTNESS = (
    (
        Check("attention of pairs, bfloat16", f"{_NUMERICS}:attention", ("bfloat16",), limit_s=120),
        Check("attention of long pairs, bfloat16", f"{_NUMERICS}:attention", ("bfloat16", "long"), limit_s=120),
        *(
            Check(
                f"attention of pairs, large scores, {tiles} tiles", f"{_NUMERICS}:large_scores", (tiles,), limit_s=120
            )
            for tiles in ("own", "torch's", "one stage")
        ),
        Check("attention of pairs, float32", f"{_NUMERICS}:attention", ("float32",), limit_s=120),
        Check("attention: no recompilation", f"{_NUMERICS}:recompilation", limit_s=120),
    ),
    # other precisions are compared with the output of the first check
    (
        training("model, local layers, fp32", "log_probs_of_local_layers"),
        training("model, FP8", "log_probs", "fp8_hybrid"),
        training("model, bf16", "log_probs", "bf16"),
        training("large biases, bf16, fusions", "large_biases", "bf16", "fusions"),
        training("large biases, bf16", "large_biases", "bf16"),
    ),
    # the first check leaves its CPU run for the others
    (
        training("20 steps, FP8 against CPU", "twenty_steps", "fp8_hybrid", limit_s=200),
        training("20 steps, bf16, several rows each, against CPU", "twenty_steps", "bf16", "rows"),
        training("20 steps, FP8, fusions, against CPU", "twenty_steps", "fp8_hybrid", "fusions"),
    ),
    (
        Check("losses and gradients", f"{_NUMERICS}:losses", limit_s=60),
        Check("log-probabilities, bfloat16", f"{_NUMERICS}:log_probs", ("bfloat16",), limit_s=60),
        Check("log-probabilities, float32", f"{_NUMERICS}:log_probs", ("float32",), limit_s=60),
        training("packed against separate", "packed"),
        # by now the check of the local layers is done
        training("model, Transformer Engine, fp32", "log_probs", "fp32"),
    ),
    (
        training("stopped and resumed, FP8", "resume", "fp8_hybrid"),
        training("stopped and resumed, fp32", "resume", "fp32"),
        # by now the CPU run, which started before this lane, is done
        training("20 steps, fp32 against CPU", "twenty_steps", "fp32"),
    ),
    (
        training("cached against live reference, FP8", "cached_reference", "fp8_hybrid"),
        training("cached against live reference, bf16", "cached_reference", "bf16"),
        training("cached against live reference, fp32", "cached_reference", "fp32"),
    ),
    tuple(Check(f"{model} for the measurements", f"{_SPEED}:prepare", (model,)) for model in ("1.5B", "7B")),
)
_MEASUREMENTS = (
    step("1.5B", "bf16", "fused", "16384", "32768"),
    step("1.5B", "fp8_hybrid", "fused", "16384", "32768"),
    Check("FP8 against bf16, 1.5B", f"{_SPEED}:fp8_over_bf16", ("1.5B",), limit_s=30),
    step("7B", "bf16", "fused", "8192", "16384"),
    step("7B", "fp8_hybrid", "fused", "8192", "16384"),
    Check("FP8 against bf16, 7B", f"{_SPEED}:fp8_over_bf16", ("7B",), limit_s=30),
    Check("head: time and memory", f"{_SPEED}:head", limit_s=60),
    # the gain from fusing, and NeMo-Aligner, if there is time
    Check("ours against NeMo-Aligner's step", f"{_SPEED}:beside_aligner", limit_s=150),
    step("1.5B", "bf16", "single", "16384"),
    step("1.5B", "fp8_hybrid", "single", "16384"),
)
PHASES = (
    Phase("preparation", (_PREPARATION,)),
    Phase("correctness", _CORRECTNESS, until=0.65),
    Phase("measurements, alone", (_MEASUREMENTS,), alone=True),
)


def checks_of(phases: Sequence[Phase]) -> list[Check]:
    return [check for phase in phases for lane in phase.lanes for check in lane]


def selected(phases: Sequence[Phase], wanted: Callable[[Check], bool]) -> list[Phase]:
    """The phases with only the wanted checks, without empty lanes and phases."""
    chosen = []
    for phase in phases:
        lanes = tuple(lane for whole in phase.lanes if (lane := tuple(filter(wanted, whole))))
        if lanes:
            chosen.append(replace(phase, lanes=lanes))
    return chosen


def end_of(phase: Phase, phases: Sequence[Phase], *, limit_s: float) -> float:
    """When the last check of a phase is stopped, in seconds from the start. Without a GPU no measurements follow."""
    more_to_do = phase is not phases[-1] and shutil.which("nvidia-smi") is not None
    return limit_s * (phase.until if more_to_do else 1.0)


def lanes_at_a_time(phase: Phase) -> int:
    """Number of lanes to run in parallel: with only two cores they would just take turns."""
    return 1 if phase.alone else min(max(_cores() // _CORES_OF_LANE, 1), len(phase.lanes))


def threads_of_check(phase: Phase) -> int:
    """Number of torch's CPU threads per check, so that lanes share the cores."""
    return max(_cores() // lanes_at_a_time(phase), 1)


def in_words(phases: Sequence[Phase]) -> Iterator[str]:
    """What `--list` prints."""
    for phase in phases:
        yield f"{phase.name}: {lanes_at_a_time(phase)} of {len(phase.lanes)} lanes at a time"
        for number, lane in enumerate(phase.lanes, start=1):
            for check in lane:
                yield f"  lane {number}  {check.limit_s:4.0f} s  {check.name}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))
