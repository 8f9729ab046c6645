"""The training configuration: the only place for defaults and range checks.

Names follow NeMo-Aligner's DPO (`model.dpo.ref_policy_kl_penalty` is beta). Every setting is declared once, in
sections.py or model_sections.py. The YAML files in conf/ hold only what differs from these defaults; Hydra composes
them with the command line, and :func:`load` rejects unknown settings.
"""

from nemo_minordpo.config.checks import unread_notes
from nemo_minordpo.config.keys import DECLARED, closest, declared, default_of, reads, short_name, unknown_key, value_of
from nemo_minordpo.config.loading import compose, decides, identity, load
from nemo_minordpo.config.losses import (
    LOSS_KEY,
    LOSS_NAMES,
    MARGINS,
    loss_label,
    losses_in,
    mixed,
    weights_in,
    weights_of,
)
from nemo_minordpo.config.model_sections import (
    DataSection,
    DPOSection,
    LoraSection,
    ModelSection,
    OptimSection,
    ScheduleSection,
)
from nemo_minordpo.config.overrides import CONF, hydra_value, read_override
from nemo_minordpo.config.ranges import duration_in_seconds
from nemo_minordpo.config.sections import CheckpointSection, TrainConfig, TrainerDPOSection, WatchSection
from nemo_minordpo.config.setting import Resume

__all__ = [
    "CONF",
    "DECLARED",
    "LOSS_KEY",
    "LOSS_NAMES",
    "MARGINS",
    "CheckpointSection",
    "DPOSection",
    "DataSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "Resume",
    "ScheduleSection",
    "TrainConfig",
    "TrainerDPOSection",
    "WatchSection",
    "closest",
    "compose",
    "decides",
    "declared",
    "default_of",
    "duration_in_seconds",
    "hydra_value",
    "identity",
    "load",
    "loss_label",
    "losses_in",
    "mixed",
    "read_override",
    "reads",
    "short_name",
    "unknown_key",
    "unread_notes",
    "value_of",
    "weights_in",
    "weights_of",
]
