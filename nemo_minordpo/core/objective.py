"""The options of an objective from its configuration."""

from dataclasses import fields

from nemo_minordpo.config import DPOSection
from nemo_minordpo.core.losses import Options


def options_of(section: DPOSection) -> Options:
    """The options of the objective; beta and the default of `sft_average_log_probs` differ in the configuration."""
    named = {item.name: getattr(section, item.name) for item in fields(Options) if item.name != "beta"}
    if section.sft_average_log_probs is None:
        named["sft_average_log_probs"] = section.preference_average_log_probs
    return Options(beta=section.ref_policy_kl_penalty, **named)
