"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

NeMo's schedules start at 0 and fall to their minimum right after the warm-up of a short run.
"""

import math

from nemo_minordpo.config import OptimSection, TrainConfig
from nemo_minordpo.train.data.dataset import steps_of_run, steps_per_epoch


def learning_rate(step: int, *, max_steps: int, optim: OptimSection) -> float:
    """Learning rate of optimizer step ``step``.

    Warm-up over W steps: ``lr * (step + 1) / (W + 1)``, so that the first step learns, too. Then, with
    ``x = (step - W) / (max_steps - W)`` in [0, 1): linear ``lr - (lr - min_lr) * x``, cosine
    ``min_lr + (lr - min_lr) * (1 + cos(pi * x)) / 2``, or constant ``lr``.

    Args:
        step: from 0 to ``max_steps - 1``.
        max_steps: of the whole run, whatever part of it this process does.
        optim: lr, sched.name, sched.warmup_ratio or sched.warmup_steps (W), sched.min_lr.
    """
    sched = optim.sched
    warmup = math.ceil(sched.warmup_ratio * max_steps) if sched.warmup_steps is None else sched.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(max_steps - warmup, 1)
    if sched.name == "linear":
        return optim.lr - (optim.lr - sched.min_lr) * done
    if sched.name == "cosine":
        return sched.min_lr + (optim.lr - sched.min_lr) * (1 + math.cos(math.pi * done)) / 2
    return optim.lr


def schedule_notes(config: TrainConfig, *, num_pairs: int) -> list[str]:
    """What of the schedule may come as a surprise, before the first step; as NeMo-Aligner, a run ends with its epochs.

    Args:
        config: the run's.
        num_pairs: that it trains on.
    """
    loop, optim, batch = config.trainer.dpo, config.model.optim, config.model.global_batch_size
    steps = steps_of_run(loop, num_pairs=num_pairs, global_batch_size=batch)
    notes = []
    if steps < loop.max_steps:
        epochs = math.ceil(loop.max_steps / steps_per_epoch(num_pairs, batch))
        notes.append(
            f"the run has {steps:,} steps, not trainer.dpo.max_steps={loop.max_steps}: its {num_pairs:,} pairs give no "
            f"more in trainer.dpo.max_epochs={loop.max_epochs}; trainer.dpo.max_epochs={epochs} does"
        )
    warmup = optim.sched.warmup_steps
    if warmup is not None and warmup >= steps:
        last = learning_rate(steps - 1, max_steps=steps, optim=optim)
        notes.append(
            f"model.optim.sched.warmup_steps={warmup} is not over when the run ends, after {steps:,} steps: the "
            f"learning rate ends at {last:.3g}, below model.optim.lr={optim.lr:g}"
        )
    return notes
