"""Functions that a model may call, and calls to them, in the form that chat templates expect."""

import json
from typing import Any

from nemo_minordpo.errors import UserError


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Read functions as objects in OpenAI's form: {"type": "function", "function": {"name": ..., ...}}.

    Args:
        value: a list of such objects or of their "function" parts; one such object; or JSON of these.

    Returns:
        The functions without nulls: parquet adds one for every key that another row has.

    Raises:
        UserError: the value is anything else; the message says why.
    """
    return [_function(one, "tools") for one in _objects(value, "tools")]


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Read calls in the form of :func:`read_tools`, with their arguments as an object.

    Raises:
        UserError: a call has no name, or its arguments are not an object.
    """
    calls = [_function(one, "tool_calls") for one in _objects(value, "tool_calls")]
    for call in calls:
        function = call["function"]
        function["arguments"] = _decoded(function.get("arguments", {}), "tool_calls")
        if not isinstance(function["arguments"], dict):
            raise UserError("tool_calls: the arguments of a call must be an object")
    return calls


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    value = _decoded(value, what)
    objects = value if isinstance(value, list) else [value]
    objects = [_decoded(one, what) for one in objects]
    if not all(isinstance(one, dict) for one in objects):
        raise UserError(f"{what} must be objects, each with the name of a function")
    return objects


def _function(one: dict[str, Any], what: str) -> dict[str, Any]:
    one = _without_nulls(one)
    if "function" not in one:
        one = {"type": "function", "function": one}
    function = one["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{what} must be objects, each with the name of a function")
    return one


def _decoded(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: text that is not JSON") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
