"""`python -m nemo_minordpo.config.page > docs/settings.md`: all settings, generated from their declarations."""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from nemo_minordpo.config.keys import DECLARED, default_of, kind_of
from nemo_minordpo.config.losses import readers
from nemo_minordpo.config.overrides import hydra_value
from nemo_minordpo.config.sections import TrainConfig
from nemo_minordpo.config.setting import Setting

_INTRODUCTION = """# Settings of `minordpo train`

<!-- Generated from nemo_minordpo/config: python -m nemo_minordpo.config.page > docs/settings.md -->

Settings are given as `KEY=VALUE`, in Hydra's grammar. The groups `precision=`, `parallel=`, `fusions=`, `model=` and
`loss=` set several at once (`nemo_minordpo/conf`). Every value is checked before anything is loaded; an unknown name is
rejected, with the nearest known one as a suggestion.

"May change on resume" says whether a setting may differ when a run is resumed in its folder: settings that affect what
the run computes may not.
"""
_HEADER = "| setting | default | values | unit | may change on resume | meaning |\n|---|---|---|---|---|---|"
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "keys and values"}


def page() -> str:
    """The whole page, as Markdown."""
    sections = [f"\n## {title}\n\n{_HEADER}\n{rows}\n" for title, rows in _sections(TrainConfig, prefix="") if rows]
    return _INTRODUCTION + "".join(sections)


def _sections(section: type, *, prefix: str) -> Iterator[tuple[str, str]]:
    """Title and rows of a section and of its subsections."""
    keys = {f"{prefix}{item.name}": item.type for item in fields(section)}
    title = (section.__doc__ or "").strip().rstrip(".") if prefix else "Outside the sections"
    yield title, "\n".join(_row(key, DECLARED[key]) for key in keys if key in DECLARED)
    for key, kind in keys.items():
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _sections(kind, prefix=f"{key}.")


def _row(key: str, setting: Setting) -> str:
    default = default_of(key)
    meaning = setting.help[0].upper() + setting.help[1:] + "."
    if setting.losses:
        meaning += f" Read by {readers(setting.losses, form='`{}`')}."
    cells = [
        f"`{key}`",
        "required" if default == MISSING else f"`{hydra_value(default)}`",
        _values(key, setting),
        setting.unit,
        setting.resume.value,
        meaning,
    ]
    return f"| {' | '.join(cells)} |"


def _values(key: str, setting: Setting) -> str:
    """The allowed values: type, range or choices, and special values with their meaning."""
    kind, inner, _ = kind_of(key)
    if setting.choices:
        choices = ", ".join(f"`{choice}`" for choice in setting.choices)
        words = f"{'some of ' if inner else ''}{choices}" + (f", or `{setting.own}`" if setting.own else "")
        words += ", or names with weights, `{minordpo: 1.0, sft: 0.1}`" if setting.is_mix else ""
    elif setting.is_duration:
        words = "DD:HH:MM:SS"
    else:
        words = _kind_in_words(inner or kind, is_list=inner is not None, length=setting.length)
    if setting.range_in_words and not setting.is_duration:
        words += f" {setting.range_in_words}"
    special = [f"`{hydra_value(value)}`: {meaning}" for value, meaning in setting.special.items()]
    return "; ".join([words, *special])


def _kind_in_words(kind: Any, *, is_list: bool, length: int | None) -> str:
    word = _WORDS.get(kind, "keys and values")
    return f"{'list of' if length is None else length} {word}s" if is_list else word


if __name__ == "__main__":
    sys.stdout.write(page())
