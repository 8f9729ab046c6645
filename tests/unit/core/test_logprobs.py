"""Fast against slow but obvious code, whole against sharded, values and gradients; and limits on memory."""

import math
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_minordpo.core import logprobs
from nemo_minordpo.core.logprobs import (
    sequence_log_probs,
    shared_log_probs,
    vocab_parallel_argmax,
    vocab_parallel_log_probs,
)

TOKENS, HIDDEN, VOCAB = 37, 16, 48
# 48 rows: a multiple of 1 and 16, not of 7 and 20; 64 is more than that
BLOCK_SIZES = [1, 7, 16, 20, 47, 48, 64, None]


def example(dtype=torch.float64, *, tokens=TOKENS, hidden=HIDDEN, vocab=VOCAB, seed=0):
    """Hidden states, weight (both leaves), targets, and one weight per token for the gradients."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    of_tokens = torch.randn(tokens, generator=generator, dtype=torch.float64)
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, of_tokens


def naive(hidden, weight, targets):
    return (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def ours(hidden, weight, targets, **options):
    return vocab_parallel_log_probs(hidden, weight, targets, **{"group": None, **options})


def value_and_gradients(function, hidden, weight, targets, of_tokens, **options):
    values = function(hidden, weight, targets, **options)
    return [values.detach(), *torch.autograd.grad((values * of_tokens.to(values.dtype)).sum(), [hidden, weight])]


def assert_same(found, expected, tolerance=1e-10):
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_same_as_log_softmax_in_float64(block_size):
    inputs = example()
    assert_same(value_and_gradients(ours, *inputs, block_size=block_size), value_and_gradients(naive, *inputs))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("vocab_size", [1, 33, 40, 48])
def test_rows_that_pad_the_vocabulary_are_no_part_of_it(block_size, vocab_size):
    hidden, weight, targets, of_tokens = example()
    with torch.no_grad():
        weight[vocab_size:] *= 1e3
    targets = targets % vocab_size
    found = value_and_gradients(ours, hidden, weight, targets, of_tokens, vocab_size=vocab_size, block_size=block_size)
    leaf = weight[:vocab_size].detach().requires_grad_()
    *expected, grad_weight = value_and_gradients(naive, hidden, leaf, targets, of_tokens)
    assert_same(found, [*expected, torch.cat([grad_weight, torch.zeros_like(weight[vocab_size:])])])


def errors(found, exact):
    return [(here.double() - there.double()).abs().max().item() for here, there in zip(found, exact, strict=True)]


def exactly(hidden, weight, targets, of_tokens):
    """The same numbers in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    return value_and_gradients(naive, *leaves, targets, of_tokens)


@pytest.mark.parametrize("block_size", [128, 130, None])
def test_no_worse_than_log_softmax_in_float32(block_size):
    inputs = example(torch.float32, tokens=64, hidden=64, vocab=1000)
    exact = exactly(*inputs)
    found = value_and_gradients(ours, *inputs, block_size=block_size)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    expected = errors(value_and_gradients(naive, *inputs), exact)
    assert all(here <= 2 * there for here, there in zip(errors(found, exact), expected, strict=True))


@pytest.mark.parametrize("block_size", [128, None])
def test_bfloat16_is_multiplied_without_rounding_to_bfloat16(block_size):
    """A bfloat16 head rounds its logits; ours computes them in float32 from the same numbers."""
    inputs = example(torch.bfloat16, tokens=64, hidden=64, vocab=1000)
    exact = exactly(*inputs)
    found = value_and_gradients(ours, *inputs, block_size=block_size)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    error, *gradient_errors = errors(found, exact)
    rounded, *rounded_gradients = errors(value_and_gradients(lambda *args: naive(*args).float(), *inputs), exact)
    float_head = value_and_gradients(lambda h, w, t: naive(h.float(), w.float(), t), *inputs)
    assert error <= 2 * errors(float_head, exact)[0]
    assert error < rounded / 1000
    for here, there in zip(gradient_errors, rounded_gradients, strict=True):
        assert here < there / 2
    # the gradients themselves are bfloat16: 8 bits, and some more of p - onehot
    for here, there in zip(gradient_errors, exact[1:], strict=True):
        assert here < 2**-7 * there.abs().max()


def test_only_bfloat16_factors_may_be_rounded_to_bfloat16():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    for dtype, expected in ((torch.bfloat16, "bf16"), (torch.float16, before), (torch.float32, before)):
        with logprobs._rounding_factors_to(dtype):
            assert settings.fp32_precision == expected
        assert settings.fp32_precision == before != "bf16"


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_huge_logits_stay_finite(block_size):
    hidden = torch.tensor([[1e4], [1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    values = ours(hidden, weight, torch.tensor([0, 1]), block_size=block_size)
    assert values.tolist() == [0.0, -2e4]
    values.sum().backward()
    assert hidden.grad.tolist() == [[0.0], [-2.0]]
    assert weight.grad.tolist() == [[-1e4], [1e4], [0.0]]


@pytest.mark.parametrize("block_size", [1, 100, None])
def test_a_common_offset_of_all_logits_costs_no_precision(block_size):
    """float32 rounds the sum of 1024 and log 1000 to 6e-5."""
    hidden, weight = torch.ones(1, 1), torch.full((1000, 1), 1024.0)
    value = ours(hidden, weight, torch.tensor([7]), block_size=block_size)
    assert value.item() == pytest.approx(-math.log(1000), abs=5e-7)


def test_gradients_against_finite_differences():
    hidden, weight, targets, _ = example(tokens=5, hidden=3, vocab=7)
    assert torch.autograd.gradcheck(lambda h, w: ours(h, w, targets % 6, block_size=4, vocab_size=6), (hidden, weight))


def test_does_not_modify_its_inputs():
    hidden, weight, targets, of_tokens = example(torch.float32)
    before = [tensor.detach().clone() for tensor in (hidden, weight, targets)]
    value_and_gradients(ours, hidden, weight, targets, of_tokens, block_size=7)
    assert all(torch.equal(now, then) for now, then in zip((hidden, weight, targets), before, strict=True))


def test_no_token_at_all():
    hidden, weight = torch.zeros(0, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    values = ours(hidden, weight, torch.zeros(0, dtype=torch.long))
    sums = sequence_log_probs(values, torch.zeros(2, 0, dtype=torch.long))
    assert sums.tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert hidden.grad.shape == (0, HIDDEN)
    assert weight.grad.shape == (VOCAB, HIDDEN)
    assert not weight.grad.any()


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"),
    [
        ((3, 4), (5, 4), (2,)),
        ((3, 4), (5, 6), (3,)),
        ((3, 1, 4), (5, 4), (3,)),
        ((3, 4), (4,), (3,)),
        ((3, 4), (5, 4), (3, 1)),
    ],
    ids=["targets", "hidden size", "hidden in 3 dimensions", "weight in 1 dimension", "targets in 2 dimensions"],
)
def test_shapes_that_do_not_fit(hidden, weight, targets):
    with pytest.raises(ValueError, match=r"targets \[T\], not") as error:
        ours(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.long))
    assert all(str(list(shape)) in str(error.value) for shape in (hidden, weight, targets))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_the_other_its_own(frozen):
    hidden, weight, targets, of_tokens = example()
    _, *expected = value_and_gradients(naive, hidden, weight, targets, of_tokens)
    leaves = {"hidden": hidden, "weight": weight}
    leaves[frozen].requires_grad_(False)
    (ours(hidden, weight, targets, block_size=20) * of_tokens).sum().backward()
    for (name, leaf), grad in zip(leaves.items(), expected, strict=True):
        assert (leaf.grad is None) == (name == frozen)
        if name != frozen:
            assert_same([leaf.grad], [grad])


def megatron_weight(weight, **attributes):
    """A parameter as Megatron's distributed data parallel prepares it."""
    parameter = torch.nn.Parameter(weight.detach().clone())
    parameter.main_grad = torch.full_like(weight, 0.25)
    parameter.grad_added_to_main_grad = False
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter


@pytest.mark.parametrize("tied", [False, True])
def test_megatrons_main_grad_is_added_to_in_place(tied):
    hidden, weight, targets, of_tokens = example()
    _, grad_hidden, grad_weight = value_and_gradients(naive, hidden, weight, targets, of_tokens)
    parameter = megatron_weight(weight, **({"zero_out_wgrad": True} if tied else {}))
    buffer = parameter.main_grad
    for count in (1, 2):
        parameter.grad = hidden.grad = None
        parameter.grad_added_to_main_grad = False
        (ours(hidden, parameter, targets, block_size=20) * of_tokens).sum().backward()
        assert parameter.grad_added_to_main_grad is True
        assert parameter.main_grad is buffer
        assert_same([hidden.grad, buffer], [grad_hidden, 0.25 + count * grad_weight])
        assert parameter.grad.shape == parameter.shape  # the hooks of the gradient reduction run
        if tied:
            assert not parameter.grad.any()  # what autograd adds to the embedding's own gradient


def test_main_grad_keeps_the_precision_of_its_own_dtype():
    """With bfloat16 weights and a float32 main_grad, sums over micro-batches are not rounded to bfloat16."""
    hidden, weight, targets, of_tokens = example(torch.bfloat16, tokens=1)
    parameter = megatron_weight(weight)
    parameter.main_grad = torch.full(weight.shape, 1024.0)  # the next bfloat16 number is 1032
    (ours(hidden, parameter, targets) * of_tokens.float()).sum().backward()
    (_, _, exact) = exactly(hidden, weight, targets, of_tokens)
    torch.testing.assert_close(parameter.main_grad.double() - 1024, exact, rtol=2**-6, atol=2**-12)


def test_a_frozen_weight_leaves_main_grad_alone():
    hidden, weight, targets, of_tokens = example()
    parameter = megatron_weight(weight).requires_grad_(False)
    (ours(hidden, parameter, targets) * of_tokens).sum().backward()
    assert parameter.grad_added_to_main_grad is False
    assert parameter.main_grad.eq(0.25).all()
    assert hidden.grad.any()


def test_without_the_flag_main_grad_belongs_to_others():
    hidden, weight, targets, of_tokens = example()
    _, _, grad_weight = value_and_gradients(naive, hidden, weight, targets, of_tokens)
    parameter = megatron_weight(weight)
    del parameter.grad_added_to_main_grad
    (ours(hidden, parameter, targets) * of_tokens).sum().backward()
    assert_same([parameter.grad], [grad_weight])
    assert parameter.main_grad.eq(0.25).all()


class Seen(TorchDispatchMode):
    """Records operator results: size of the largest tensor, how many of that size exist at once, collectives."""

    def __init__(self):
        super().__init__()
        self.largest, self.at_a_time, self.collectives = 0, 0, []
        self._living = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.largest:
                if tensor.numel() > self.largest:
                    self.largest, self.at_a_time, self._living = tensor.numel(), 0, []
                self._living.append(weakref.ref(tensor))
        living = [tensor for tensor in (reference() for reference in self._living) if tensor is not None]
        self._living = [weakref.ref(tensor) for tensor in living]
        self.at_a_time = max(self.at_a_time, len({tensor.untyped_storage().data_ptr() for tensor in living}))
        if func.namespace == "c10d":
            self.collectives.append(func.__name__)
        return given


def seen_of(function, *, tokens, vocab, **options):
    """Forward and backward with hidden size 1, so that the weight is smaller than a block of logits."""
    hidden, weight, targets, of_tokens = example(torch.float32, tokens=tokens, hidden=1, vocab=vocab)
    with Seen() as forward:
        values = function(hidden, weight, targets, **options)
    loss = (values * of_tokens.float()).sum()
    with Seen() as backward:
        loss.backward()
    return forward, backward


def test_only_one_block_of_logits_exists_at_a_time():
    assert [seen.largest for seen in seen_of(naive, tokens=61, vocab=2000)] == [61 * 2000] * 2
    for vocab in (500, 2000):
        for block_size in (50, 100):
            for seen in seen_of(ours, tokens=61, vocab=vocab, block_size=block_size):
                assert seen.largest == 61 * block_size
                assert seen.at_a_time <= 2


def test_blocks_are_of_a_few_mebibytes_whatever_the_number_of_tokens():
    for tokens in (1021, 4093):
        forward, backward = seen_of(ours, tokens=tokens, vocab=5000)
        assert forward.largest == backward.largest < tokens * 5000
        assert logprobs.LOGITS_BYTES_CPU / 2 < 4 * forward.largest <= logprobs.LOGITS_BYTES_CPU


def test_sequence_sums_worked_by_hand():
    """The first token is shared by the first two responses; the third has none."""
    values = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    sums = sequence_log_probs(values, torch.tensor([[0, 1, 4], [0, 2, 3], [4, 4, 4], [3, 4, 4]]))
    assert sums.tolist() == [-3.0, -13.0, 0.0, -8.0]
    assert sums.dtype == torch.float64
    (sums * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert values.grad.tolist() == [11.0, 1.0, 10.0, 1010.0]
    assert values.grad.dtype == torch.float32


def test_shared_log_probs_worked_by_hand():
    values = torch.tensor([-1.0, -2.0, -4.0, torch.nan, -16.0])
    # pairs: two shared tokens of three; none; none, and a token that is not finite in a tail
    chosen, rejected = [[0, 1, 2], [2, 5, 5], [3, 5, 5]], [[0, 1, 4], [0, 1, 5], [2, 4, 5]]
    assert shared_log_probs(values, torch.tensor(chosen + rejected)).tolist() == [-3.0, 0.0, 0.0]
    assert shared_log_probs(values, torch.zeros(0, 0, dtype=torch.long)).shape == (0,)


def test_sequence_sums_are_in_float64():
    values = -torch.rand(5000, generator=torch.Generator().manual_seed(0))
    sums = sequence_log_probs(values, torch.arange(5000)[None])
    assert sums.item() == pytest.approx(math.fsum(values.tolist()), rel=1e-14)
    assert abs(values.sum().item() - math.fsum(values.tolist())) > 1e-6


SPLITS = {"whole blocks": (VOCAB, 4), "blocks across": (VOCAB, 5), "padded": (21, 4), "padded within a block": (21, 64)}


def _sharded(rank, folder):
    """One of four ranks, in two groups of two and in one group of four."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    groups = {2: [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2], 4: dist.group.WORLD}
    results = {}
    for ranks, group in groups.items():
        for name, (vocab_size, block_size) in SPLITS.items():
            hidden, weight, targets, of_tokens = example()
            shard = weight.detach().chunk(ranks)[rank % ranks].clone().requires_grad_()
            options = {"group": group, "vocab_size": vocab_size, "block_size": block_size}
            with Seen() as forward:
                values = ours(hidden, shard, targets % vocab_size, **options)
            with Seen() as backward:
                (values * of_tokens).sum().backward()
            counts = len(forward.collectives), len(backward.collectives)
            results[ranks, name] = values.detach(), hidden.grad, shard.grad, counts
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(_sharded, (str(folder),), nprocs=4)
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", SPLITS)
def test_sharded_equals_whole_with_one_collective(of_ranks, ranks, name):
    """Also with padding that covers part of a rank's slice, or all of it; rank 2 is the first of its group."""
    vocab_size, _ = SPLITS[name]
    hidden, weight, targets, of_tokens = example()
    leaf = weight[:vocab_size].detach().requires_grad_()
    expected, grad_hidden, grad_weight = value_and_gradients(naive, hidden, leaf, targets % vocab_size, of_tokens)
    padding = torch.zeros(VOCAB - vocab_size, HIDDEN, dtype=torch.float64)
    for first in range(0, 4, ranks):
        group = [results[ranks, name] for results in of_ranks[first : first + ranks]]
        values, hidden_parts, weight_parts, counts = zip(*group, strict=True)
        assert all(torch.equal(value, values[0]) for value in values)
        assert_same(
            [values[0], sum(hidden_parts), torch.cat(weight_parts)],
            [expected, grad_hidden, torch.cat([grad_weight, padding])],
        )
        assert counts == ((1, 0),) * ranks


def test_no_group_no_collective():
    with Seen() as seen:
        value_and_gradients(ours, *example())
    assert seen.collectives == []


@pytest.mark.parametrize("vocab_size", [None, 5])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_likeliest_token_is_that_of_all_logits(vocab_size, noisy):
    hidden, weight, *_ = example()
    noise = torch.randn(len(hidden), len(weight), dtype=torch.float64) if noisy else None
    logits = hidden @ weight.T + (0 if noise is None else noise)
    found = vocab_parallel_argmax(hidden, weight, noise, group=None, vocab_size=vocab_size)
    assert found.tolist() == logits[:, :vocab_size].argmax(dim=1).tolist()


def test_gumbel_noise_draws_from_the_softmax():
    """20,000 draws; each frequency within four standard deviations."""
    count, weight = 20_000, torch.tensor([[0.0], [1.0], [2.0], [-1.0]])
    generator = torch.Generator().manual_seed(0)
    noise = -torch.empty(count, 4).exponential_(generator=generator).log()
    tokens = vocab_parallel_argmax(torch.ones(count, 1), weight, noise, group=None)
    expected = weight[:, 0].softmax(dim=0)
    found = torch.bincount(tokens, minlength=4) / count
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()
