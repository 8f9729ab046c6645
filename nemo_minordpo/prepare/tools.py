"""Functions that a model may call, and calls of them, as chat templates take them."""

import json
from typing import Any

from nemo_minordpo.errors import UserError


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Functions in OpenAI's form: {"type": "function", "function": {"name": ..., ...}}, one object each.

    Args:
        value: a list of such objects, or of what stands under "function" in them; one such object; or JSON of these.

    Returns:
        Without nulls: columns of parquet put one under every key that another row has.

    Raises:
        ValueError: it is something else; the reason.
    """
    return [_function(one, "tools") for one in _objects(value, "tools")]


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Calls of functions in the form of :func:`read_tools`, their arguments as an object.

    Raises:
        ValueError: there is one without a name or whose arguments are no object; the reason.
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
        raise UserError(f"{what} must be objects with the name of a function each")
    return objects


def _function(one: dict[str, Any], what: str) -> dict[str, Any]:
    one = _without_nulls(one)
    if "function" not in one:
        one = {"type": "function", "function": one}
    function = one["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{what} must be objects with the name of a function each")
    return one


def _decoded(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: a text that is not JSON") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
