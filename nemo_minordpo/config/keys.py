"""Settings by dotted key: all of them, their declarations, and the likely meaning of a misspelt one."""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import reduce
from types import UnionType
from typing import Any, get_args, get_origin

from nemo_minordpo.config.losses import LOSS_NAMES
from nemo_minordpo.config.sections import TrainConfig
from nemo_minordpo.config.setting import Setting, setting_of

_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
# Settings of other trainers that have no counterpart here, and what to do instead.
_REFUSED = {
    "bf16": "precision=bf16 trains in bfloat16",
    "fp16": "precision=bf16 trains in bfloat16; training in float16 has no shortcut here",
    "experiment": "`minordpo sweep NAME` runs the experiments of conf/experiment",
}


def _flat(section: type, prefix: str) -> dict[str, Any]:
    by_key: dict[str, Any] = {}
    for item in fields(section):
        by_key[prefix + item.name] = item
        if is_dataclass(item.type):
            by_key |= _flat(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]
    return by_key


_FIELDS = _flat(TrainConfig, "")
# Dotted key -> type, sections included.
SETTINGS = {key: item.type for key, item in _FIELDS.items()}
# Dotted key -> declaration, for settings only.
DECLARED: dict[str, Setting] = {key: setting_of(item) for key, item in _FIELDS.items() if not is_dataclass(item.type)}
# Name in another trainer -> key here.
_ELSEWHERE = {alias: key for key, declared in DECLARED.items() for alias in declared.aliases}


def declared(key: str) -> Setting | None:
    """The declaration of a key, or of the open section that contains it; None if it is not a setting."""
    while key and key not in DECLARED:
        key = key.rpartition(".")[0]
    return DECLARED.get(key)


def default_of(key: str) -> Any:
    """The default of a setting; MISSING if it is required."""
    item = _FIELDS[key]
    return item.default if item.default_factory is MISSING else item.default_factory()


def value_of(config: TrainConfig, key: str) -> Any:
    """The value of a dotted key in a configuration."""
    return reduce(getattr, key.split("."), config)


def reads(losses: Iterable[str], key: str) -> bool:
    """Whether one of some losses reads a setting; a user-defined loss is assumed to read all of them."""
    setting = declared(key)
    if setting is None or not setting.losses:
        return True
    return any(loss in setting.losses or loss not in LOSS_NAMES for loss in losses)


def short_name(key: str) -> str:
    """The label of a setting in run names: `beta`, `lr`, `dpop_lambda`; empty if the value speaks for itself."""
    setting = declared(key)
    return key.rpartition(".")[2] if setting is None or setting.short is None else setting.short


def closest(name: str, known: Iterable[str]) -> str:
    """A case-insensitive hint for a misspelt name: `; did you mean 'x'?`, or nothing."""
    match = _nearest(name, known, cutoff=0.6)
    return f"; did you mean {match!r}?" if match else ""


def unknown_key(key: str) -> str:
    """The error message for a dotted key that is not a setting."""
    leaf = key.rpartition(".")[2].lower()
    if reason := _REFUSED.get(leaf):
        return f"{key} is not a setting: {reason}"
    hint, plus = _meant(key, leaf), ""
    if key.startswith("model.") and key.count(".") == 1 and not hint:
        plus = f"; to change a key of the checkpoint's own model configuration, add a plus: +{key}=VALUE"
    return f"{key} is not a setting" + (f"; did you mean {hint}?" if hint else plus)


def is_open(key: str) -> bool:
    """Whether a key is, or lies in, a section that accepts arbitrary keys."""
    parts = key.split(".")
    return any(get_origin(SETTINGS.get(".".join(parts[:end]))) is dict for end in range(1, len(parts) + 1))


def kind_of(key: str) -> tuple[Any, Any, bool]:
    """(str, int, float, bool, list, dict or a section; item type of a list, else None; whether null is allowed)."""
    hint = str if SETTINGS[key] is Any else SETTINGS[key]  # Any: a string, or more (Setting.is_mix)
    may_be_null = isinstance(hint, UnionType)
    if may_be_null:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return (list, get_args(hint)[0], may_be_null) if get_origin(hint) is list else (hint, None, may_be_null)


def expected(key: str) -> str:
    """The type of a setting, in words."""
    kind, _, may_be_null = kind_of(key)
    if is_dataclass(kind):
        return f"a setting in it, such as {key}.{fields(kind)[0].name},"
    return _WORDS.get(kind, "a section") + (" or null" if may_be_null else "")


def _meant(key: str, leaf: str) -> str:
    """The setting that a key was probably meant to be; empty if there is no good guess."""
    if leaf in _ELSEWHERE:
        return _ELSEWHERE[leaf]
    by_leaf: dict[str, list[str]] = {}
    for known, kind in SETTINGS.items():
        if not is_dataclass(kind):
            by_leaf.setdefault(known.rpartition(".")[2], []).append(known)
    section = key.rpartition(".")[0].lower()
    siblings = [name.rpartition(".")[2] for name in SETTINGS if name.rpartition(".")[0] == section]
    if leaf not in by_leaf and (near := _nearest(leaf, siblings, cutoff=0.6)):
        return f"{section}.{near}".lstrip(".")
    if near := _nearest(leaf, by_leaf, cutoff=0.8):
        return max(by_leaf[near], key=lambda known: difflib.SequenceMatcher(None, key.lower(), known).ratio())
    return ""


def _nearest(name: str, known: Iterable[str], *, cutoff: float) -> str:
    """The known name most similar to `name`, else the longest one contained in it; empty if there is none."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    given = name.lower()
    if near := difflib.get_close_matches(given, by_lower, n=1, cutoff=cutoff):
        return by_lower[near[0]]
    parts = [lower for lower in by_lower if (len(lower) > 3 and lower in given) or (given and lower.startswith(given))]
    return by_lower[max(parts, key=len)] if parts else ""
