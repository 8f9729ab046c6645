"""Estimate a run's layout, memory, operations and time from its settings, model config and pairs."""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from nemo_minordpo import host
from nemo_minordpo.config import TrainConfig, unread_notes
from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import GIB, PURPOSES, Layout, Numerics, RankMemory, fullest_rank
from nemo_minordpo.errors import UserError
from nemo_minordpo.pairs.tokens import expand_files, sample_pairs
from nemo_minordpo.train.data.dataset import PairBatches, steps_of_run
from nemo_minordpo.train.launch import load_tokenizer, read_settings
from nemo_minordpo.train.model.layout import data_parallel_size, layout_in_words, possible_layouts
from nemo_minordpo.train.model.model_config import (
    build_model_config,
    checkpoint_config,
    model_size,
    num_rows_multiple_of,
    row_multiple_of,
)
from nemo_minordpo.train.schedule import schedule_notes
from nemo_minordpo.train.throughput import measure_matmul_peak

# Number of steps to lay out: work is their mean, memory is for their longest row.
_NUM_STEPS = 16
_WORK = tuple(StepWork.__dataclass_fields__)


@dataclass(frozen=True)
class Device:
    """The device of one rank.

    memory: bytes. flops: peak FLOP/s of matrix products. efficiency: fraction of the peak that a step reaches.
    """

    memory: float
    flops: float
    efficiency: float


@dataclass(frozen=True)
class Plan:
    """The plan of a run at one layout, with the work of a typical step over all ranks."""

    size: ModelSize
    model: DictConfig
    tied: bool
    cuda: bool
    ranks: int
    data_parallel: int
    layout: Layout
    memory: RankMemory
    work: StepWork
    num_pairs: int
    num_steps: int
    flops: int

    def step_seconds(self, device: Device) -> float:
        """``operations / (ranks * peak * efficiency) * (m + P - 1) / m``.

        A pipeline of P stages idles at the beginning and end of a step's m rows.
        """
        rows = max(self.layout.num_rows, 1)
        bubble = (rows + self.layout.pipeline_parallel - 1) / rows
        return self.flops / (self.ranks * device.flops * device.efficiency) * bubble


def main(
    overrides: list[str],
    *,
    device_memory_gib: float | None,
    device_tflops: float | None,
    efficiency: float,
    launcher: bool,
) -> None:
    """Check the settings and print the plan.

    Args:
        overrides: as for `minordpo train`.
        device_memory_gib, device_tflops: None = this machine's.
        efficiency: fraction of the peak that a step reaches.
        launcher: print only what launchers/common.sh reads: ranks per node, and the run folder, one per line.

    Raises:
        UserError: the settings cannot work, or the model does not fit; the message says what would.
    """
    config = read_settings(overrides)
    plan = make_plan(config, elsewhere=device_memory_gib is not None)
    memory = _memory_of_machine(config) if device_memory_gib is None else device_memory_gib * GIB
    if not launcher:
        flops = _peak_of_machine(config) if device_tflops is None else device_tflops * 1e12
        _print(plan, config, Device(memory, flops, efficiency))
    if plan.memory.total > memory:
        raise UserError(
            f"the fullest rank needs about {plan.memory.total / GIB:.1f} GiB, but a device has {memory / GIB:.1f} GiB; "
            + _what_fits(config, plan, memory)
        )
    if launcher:
        Console(soft_wrap=True, highlight=False, markup=False).print(
            f"{config.trainer.devices}\n{Path(config.exp_manager.explicit_log_dir).absolute()}"
        )


def check_settings(overrides: list[str], *, checkpoint: DictConfig | None) -> None:
    """Check the settings of a run before its pairs, and possibly its model, exist.

    Args:
        overrides: as for `minordpo train`.
        checkpoint: the configuration of the model to start from; None if not known yet.

    Raises:
        UserError: for the same reasons as `minordpo train` before it opens a file.
    """
    config = read_settings(overrides)
    if checkpoint is not None:
        _planned_model(config, checkpoint, cuda=_is_for_cuda(config, elsewhere=True))


def _is_for_cuda(config: TrainConfig, *, elsewhere: bool) -> bool:
    """Whether the run is for GPUs; a plan for them can be made on a machine without any.

    elsewhere: for another machine than this one, which has GPUs if the run is in low precision.
    """
    if config.trainer.accelerator != "auto":
        return config.trainer.accelerator == "gpu"
    return host.has_cuda() or (config.trainer.precision != "32-true" and (elsewhere or bool(config.model.fp8)))


def _planned_model(config: TrainConfig, checkpoint: DictConfig, *, cuda: bool) -> DictConfig:
    return build_model_config(config, checkpoint, cuda=cuda, te=host.has_transformer_engine() or cuda)


def make_plan(config: TrainConfig, *, elsewhere: bool = False) -> Plan:
    """Make the plan of a run, from a sample of its pairs.

    Args:
        config: the run's.
        elsewhere: it is for another machine than this one; in low precision, one with GPUs.

    Raises:
        UserError: for the same reasons as `minordpo train` before it starts ranks.
    """
    cuda = _is_for_cuda(config, elsewhere=elsewhere)
    checkpoint = checkpoint_config(config, Path(config.pretrained_checkpoint.restore_from_path))
    model = _planned_model(config, checkpoint, cuda=cuda)
    tokenizer = load_tokenizer(Path(model.tokenizer.type))
    size = model_size(model, vocab_size=len(tokenizer))
    section = config.model
    arrays, num_pairs = sample_pairs(
        expand_files(section.data.data_prefix.train), tokenizer=tokenizer, data=section.data
    )
    ranks = config.trainer.num_nodes * config.trainer.devices
    data_parallel = data_parallel_size(config)
    batches = PairBatches(
        arrays,
        global_batch_size=min(section.global_batch_size, len(arrays)),
        row_capacity=section.data.packed_sequence_size,
        row_multiple=row_multiple_of(model),
        data_parallel_rank=0,
        data_parallel_size=data_parallel,
        num_rows_multiple=num_rows_multiple_of(model),
        pad_id=tokenizer.eos_token_id,
    )
    laid_out = [batches.training_step(step, seed=section.seed) for step in range(_NUM_STEPS)]
    steps = [step for step in laid_out if step.num_global_pairs == batches.global_batch_size]  # whole ones
    scale = section.global_batch_size / batches.global_batch_size
    work = StepWork(**{name: round(scale * fmean(vars(step.work)[name] for step in steps)) for name in _WORK})
    layout = Layout(
        tensor_parallel=section.tensor_model_parallel_size,
        pipeline_parallel=section.pipeline_model_parallel_size,
        sequence_parallel=section.sequence_parallel,
        recompute=section.activations_checkpoint_granularity == "full",
        row_length=max(step.row_length for step in steps),
        num_rows=max(round(scale * fmean(len(step.micro_batches) for step in steps)), 1),
        num_targets=max(len(part.row.targets) for step in steps for part in step.micro_batches),
        interleaved=section.virtual_pipeline_model_parallel_size or 1,
        expert_parallel=section.expert_model_parallel_size,
    )
    num_steps = steps_of_run(config.trainer.dpo, num_pairs=num_pairs, global_batch_size=section.global_batch_size)
    frozen = section.peft.peft_scheme != "none"
    numerics = numerics_of(config, data_parallel=data_parallel, cuda=cuda)
    tied = bool(model.get("share_embeddings_and_output_weights", True))
    return Plan(
        size=size,
        model=model,
        tied=tied,
        cuda=cuda,
        ranks=ranks,
        data_parallel=data_parallel,
        layout=layout,
        memory=fullest_rank(size, layout, numerics, tied=tied, cuda=cuda),
        work=work,
        num_pairs=num_pairs,
        num_steps=num_steps,
        flops=size.training_flops(work, frozen=frozen),
    )


def numerics_of(config: TrainConfig, *, data_parallel: int, cuda: bool) -> Numerics:
    """Bytes per weight, with its gradient and optimizer state, for the run's precision and optimizer."""
    section, low = config.model, config.trainer.precision != "32-true"
    frozen = section.peft.peft_scheme != "none"
    moments = {"sgd": 4 if section.optim.momentum else 0}.get(section.optim.name, 8)
    distributed = section.optim.name in ("mcore_distributed_optim", "distributed_fused_adam")
    masters = 4 if low and (section.megatron_amp_O2 or distributed) else 0
    # autocast holds float32 weights and copies of them in the lower precision
    weight = (2 if masters else 6) if low else 4
    return Numerics(
        weight=weight,
        gradient=0 if frozen else 4,
        optimizer=0 if frozen else (moments + masters) / (data_parallel if distributed else 1),
        activation=2 if low else 4,
        # torch's CPU kernels convert a bfloat16 gradient to float32 before they add it to the main gradient
        new_gradient=0 if frozen or cuda else 2 + 4 if low else 4,
    )


def _memory_of_machine(config: TrainConfig) -> float:
    """Bytes available to a rank on this machine: its GPU's memory, or its share of the main memory."""
    if host.has_cuda():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / config.trainer.devices


def _peak_of_machine(config: TrainConfig) -> float:
    """FLOP/s of a rank on this machine: its GPU's, or those of its share of the cores."""
    host.prepare()
    peak = measure_matmul_peak(torch.float32 if config.trainer.precision == "32-true" else torch.bfloat16)
    return peak if host.has_cuda() else peak / config.trainer.devices


def _what_fits(config: TrainConfig, plan: Plan, device_memory: float) -> str:
    """The nearest layouts that fit, or other ways to make the run smaller."""
    fitting = []
    now = (plan.layout.tensor_parallel, plan.layout.pipeline_parallel)
    for tensor, pipeline in possible_layouts(plan.model, ranks=plan.ranks, near=now):
        data_parallel = plan.ranks // (tensor * pipeline)
        rows = max(plan.layout.num_rows * plan.data_parallel // data_parallel, 1)
        layout = replace(plan.layout, tensor_parallel=tensor, pipeline_parallel=pipeline, num_rows=rows)
        numerics = numerics_of(config, data_parallel=data_parallel, cuda=plan.cuda)
        memory = fullest_rank(plan.size, layout, numerics, tied=plan.tied, cuda=plan.cuda)
        if memory.total <= device_memory:
            fitting.append(
                f"model.tensor_model_parallel_size={tensor} model.pipeline_model_parallel_size={pipeline} "
                f"({memory.total / GIB:.1f} GiB)"
            )
    if fitting:
        return f"nearest layouts that fit: {'; '.join(fitting[:3])}"
    return (
        "no layout of these ranks fits: use more ranks, model.activations_checkpoint_granularity=full, a smaller "
        "model.data.packed_sequence_size, or model.optim.name=mcore_distributed_optim"
    )


def _print(plan: Plan, config: TrainConfig, device: Device) -> None:
    layout, memory = plan.layout, plan.memory
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{layout_in_words(config)}; {layout.num_rows} rows of {layout.row_length} tokens per rank and step; "
        f"{memory.parameters:,} weights on the fullest rank"
    )
    table = Table("memory of the fullest rank", "GiB")
    for name in (*PURPOSES, "total"):
        table.add_row(name, f"{getattr(memory, name) / GIB:.2f}")
    table.add_row("available", f"{device.memory / GIB:.2f}")
    console.print(table)
    seconds = plan.step_seconds(device)
    console.print(
        f"{plan.flops / 1e12:.3g} TFLOP per step of {plan.work.pairs} pairs ({plan.work.unique_tokens:,} unique "
        f"tokens); at {device.efficiency:.0%} of {device.flops / 1e12:.3g} TFLOP/s per rank: {seconds:.3g} s per step, "
        f"{timedelta(seconds=round(seconds * plan.num_steps))} for {plan.num_steps} steps, "
        "plus the reference once at the start, which takes about a third of an epoch"
    )
    for note in [*unread_notes(config), *schedule_notes(config, num_pairs=plan.num_pairs)]:
        console.print(f"note: {note}", markup=False)
