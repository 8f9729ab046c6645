"""Operations against counts from a model's layers, and against torch's counter while a model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_minordpo.core.flops import ModelSize, StepWork

TOKENS = 13
SIZE = ModelSize(
    num_layers=3,
    hidden_size=24,
    ffn_hidden_size=40,
    num_heads=4,
    num_query_groups=2,
    head_size=6,
    vocab_size=50,
    gated=True,
)


def work(**changes):
    counts = {"pairs": 2, "unique_tokens": 5, "equivalent_tokens": 9, "attended": 11, "targets": 3, "places": 8}
    return StepWork(**{**counts, **changes})


def llama(**changes):
    config = LlamaConfig(
        num_hidden_layers=SIZE.num_layers,
        hidden_size=SIZE.hidden_size,
        intermediate_size=SIZE.ffn_hidden_size,
        num_attention_heads=SIZE.num_heads,
        num_key_value_heads=SIZE.num_query_groups,
        head_dim=SIZE.head_size,
        vocab_size=SIZE.vocab_size,
        attn_implementation="eager",
        use_cache=False,
        **changes,
    )
    return LlamaForCausalLM(config)


def counted(model, *, backward):
    """Torch's count for the matrix products of a sequence, without the angles of the rotary embedding.

    Torch ignores causality and counts all pairs of places. The head computes logits at all places.
    """
    embedded = model.get_input_embeddings()(torch.arange(TOKENS)[None]).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        logits = model(inputs_embeds=embedded).logits
        if backward:
            logits.sum().backward()
    rotary = sum(counter.get_flop_counts()["LlamaForCausalLM.model.rotary_emb"].values())
    assert rotary > 0
    return counter.get_total_flops() - rotary


SEQUENCE = work(unique_tokens=TOKENS, attended=TOKENS**2, targets=TOKENS)


def test_a_forward_pass_as_torch_counts_it():
    assert SIZE.forward_flops(SEQUENCE) == counted(llama(), backward=False)


def test_training_as_torch_counts_it():
    assert SIZE.training_flops(SEQUENCE) == counted(llama(), backward=True)
    frozen = llama().requires_grad_(False)
    # the gradients of queries, keys and values are needed to reach earlier layers, whatever is frozen
    assert SIZE.training_flops(SEQUENCE, frozen=True) == counted(frozen, backward=True)


@pytest.mark.parametrize("gated", [True, False])
def test_a_forward_pass_counted_from_linear_layers(gated):
    hidden, heads, groups, head = SIZE.hidden_size, SIZE.num_heads, SIZE.num_query_groups, SIZE.head_size
    layer = [
        torch.nn.Linear(hidden, heads * head),
        *(torch.nn.Linear(hidden, groups * head) for _ in range(2)),
        torch.nn.Linear(heads * head, hidden),
        *(torch.nn.Linear(hidden, SIZE.ffn_hidden_size) for _ in range(2 if gated else 1)),
        torch.nn.Linear(SIZE.ffn_hidden_size, hidden),
    ]
    weights = sum(linear.weight.numel() for linear in layer)
    step = work()
    scores_and_sums = 2 * (2 * heads * head * step.attended)
    by_hand = 3 * (2 * weights * step.unique_tokens + scores_and_sums) + 2 * 24 * 50 * step.targets
    size = ModelSize(**{**vars(SIZE), "gated": gated})
    assert size.forward_flops(step) == by_hand


def test_a_head_size_of_its_own():
    """Queries may be wider than the hidden size."""
    wide = ModelSize(**{**vars(SIZE), "head_size": 10})
    layer = 24 * 40 + 2 * 24 * 20 + 40 * 24 + 3 * 24 * 40
    assert wide.forward_flops(work()) == 3 * (2 * layer * 5 + 4 * 40 * 11) + 2 * 24 * 50 * 3


def test_a_token_passes_through_its_own_experts_only():
    mixture = ModelSize(**{**vars(SIZE), "num_experts": 6, "experts_per_token": 2})
    difference = mixture.forward_flops(work()) - SIZE.forward_flops(work())
    assert difference == 2 * SIZE.num_layers * SIZE.expert_weights * work().unique_tokens
    assert mixture.weights_of_layer == SIZE.weights_of_layer + 5 * SIZE.expert_weights + 6 * SIZE.hidden_size


@pytest.mark.parametrize("name", ["unique_tokens", "attended", "targets"])
def test_what_is_computed_costs(name):
    assert SIZE.forward_flops(work(**{name: 100})) > SIZE.forward_flops(work())


@pytest.mark.parametrize("name", ["pairs", "equivalent_tokens", "places"])
def test_padding_and_shared_tokens_cost_nothing(name):
    assert SIZE.forward_flops(work(**{name: 100})) == SIZE.forward_flops(work())
