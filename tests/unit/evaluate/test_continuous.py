"""Continuous batching gives the answers of `generate` on one prompt at a time, and computes no token twice."""

import random
from collections import Counter

import pytest
import torch
import transformers

from nemo_minordpo.evaluate import continuous
from nemo_minordpo.evaluate.batches import whole_batches
from nemo_minordpo.evaluate.continuous import Batch, common_beginning
from nemo_minordpo.evaluate.engine import Limits, Request, Text
from nemo_minordpo.evaluate.generate import TransformersEngine, why_whole_batches
from nemo_minordpo.evaluate.sampling import Sampling
from nemo_minordpo.evaluate.slots import MOST_SLOTS, slots_that_fit

STOPS = [0, 5, 9, 17]
SIZES = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.4, "eos_token_id": 0,
    "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.4,
    "eos_token_id": 0, "bos_token_id": None,
}  # fmt: skip
SAMPLED = Sampling(temperature=1.0, top_p=0.9, seed=5)


class Numbers:
    """A tokenizer that writes token ids as numbers."""

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def make(kind, **more):
    torch.manual_seed(3)
    sizes = GPT2 if kind == "GPT2" else SIZES
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**(sizes | more)))
    return TransformersEngine(model.eval(), Text(tokenizer=Numbers(), stop_ids=STOPS))


def requests(*, samples=lambda index: 1 + index % 3, shared=9):
    """Answers to 11 prompts of different lengths with one beginning."""
    draw = random.Random(1)
    beginning = [draw.randrange(20, 200) for _ in range(shared)]
    found = []
    for index in range(11):
        prompt = beginning + [20 + index] + [draw.randrange(20, 200) for _ in range(draw.randrange(30))]
        found += [Request(index=index, sample=sample, prompt=prompt) for sample in range(samples(index))]
    return found


def answers(engine, wanted, *, batch_size, sampling):
    limits = Limits(batch_size=batch_size, max_new_tokens=40)
    written = engine.answers(wanted, limits=limits, sampling=sampling, on_tokens=lambda count: None)
    return {(request.index, request.sample): one for request, one in written}


def one_by_one(engine, wanted, sampling):
    """Reference: transformers' own generate, one prompt at a time."""
    engine.model.config._attn_implementation = "sdpa"
    with torch.inference_mode():
        written = whole_batches(
            engine.model, wanted, limits=Limits(batch_size=1, max_new_tokens=40), sampling=sampling, stop_ids=STOPS,
            on_tokens=lambda count: None,
        )  # fmt: skip
        return {(request.index, request.sample): engine.text.generation(ids) for request, ids in written}


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama", "Mistral"])
def test_the_answers_of_generate(kind, sampling):
    engine, wanted = make(kind), requests()
    expected = one_by_one(engine, wanted, sampling)
    lengths = [len(one.token_ids) for one in expected.values()]
    assert min(lengths) < max(lengths), "the test needs answers that end at different places"
    assert len({one.text for one in expected.values()}) > 10
    for batch_size in (1, 4, 100):
        assert answers(engine, wanted, batch_size=batch_size, sampling=sampling) == expected


def test_prompts_that_are_read_together(monkeypatch):
    engine, wanted = make("Qwen2"), requests()
    expected = one_by_one(engine, wanted, SAMPLED)
    for tokens in (0, 60, 10**6):
        monkeypatch.setitem(continuous._READ_TOGETHER, "cpu", tokens)
        assert answers(engine, wanted, batch_size=5, sampling=SAMPLED) == expected


def test_prompts_without_a_common_beginning():
    engine, wanted = make("Llama"), requests(shared=0)
    assert common_beginning([one.prompt for one in wanted]) == 0
    assert answers(engine, wanted, batch_size=4, sampling=SAMPLED) == one_by_one(engine, wanted, SAMPLED)


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3], [1, 2, 4, 5]], 2),
        ([[1, 2], [1, 2, 4]], 1),  # the last token of a prompt is always read with its answer
        ([[1, 2, 3]], 2),
        ([[3, 1], [2, 1]], 0),
    ],
)
def test_common_beginning(prompts, length):
    assert common_beginning(prompts) == length


def test_nothing_is_computed_twice(monkeypatch):
    """Tokens that pass through the layers: each prompt once, its beginning once for all, each answer's tokens once."""
    monkeypatch.setitem(continuous._READ_TOGETHER, "cpu", 0)
    engine, wanted = make("Qwen2"), requests(samples=lambda index: 3)
    passed, heads = Counter(), Counter()
    layers, head = engine.model.model.layers[0], engine.model.lm_head
    layers.register_forward_hook(lambda _, given, out: passed.update(total=given[0].shape[0] * given[0].shape[1]))
    head.register_forward_hook(lambda _, given, out: heads.update(total=given[0].shape[0] * given[0].shape[1]))
    limits = Limits(batch_size=4, max_new_tokens=40)
    with torch.inference_mode():
        batch = Batch(engine.model, wanted, limits=limits, sampling=SAMPLED, stop_ids=STOPS)
        written = sum(len(token_ids) for _, token_ids in batch.run(lambda count: None))
    own = {one.index: len(one.prompt) - 9 - 1 for one in wanted}  # without beginning and last token
    assert passed["total"] == 9 + sum(own.values()) + written
    assert heads["total"] == written


def test_answers_do_not_see_what_a_slot_held_before():
    """A long answer, then a short prompt in its slot."""
    engine = make("Qwen2")
    wanted = [Request(index=index, sample=0, prompt=[20 + index] * (60 - 25 * index)) for index in range(3)]
    assert answers(engine, wanted, batch_size=1, sampling=Sampling()) == one_by_one(engine, wanted, Sampling())


def test_bfloat16():
    engine = make("Qwen2")
    engine.model.bfloat16()
    wanted = requests(samples=lambda index: 1)
    found = answers(engine, wanted, batch_size=4, sampling=Sampling())
    engine.model.config._attn_implementation = "sdpa"
    for request in wanted:
        logits = engine.model(torch.tensor([request.prompt])).logits[0, -1]
        first = (found[request.index, 0].token_ids or STOPS)[0]
        # rounding may choose another of the likeliest
        assert logits.max() - logits[first] < 0.1 or first in STOPS


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("GPT2", {}, "gpt2 models do not support"),
        ("Mistral", {"sliding_window": 32}, "of 80 tokens exceed the sliding window of 32"),
        (
            "Llama",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "positions of the kind 'dynamic' depend on the longest answer",
        ),
        ("Qwen2", {}, ""),
    ],
)
def test_models_that_are_answered_in_whole_batches(kind, options, reason):
    found = why_whole_batches(make(kind, **options).model, length=80)
    assert reason in found
    assert bool(reason) == bool(found)


def test_whole_batches_are_said_and_give_the_same(capsys):
    engine, wanted = make("Mistral", sliding_window=16), requests()
    expected = one_by_one(engine, wanted, Sampling())
    assert answers(engine, wanted, batch_size=4, sampling=Sampling()) == expected
    assert "exceed the sliding window of 16: every batch is as slow as its longest answer" in capsys.readouterr().err


def test_slots_fill_four_gib():
    """Per token 2 (keys, values) x 2 layers x 2 heads x 8 values x 4 bytes = 256 bytes."""
    model = make("Qwen2").model
    assert slots_that_fit(model, capacity=(4 << 30) // 256 // 5) == 5
    assert slots_that_fit(model, capacity=1) == MOST_SLOTS
    assert slots_that_fit(model, capacity=4 << 30) == 1
