"""The losses by name: what each compares, which are in an objective and with which weight."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_minordpo.config.model_sections import DPOSection

_DIFFERENCE = "chosen - rejected"
_SEPARATELY = "chosen and rejected separately"
# The losses of core/losses.py, and the margin that each compares; chosen and rejected are a pair's log-ratios, in nats.
MARGINS = {
    "dpo": _DIFFERENCE,
    "dpop": "chosen - rejected - dpop_lambda * max(0, -chosen)",
    "minordpo": "chosen - max(minordpo_floor, rejected)",
    "ipo": _DIFFERENCE,
    "rpo_sq": _DIFFERENCE,
    "rpo_bwd_kl": _DIFFERENCE,
    "rpo_fwd_kl": _DIFFERENCE,
    "robust": _DIFFERENCE,
    "hinge": _DIFFERENCE,
    "apo_zero": _SEPARATELY,
    "apo_down": "chosen, and chosen - rejected",
    "nca_pair": _SEPARATELY,
    "bdpo": "chosen - log(bdpo_lambda * exp(rejected) + 1 - bdpo_lambda)",
    "dpo_shift": "chosen - dpo_shift_lambda * rejected",
    "simpo": "log pi(chosen) / tokens - log pi(rejected) / tokens - simpo_gamma / beta",
    "sft": "log pi(chosen) alone",
}
LOSS_NAMES = tuple(MARGINS)
SFT = "sft"
LOSS_KEY = "model.dpo.preference_loss"
REFERENCE_FREE = ("simpo", SFT)
WITH_REFERENCE = tuple(name for name in LOSS_NAMES if name not in REFERENCE_FREE)


def weights_of(section: "DPOSection") -> dict[str, float]:
    """The losses of an objective and their weights: ``preference_loss``, and ``sft`` with ``sft_loss_weight``.

    A loss with weight 0 stays: its reference is still evaluated, for the metrics.
    """
    return _objective(
        mixed(section.preference_loss), factor=section.preference_loss_weight, sft=section.sft_loss_weight
    )


def weights_in(settings: Mapping[str, Any]) -> dict[str, float]:
    """:func:`weights_of` the flat settings of a run, which may be older than some of them."""
    return _objective(
        losses_in(settings),
        factor=settings.get("model.dpo.preference_loss_weight", 1.0),
        sft=settings.get("model.dpo.sft_loss_weight", 0.0),
    )


def _objective(losses: Mapping[str, float], *, factor: float, sft: float) -> dict[str, float]:
    weights = {name: factor * weight for name, weight in losses.items()}
    if sft:
        weights[SFT] = weights.get(SFT, 0.0) + sft
    return weights


def mixed(preference_loss: Any) -> dict[str, float]:
    """`model.dpo.preference_loss`, a name or a mapping of names to weights, as a mapping."""
    return {preference_loss: 1.0} if isinstance(preference_loss, str) else dict(preference_loss)


def losses_in(settings: Mapping[str, Any]) -> dict[str, float]:
    """`model.dpo.preference_loss` of flat settings, as a mapping of names to weights; empty if they have none."""
    if isinstance(loss := settings.get(LOSS_KEY), str):
        return mixed(loss)
    prefix = f"{LOSS_KEY}."
    of_mix = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    return {name: value for name, value in of_mix.items() if isinstance(value, int | float)}


def loss_label(preference_loss: Any) -> str:
    """`minordpo`; of a mapping `minordpo + 0.1 sft`."""
    parts = mixed(preference_loss).items()
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in parts)


def readers(losses: Sequence[str], *, form: str = "{}") -> str:
    """Losses in words: `dpo, dpop`, or `all but sft` if that is shorter; each name as in `form`."""
    others = [name for name in LOSS_NAMES if name not in losses]
    is_shorter = len(others) < len(losses)
    return ("all but " if is_shorter else "") + ", ".join(map(form.format, others if is_shorter else losses))
