"""Flatten nested settings, and list the differences between two sets of them."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], *, separator: str = ".") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, in the same order; lists stay as they are.

    Empty mappings disappear. If two entries mean the same key, as in `{"a": {"b": 1}, "a.b": 2}`, the later one wins.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator=separator)
            flat |= {f"{key}{separator}{name}": content for name, content in inner.items()}
        else:
            flat[key] = value
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: OLD there, NEW now` for each flat setting that differs, sorted by key."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"  {key}: {before.get(key)} there, {now.get(key)} now" for key in keys]
