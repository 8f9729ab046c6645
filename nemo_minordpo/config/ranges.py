"""Values that are wrong whatever the other settings are: out of range, not finite, or an oversight."""

import math
import re
from dataclasses import is_dataclass
from typing import Any

from nemo_minordpo.config.keys import DECLARED, closest, value_of
from nemo_minordpo.config.sections import TrainConfig
from nemo_minordpo.config.setting import Setting
from nemo_minordpo.errors import UserError

_LARGEST = 2**31 - 1  # largest integer that the libraries below accept
_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def range_problems(config: TrainConfig) -> list[str]:
    """A message for each value that its setting's declaration does not allow, or that is unusable for any setting."""
    out_of_range = [_out_of_range(key, value_of(config, key), setting) for key, setting in DECLARED.items()]
    return [*filter(None, out_of_range), *_unusable_values(config)]


def duration_in_seconds(text: str) -> int:
    """Convert a DD:HH:MM:SS duration to seconds.

    Raises:
        UserError: the text has another format.
    """
    if not re.fullmatch(r"\d{1,4}(:\d{1,4}){3}", text, re.ASCII):
        raise UserError(f"{text!r}: DD:HH:MM:SS expected, such as 00:03:50:00")
    days, hours, minutes, seconds = map(int, text.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _out_of_range(key: str, value: Any, setting: Setting) -> str:
    """Why a value is out of range; empty if it is not."""
    if setting.is_mix:
        return _wrong_mix(key, value, setting)
    if isinstance(value, list):
        return _wrong_list(key, value, setting)
    if value is None or isinstance(value, dict) or value in setting.special:
        return ""
    if setting.choices:
        return _wrong_choice(key, value, setting)
    if setting.is_duration:
        return _wrong_duration(key, value, setting)
    if setting.range_in_words and not setting.allows(value):
        name = f"{key}={value}" + (f": {setting.short}" if setting.short else "")
        unit = f" {setting.unit}" if setting.unit else ""
        why = f" ({setting.why})" if setting.why else ""
        return f"{name} must be {setting.range_in_words}{unit}{_or_special(setting)}{why}"
    return ""


def _wrong_list(key: str, values: list[Any], setting: Setting) -> str:
    if setting.nonempty and not values:
        return f"{key}=[]: name at least one {setting.nonempty}"
    if setting.choices and not set(values) <= set(setting.choices):
        return f"{key}={values}: some of {', '.join(setting.choices)} expected"
    if setting.length and not (len(values) == setting.length and all(map(setting.allows, values))):
        return f"{key}={values}: {setting.length} numbers {setting.range_in_words}{_or_special(setting)} expected"
    return ""


def _wrong_choice(key: str, value: Any, setting: Setting) -> str:
    if value in setting.choices or (setting.own and _OWN.fullmatch(value)):
        return ""
    if not isinstance(value, str):
        return f"{key}={value} must be {' or '.join(map(str, setting.choices))}: {setting.why}"
    own = f", or one of your own as {setting.own}" if setting.own else ""
    known = f"known: {', '.join(setting.choices)}{own}"
    return f"{key}={value!r} is unknown; {known}{closest(value, setting.choices)}"


def _wrong_mix(key: str, value: Any, setting: Setting) -> str:
    """Why a value is neither a choice nor a mapping of choices to weights; empty if it is one."""
    if isinstance(value, str):
        return _wrong_choice(key, value, setting)
    form = f"{key}={{{setting.choices[0]}: 1.0, {setting.choices[-1]}: 0.1}}"
    if not isinstance(value, dict) or not value:
        return f"{key}={value}: a name, or names with weights, expected, such as {form}"
    for name, weight in value.items():
        if name not in setting.choices:
            own = f"; {setting.own} cannot be mixed: call the other losses in it" if setting.own else ""
            known = f"known: {', '.join(setting.choices)}{own}"
            return f"{key}: {name!r} is unknown; {known}{closest(str(name), setting.choices)}"
        if not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0:
            return f"{key}.{name}={weight}: a weight >= 0 expected, such as {form}"
    return "" if any(value.values()) else f"{key}={value}: every weight is 0: there is no loss to train"


def _wrong_duration(key: str, value: str, setting: Setting) -> str:
    try:
        seconds = duration_in_seconds(value)
    except UserError as error:
        return f"{key}={error}"
    return "" if setting.allows(seconds) else f"{key}={value!r} must be longer than 0{_or_special(setting)}"


def _or_special(setting: Setting) -> str:
    """Special values outside the range: `, or null (no limit)`."""
    outside = {key: text for key, text in setting.special.items() if key is None or not setting.allows(key)}
    return "".join(f", or {'null' if key is None else key} ({text})" for key, text in outside.items())


def _unusable_values(value: Any, *keys: str) -> list[str]:
    """A message for each number that is not finite or far too large, and each string that must be an oversight."""
    if problem := _unusable(value):
        # keys of the checkpoint's own configuration are typed as `model.KEY`, like those of ModelSection
        key = ".".join("model" if key == "checkpoint_overrides" else key for key in keys)
        return [f"{key}={problem}"]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return [message for key, item in value.items() for message in _unusable_values(item, *keys, str(key))]
    if isinstance(value, list):
        return [message for item in value for message in _unusable_values(item, *keys)]
    return []


def _unusable(value: Any) -> str:
    """Why a value is unusable for any setting; empty if it is usable."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}: a finite number expected"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"{str(value)[:20]}{'...' if abs(value) >= 10**20 else ''}: a number up to {_LARGEST} expected"
    if value == "":
        return "'': a string expected (was a shell variable empty?); use null for no value"
    if isinstance(value, str) and value.startswith("~/"):
        return f"{value}: the shell does not expand ~ in quotes or after KEY=; write the path in full"
    return ""
