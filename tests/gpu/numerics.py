"""Losses, log-probabilities and attention on this device against float64 on the CPU.

Bounds of sums are relative to the naive form in the same dtype on the same device: a constant would be too wide for
one GPU and too narrow for the next. Errors are root mean squares.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from nemo_minordpo.core.attention import _flex_attention, pair_attention
from nemo_minordpo.core.logprobs import vocab_parallel_log_probs
from nemo_minordpo.core.losses import LOSSES, preference_loss
from nemo_minordpo.core.pair_packing import may_attend
from tests.gpu import NotRun, bounded, need_cuda

_BETA, _LAMBDA = 0.1, 50.0
_TOKENS, _HIDDEN, _VOCAB = 256, 256, 8192
_HEADS, _GROUPS, _HEAD_SIZE = 4, 2, 64
_ROW_LENGTHS = (384, 640, 512, 896, 448, 768, 1024, 320, 704, 576, 960, 832)
_WARM_UP = 3  # the first row compiles for its length, the second for any; the third may differ in its blocks


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
        worst = 0.0
        for name in LOSSES:
            exact = _loss(name, ratios.double(), margin.double())
            found = _loss(name, ratios.to(device(), dtype), margin.to(device(), dtype))
            for here, there in zip(found, exact, strict=True):
                difference = (here.cpu().double() - there).abs() / there.abs().clamp(min=1.0)
                worst = max(worst, difference.max().item())
        words.append(bounded(f"{len(LOSSES)} losses, {_name(dtype)}:", worst, bound))
    return "; ".join(words)


def log_probs(folder: Path, dtype_name: str) -> str:
    """The head that never holds its logits: values as exact as those of a float32 head, gradients as a naive head's."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(_TOKENS, _HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(_VOCAB, _HIDDEN, generator=generator) * 0.1).to(dtype)
    targets = torch.randint(_VOCAB, (_TOKENS,), generator=generator)
    of_tokens = torch.randn(_TOKENS, generator=generator)

    def run(head: Callable[..., Tensor], where: torch.device, kind: torch.dtype) -> list[Tensor]:
        leaves = [leaf.to(where, kind).requires_grad_() for leaf in (hidden, weight)]
        values = head(*leaves, targets.to(where))
        gradients = torch.autograd.grad((values * of_tokens.to(where)).sum(), leaves)
        return [tensor.detach().cpu().double() for tensor in (values, *gradients)]

    exact = run(_naive_head, torch.device("cpu"), torch.float64)
    ours = _errors(run(lambda *args: vocab_parallel_log_probs(*args, group=None), device(), dtype), exact)
    float_head = _errors(run(lambda h, w, t: _naive_head(h.float(), w.float(), t), device(), dtype), exact)
    naive = _errors(run(lambda *args: _naive_head(*args).float(), device(), dtype), exact)
    return "; ".join(
        (
            bounded("nats a token:", ours[0], 2 * float_head[0]),
            bounded("gradients:", ours[1], 2 * naive[1]),
            bounded("of the weight:", ours[2], 2 * naive[2]),
        )
    )


def attention(folder: Path, dtype_name: str) -> str:
    """`pair_attention` against the dense mask of `may_attend`, forward and backward."""
    if dtype_name == "bfloat16":
        need_cuda()
    dtype: torch.dtype = getattr(torch, dtype_name)
    segments = _row_of_pairs(1024, seed=0)
    # padding at the end of the row has no meaning
    used = int(segments[-1, -1])
    mask = torch.from_numpy(may_attend(segments, used))
    row = _row(1024, seed=0)
    of_places = torch.randn(1, _HEADS, used, _HEAD_SIZE, generator=torch.Generator().manual_seed(1))

    def run(attend: Callable[..., Tensor], where: torch.device, kind: torch.dtype) -> list[Tensor]:
        leaves = [leaf.to(dtype).to(where, kind).requires_grad_() for leaf in row]
        attended = attend(*leaves)[:, :, :used]
        gradients = torch.autograd.grad((attended * of_places.to(where, kind)).sum(), leaves)
        return [tensor.detach().cpu().double() for tensor in (attended, *(part[:, :, :used] for part in gradients))]

    def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (tensor[:, :, :used].repeat_interleave(_HEADS // _GROUPS, dim=1) for tensor in (key, value))
        scores = query[:, :, :used] @ key.transpose(2, 3) / math.sqrt(_HEAD_SIZE)
        return scores.masked_fill(~mask.to(scores.device), -torch.inf).softmax(dim=3) @ value

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return pair_attention(query, key, value, torch.from_numpy(segments), scale=None)

    exact = run(naive, torch.device("cpu"), torch.float64)
    found = _errors(run(ours, device(), dtype), exact)
    expected = _errors(run(naive, device(), dtype), exact)
    names = ("forward", "dq", "dk", "dv")
    return "; ".join(
        bounded(f"{name}:", here, 4 * there) for name, here, there in zip(names, found, expected, strict=True)
    )


def recompilation(folder: Path) -> str:
    """Rows of changing lengths and structures after the first three compile nothing, forward and backward.

    FlexAttention has no backward pass on CPUs: there the forward pass alone is compiled, and compared.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu and shutil.which("c++") is None:
        raise NotRun("no C++ compiler")
    compiled, worst = [], 0.0
    for number, length in enumerate(_ROW_LENGTHS):
        segments = torch.from_numpy(_row_of_pairs(length, seed=number))
        row = [x.to(device(), torch.bfloat16 if on_gpu else torch.float32) for x in _row(length, seed=number)]
        if on_gpu:
            pair_attention(*(x.requires_grad_() for x in row), segments, scale=None).float().sum().backward()
        else:
            structure, used = tuple(map(tuple, segments.tolist())), int(segments[-1, -1])
            difference = _flex_attention(*row, structure, None) - pair_attention(*row, segments, scale=None)
            worst = max(worst, difference[:, :, :used].abs().max().item())
        compiled.append(counters["stats"]["unique_graphs"])
    if compiled[-1] == 0:
        raise AssertionError("torch counted no compiled graph: nothing was measured")
    more = compiled[-1] - compiled[_WARM_UP - 1]
    words = f"{compiled[-1]} graphs for {len(_ROW_LENGTHS)} lengths, {more} of them after the first {_WARM_UP}"
    if more:
        raise AssertionError(words)
    return words if on_gpu else f"{words}; forward alone, {bounded('against the attention of CPUs:', worst, 1e-5)}"


def _loss(name: str, ratios: Tensor, margin: Tensor) -> list[Tensor]:
    """Values, and their gradients by both log-ratios."""
    chosen, rejected = (ratio.clone().requires_grad_() for ratio in ratios)
    values = preference_loss(
        name, chosen_log_ratio=chosen, rejected_log_ratio=rejected, beta=_BETA, dpop_lambda=_LAMBDA,
        reward_margin=margin,
    )  # fmt: skip
    return [values.detach(), *torch.autograd.grad(values.sum(), (chosen, rejected))]


def _naive_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def _row(length: int, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, number, length, _HEAD_SIZE, generator=generator) for number in (_HEADS, _GROUPS, _GROUPS)]


def _row_of_pairs(length: int, *, seed: int) -> np.ndarray:
    """[m, 4], as core/pair_packing.py lays pairs out; some places at the end stay padding."""
    draw, segments, start = np.random.default_rng(seed), [], 0
    while start + 120 < length:
        shared, chosen, rejected = draw.integers(1, 40, size=3)
        branch = start + shared
        segments.append([start, branch, branch + chosen, branch + chosen + rejected])
        start = segments[-1][-1]
    return np.asarray(segments)


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [(here - there).square().mean().sqrt().item() for here, there in zip(found, exact, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
