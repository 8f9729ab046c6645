"""Keys allowed in `exp_manager.wandb_logger_kwargs`: the arguments of `wandb.init` that make sense here."""

from nemo_minordpo.config.keys import closest
from nemo_minordpo.config.sections import RunSection

WANDB_KEYS = ("config", "dir", "entity", "group", "id", "job_type", "mode", "name", "notes", "project", "tags")
_TYPES: dict[str, tuple[type, ...]] = {"config": (dict,), "tags": (list,)}
_TEXT = (str, int, float)  # a name may look like a number
# Arguments of Lightning's and NeMo's loggers, and what to use instead.
_INSTEAD = {
    "offline": "use mode=offline",
    "anonymous": "W&B no longer has anonymous runs",
    "save_dir": "use dir",
    "version": "use id",
    "resume": "every attempt at a run continues the same W&B run",
    "reinit": "every attempt at a run continues the same W&B run",
    "log_model": "models are not uploaded",
    "checkpoint_name": "models are not uploaded",
    "prefix": "metrics are named as in metrics.jsonl, with the prefix train/, validation/ or watch/",
    "experiment": "the run opens W&B itself",
}


def logger_problems(section: RunSection) -> list[str]:
    """A message for each logger setting that would have no effect."""
    key = "exp_manager.wandb_logger_kwargs"
    given = section.wandb_logger_kwargs
    if given and not section.create_wandb_logger:
        return [
            f"{key} is set, but exp_manager.create_wandb_logger is not: set exp_manager.create_wandb_logger=true "
            "(to switch W&B off for one run, set WANDB_MODE=disabled in the environment)"
        ]
    problems = [f"{key}.{name}: {_hint(str(name))}" for name in given if name not in WANDB_KEYS]
    for name in given.keys() & WANDB_KEYS:
        value, expected = given[name], _TYPES.get(name, _TEXT)
        if value is not None and not isinstance(value, expected):
            problems.append(f"{key}.{name}={value!r}: {expected[0].__name__} expected, not {type(value).__name__}")
    mode = given.get("mode")
    if isinstance(mode, str) and mode not in ("online", "offline", "disabled"):
        problems.append(f"{key}.mode={mode!r}: online, offline or disabled expected")
    return problems


def _hint(name: str) -> str:
    if name in _INSTEAD:
        return f"not a setting here: {_INSTEAD[name]}"
    return f"not a setting{closest(name, WANDB_KEYS) or '; known: ' + ', '.join(WANDB_KEYS)}"
