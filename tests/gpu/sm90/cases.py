"""The cases to compile: pair attention and the head, over the sizes of models and rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

# torch is imported inside functions: machine.pretend() must run first

_HEAD_SIZES, _RATIOS, _GROUPS = (32, 64, 128), (1, 2, 4, 8), 2
# places in a row, and whether it is trained on: from the first multiple of 8, on and next to blocks of 128
_ROWS = (
    (512, True), (480, False), (8, True), (16, False), (96, True), (40, False), (120, False), (72, True), (128, True),
    (128, False), (136, True), (248, False), (256, True), (1000, False), (2048, True), (4096, False), (4096, True),
)  # fmt: skip
# tokens, hidden size, vocabulary rows: Qwen2.5, Llama 3 at TP 8; few tokens, and a last block of few rows
_HEADS = ((4096, 1536, 151936), (1024, 1536, 151936), (16384, 4096, 16032), (8, 64, 403), (1, 64, 403), (37, 64, 131))


@dataclass(frozen=True)
class Case:
    """run: compiles. max_graphs: the bound stated by the code. fault: the fault of a control; None = not a control."""

    name: str
    run: Callable[[], None]
    max_graphs: int
    fault: str | None = None


def all_cases() -> Iterator[Case]:
    import torch

    from nemo_minordpo.core import flex, logits, logprobs

    bf16, fp32 = torch.bfloat16, torch.float32
    sizes = [(size, ratio, bf16) for size in _HEAD_SIZES for ratio in _RATIOS] + [(64, 2, fp32), (128, 2, fp32)]
    for size, ratio, dtype in sizes:
        yield Case(
            f"attention D={size} ratio={ratio} {_name(dtype)}", _rows(size, ratio, dtype, _ROWS), flex.MAX_GRAPHS
        )
    for dtype in (bf16, fp32):
        # graphs of each of the two functions
        # torch cannot infer the result of addmm with another dtype (2.11), which is not compiled anyway
        separate_sum = mock.patch.object(logprobs, "_ADDS_TO_FLOAT", False)
        yield Case(f"head {_name(dtype)}", separate_sum(_head(dtype)), 2 * logits.MAX_GRAPHS)
    own_tiles = mock.patch.object(flex, "_TILES", {})
    yield Case("control: torch's own tiles at D=64", own_tiles(_rows(64, 2, bf16, _ROWS[:1])), 1, "spilled")
    decode = mock.patch.object(flex, "_OPTIONS", {})
    yield Case(
        "control: torch's own kernel for 96 places", decode(_rows(64, 4, bf16, ((96, True),))), 1, "NoValidChoices"
    )
    as_it_is = mock.patch.object(flex, "_dense", _marked)
    yield Case("control: value with a stride of its own", as_it_is(_rows(64, 2, bf16, _ROWS[:1])), 1, "two bytes")
    static = mock.patch("torch._dynamo.mark_dynamic", new=mock.MagicMock())
    yield Case("control: lengths without marks", static(_rows(32, 1, bf16, _ROWS)), flex.MAX_GRAPHS, "graphs")


def _rows(size: int, ratio: int, dtype: Any, rows: tuple[tuple[int, bool], ...]) -> Callable[[], None]:
    """Rows as Megatron's layers pass them: value is a slice of the fused projection, query and key come from the rotary
    embedding."""

    def run() -> None:
        import torch

        from nemo_minordpo.core import flex

        flex.blocks.cache_clear()
        for length, trains in rows:
            with torch.set_grad_enabled(trains):
                fused = torch.empty(length, 1, _GROUPS, (ratio + 2) * size, device="cuda", dtype=dtype)
                query = torch.empty(length, 1, _GROUPS * ratio, size, device="cuda", dtype=dtype)
                key = torch.empty(length, 1, _GROUPS, size, device="cuda", dtype=dtype)
                leaves = [leaf.requires_grad_(trains) for leaf in (query, key, fused)]
                query, key, value = (part.permute(1, 2, 0, 3) for part in (*leaves[:2], leaves[2][..., -size:]))
                flex.row_attention(query, key, value, ((0, 3, 5, length - 1),), None)

    return run


def _marked(row: Any) -> Any:
    import torch

    torch._dynamo.mark_dynamic(row, 2)
    return row


def _head(dtype: Any) -> Callable[[], None]:
    def run() -> None:
        import torch

        from nemo_minordpo.core.logprobs import vocab_parallel_log_probs

        for tokens, hidden_size, vocab in _HEADS:
            hidden, weight = (
                torch.empty(rows, hidden_size, device="cuda", dtype=dtype, requires_grad=True)
                for rows in (tokens, vocab)
            )
            targets = torch.empty(tokens, dtype=torch.int64, device="cuda")
            vocab_parallel_log_probs(hidden, weight, targets, group=None).sum().backward()

    return run


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
