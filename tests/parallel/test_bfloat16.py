"""bfloat16 weights with float32 main weights on CPUs: layouts, resumed runs, errors against float64 and float32."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.by_hand import read_rows, sequence
from tests.comparison import without_measured
from tests.parallel.runs_of import BF16_LAYOUTS, CURVE_SEEDS, NUM_STEPS
from tests.parallel.test_layouts import COMPARED, worst_relative_difference
from tests.parallel.test_resume import checkpoint_tensors

RUNS_OF = ("layouts", "bfloat16")

# Nats, or relative to larger values. In bfloat16 the log-probability of a response is known to 0.007 nats (the largest
# error against float64 below), and a reward is the difference of two; over ten steps layouts differed by 0.004.
BOUND = 0.02


def worst(one, other):
    assert [line.step for line in one] == [line.step for line in other]
    names = [name for name in COMPARED if name in one[0].values]
    assert len(names) >= 5
    return max(worst_relative_difference(one, other, name) for name in names)


@pytest.mark.parametrize("layout", [*BF16_LAYOUTS[1:], "live"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_layout_and_cached_reference_change_only_rounding(runs, layout, split):
    difference = worst(runs.metrics("bf16_one", split), runs.metrics(f"bf16_{layout}", split))
    print(f"{layout}, {split}: {difference:.1e}")
    assert difference < BOUND


def test_the_layouts_would_differ_by_more_if_they_computed_something_else(runs):
    """The control: the same run in float32, which also shows that bfloat16 was used at all."""
    lines = runs.metrics("bf16_one")
    assert len(lines) == NUM_STEPS
    assert lines[-1].values["rewards/chosen"] > 1.0
    assert worst(lines, runs.metrics("one")) > 2 * BOUND


@pytest.mark.parametrize(
    ("name", "num_steps", "splits"),
    [
        ("whole", 8, ("train", "validation", "watch")),  # AdamW in NeMo's wrapper, dropout
        ("sharded", 8, ("train", "validation")),  # Megatron's distributed optimizer, DP=2
        ("lora", 10, ("train", "validation")),  # TP=2
    ],
)
def test_resumed_equals_uninterrupted_to_the_bit(runs, name, num_steps, splits):
    whole, stopped = f"bf16_{name}", f"bf16_{name}_stopped"
    for split in splits:
        expected = [without_measured(line) for line in runs.metrics(whole, split)]
        assert expected
        assert [without_measured(line) for line in runs.metrics(stopped, split)] == expected
    folder = f"checkpoints/step_{num_steps:06d}"
    ours, theirs = (checkpoint_tensors(runs.path / run / folder) for run in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    main = [key for key in theirs if "fp32_param" in key]
    assert len(main) >= 8
    assert all(theirs[key].dtype == torch.float32 for key in main)
    # the control: main weights hold more than the bfloat16 weights, so these alone could not continue to the bit
    assert any(not torch.equal(theirs[key], theirs[key].bfloat16().float()) for key in main)


def test_the_distributed_optimizer_resumes_at_another_layout(runs):
    """Stopped after step 4 at DP=2, resumed from step 3 on one rank."""
    assert worst(runs.metrics("bf16_sharded"), runs.metrics("bf16_moved")) < BOUND


def log_probs_of(model, tokenizer, rows, keys):
    """Token log-probabilities of separate sequences, by (pair, whether it is the rejected response)."""
    found = {}
    for pair, rejected in keys:
        side = "rejected_response" if rejected else "chosen_response"
        ids, start = sequence(tokenizer, rows[pair], side)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found[pair, rejected] = torch.stack([log_probs[place - 1, ids[place]] for place in range(start, len(ids))])
    return found


def test_log_probs_are_as_exact_as_those_of_transformers_in_bfloat16(runs, workspace):
    """Against float64 with the same rounded weights. The noise of the reference is of the size of these errors."""
    torch.set_num_threads(1)
    recorded = torch.load(workspace / "log_probs_bf16.pt")
    tokenizer, rows = AutoTokenizer.from_pretrained(workspace / "hf"), read_rows(workspace / "train.jsonl")
    model = AutoModelForCausalLM.from_pretrained(workspace / "hf", torch_dtype=torch.bfloat16)
    naive = log_probs_of(model, tokenizer, rows, recorded)
    exact = log_probs_of(model.double(), tokenizer, rows, recorded)

    def errors(found):
        assert found.keys() == exact.keys()
        differences = [found[key].double() - exact[key] for key in exact]
        return torch.cat(differences).square().mean().sqrt().item(), max(abs(part.sum().item()) for part in differences)

    of_tokens, of_responses = errors({key: tokens for key, (tokens, _) in recorded.items()})
    naive_of_tokens, naive_of_responses = errors(naive)
    noise = max(runs.metrics(f"bf16_{name}")[0].values["reference_noise"] for name in ("one", "pp2", "dp2"))
    print(
        f"nats per token, root mean square: {of_tokens:.1e}, transformers {naive_of_tokens:.1e}; "
        f"per response, largest: {of_responses:.1e}, transformers {naive_of_responses:.1e}; "
        f"noise of the reference {noise:.1e}"
    )
    assert of_tokens <= naive_of_tokens
    assert of_responses < BOUND / 2  # the origin of the bound
    assert 0 < noise < BOUND  # its rows differ from those that were cached
    late, _ = errors({key: tokens.roll(1) for key, tokens in naive.items()})
    assert late > 100 * naive_of_tokens  # the control


def test_twenty_steps_are_closer_to_float32_than_another_seed_is(runs):
    """Rewards of the validation pairs after every step: difference to float32 of the same seed, and between seeds."""

    def curve(name):
        lines = runs.metrics(name, "validation")
        return np.array([[line.values[f"rewards/{side}"] for side in ("chosen", "rejected")] for line in lines])

    float32 = np.stack([curve(f"curve_{seed}") for seed in CURVE_SEEDS])
    found = curve("curve_bf16")
    assert found.shape == (20, 2)

    def size(differences):
        return np.sqrt(np.mean(np.square(differences)))

    of_seeds, of_precision = size(float32.std(axis=0, ddof=1)), size(found - float32[0])
    print(f"standard deviation over seeds {of_seeds:.3f} nats, bfloat16 {of_precision:.3f} of {float32[0, -1, 0]:.1f}")
    assert of_precision < of_seeds
    late = np.concatenate([found[:1], found[:-1]])
    assert size(late - float32[0]) > of_seeds  # the control: one step late
