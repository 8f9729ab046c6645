"""The training configuration, the only home of defaults and of range checks.

Names are those of NeMo-Aligner's DPO (`model.dpo.ref_policy_kl_penalty` is beta). The YAML files in conf/ hold what
differs from the sections' defaults; Hydra composes them with the command line; :func:`load` refuses what no section
knows.
"""

from nemo_minordpo.config.checks import duration_in_seconds
from nemo_minordpo.config.keys import closest, unknown_key
from nemo_minordpo.config.loading import compose, identity, load
from nemo_minordpo.config.overrides import CONF, hydra_value, read_override
from nemo_minordpo.config.sections import (
    CheckpointSection,
    DataSection,
    LoraSection,
    ModelSection,
    OptimSection,
    ScheduleSection,
    TrainConfig,
    TrainerDPOSection,
    WatchSection,
)

__all__ = [
    "CONF",
    "CheckpointSection",
    "DataSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "ScheduleSection",
    "TrainConfig",
    "TrainerDPOSection",
    "WatchSection",
    "closest",
    "compose",
    "duration_in_seconds",
    "hydra_value",
    "identity",
    "load",
    "read_override",
    "unknown_key",
]
