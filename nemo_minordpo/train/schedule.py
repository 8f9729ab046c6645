"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

In short runs, NeMo's own schedules start at 0 and drop to their minimum right after the warm-up.
"""

import math

from nemo_minordpo.config import OptimSection, TrainConfig
from nemo_minordpo.train.data.dataset import steps_of_run, steps_per_epoch


def learning_rate(step: int, *, max_steps: int, optim: OptimSection) -> float:
    """Learning rate of optimizer step ``step``.

    Warm-up over W steps: ``lr * (step + 1) / (W + 1)``, which is positive in the first step. Then, with
    ``x = (step - W) / (max_steps - W)`` in [0, 1): linear ``lr - (lr - min_lr) * x``, cosine
    ``min_lr + (lr - min_lr) * (1 + cos(pi * x)) / 2``, or constant ``lr``.

    Args:
        step: from 0 to ``max_steps - 1``.
        max_steps: steps of the whole run, however many this process does.
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
    """Notes on the schedule that may surprise the user; as in NeMo-Aligner, a run ends with its epochs.

    Args:
        config: the run's.
        num_pairs: number of training pairs.
    """
    loop, optim, batch = config.trainer.dpo, config.model.optim, config.model.global_batch_size
    steps = steps_of_run(loop, num_pairs=num_pairs, global_batch_size=batch)
    notes = []
    if steps < loop.max_steps:
        epochs = math.ceil(loop.max_steps / steps_per_epoch(num_pairs, batch))
        notes.append(
            f"the run has {steps:,} steps, not trainer.dpo.max_steps={loop.max_steps}: that is all its {num_pairs:,} "
            f"pairs give in trainer.dpo.max_epochs={loop.max_epochs}; set trainer.dpo.max_epochs={epochs} for more"
        )
    warmup = optim.sched.warmup_steps
    if warmup is not None and warmup >= steps:
        last = learning_rate(steps - 1, max_steps=steps, optim=optim)
        notes.append(
            f"the run ends after {steps:,} steps, before model.optim.sched.warmup_steps={warmup} are over: the "
            f"learning rate ends at {last:.3g}, below model.optim.lr={optim.lr:g}"
        )
    return notes
