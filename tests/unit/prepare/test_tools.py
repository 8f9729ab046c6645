import pytest

from nemo_minordpo.prepare.tools import read_calls, read_tools

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}
# as parquet returns it if another row's function has more keys
PADDED = {"name": "weather", "parameters": FUNCTION["parameters"] | {"required": None}, "strict": None}


@pytest.mark.parametrize(
    "value",
    [
        [TOOL], TOOL, [FUNCTION], [PADDED],
        '[{"type": "function", "function": {"name": "weather", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}}}}]',
        ['{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}'],
    ],
)  # fmt: skip
def test_every_way_to_write_tools(value):
    assert read_tools(value) == [TOOL]


@pytest.mark.parametrize("arguments", [{"city": "Bern"}, '{"city": "Bern"}'])
def test_arguments_are_an_object(arguments):
    call = {"id": "1", "function": {"name": "weather", "arguments": arguments}}
    assert read_calls([call]) == [{"id": "1", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]
    assert read_calls([{"name": "now"}]) == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize(
    ("read", "value", "reason"),
    [
        (read_tools, "get_weather(city)", "tools: text that is not JSON"),
        (read_tools, "[" * 20_000, "tools: text that is not JSON"),
        (read_tools, [3], "tools must be objects"),
        (read_tools, [{"function": "weather"}], "tools must be objects"),
        (read_tools, [{"type": "function", "function": {}}], "tools must be objects"),
        (read_calls, [{"name": "weather", "arguments": "Bern"}], "tool_calls: text that is not JSON"),
        (read_calls, [{"name": "weather", "arguments": [1]}], "arguments of a call must be an object"),
    ],
)
def test_invalid_tools_and_calls_are_refused(read, value, reason):
    with pytest.raises(ValueError, match=reason):
        read(value)
