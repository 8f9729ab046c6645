import numpy as np
import pytest
import torch

from nemo_minordpo.evaluate.sampling import Sampling

# softmax at temperature 1: 0.5, 0.25, 0.15, 0.1
LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def _drawn(sampling, uniforms, logits=LOGITS):
    return sampling.next_tokens(logits.expand(len(uniforms), -1), list(uniforms)).tolist()


def test_greedy_reads_no_random_number():
    assert _drawn(Sampling(), [0.0, 0.99]) == [0, 0]


@pytest.mark.parametrize("size", [1, 4, 127, 128, 129, 1000, 1024])
def test_greedy_takes_the_first_of_the_likeliest_tokens(size):
    logits = torch.randint(5, (64, size), generator=torch.Generator().manual_seed(size)).float()  # many ties
    logits[0], logits[1] = -torch.inf, torch.arange(size)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert Sampling().next_tokens(logits, [0.0] * 64).tolist() == expected
    assert Sampling().next_tokens(logits.bfloat16(), [0.0] * 64).tolist() == [
        row.index(max(row)) for row in logits.bfloat16().tolist()
    ]


def test_a_number_falls_into_the_interval_of_its_token():
    assert _drawn(Sampling(temperature=1.0), [0.0, 0.49, 0.51, 0.74, 0.76, 0.89, 0.91, 0.9999999]) == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip


def test_temperature_divides_the_logits():
    """At temperature 0.5 probabilities are squared: 0.25, 0.0625, 0.0225, 0.01 of 0.345."""
    inside = np.cumsum([0.25, 0.0625, 0.0225, 0.01]) / 0.345
    assert _drawn(Sampling(temperature=0.5), inside - 1e-6) == [0, 1, 2, 3]
    assert _drawn(Sampling(temperature=0.5), inside[:3] + 1e-6) == [1, 2, 3]


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4)])
def test_top_p_keeps_the_fewest_likeliest_tokens(top_p, kept):
    numbers = np.linspace(0, 1, 500, endpoint=False)
    assert set(_drawn(Sampling(temperature=1.0, top_p=top_p), numbers)) == set(range(kept))
    shuffled = _drawn(Sampling(temperature=1.0, top_p=top_p), numbers, LOGITS[[3, 1, 0, 2]])
    assert set(shuffled) == {[3, 1, 0, 2].index(token) for token in range(kept)}


def test_top_p_of_a_flat_distribution_needs_more_than_the_first_ranks():
    """1000 tokens of about the same probability: 900 of them reach 0.9."""
    logits = torch.linspace(0, 1e-4, 1000)
    drawn = _drawn(Sampling(temperature=1.0, top_p=0.9), np.linspace(0, 1, 5000, endpoint=False), logits)
    assert min(drawn) == pytest.approx(100, abs=2)
    assert max(drawn) == 999


def test_random_numbers_belong_to_the_answer():
    sampling = Sampling(temperature=1.0, seed=3)
    first = sampling.uniforms(index=4, sample=2, count=8)
    assert np.array_equal(first[:5], sampling.uniforms(index=4, sample=2, count=5))
    others = [(3, 4, 1), (3, 5, 2), (4, 4, 2), (3, 2, 4)]
    for seed, index, sample in others:
        drawn = Sampling(temperature=1.0, seed=seed).uniforms(index=index, sample=sample, count=8)
        assert not np.isclose(drawn, first).any()
