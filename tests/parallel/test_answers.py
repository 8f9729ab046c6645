"""The degeneration watch at every layout: answers and divergence against transformers, and no effect on training."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.files import read_lines
from nemo_minordpo.records import WatchedAnswer
from nemo_minordpo.train.answers import read_samples
from tests.comparison import without_measured
from tests.parallel.runs_of import NUM_STEPS, WATCH_LAYOUTS

RUNS_OF = ("layouts", "watch", "whole")

LOOKS = [0, 5, NUM_STEPS]


def answers(run, step):
    return [WatchedAnswer.from_json(line) for _, line in read_lines(run / f"watch/step_{step:06d}.jsonl")]


@pytest.fixture(scope="module")
def trained(runs):
    """The model of the run on one rank, as transformers reads it."""
    folder = runs.path / "watch_one_hf"
    export_hf(runs.path / "watch_one", folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def log_prob(model, ids, num_prompt):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return sum(logits[place - 1].log_softmax(-1)[ids[place]].item() for place in range(num_prompt, len(ids)))


def samples_of(runs):
    arrays, _ = read_samples(runs.path / "watch_one/watch/reference.npz")
    return [
        (arrays.sequence(pair, rejected=side).tolist(), int(arrays.prompt_lengths[pair]))
        for pair in range(len(arrays))
        for side in (False, True)
    ]


@pytest.mark.parametrize("step", [0, NUM_STEPS])
def test_greedy_answers_are_those_of_transformers(runs, trained, step):
    model = AutoModelForCausalLM.from_pretrained(runs.path / "hf").eval() if step == 0 else trained
    sampled = {tuple(ids[:length]) for ids, length in samples_of(runs)}
    assert len(sampled) == 3
    found = {answer.prompt: answer for answer in answers(runs.path / "watch_one", step)}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(runs.path / "hf")
    for prompt in sampled:
        written = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )[0, len(prompt) :]  # fmt: skip
        answer = found[tokenizer.decode(list(prompt))]
        assert answer.output == tokenizer.decode(written, skip_special_tokens=True)
        assert answer.num_tokens == len(written) - answer.finished


def test_training_changes_the_answers(runs):
    """The control: the answers compared are not always the same."""
    run = runs.path / "watch_one"
    texts = [[answer.output for answer in answers(run, step)] for step in LOOKS]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("layout", [name for name in WATCH_LAYOUTS if name != "one"])
def test_the_layout_changes_no_answer(runs, layout):
    one, other = (runs.metrics(f"watch_{name}", "watch") for name in ("one", layout))
    assert [line.step for line in one] == [line.step for line in other] == LOOKS
    for step in LOOKS:
        assert answers(runs.path / "watch_one", step) == answers(runs.path / f"watch_{layout}", step)
    files = [runs.path / f"watch_{name}/watch/reference.npz" for name in ("one", layout)]
    samples = [read_samples(file)[0].tokens.tolist() for file in files]
    assert samples[0] == samples[1]
    for a, b in zip(one, other, strict=True):
        assert a.values["kl_reference"] == pytest.approx(b.values["kl_reference"], rel=1e-5, abs=1e-6)


def test_the_samples_are_the_references_and_their_log_probabilities_are_right(runs):
    reference = AutoModelForCausalLM.from_pretrained(runs.path / "hf").eval()
    expected = [log_prob(reference, *sample) for sample in samples_of(runs)]
    _, kept = read_samples(runs.path / "watch_one/watch/reference.npz")
    assert kept.reshape(-1).tolist() == pytest.approx(expected, rel=1e-5)
    # sampled, not greedy: a random model with 403 tokens gives each about log 403 = 6 nats
    lengths = [len(ids) - length for ids, length in samples_of(runs)]
    assert 4 < -sum(expected) / sum(lengths) < 7


def test_the_divergence_is_that_of_transformers(runs, trained):
    """KL(reference || policy) in its simplest form, on the exported model."""
    kept = read_samples(runs.path / "watch_one/watch/reference.npz")[1].reshape(-1)
    now = [log_prob(trained, *sample) for sample in samples_of(runs)]
    first, *_, last = runs.metrics("watch_one", "watch")
    assert first.values["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert last.values["kl_reference"] == pytest.approx(float(np.mean(kept - now)), rel=1e-4)
    assert abs(last.values["kl_reference"]) > 0.01


@pytest.mark.parametrize(("watched", "alone"), [("watch_one", "one"), ("watch_adam", "whole"), ("watch_sp2", "sp2")])
def test_the_watch_does_not_change_training(runs, watched, alone):
    """Bit for bit, including dropout."""
    for split in ("train", "validation"):
        lines, expected = runs.metrics(watched, split), runs.metrics(alone, split)
        assert list(map(without_measured, lines)) == list(map(without_measured, expected))


def test_a_resumed_run_watches_the_same_samples(runs):
    whole, resumed = runs.metrics("watch_adam", "watch"), runs.metrics("watch_stopped", "watch")
    assert [line.step for line in whole] == [0, 5, 8]
    assert list(map(without_measured, whole)) == list(map(without_measured, resumed))
    for step in (0, 5, 8):
        assert answers(runs.path / "watch_adam", step) == answers(runs.path / "watch_stopped", step)


def test_a_replica_without_a_prompt(runs):
    """One prompt on two data-parallel ranks."""
    (alone,) = answers(runs.path / "watch_one_prompt", 0)
    assert alone == answers(runs.path / "watch_one", 0)[0]
    assert [line.step for line in runs.metrics("watch_one_prompt", "watch")] == LOOKS


def test_new_adapters_answer_like_the_model_below_them(runs):
    assert answers(runs.path / "watch_lora", 0) == answers(runs.path / "watch_one", 0)
    first, *_, last = runs.metrics("watch_lora", "watch")
    assert first.values["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert last.values["kl_reference"] != 0
