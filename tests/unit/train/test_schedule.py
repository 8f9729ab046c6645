import pytest

from nemo_minordpo.config import OptimSection, ScheduleSection, TrainConfig
from nemo_minordpo.train.schedule import learning_rate, schedule_notes


def rates(max_steps, *, lr=1.0, **sched):
    optim = OptimSection(lr=lr, sched=ScheduleSection(**sched))
    return [learning_rate(step, max_steps=max_steps, optim=optim) for step in range(max_steps)]


def test_linear_worked_by_hand():
    assert rates(10, name="linear", warmup_ratio=0.2) == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_cosine_worked_by_hand():
    assert rates(5, name="cosine", warmup_steps=1, min_lr=0.2) == pytest.approx(
        [0.5, 1.0, 0.2 + 0.8 * 0.8535534, 0.6, 0.2 + 0.8 * 0.1464466]
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 11, 1010, 3000])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.9])
def test_positive_from_the_first_step_to_the_last(name, max_steps, warmup_ratio):
    """Upstream's first step has lr 0, and runs of fewer than 1010 steps drop to the minimum right after the warm-up."""
    values = rates(max_steps, name=name, warmup_ratio=warmup_ratio)
    assert min(values) > 0
    assert max(values) <= 1.0
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_warmup_steps_override_the_ratio():
    assert rates(10, name="constant", warmup_steps=0, warmup_ratio=0.5) == [1.0] * 10


def test_a_warmup_longer_than_the_run():
    assert rates(2, name="linear", warmup_steps=9) == pytest.approx([0.1, 0.2])


def notes(*, num_pairs=7, max_steps=-1, max_epochs=1, warmup_steps=None):
    config = TrainConfig()
    config.model.global_batch_size = 4
    config.model.optim.lr = 1e-4
    config.model.optim.sched.warmup_steps = warmup_steps
    config.trainer.dpo.max_steps, config.trainer.dpo.max_epochs = max_steps, max_epochs
    return schedule_notes(config, num_pairs=num_pairs)


def test_a_run_that_ends_before_max_steps_is_noted():
    """7 pairs are 2 steps of 4; 500 epochs of them are 1000 steps."""
    (note,) = notes(max_steps=1000)
    assert note.startswith("the run has 2 steps, not trainer.dpo.max_steps=1000: that is all its 7 pairs")
    assert note.endswith("set trainer.dpo.max_epochs=500 for more")
    assert notes(max_steps=1000, max_epochs=500) == []
    assert len(notes(max_steps=1000, max_epochs=499)) == 1
    assert notes(max_steps=2) == notes(max_steps=1) == notes() == []


def test_a_warmup_that_outlasts_the_run_is_noted():
    (note,) = notes(warmup_steps=2)
    assert "after 2 steps, before model.optim.sched.warmup_steps=2 are over: the learning rate ends at 6.67e-05" in note
    assert notes(warmup_steps=1) == []
    assert len(notes(max_steps=1000, warmup_steps=100)) == 2
