"""Chat templates with a fixed clock and named options."""

import pytest

from nemo_minordpo.core.chat_template import FixedTemplate, parse_options
from tests.unit.prepare import templates
from tests.unit.prepare.templates import make_tokenizer

USER = [{"role": "user", "content": "Hi"}]
DAYS = ("Pacific/Kiritimati", "Etc/GMT+12")  # time zones that never have the same day


def _render(template, **settings):
    return FixedTemplate(make_tokenizer(template), name="hf", **settings).render(USER, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "09 Mar 2024"),
        ("{{ strftime_now(format='%H:%M:%S') }}", "00:00:00"),
        ("{% macro m() %}{{ strftime_now('%Y') }}{% endmacro %}{% for i in [1, 2] %}{{ m() }}{% endfor %}", "20242024"),
        ("{% set ns = namespace(d=strftime_now('%j')) %}{{ ns.d }}", "069"),
        (
            "{% generation %}{% for i in [1, 2] %}{{ strftime_now('%d') }}{% break %}{% endfor %}{% endgeneration %}",
            "09",
        ),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", "2024"),
        ({"default": "{{ strftime_now('%d') }}", "tool_use": "tools"}, "09"),
    ],
)
def test_every_clock_of_a_template_shows_the_date(template, expected):
    assert _render(template, date="2024-03-09") == expected


def test_a_clock_may_show_an_hour():
    assert _render("{{ strftime_now('%H:%M') }}", date="2024-03-09T13:30") == "13:30"
    for written in ("2024-03-09", "20240309", "2024-03-09T00:00:00"):
        assert FixedTemplate(make_tokenizer(templates.LLAMA_3_2), name="hf", date=written).date == "2024-03-09"


def test_without_a_date_it_is_the_day_on_which_the_template_was_opened(move_to):
    """The date then stays fixed; transformers' own clock, the control, moves on."""
    tokenizer, shown, theirs = make_tokenizer(templates.LLAMA_3_2), set(), set()
    move_to(DAYS[0])
    opened = FixedTemplate(tokenizer, name="hf")
    for zone in DAYS:
        move_to(zone)
        shown.add(opened.render(USER))
        theirs.add(tokenizer.apply_chat_template(USER, tokenize=False))
    assert len(theirs) == 2
    assert len(shown) == 1
    assert shown < theirs
    assert FixedTemplate(tokenizer, name="hf").date != opened.date


def test_a_template_without_a_clock_has_no_date():
    assert FixedTemplate(make_tokenizer(templates.CHATML), name="hf").date is None
    with pytest.raises(ValueError, match="hf: a date was given, but the chat template does not use one"):
        _render(templates.CHATML, date="2024-03-09")
    with pytest.raises(ValueError, match=r"date '9.3.2024': expected an ISO 8601 date such as 2026-11-27"):
        _render(templates.LLAMA_3_2, date="9.3.2024")


def test_options_reach_the_template():
    assert "<think>" not in _render(templates.QWEN_3)
    assert "<think>" not in _render(templates.QWEN_3, options={"enable_thinking": True})
    thoughtless = _render(templates.QWEN_3, options={"enable_thinking": False})
    assert thoughtless.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "Today Date: then\n" in _render(templates.LLAMA_3_2, options={"date_string": "then"})


@pytest.mark.parametrize("name", ["enable_thinkin", "thought", "content", "messages", "m", "strftime_now", "tokenize"])
def test_an_option_that_the_template_does_not_take_is_refused(name):
    """`thought` and `content` are the template's own variables, which it sets before it reads them."""
    with pytest.raises(ValueError, match=f"hf: the chat template has no option '{name}'; it reads: enable_thinking$"):
        _render(templates.QWEN_3, options={name: 1})


def test_options_with_defaults_are_options():
    template = (
        "{% set effort = effort | default('low') %}{% if not style %}{% set style = 'dry' %}{% endif %}"
        "{{ effort, style }}"
    )
    assert _render(template) == "('low', 'dry')"
    assert _render(template, options={"effort": "high", "style": "wet"}) == "('high', 'wet')"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("x=false", False), ("x=False", False), ("x=TRUE", True), ("x=none", None), ("x=null", None), ("x=3", 3),
        ("x=-0.5", -0.5), ("x=low", "low"), ("x=26 Jul 2024", "26 Jul 2024"), ("x=", ""), ('x="3"', "3"),
        ("x=a=b", "a=b"), ('x={"a": [1]}', {"a": [1]}), ("x=NaN", "NaN"), ("x=1e999", "1e999"), ("x={", "{"),
    ],
)  # fmt: skip
def test_values_of_options(written, value):
    found = parse_options([written])
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (["enable_thinking"], "'enable_thinking': expected NAME=VALUE"),
        (["=3"], "'=3': expected NAME=VALUE"),
        (["a b=3"], "'a b=3': expected NAME=VALUE"),
        (["x=1", "x=2"], "'x' is given twice"),
    ],
)
def test_invalid_options(written, reason):
    with pytest.raises(ValueError, match=reason):
        parse_options(written)


@pytest.mark.parametrize("expression", ["{{ 'a'.index('b') }}", "{{ strftime_now(3) }}", "{{ messages[0].x.y }}"])
def test_a_failure_in_a_template_is_the_users_error(expression):
    with pytest.raises(ValueError, match=r"the chat template (rejects|fails on) the conversation"):
        _render(expression)
