"""The loop: steps, validation, checkpoints, time limit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from nemo_aligner.utils.train_utils import clip_gradients

from nemo_minordpo.config import TrainConfig, duration_in_seconds
from nemo_minordpo.core.metrics import means_of
from nemo_minordpo.records import StepMetrics
from nemo_minordpo.train.checkpoints import Progress, load_checkpoint, newest_checkpoint, save_checkpoint
from nemo_minordpo.train.dataset import PairBatches, StepBatch, steps_per_epoch
from nemo_minordpo.train.schedule import learning_rate


@dataclass
class MinorDPOTrainer:
    """Trains a model that is set up, on batches that are tokenised.

    Instead of NeMo-Aligner's DPOTrainer: partial batches, training and validation sets of any size and any interval
    work; counters live in the checkpoint; `step_s` covers the whole step.

    Attributes:
        model: MegatronGPTMinorDPOModel after Lightning's set-up.
        optimizer: torch's, or NeMo's wrapper of it.
        strategy: NeMo's; it knows how an optimizer is sharded.
        train, validation: the splits; validation may be missing.
        checkpoints: their folder.
    """

    config: TrainConfig
    model: Any
    optimizer: Any
    strategy: Any
    train: PairBatches
    validation: PairBatches | None
    checkpoints: Path
    progress: Progress = field(default_factory=Progress)

    @property
    def max_steps(self) -> int:
        loop = self.config.trainer.dpo
        steps = loop.max_epochs * self._steps_per_epoch
        return steps if loop.max_steps < 0 else min(steps, loop.max_steps)

    def resume(self) -> Progress:
        """Go on from the newest checkpoint of the run folder, if there is one."""
        newest = newest_checkpoint(self.checkpoints)
        if newest is not None:
            self.progress = load_checkpoint(newest, strategy=self.strategy, model=self.model, optimizer=self.optimizer)
        return self.progress

    def fit(self, log: Callable[[StepMetrics], None]) -> bool:
        """Train to the end or to the time limit.

        Args:
            log: called on every rank with each line of metrics.

        Returns:
            Whether the run is complete. If not, a checkpoint was saved and the same command goes on.
        """
        deadline = self._deadline()
        while self.progress.step < self.max_steps:
            log(self._train_step())
            done = self.progress.step == self.max_steps
            stop = not done and self._agree_on_stop(deadline)
            if self.validation is not None and self._is_due(self.config.trainer.dpo.val_check_interval, done):
                log(self._validate())
            if stop or self._is_due(self.config.trainer.dpo.save_interval, done):
                self._save()
            if stop:
                return False
        return True

    def _train_step(self) -> StepMetrics:
        started = time.perf_counter()
        step = self.progress.step
        # Dropout depends on the step alone, so that a resumed run draws what the uninterrupted one drew.
        tensor_parallel.model_parallel_cuda_manual_seed(self.config.model.seed + step)
        rate = learning_rate(step, max_steps=self.max_steps, optim=self.config.model.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.train.training_step(step, seed=self.config.model.seed)
        self.optimizer.zero_grad()
        self.model.prepare_for_training_step()
        _, metrics = self.model.get_loss_and_metrics(batch, forward_only=False)
        self.model.finish_training_step()
        # an infinite limit clips nothing, and still gives the norm
        grad_norm = clip_gradients(self.model, self.config.trainer.dpo.gradient_clip_val or math.inf)
        self.optimizer.step()
        self.progress = Progress(step + 1, self.progress.consumed_pairs + batch.num_global_pairs)
        elapsed = time.perf_counter() - started
        metrics |= {"lr": rate, **({} if grad_norm is None else {"grad_norm": float(grad_norm)})}
        metrics |= _throughput(batch, elapsed)
        return self._line("train", metrics)

    def _validate(self) -> StepMetrics:
        started = time.perf_counter()
        assert self.validation is not None
        self.model.prepare_for_validation_step()
        limit = self.config.trainer.dpo.limit_val_batches
        batches = self.validation.in_file_order(limit_batches=limit)
        sums = torch.stack([self.model.validation_sums(batch) for batch in batches]).sum(dim=0)
        torch.distributed.all_reduce(sums)
        self.model.finish_validation_step()
        return self._line("validation", {**means_of(sums), "step_s": time.perf_counter() - started})

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoints,
            strategy=self.strategy,
            model=self.model,
            optimizer=self.optimizer,
            progress=self.progress,
            keep=self.config.trainer.dpo.keep_checkpoints,
        )

    def _line(self, split: str, values: dict[str, float]) -> StepMetrics:
        return StepMetrics(
            split=split,
            step=self.progress.step,
            epoch=(self.progress.step - 1) // self._steps_per_epoch,
            consumed_pairs=self.progress.consumed_pairs,
            values=values,
        )

    def _is_due(self, interval: int, done: bool) -> bool:
        return done or (interval > 0 and self.progress.step % interval == 0)

    def _deadline(self) -> float:
        limit = self.config.exp_manager.max_time_per_run
        return math.inf if limit is None else time.monotonic() + duration_in_seconds(limit)

    def _agree_on_stop(self, deadline: float) -> bool:
        """Whether any rank's time is over: ranks that disagree would wait for one another for ever."""
        if deadline == math.inf:
            return False
        over = torch.tensor([time.monotonic() > deadline], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(over, op=torch.distributed.ReduceOp.MAX)
        return bool(over.item())

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train.arrays), self.train.global_batch_size)


def data_parallel_layout() -> tuple[int, int]:
    """(rank, size) in the data-parallel group."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def _throughput(batch: StepBatch, seconds: float) -> dict[str, float]:
    return {
        "step_s": seconds,
        "pairs_per_s": batch.num_global_pairs / seconds,
        "tokens_per_s": batch.num_global_tokens / seconds,
    }
