"""The watch on answers, with a model whose answers the test chooses."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nemo_minordpo.files import read_lines
from nemo_minordpo.records import WatchedAnswer
from nemo_minordpo.train import answers as module
from nemo_minordpo.train.answers import AnswerWatch, stop_ids_of, watched_prompts
from nemo_minordpo.train.folder.attempt import Attempt, ReplacedError
from nemo_minordpo.train.model.generation import GenerationLimits

from .arrays import PAIRS, arrays_of

END = 0
HEALTHY = [*range(1, 31), END]
LOOPING = [5, 6] * 20


class Tokenizer:
    eos_token_id = END

    def get_vocab(self):
        return {}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


class Model:
    def __init__(self):
        self.mode = []

    @contextmanager
    def evaluating(self):
        self.mode.append("eval")
        yield
        self.mode.append("train")


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Two prompts; `fake` has the model's greedy answers, and the log-probabilities of the samples."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda parts, part: parts.__setitem__(0, part))

    def generate(model, prompts, *, limits, noise):
        if noise is None:
            return fake["answers"]
        return [[number + 1, 7, END] for number in range(len(prompts))]

    fake = {"answers": [HEALTHY, HEALTHY], "log_probs": np.full((2, 2), -3.0)}
    monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr(module, "log_probs_of", lambda model, batches: fake["log_probs"].copy())

    def make():
        return AnswerWatch(
            folder=tmp_path / "watch",
            model=Model(),
            tokenizer=Tokenizer(),
            prompts=[[11, 12], [13]],
            limits=GenerationLimits(
                stop_ids=frozenset({END}), max_new_tokens=40, max_length=99, row_capacity=99, row_multiple=1
            ),
            batches_of=lambda arrays: arrays,
            data_parallel=(0, 1),
            vocab_size=64,
            seed=1,
        )

    watch = make()
    watch.folder.parent.mkdir(exist_ok=True)
    attempt = Attempt.claim(watch.folder.parent)
    watch.begin(attempt)
    return watch, fake, make, attempt


def test_a_sample_worked_by_hand(watch):
    watch, fake, _, attempt = watch
    values, alarm = watch.sample(0, attempt, chosen=0.0)
    assert alarm == ""
    assert values.pop("step_s") > 0
    assert values == {
        "degenerate_rate": 0, "repeated_4grams": 0, "unfinished_rate": 0, "mean_tokens": 30, "kl_reference": 0,
    }  # fmt: skip
    fake |= {"answers": [LOOPING, HEALTHY], "log_probs": np.asarray([[-3.0, -4.0], [-5.0, -2.0]])}
    values, _ = watch.sample(10, attempt, chosen=1.0)
    assert values["degenerate_rate"] == values["unfinished_rate"] == 0.5
    assert values["repeated_4grams"] == pytest.approx((1 - 2 / 37) / 2)
    assert values["mean_tokens"] == 35
    assert values["kl_reference"] == pytest.approx((0 + 1 + 2 - 1) / 4)
    assert watch.model.mode == ["eval", "train"] * 3
    first, second = (WatchedAnswer.from_json(line) for _, line in read_lines(watch.folder / "step_000010.jsonl"))
    assert (first.prompt, first.num_tokens, first.finished, first.degenerate) == ("11 12", 40, False, "loop")
    assert (second.output, second.finished, second.degenerate) == (" ".join(map(str, range(1, 31))), True, None)


@pytest.mark.parametrize(
    ("before", "now", "chosen", "alarms"),
    [
        ([HEALTHY, HEALTHY], [LOOPING, HEALTHY], -1.0, True),
        ([HEALTHY, HEALTHY], [LOOPING, HEALTHY], 1.0, False),  # rewards/chosen has not fallen
        ([HEALTHY, HEALTHY], [HEALTHY, HEALTHY], -1.0, False),
        ([LOOPING, HEALTHY], [LOOPING, HEALTHY], -1.0, False),  # as before training
        ([LOOPING, HEALTHY], [LOOPING, LOOPING], -1.0, True),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_an_alarm_needs_repetition_and_a_fallen_reward(watch, before, now, chosen, alarms, resumed):
    watch, fake, make, attempt = watch
    fake["answers"] = before
    assert watch.sample(0, attempt, chosen=0.0)[1] == ""
    if resumed:
        watch = make()
        watch.resume()
    fake["answers"] = now
    _, alarm = watch.sample(10, attempt, chosen=chosen)
    assert bool(alarm) == alarms
    if alarms:
        assert "rewards/chosen has fallen to -1 nats" in alarm
        assert f"{100 * sum(answer is LOOPING for answer in now) / 2:.0f} % of 2 answers" in alarm


def test_a_resumed_watch_compares_with_the_same_samples(watch):
    watch, fake, make, attempt = watch
    watch.sample(0, attempt, chosen=0.0)
    resumed = make()
    resumed.resume()
    fake["log_probs"] = np.full((2, 2), -4.5)
    assert resumed.sample(10, attempt, chosen=0.0)[0]["kl_reference"] == pytest.approx(1.5)
    samples = resumed._samples
    assert [samples.sequence(pair, rejected=side).tolist() for pair in (0, 1) for side in (False, True)] == [
        [11, 12, 1, 7, END], [11, 12, 2, 7, END], [13, 3, 7, END], [13, 4, 7, END],
    ]  # fmt: skip


@pytest.mark.parametrize("gone", ["reference.npz", "step_000000.jsonl"])
def test_missing_answers_of_the_reference_are_reported(watch, gone):
    watch, _, make, attempt = watch
    watch.sample(0, attempt, chosen=0.0)
    (watch.folder / gone).unlink()
    with pytest.raises(ValueError, match=r"trainer.dpo.watch.interval=0 resumes the run without"):
        make().resume()


def test_a_replaced_attempt_writes_nothing(watch):
    watch, fake, make, attempt = watch
    watch.sample(0, attempt, chosen=0.0)
    before = {path: path.read_bytes() for path in watch.folder.iterdir()}
    Attempt.claim(watch.folder.parent)
    fake |= {"answers": [LOOPING, LOOPING], "log_probs": np.full((2, 2), -9.0)}
    with pytest.raises(ReplacedError):
        watch.sample(0, attempt, chosen=0.0)
    with pytest.raises(ReplacedError):
        make().begin(attempt)
    assert {path: path.read_bytes() for path in watch.folder.iterdir() if not path.name.startswith(".")} == before


def test_an_increase_of_exactly_a_tenth_raises_an_alarm(watch):
    """In floating point, 0.3 < 0.2 + 0.1."""
    watch, *_ = watch
    watch._usual = 0.2
    assert watch._alarm(0.3, -1.0) != ""
    assert watch._alarm(0.29, -1.0) == ""


@pytest.mark.parametrize(
    ("count", "max_length", "expected"),
    [(9, 9, [[1, 2], [7], [13, 14, 15], [20]]), (2, 9, [[1, 2], [7]]), (9, 3, [[1, 2], [7], [20]])],
)
def test_the_first_distinct_prompts_that_leave_room(count, max_length, expected):
    again = [*PAIRS, ([7], [1], [2])]
    assert watched_prompts(arrays_of(again), count=count, max_length=max_length) == expected


def test_stop_ids():
    assert stop_ids_of(Tokenizer()) == {END}
