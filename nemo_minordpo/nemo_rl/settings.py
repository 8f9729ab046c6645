"""The section `dpo` of a NeMo-RL configuration, checked like this project's own settings.

NeMo-RL accepts any key in the section (`extra="allow"`), so that a misspelt setting would be ignored there.
"""

from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_minordpo.config import DPOSection, TrainConfig, closest, mixed
from nemo_minordpo.config.checks import combination_problems
from nemo_minordpo.config.model_sections import RPO
from nemo_minordpo.config.ranges import range_problems
from nemo_minordpo.errors import UserError

_BETA = "reference_policy_kl_penalty"  # NeMo-RL's name of ref_policy_kl_penalty
_OURS = "model.dpo."
# Settings without a meaning here: NeMo-RL's pairs have no ground-truth rewards, and it evaluates the reference itself.
_WITHOUT = ("ref_policy_kl_penalty", "gt_reward_scale", "reference_log_probs")
_READ = {_BETA: "ref_policy_kl_penalty"} | {
    item.name: item.name for item in fields(DPOSection) if item.name not in _WITHOUT
}


def objective_of(dpo: Any) -> DPOSection:
    """The objective that a NeMo-RL configuration describes.

    Args:
        dpo: NeMo-RL's `DPOConfig`: its own fields, and this project's settings of `model.dpo` as extra ones.

    Raises:
        UserError: a setting is unknown, or its value is not allowed; one line for each.
    """
    given = {**vars(dpo), **(dpo.model_extra or {})}
    known = [*type(dpo).model_fields, *_READ]
    unknown = [
        f"dpo.{name} is not a setting of NeMo-RL or nemo-minordpo{closest(name, known)}"
        for name in dpo.model_extra or {}
        if name not in _READ
    ]
    section = _typed({ours: given[theirs] for theirs, ours in _READ.items() if theirs in given}, unknown)
    config = TrainConfig()
    config.model.dpo = section
    problems = [text for text in [*range_problems(config), *combination_problems(config)] if text.startswith(_OURS)]
    problems += _not_here(section)
    if problems:
        raise UserError("\n".join(map(_as_there, problems)))
    return section


def _typed(values: dict[str, Any], problems: list[str]) -> DPOSection:
    """The values in their declared types; raises with `problems`, and those found on the way."""
    section = OmegaConf.structured(DPOSection)
    for name, value in values.items():
        try:
            OmegaConf.update(section, name, value)
        except OmegaConfBaseException as error:
            problems = [*problems, _as_there(f"{_OURS}{name}={value}: {str(error).splitlines()[0]}")]
    if problems:
        raise UserError("\n".join(problems))
    typed = OmegaConf.to_object(section)
    assert isinstance(typed, DPOSection)
    return typed


def _not_here(section: DPOSection) -> list[str]:
    losses = mixed(section.preference_loss)
    own = [name for name in losses if ":" in name]
    rewards = [name for name in losses if name in RPO]
    return [f"{_OURS}preference_loss={name}: your own losses are not supported in NeMo-RL" for name in own] + [
        f"{_OURS}preference_loss={name} reads ground-truth rewards, which NeMo-RL's pairs do not have"
        for name in rewards
    ]


def _as_there(problem: str) -> str:
    return problem.replace(f"{_OURS}ref_policy_kl_penalty", f"dpo.{_BETA}").replace(_OURS, "dpo.")
