"""`KEY=VALUE` in Hydra's grammar: how to write values, and clear messages for overrides that are wrong."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_minordpo.config.keys import SETTINGS, closest, expected, is_open, kind_of, unknown_key
from nemo_minordpo.config.sections import TrainConfig
from nemo_minordpo.errors import UserError

CONF = Path(__file__).parent.parent / "conf"
_KEY = re.compile(r"(?:\+\+?|~)?([A-Za-z_][\w.-]*)", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_OTHER_TYPES = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)  # Hydra does not read these as strings
_TAKEN_BY_HYDRA = re.compile(r"[^\w/\\+.$%*@?|: \t-]", re.ASCII)


def hydra_value(value: Any) -> str:
    """Write a value in Hydra's grammar; parsing and resolving it gives `value` again.

    Args:
        value: None, a bool, a number, a string, or lists and dicts of them.
    """
    if isinstance(value, list):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{hydra_value(inner)}' for key, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else _hydra_text(str(value))


def _hydra_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and not _OTHER_TYPES.fullmatch(text):
        return text
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation; backslashes before one are doubled
    # within quotes, Hydra wants a backslash doubled only before a quote
    doubled = re.sub(r"(\\+)('|$)", r"\1\1\2", literal)
    return "'" + doubled.replace("'", "\\'") + "'"


def read_override(text: str) -> Override:
    """Parse one override.

    Raises:
        UserError: Hydra cannot read it; the message suggests quoting if that helps.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:  # ValueError: a number with thousands of digits
        raise UserError(_unreadable(text)) from error


def compose_problems(overrides: list[str]) -> list[str]:
    """Problems of each override of `conf/train.yaml` on its own."""
    probe = OmegaConf.structured(TrainConfig)  # accepts the same values as the run's configuration
    problems: list[str] = []
    for text in overrides:
        try:
            problems += _problems_of(text, read_override(text), probe)
        except UserError as error:
            problems.append(str(error))
    return problems


def with_pluses(text: str) -> str:
    """The override with `++`, which Hydra accepts for existing settings and for new keys of open sections."""
    override = read_override(text)
    key = override.key_or_group
    if override.is_delete() or key in _groups() or not (key in SETTINGS or is_open(key)):
        return text
    return f"++{text.lstrip('+')}"


def _unreadable(text: str) -> str:
    given, equals, raw = text.partition("=")
    key = _KEY.fullmatch(given)
    if not equals or key is None:
        bare = text.lstrip("-").strip("'\"")
        is_setting = bare.partition("=")[0] in SETTINGS and _is_readable(bare)
        hint = f"did you mean {bare}?" if is_setting and bare != text else "Hydra's options are not supported"
        return f"{shortened(text)!r}: settings are written KEY=VALUE, such as model.seed=3; {hint}"
    name = key.group(1)
    if name not in SETTINGS and not (is_open(name) or given.startswith("+model.")):
        return f"{shortened(text)}: {unknown_key(name)}"
    kind, inner, _ = kind_of(name) if name in SETTINGS else (str, None, True)
    if kind is not str and inner is not str:
        return f"{shortened(text)}: {expected(name)} expected"
    content = raw.strip("[]").replace(",", "") if inner is str else raw
    taken = " ".join(dict.fromkeys(_TAKEN_BY_HYDRA.findall(content)))
    why = f"Hydra reads {taken} in quotes only" if taken else "Hydra cannot read the value"
    return f"{shortened(text)}: {why}{_quoted(given, raw, is_list=inner is str)}"


def _quoted(given: str, raw: str, *, is_list: bool) -> str:
    """`; quote it: ...`, ready for a shell, if quoting makes the value readable; else nothing."""
    path = os.path.expanduser(raw)  # a shell does not expand ~ after KEY=
    if is_list:
        items = (raw[1:-1] if raw[:1] + raw[-1:] == "[]" else raw).split(",")
        value = hydra_value([item.strip().strip("'\"") for item in items])
    else:
        value = hydra_value(path)
    cure = f"{given}={value}"
    return f"; quote it: {for_shell(cure)}" if _is_readable(cure) else ""


def for_shell(text: str) -> str:
    """An argument as typed in a shell."""
    return f'"{text}"' if "'" in text and not re.search(r'["$`!\\](?!\')', text) else shlex.quote(text)


def shortened(text: str) -> str:
    """A text of any length, cut to fit in a message."""
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


def _is_readable(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        return False
    return True


def _problems_of(text: str, override: Override, probe: DictConfig) -> list[str]:
    key, raw = override.key_or_group, text.partition("=")[2]
    if key in _groups() and not isinstance(override._value, dict):
        return _group_problems(text, override)
    if key.partition(".")[0] == "hydra":
        return [f"{text}: Hydra's own settings have no effect here; the run folder is exp_manager.explicit_log_dir"]
    if override.is_delete():
        return [f"{text}: a setting cannot be removed; leave it out to use its default"]
    if override.is_sweep_override():
        if key not in SETTINGS:
            return [unknown_key(key)]
        kind, inner, _ = kind_of(key)
        cure = _quoted(text.partition("=")[0], raw, is_list=kind is list) if str in (kind, inner) else ""
        return [f"{text}: {expected(key)} expected, not several values{cure}; `minordpo sweep` starts several runs"]
    added = override.is_add() or override.is_force_add()
    if added and key.startswith("model.") and ".".join(key.split(".")[:2]) not in SETTINGS:
        return []  # a key of the checkpoint's configuration, checked once that is read
    if not isinstance(override.value(), dict):
        return _setting_problems(key, override.value(), raw, probe)
    return [
        problem
        for inner, value in _leaves(key, override.value())
        for problem in _setting_problems(inner, value, hydra_value(value), probe)
    ]


@cache
def _groups() -> dict[str, list[str]]:
    """The groups in `conf/` and their files, without the experiments, which belong to `minordpo sweep`."""
    folders = (folder for folder in CONF.iterdir() if folder.is_dir() and folder.name != "experiment")
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _group_problems(text: str, override: Override) -> list[str]:
    key, names = override.key_or_group, _groups()[override.key_or_group]
    if override.package is not None:
        return [f"{text}: the group {key} cannot be moved to another section; set {key}=NAME"]
    value = None if override.is_sweep_override() else override.value()
    if value in names or (override.is_delete() and value is None):
        return []
    more = "; model.dpo.preference_loss accepts every loss" if key == "loss" else ""
    return [f"{text}: one of {', '.join(names)} expected{closest(str(value), names)}{more}"]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Split a dict given for a section into its settings."""
    if isinstance(value, dict) and is_dataclass(SETTINGS.get(key)):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _setting_problems(key: str, value: Any, raw: str, probe: DictConfig) -> list[str]:
    """Problems with a value, typed as `raw`, for the setting `key`."""
    if key not in SETTINGS:
        return [] if is_open(key) else [unknown_key(key)]
    kind, inner, _ = kind_of(key)
    shown = f"{key}={shortened(raw)}"
    for item in value if isinstance(value, list) else [value]:
        if str in (kind, inner) and isinstance(item, bool | int | float) and str(item) not in raw:
            cure = _quoted(key, raw, is_list=kind is list)
            return [f"{shown}: a string expected, but Hydra reads {item!r}{cure}"]
    if inner is not None and isinstance(value, list) and any(isinstance(item, list | dict | None) for item in value):
        return [f"{shown}: a list of single values expected"]
    try:
        OmegaConf.update(probe, key, value)
    except (OmegaConfBaseException, OverflowError):  # OverflowError: an integer too large for a float
        return [f"{shown}: {expected(key)} expected{_of_that_kind(key, value, raw)}"]
    return []


def _of_that_kind(key: str, value: Any, raw: str) -> str:
    """A suggestion: the same value in the type of the setting; empty if there is none."""
    kind, _, _ = kind_of(key)
    if kind is list and isinstance(value, str | int | float):
        return f", such as {key}=[{shortened(raw)}]"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f", such as {key}={int(value)}"
    return ""
