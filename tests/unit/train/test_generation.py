"""Generation token by token, with a model that counts: the token after t is t + 1."""

import numpy as np
import pytest
import torch

from nemo_minordpo.train.model.generation import GenerationLimits, generate, gumbel_noise

END = 50


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")


class Counting:
    """A stand-in for the model that records the rows it gets."""

    def __init__(self):
        self.rows = []

    def next_tokens(self, tokens, positions, cache, *, places, noise):
        assert tokens.shape == positions.shape
        self.rows.append((tokens[0].tolist(), positions[0].tolist(), places.tolist()))
        assert noise is None or noise.dtype == torch.float32
        drawn = torch.zeros(len(places), dtype=torch.int64) if noise is None else noise.argmax(dim=1)
        return tokens[0, places] + 1 + drawn


def answers(prompts, *, max_new_tokens=10, max_length=99, row_capacity=99, row_multiple=1, noise=None, model=None):
    limits = GenerationLimits(
        stop_ids=frozenset({END}), max_new_tokens=max_new_tokens, max_length=max_length,
        row_capacity=row_capacity, row_multiple=row_multiple,
    )  # fmt: skip
    return generate(model or Counting(), prompts, limits=limits, noise=noise)


def test_rows_worked_by_hand():
    model = Counting()
    assert answers([[1, 2, 3], [46, 47]], max_new_tokens=3, model=model) == [[4, 5, 6], [48, 49, 50]]
    assert model.rows == [
        ([1, 2, 3, 46, 47], [0, 1, 2, 0, 1], [2, 4]),
        ([4, 48], [3, 2], [0, 1]),
        ([5, 49], [4, 3], [0, 1]),
    ]


def test_rows_are_padded():
    model = Counting()
    answers([[1, 2, 3], [46, 47]], max_new_tokens=2, row_multiple=4, model=model)
    assert model.rows == [
        ([1, 2, 3, 46, 47, 0, 0, 0], [0, 1, 2, 0, 1, 0, 0, 0], [2, 4]),
        ([4, 48, 0, 0], [3, 2, 0, 0], [0, 1]),
    ]


def test_an_answer_ends_at_a_stop_token_while_others_continue():
    model = Counting()
    assert answers([[48], [10], [30, 49]], max_new_tokens=4, model=model) == [[49, 50], [11, 12, 13, 14], [50]]
    assert len(model.rows) == 4


def test_generation_stops_when_all_answers_have_ended():
    model = Counting()
    assert answers([[48], [49]], model=model) == [[49, 50], [50]]
    assert len(model.rows) == 2


def test_answers_are_cut_at_the_maximum_length_and_positions_stay_below_it():
    model = Counting()
    assert answers([[1, 2, 3], [1]], max_new_tokens=5, max_length=5, model=model) == [[4, 5], [2, 3, 4, 5]]
    assert max(place for _, positions, _ in model.rows for place in positions) == 4


@pytest.mark.parametrize("row_capacity", [1, 3, 4, 99])
def test_answers_do_not_depend_on_shared_rows(row_capacity):
    prompts = [[5, 6, 7], [1], [40, 41], [2, 3]]
    model = Counting()
    assert answers(prompts, max_new_tokens=2, row_capacity=row_capacity, model=model) == [
        [8, 9], [2, 3], [42, 43], [4, 5],
    ]  # fmt: skip
    longest = max(len(tokens) for tokens, *_ in model.rows)
    assert longest <= max(row_capacity, 3)


@pytest.mark.parametrize("row_capacity", [1, 99])
def test_noise_belongs_to_a_prompt_and_a_place(row_capacity):
    asked = []

    def noise(prompt, place):
        asked.append((prompt, place))
        return np.eye(8, dtype=np.float32)[prompt + 2 * place]

    assert answers([[1], [1]], max_new_tokens=2, row_capacity=row_capacity, noise=noise) == [[2, 5], [3, 7]]
    assert sorted(asked) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_no_prompts_give_no_answers():
    assert answers([]) == []


def test_gumbel_noise_has_the_right_distribution_and_differs_everywhere():
    noise = gumbel_noise(1, vocab_size=10_000)
    values = noise(0, 0)
    assert (values.shape, values.dtype) == ((10_000,), np.float32)
    assert values.mean() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert values.std() == pytest.approx(np.pi / np.sqrt(6), abs=0.05)
    assert np.array_equal(noise(0, 0), gumbel_noise(1, vocab_size=10_000)(0, 0))
    for other in (noise(1, 0), noise(0, 1), gumbel_noise(2, vocab_size=10_000)(0, 0)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.05
