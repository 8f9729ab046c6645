"""The training configuration, the only home of defaults and of range checks.

Names are those of NeMo-Aligner's DPO (`model.dpo.ref_policy_kl_penalty` is beta). Every setting is declared once, in
sections.py and model_sections.py. The YAML files in conf/ hold what differs from the sections' defaults; Hydra composes
them with the command line; :func:`load` refuses what no section knows.
"""

from nemo_minordpo.config.checks import unread_notes
from nemo_minordpo.config.keys import DECLARED, closest, declared, default_of, reads, short_name, unknown_key, value_of
from nemo_minordpo.config.loading import compose, decides, identity, load
from nemo_minordpo.config.model_sections import (
    LOSS_NAMES,
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
    "LOSS_NAMES",
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
    "read_override",
    "reads",
    "short_name",
    "unknown_key",
    "unread_notes",
    "value_of",
]
