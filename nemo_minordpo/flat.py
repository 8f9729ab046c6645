"""Nested settings under dotted keys, and what differs between two sets of them."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, in the same order; an empty mapping inside stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: old there, new now` of each flat setting that is not the same, in the order of the keys."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"  {key}: {before.get(key)} there, {now.get(key)} now" for key in keys]
