"""Differences between the logits of two models, and whether they are within bounds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Differences between two models' logits, over all tokens of all texts."""

    max_difference: float
    mean_difference: float
    argmax_agreement: float  # fraction of tokens
    num_tokens: int
    tolerance: float  # for max_difference
    mean_tolerance: float = float("inf")
    dtype: str = "float32"
    why_tolerance: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.tolerance and self.mean_difference <= self.mean_tolerance

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.max_difference:.2e} (mean {self.mean_difference:.2e}, "
            f"{self.dtype}, tolerance {self.tolerance:.2g}{self.why_tolerance}), "
            f"argmax equal for {self.argmax_agreement:.2%} of {self.num_tokens} tokens{self.note}"
        )


def compare_logits(found: list[Tensor], wanted: list[Tensor], *, tolerance: float) -> Verification:
    """Differences over all tokens; `found` and `wanted` have [tokens, vocabulary] for each text."""
    largest = total = 0.0
    equal = num_tokens = num_logits = 0
    for a, b in zip(found, wanted, strict=True):
        difference = (a.float() - b.float()).abs()
        # NaN is larger than anything
        largest = max(largest, difference.nan_to_num(nan=float("inf")).max().item())
        total += difference.double().sum().item()
        equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        num_tokens += len(a)
        num_logits += a.numel()
    return Verification(
        max_difference=largest,
        mean_difference=total / num_logits,
        argmax_agreement=equal / num_tokens,
        num_tokens=num_tokens,
        tolerance=tolerance,
    )
