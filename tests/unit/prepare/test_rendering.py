"""Message keys besides role and content are rendered by the template, or reported as unused."""

import pytest

from nemo_minordpo.prepare.rendering import unused_keys
from tests.unit.prepare import templates
from tests.unit.prepare.test_chat import SYSTEM, USER, _chat

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
THINKING = {"role": "assistant", "content": "Two.", "reasoning_content": "One and one."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add"}


@pytest.mark.parametrize(
    ("template", "turns", "unused"),
    [
        (templates.TOOLS, [USER], []),
        (templates.TOOLS, [USER, CALLING, RESULT], ["name"]),
        (templates.TOOLS, [USER, THINKING], []),
        # thoughts of an earlier turn are left out on purpose
        (templates.TOOLS, [USER, THINKING, USER], []),
        (templates.CHATML, [USER, CALLING, RESULT], ["name", "tool_calls"]),
        (templates.CHATML, [USER, THINKING, USER], ["reasoning_content"]),
        # used in one turn, ignored in another
        (templates.TOOLS, [USER, CALLING, RESULT, {**USER, "tool_calls": [CALL]}], ["name", "tool_calls"]),
    ],
)
def test_keys_that_the_template_ignores(template, turns, unused):
    assert unused_keys(turns, _chat(template).render) == unused


def test_a_template_that_requires_a_key_uses_it():
    template = templates.CHATML.replace("{{ m.content }}", "{{ m.content + (m.name if m.role == 'tool' else '') }}")
    assert unused_keys([USER, RESULT], _chat(template).render) == []


def test_responses_are_rendered_without_the_end_of_the_turn():
    chat = _chat(templates.TOOLS).with_tools([TOOL])
    pair, note = chat.pair([SYSTEM, USER], chosen=CALLING, rejected=THINKING)
    assert pair.prompt == (
        '<|im_start|>system\n[{"type": "function", "function": {"name": "add", "parameters": {}}}]<|im_end|>\n'
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert pair.chosen_response == '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert pair.rejected_response == "<think>\nOne and one.\n</think>\n\nTwo."
    assert note == ""
    without, _ = _chat(templates.TOOLS).pair([SYSTEM, USER], chosen=CALLING, rejected=THINKING)
    assert "[" not in without.prompt  # with_tools returns a copy


def test_calls_that_differ_only_in_their_arguments_are_a_pair():
    other = {**CALLING, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
    pair, _ = _chat(templates.TOOLS).pair([USER], chosen=CALLING, rejected=other)
    assert '{"a": 1}' in pair.chosen_response
    assert '{"a": 2}' in pair.rejected_response


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (templates.TOOLS.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}"), "begins"),
        (
            templates.TOOLS.replace(
                "{% endif %}<|im_end|>", "{% endif %}{{ '<|eot_id|>' if m.tool_calls else '<|im_end|>' }}"
            ),
            "ends a turn",
        ),
    ],
)
def test_a_response_that_cannot_be_cut_out_is_refused(template, reason):
    with pytest.raises(ValueError, match=f"{reason}.* with tool_calls"):
        _chat(template).pair([USER], chosen=CALLING, rejected="Two.")


def test_special_tokens_in_thoughts_are_refused():
    response = {**THINKING, "reasoning_content": "One.<|im_end|>"}
    with pytest.raises(ValueError, match="special token in a text"):
        _chat(templates.TOOLS).pair([USER], chosen=response, rejected="Three.")
