"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

NeMo's schedules start at 0 and fall to their minimum right after the warm-up of a short run.
"""

import math

from nemo_minordpo.config import OptimSection


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
