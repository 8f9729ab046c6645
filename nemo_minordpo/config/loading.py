"""From the command line or a saved file to typed sections; which settings identify a run."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_minordpo.config.checks import combination_problems
from nemo_minordpo.config.keys import declared, unknown_key
from nemo_minordpo.config.lora import DEFAULT_RANK, DEFAULT_TARGETS
from nemo_minordpo.config.model_sections import ModelSection, PeftSection
from nemo_minordpo.config.overrides import CONF, compose_problems, with_pluses
from nemo_minordpo.config.ranges import range_problems
from nemo_minordpo.config.sections import TrainConfig
from nemo_minordpo.config.setting import Resume
from nemo_minordpo.config.wandb_keys import logger_problems
from nemo_minordpo.errors import UserError
from nemo_minordpo.flat import flatten


def compose(overrides: list[str]) -> DictConfig:
    """Compose conf/train.yaml with the command line's overrides.

    Raises:
        UserError: Hydra cannot read an override, it names no setting, or its value has the wrong type.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    if problems := compose_problems(overrides):
        raise UserError("\n".join(problems))
    ConfigStore.instance().store("schema", TrainConfig)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("train", overrides=[with_pluses(text) for text in overrides])
    except HydraException as error:
        raise UserError(_one_message(error)) from error


def load(composed: DictConfig) -> TrainConfig:
    """Convert a composed configuration to typed sections and check it.

    Args:
        composed: from :func:`compose` or a run folder's `config.yaml`.

    Raises:
        UserError: lists every fault that can be found without opening a file, one per line.
    """
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:  # RecursionError: a value that refers to itself
        raise UserError(_interpolation_message(error)) from error
    overrides = plain.setdefault("checkpoint_overrides", {})
    known = {item.name for item in fields(ModelSection)}
    for key in [key for key in plain.get("model", {}) if key not in known]:
        overrides[key] = plain["model"].pop(key)
    problems = _unknown_keys(plain, TrainConfig, prefix="")
    if problems:
        raise UserError("\n".join(problems))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), plain)
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise UserError("\n".join(f"{key} is required: set {key}=VALUE" for key in missing))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_one_message(error)) from error
    assert isinstance(config, TrainConfig)
    problems = [*range_problems(config), *combination_problems(config), *logger_problems(config.exp_manager)]
    if problems:
        raise UserError("\n".join(problems))
    if config.model.peft.restore_from_path is None:
        _describe_new_adapters(config.model.peft)
    return config


def identity(config: TrainConfig) -> dict[str, Any]:
    """The flat settings that determine what a run computes; they must not change when a run is resumed."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    return {key: value for key, value in flatten(plain).items() if decides(key)}


def decides(key: str) -> bool:
    """Whether a setting's value affects what a run computes; true for unknown keys, which old runs may have used."""
    setting = declared(key)
    return setting is None or setting.resume is Resume.SAME


def _describe_new_adapters(peft: PeftSection) -> None:
    """Fill in defaults for new adapters; existing adapters bring their own rank and targets."""
    lora = peft.lora_tuning
    lora.target_modules = lora.target_modules or list(DEFAULT_TARGETS)
    lora.adapter_dim = lora.adapter_dim or DEFAULT_RANK
    lora.adapter_dropout = lora.adapter_dropout or 0.0


def _unknown_keys(values: dict[str, Any], section: type, prefix: str) -> list[str]:
    problems = []
    known = {item.name: item for item in fields(section)}
    for key, value in values.items():
        if key not in known:
            problems.append(unknown_key(f"{prefix}{key}"))
            continue
        inner = known[key].type
        if isinstance(inner, type) and is_dataclass(inner) and isinstance(value, dict):
            problems += _unknown_keys(value, inner, f"{prefix}{key}.")
    return problems


def _interpolation_message(error: Exception) -> str:
    key = getattr(error, "full_key", None) or "a setting"
    reason = str(error).splitlines()[0] if isinstance(error, OmegaConfBaseException) else "it refers to itself"
    hint = "; ${NAME} is another setting, ${oc.env:NAME} an environment variable" if "not found" in reason else ""
    return f"{key}: {reason}{hint}"


def _one_message(error: Exception) -> str:
    """Hydra's message without its search path, plus OmegaConf's reason, which Hydra hides in the cause."""
    lines = str(error).partition("Config search path")[0].strip().splitlines()
    if error.__cause__ is not None:
        lines.insert(1, str(error.__cause__).splitlines()[0])
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))
