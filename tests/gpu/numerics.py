"""Losses, log-probabilities and attention on this device against float64 on the CPU.

Bounds for sums are relative to a naive implementation in the same dtype on the same device: a constant would be too
loose for one GPU and too tight for the next. A ceiling of some roundings of the dtype applies as well, in case both are
wrong. Errors are root mean squares. Controls are computed in float64 on the CPU.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from nemo_minordpo.core import flex
from nemo_minordpo.core.attention import pair_attention
from nemo_minordpo.core.flex import MAX_GRAPHS, row_attention
from nemo_minordpo.core.logprobs import vocab_parallel_log_probs
from nemo_minordpo.core.losses import LOSSES, Pairs
from nemo_minordpo.core.pair_packing import may_attend
from tests.comparison import largest
from tests.gpu import NotRun, bounded, need_cuda
from tests.losses import options_with

_OPTIONS = options_with(beta=0.1)
_LOSSES = [name for name in LOSSES if name != "sft"]  # which has no gradient for the rejected response
_TOKENS, _HIDDEN, _VOCAB = 256, 256, 8192
_HEADS, _GROUPS, _HEAD_SIZE = 4, 2, 64
_ROW_LENGTHS = (384, 96, 640, 512, 896, 40, 448, 768, 1024, 320, 120, 832)
_LENGTHS = {"short": 1024, "long": 3000}  # of a row
_LONGEST = {"short": 39, "long": 500}  # places of the shared tokens or a tail, at most
_PARTS = ("forward", "dq", "dk", "dv")
_CEILING = 16  # roundings of the dtype, relative to the root mean square of the exact result
_WARM_UP = 2  # rows: torch compiles once for rows below 128 places and once for all others


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def losses(folder: Path) -> str:
    """Every loss and its gradients, on both sides of the kinks and on them, relative to values above 1."""
    generator = torch.Generator().manual_seed(0)
    # float32 numbers, so that both dtypes see the same ones; a quarter of them at the kinks
    ratios = torch.randn(2, 512, generator=generator) * 3
    ratios[:, ::4] = 0.0
    margin = torch.randn(512, generator=generator)
    words = []
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        worst, flipped = 0.0, math.inf
        for name in _LOSSES:
            exact = _loss(name, ratios.double(), margin.double())
            found = _loss(name, ratios.to(device(), dtype), margin.to(device(), dtype))
            worst = largest([worst, _relative([part.cpu().double() for part in found], exact)])
            flipped = min(flipped, *(_relative([-part], [part]) for part in exact))
        controls = {"sign flipped": flipped}
        words.append(bounded(f"{len(_LOSSES)} losses, {_name(dtype)}:", worst, bound, controls=controls))
    return "; ".join(words)


def log_probs(folder: Path, dtype_name: str) -> str:
    """The head that never holds all logits: values as exact as a float32 head's, gradients as a naive head's."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(_TOKENS, _HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(_VOCAB, _HIDDEN, generator=generator) * 0.1).to(dtype)
    targets = torch.randint(_VOCAB, (_TOKENS,), generator=generator)
    of_tokens = torch.randn(_TOKENS, generator=generator)

    def run(head: Callable[..., Tensor], where: torch.device, kind: torch.dtype, labels: Tensor) -> list[Tensor]:
        leaves = [leaf.to(where, kind).requires_grad_() for leaf in (hidden, weight)]
        values = head(*leaves, labels.to(where))
        gradients = torch.autograd.grad((values * of_tokens.to(where)).sum(), leaves)
        return [tensor.detach().cpu().double() for tensor in (values, *gradients)]

    cpu = torch.device("cpu")
    exact = run(_naive_head, cpu, torch.float64, targets)
    of_other_targets = _errors(run(_naive_head, cpu, torch.float64, targets.roll(1)), exact)
    ours = _errors(run(lambda *args: vocab_parallel_log_probs(*args, group=None), device(), dtype, targets), exact)
    float_head = _errors(run(lambda h, w, t: _naive_head(h.float(), w.float(), t), device(), dtype, targets), exact)
    naive = _errors(run(lambda *args: _naive_head(*args).float(), device(), dtype, targets), exact)
    bounds = (2 * float_head[0], 2 * naive[1], 2 * naive[2])
    # values come from float32 sums in every dtype
    ceilings = [_ceiling(kind, right) for kind, right in zip((torch.float32, dtype, dtype), exact, strict=True)]
    return "; ".join(
        bounded(
            what, ours[number], bounds[number], ceiling=ceilings[number],
            controls={"zeros": _size(exact[number]), "other targets": of_other_targets[number]},
        )
        for number, what in enumerate(("nats per token:", "gradients:", "of the weight:"))
    )  # fmt: skip


def attention(folder: Path, dtype_name: str, pairs: str = "short") -> str:
    """`pair_attention` against the dense mask of `may_attend`, forward and backward.

    Args:
        folder: unused.
        dtype_name: of queries, keys and values.
        pairs: "short", several in a block of places, or "long", several blocks each: only these have blocks that need
            no mask, and lists whose order matters.
    """
    if dtype_name == "bfloat16":
        need_cuda()
    dtype: torch.dtype = getattr(torch, dtype_name)
    length = _LENGTHS[pairs]
    segments = _row_of_pairs(length, seed=0, longest=_LONGEST[pairs])
    # padding at the end of the row is meaningless
    used = int(segments[-1, -1])
    mask = torch.from_numpy(may_attend(segments, used))
    row = _row(length, seed=0)
    of_places = torch.randn(1, _HEADS, used, _HEAD_SIZE, generator=torch.Generator().manual_seed(1))

    def run(attend: Callable[..., Tensor], where: torch.device, kind: torch.dtype) -> list[Tensor]:
        leaves = [leaf.to(dtype).to(where, kind).requires_grad_() for leaf in row]
        attended = attend(*leaves)[:, :, :used]
        gradients = torch.autograd.grad((attended * of_places.to(where, kind)).sum(), leaves)
        return [tensor.detach().cpu().double() for tensor in (attended, *(part[:, :, :used] for part in gradients))]

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return pair_attention(query, key, value, torch.from_numpy(segments), scale=None)

    cpu = torch.device("cpu")
    exact = run(partial(_dense_attention, mask=mask), cpu, torch.float64)
    tails_seen = torch.from_numpy(may_attend(segments[:, [0, 3, 3, 3]], used))
    wrong = {
        "other tail seen": run(partial(_dense_attention, mask=tails_seen), cpu, torch.float64),
        "no scale": run(partial(_dense_attention, mask=mask, scale=1.0), cpu, torch.float64),
        "zeros": [torch.zeros_like(part) for part in exact],
    }
    controls = {name: _errors(parts, exact) for name, parts in wrong.items()}
    found = _errors(run(ours, device(), dtype), exact)
    expected = _errors(run(partial(_dense_attention, mask=mask), device(), dtype), exact)
    return "; ".join(
        bounded(
            f"{name}:", found[number], 4 * expected[number], ceiling=_ceiling(dtype, exact[number]),
            controls={control: errors[number] for control, errors in controls.items()},
        )
        for number, name in enumerate(_PARTS)
    )  # fmt: skip


def large_scores(folder: Path, tiles: str = "own") -> str:
    """`pair_attention` on queries and keys like those of a trained model, whose constant parts put scores at +-1,000.

    The row fills no whole number of blocks. Gradients must be finite at every place, padding included: what is not
    finite there spoils the gradients of all weights.

    Args:
        folder: unused.
        tiles: "own", "torch's", or "one stage": own ones, without overlap of loads and products. They tell a fault of
            the tiles from one of the kernel.
    """
    need_cuda()
    if tiles == "torch's":
        flex._TILES.clear()
    if tiles == "one stage":
        for options in flex._TILES.values():
            options.update(fwd_num_stages=1, bwd_num_stages=1)
    segments, length, dtype = _row_of_pairs(2000, seed=0, longest=500), 2000, torch.bfloat16
    used = int(segments[-1, -1])
    row = _row_of_a_trained_model(length, seed=0)
    of_places = torch.randn(*row[0].shape, generator=torch.Generator().manual_seed(1))
    of_places[:, :, used:] = 0

    def run(attend: Callable[..., Tensor], where: torch.device, kind: torch.dtype) -> list[Tensor]:
        leaves = [leaf.to(dtype).to(where, kind).requires_grad_() for leaf in row]
        attended = attend(*leaves)
        weighed = attended * of_places[:, :, : attended.shape[2]].to(where, kind)
        parts = [attended, *torch.autograd.grad(weighed.sum(), leaves)]
        return [part.detach().cpu().double() for part in parts]

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return pair_attention(query, key, value, torch.from_numpy(segments), scale=None)

    cpu = torch.device("cpu")
    exact = run(partial(_dense_attention, mask=torch.from_numpy(may_attend(segments, used))), cpu, torch.float64)
    tails_seen = torch.from_numpy(may_attend(segments[:, [0, 3, 3, 3]], used))
    wrong = run(partial(_dense_attention, mask=tails_seen), cpu, torch.float64)
    found = run(ours, device(), dtype)
    if not all(part.isfinite().all() for part in found):
        names = [name for name, part in zip(_PARTS, found, strict=True) if not part.isfinite().all()]
        raise AssertionError(f"not finite: {', '.join(names)}")
    words = []
    for number, name in enumerate(_PARTS):
        parts = [whole[number][:, :, :used] for whole in (found, wrong, exact)]
        error, control = (_size(part - parts[2]) / _size(parts[2]) for part in parts[:2])
        words.append(bounded(f"{name}:", error, 0.15, controls={"other tail seen": control}))
    return "; ".join(words)


def recompilation(folder: Path) -> str:
    """Rows of new lengths and structures after the first two compile nothing, and give correct values.

    Training and evaluation alternate. FlexAttention has no backward pass on CPUs, where only evaluation runs.
    """
    if not torch.cuda.is_available() and shutil.which("c++") is None:
        raise NotRun("no C++ compiler")
    dtype, bound = (torch.bfloat16, 5e-2) if torch.cuda.is_available() else (torch.float32, 1e-5)
    compiled, worst, unscaled = [], 0.0, math.inf
    for number, length in enumerate(_ROW_LENGTHS):
        segments = torch.from_numpy(_row_of_pairs(length, seed=number))
        row = [part.to(dtype) for part in _row(length, seed=number)]
        attended = _compiled_attention(*(part.to(device()) for part in row), segments=segments)
        compiled.append(counters["stats"]["unique_graphs"])
        query, key, value = (part.float() for part in row)
        exact, wrong = (pair_attention(query, key, value, segments, scale=scale) for scale in (None, 1.0))
        used = int(segments[-1, -1])
        worst = largest([worst, (attended.cpu() - exact)[:, :, :used].abs().max().item()])
        unscaled = min(unscaled, (wrong - exact)[:, :, :used].abs().max().item())
    if compiled[-1] == 0:
        raise AssertionError("torch counted no compiled graph: nothing was measured")
    more = compiled[-1] - compiled[_WARM_UP - 1]
    words = f"{compiled[-1]} graphs for {len(_ROW_LENGTHS)} lengths, {more} of them after the first {_WARM_UP}"
    if more or compiled[-1] > MAX_GRAPHS:
        raise AssertionError(f"{words}; at most {MAX_GRAPHS}, and none later, are expected")
    values = bounded("largest difference to the attention of CPUs:", worst, bound, controls={"no scale": unscaled})
    return f"{words}; {values}"


def _compiled_attention(query: Tensor, key: Tensor, value: Tensor, *, segments: Tensor) -> Tensor:
    """Evaluate; on CUDA, after a training forward and backward pass."""
    structure = tuple(map(tuple, segments.tolist()))
    if query.is_cuda:
        leaves = [part.clone().requires_grad_() for part in (query, key, value)]
        row_attention(leaves[0], leaves[1], leaves[2], structure, None).float().sum().backward()
    with torch.no_grad():
        return row_attention(query, key, value, structure, None)


def _loss(name: str, ratios: Tensor, margin: Tensor) -> list[Tensor]:
    """Values, and their gradients with respect to both log-ratios."""
    chosen, rejected = (ratio.clone().requires_grad_() for ratio in ratios)
    pairs = Pairs(
        chosen_log_ratio=chosen, rejected_log_ratio=rejected, chosen_log_probs=chosen, rejected_log_probs=rejected,
        shared_log_probs=torch.zeros_like(chosen), chosen_num_tokens=torch.full_like(chosen, 7),
        rejected_num_tokens=torch.full_like(chosen, 5), reward_margin=margin,
    )  # fmt: skip
    values = LOSSES[name](pairs, _OPTIONS)
    return [values.detach(), *torch.autograd.grad(values.sum(), (chosen, rejected))]


def _naive_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attention with all S x S scores over the first places of a row, as many as the mask has."""
    used = len(mask)
    per_group = query.shape[1] // key.shape[1]
    key, value = (tensor[:, :, :used].repeat_interleave(per_group, dim=1) for tensor in (key, value))
    scores = query[:, :, :used] @ key.transpose(2, 3) * (_HEAD_SIZE**-0.5 if scale is None else scale)
    return scores.masked_fill(~mask.to(scores.device), -torch.inf).softmax(dim=3) @ value


def _row(length: int, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, number, length, _HEAD_SIZE, generator=generator) for number in (_HEADS, _GROUPS, _GROUPS)]


def _row_of_a_trained_model(length: int, *, seed: int) -> list[Tensor]:
    """Queries and keys with a constant part, as large biases give them (Qwen2.5-0.5B's sizes and magnitudes)."""
    heads, groups, generator = 14, 2, torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, number, length, _HEAD_SIZE, generator=generator) for number in (heads, *[groups] * 2)
    )
    query += torch.linspace(-6, 6, heads)[:, None, None]
    key += torch.tensor([20.0, -10.0])[:, None, None]
    return [query, key, value]


def _row_of_pairs(length: int, *, seed: int, longest: int = _LONGEST["short"]) -> np.ndarray:
    """[m, 4], as in core/pair_packing.py; some places at the end remain padding."""
    draw, segments, start, longest = np.random.default_rng(seed), [], 0, min(longest, length // 3)
    while start + 3 * longest <= length:
        shared, chosen, rejected = draw.integers(1, longest, size=3, endpoint=True)
        branch = start + shared
        segments.append([start, branch, branch + chosen, branch + chosen + rejected])
        start = segments[-1][-1]
    return np.asarray(segments)


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [_size(here - there) for here, there in zip(found, exact, strict=True)]


def _size(values: Tensor) -> float:
    """Root mean square."""
    return values.square().mean().sqrt().item()


def _ceiling(dtype: torch.dtype, exact: Tensor) -> float:
    return _CEILING * torch.finfo(dtype).eps * _size(exact)


def _relative(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, relative to values above 1."""
    return largest(
        ((here - there).abs() / there.abs().clamp(min=1.0)).max().item()
        for here, there in zip(found, exact, strict=True)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
