"""The training loop: steps, validation, answers, checkpoints, and when to stop."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nemo_minordpo.config import TrainConfig
from nemo_minordpo.core.metrics import summary
from nemo_minordpo.records import StepMetrics
from nemo_minordpo.train.answers import AnswerWatch
from nemo_minordpo.train.data.dataset import PairBatches, StepBatch, pairs_of_step, steps_of_run, steps_per_epoch
from nemo_minordpo.train.folder.attempt import Attempt
from nemo_minordpo.train.folder.checkpoints import Counters, load_checkpoint, newest_intact_checkpoint, save_checkpoint
from nemo_minordpo.train.folder.run_log import RunLog
from nemo_minordpo.train.folder.stopping import StallDetector, StopRequest
from nemo_minordpo.train.hosts.protocol import Host
from nemo_minordpo.train.model.model_config import num_rows_multiple_of
from nemo_minordpo.train.model.pair_model import PairModel
from nemo_minordpo.train.reference import noise_of_reference
from nemo_minordpo.train.require_finite import (
    Places,
    places_in,
    require_finite,
    require_finite_norm,
    require_finite_pairs,
    require_finite_weights,
)
from nemo_minordpo.train.schedule import learning_rate
from nemo_minordpo.train.throughput import Throughput, peak_memory_gib


@dataclass
class MinorDPOTrainer:
    """Trains a model that is set up, on tokenised batches.

    Replaces NeMo-Aligner's DPOTrainer: partial batches, training and validation sets of any size, and any interval
    work; counters are in the checkpoint; `step_s` covers the whole step, with no garbage collection or cache flush
    after it.

    Attributes:
        host: the model and its optimizer.
        train, validation: the splits; validation is optional.
        checkpoints: folder of the checkpoints.
        throughput: converts a step's time to rates.
        answers: the watch on the model's answers; None = no watch.
    """

    config: TrainConfig
    host: Host
    train: PairBatches
    validation: PairBatches | None
    checkpoints: Path
    throughput: Throughput
    answers: AnswerWatch | None
    progress: Counters = field(default_factory=Counters)
    _validation: StepMetrics | None = field(default=None, init=False)

    @property
    def model(self) -> PairModel:
        return self.host.model

    @property
    def max_steps(self) -> int:
        return steps_of_run(
            self.config.trainer.dpo,
            num_pairs=len(self.train.arrays),
            global_batch_size=self.train.global_batch_size,
        )

    def resume(self, attempt: Attempt) -> Counters:
        """Resume from the newest intact checkpoint of the run folder, if there is one."""
        newest = newest_intact_checkpoint(self.checkpoints, attempt)
        if newest is not None:
            self.progress = load_checkpoint(newest, host=self.host)
        return self.progress

    def fit(self, log: RunLog, *, attempt: Attempt, stop: StopRequest, stalls: StallDetector) -> str:
        """Train to the end, or until asked to stop.

        Args:
            log: gets each line of metrics, on every rank.
            attempt: the attempt that writes the checkpoints.
            stop: requests to end the run early.
            stalls: notified of all progress.

        Returns:
            Why the run stopped early, after saving a checkpoint from which the same command resumes. Empty if the run
            is complete.

        Raises:
            NotFiniteError: on every rank; every checkpoint is from before the value that is not finite.
        """
        loop = self.config.trainer.dpo
        require_finite_weights(self.model, when=f"before step {self.progress.step + 1}")
        if self.progress.step == 0 and self.model.needs_reference and self._starts_at_reference:
            self._measure_noise(stalls)
        self._begin_answers(log, attempt, stalls)
        for batch in self._coming_batches():
            stalls.beat(f"step {self.progress.step + 1}")
            line = self._train_step(batch)
            log(line)
            done = self.progress.step == self.max_steps
            reason = "" if done else stop.agreed()
            # a run that is asked to stop has no time for answers
            if self.answers is not None and not reason and self._is_due(loop.watch.interval, done):
                self._sample_answers(log, attempt, stalls, chosen=line.values["rewards/chosen"])
            if self.validation is not None and self._is_due(loop.val_check_interval, done):
                self._validation = self._validate(stalls)
                log(self._validation)
            if reason or self._is_due(loop.save_interval, done):
                stalls.beat(f"the checkpoint of step {self.progress.step}")
                self._save(attempt, batch.result())
            if reason:
                return reason
        return ""

    def _coming_batches(self) -> Iterator["Future[StepBatch]"]:
        """The batches of the remaining steps; the next one is laid out while a step computes."""
        with ThreadPoolExecutor(max_workers=1) as executor:
            coming: list[Future[StepBatch]] = []
            for step in range(self.progress.step, self.max_steps):
                for ahead in range(step + len(coming), min(step + 2, self.max_steps)):
                    coming.append(executor.submit(self.train.training_step, ahead, seed=self.config.model.seed))
                yield coming.pop(0)

    def _train_step(self, coming: "Future[StepBatch]") -> StepMetrics:
        started = time.perf_counter()
        step = self.progress.step
        batch = self._with_references(coming.result())
        rate = learning_rate(step, max_steps=self.max_steps, optim=self.config.model.optim)
        # Dropout depends on the step only, so a resumed run draws the same as an uninterrupted one.
        self.host.begin_step(rate=rate, seed=self.config.model.seed + step)
        values = self.model.pair_metrics(batch, forward_only=False)
        metrics = self._summary(values, when=f"step {step + 1}", places=self._places_of_step(step))
        # an infinite limit clips nothing but still returns the norm
        limit = self.config.trainer.dpo.gradient_clip_val or math.inf
        norm = self._finite_norm(self.host.reduce_and_clip(max_norm=limit))
        # if only this returns the norm and it is not finite, the weights are already spoilt, but they are not saved
        norm |= self._finite_norm(self.host.update_weights())
        self.progress = replace(
            self.progress, step=step + 1, consumed_pairs=self.progress.consumed_pairs + batch.num_global_pairs
        )
        metrics |= {"lr": rate, **norm}
        if self._starts_at_reference:
            metrics["reference_noise"] = self.progress.reference_noise
        torch.cuda.synchronize()
        metrics |= self.throughput.of(batch.work, time.perf_counter() - started)
        metrics["peak_memory_gib"] = peak_memory_gib()
        return self._line("train", metrics)

    def _finite_norm(self, grad_norm: float | None) -> dict[str, float]:
        """The gradient norm as a metric, if there is one; the same on every rank."""
        if grad_norm is None:
            return {}
        require_finite_norm(grad_norm, self.model, when=f"step {self.progress.step + 1}")
        return {"grad_norm": grad_norm}

    def _places_of_step(self, step: int) -> Places:
        """Names the pairs of a step, given their columns in the step's table."""

        def places(columns: Sequence[int]) -> list[str]:
            pairs = pairs_of_step(
                step,
                num_pairs=len(self.train.arrays),
                global_batch_size=self.train.global_batch_size,
                seed=self.config.model.seed,
            )
            return places_in(self.config, "train")(pairs[list(columns)].tolist())

        return places

    def _with_references(self, batch: StepBatch) -> StepBatch:
        """The batch with reference log-probabilities: cached ones it already has, live ones are evaluated now.

        Before the first step the policy is the reference, unless that is another model, and the model uses its own
        log-probabilities. Others would differ by rounding, and the kinks of MinorDPO and DPOP are exactly where policy
        equals reference.
        """
        if self.progress.step == 0 and self._starts_at_reference and not self.model.has_dropout:
            return batch.with_references([None] * len(batch.micro_batches))
        return self._with_cached_or_live(self.train, batch)

    def _with_cached_or_live(self, split: PairBatches, batch: StepBatch) -> StepBatch:
        if self.model.needs_reference and split.reference_log_probs is None:
            return batch.with_references(self.model.get_ref_policy_logprobs(batch))
        return batch

    def _measure_noise(self, stalls: StallDetector) -> None:
        stalls.beat("the noise of the reference")
        first = self._with_cached_or_live(self.train, self.train.training_step(0, seed=self.config.model.seed))
        live = self.train.reference_log_probs is None
        noise = noise_of_reference(self.model, first, live=live)
        require_finite({"reference_noise": noise}, when="before step 1")
        self.progress = replace(self.progress, reference_noise=noise)

    def _validate(self, stalls: StallDetector) -> StepMetrics:
        started = time.perf_counter()
        assert self.validation is not None
        limit = self.config.trainer.dpo.limit_val_batches
        batches = self.validation.in_file_order(limit_batches=limit)
        parts = []
        with self.model.evaluating(), torch.no_grad():
            for number, batch in enumerate(batches, start=1):
                stalls.beat(f"validation batch {number} after step {self.progress.step}")
                with_references = self._with_cached_or_live(self.validation, batch)
                parts.append(self.model.pair_metrics(with_references, forward_only=True))
        when = f"validation after step {self.progress.step}"
        metrics = self._summary(torch.cat(parts, dim=1), when=when, places=places_in(self.config, "validation"))
        return self._line("validation", {**metrics, "step_s": time.perf_counter() - started})

    def _begin_answers(self, log: RunLog, attempt: Attempt, stalls: StallDetector) -> None:
        if self.answers is None:
            return
        if self.progress.step:
            self.answers.resume()
            return
        stalls.beat("the answers of the reference")
        self.answers.begin(attempt)
        self._sample_answers(log, attempt, stalls, chosen=0.0)

    def _sample_answers(self, log: RunLog, attempt: Attempt, stalls: StallDetector, *, chosen: float) -> None:
        assert self.answers is not None
        stalls.beat(f"the answers after step {self.progress.step}")
        values, alarm = self.answers.sample(self.progress.step, attempt, chosen=chosen)
        require_finite(values, when=f"answers after step {self.progress.step}")
        log(self._line("watch", values))
        if alarm:
            log.alarm(self.progress.step, alarm)

    def _require_sound_model(self, batch: StepBatch) -> None:
        """Check that weights and log-probabilities are finite, since no later step would notice a spoilt weight.

        Evaluates one row of the step's batch, or as few as interleaved stages take: finite weights can be so large
        that the logits overflow.
        """
        when = f"after step {self.progress.step}"
        require_finite_weights(self.model, when=when)
        # against itself, since only log-probabilities are needed, and a live reference would be evaluated
        few = batch.micro_batches[: num_rows_multiple_of(self.model.cfg)]
        rows = replace(batch, micro_batches=few).with_references([None] * len(few))
        with self.model.evaluating(), torch.no_grad():
            values = self.model.pair_metrics(rows, forward_only=True)
        self._summary(values, when=when, places=self._places_of_step(self.progress.step - 1))

    def _save(self, attempt: Attempt, batch: StepBatch) -> None:
        self._require_sound_model(batch)
        keep = self.config.exp_manager.checkpoint_callback_params
        last = self._validation
        save_checkpoint(
            self.checkpoints,
            host=self.host,
            counters=self.progress,
            attempt=attempt,
            keep=keep,
            monitored=None if last is None or last.step != self.progress.step else last.values[keep.monitor],
        )

    def _summary(self, values: Tensor, *, when: str, places: Places) -> dict[str, float]:
        """Means over all ranks' values, which must be finite; arguments as in train/require_finite.py."""
        table = self.model.gathered(values)
        means = summary(table, noise=self.progress.reference_noise, floor=self.model.options.minordpo_floor)
        require_finite_pairs(table, means, when=when, places=places)
        return means

    def _line(self, split: str, values: dict[str, float]) -> StepMetrics:
        return StepMetrics(
            split=split,
            step=self.progress.step,
            epoch=max(self.progress.step - 1, 0) // self._steps_per_epoch,
            consumed_pairs=self.progress.consumed_pairs,
            values=values,
        )

    def _is_due(self, interval: int, done: bool) -> bool:
        return done or (interval > 0 and self.progress.step % interval == 0)

    @property
    def _starts_at_reference(self) -> bool:
        return self.config.pretrained_checkpoint.reference_from_path is None

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train.arrays), self.train.global_batch_size)
