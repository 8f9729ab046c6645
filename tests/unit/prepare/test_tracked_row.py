"""Columns that are in a row but not in its pair are named; those that carry meaning are listed separately."""

import math

import pytest

from nemo_minordpo.prepare.tracked_row import TrackedRow, is_empty
from nemo_minordpo.records import PreferencePair

PAIR = PreferencePair(
    prompt="<user>Be brief. Who went home?<bot>", chosen_response="Bob did.", rejected_response="Ann did."
)


def _unread(columns, *, read=(), left_out=()):
    row = TrackedRow(columns, left_out=left_out)
    for name in read:
        row.get(name)
    return row.unread(PAIR, question="Who went home?")


def test_unread_columns_are_named_unless_they_are_empty():
    columns = {"id": 3, "chosen": "Bob", "score": 0.5, "a": None, "b": " ", "c": [], "d": [None, {"x": ""}]}
    columns |= {"e": math.nan, "f": "[]", "g": {}, "h": 0, "i": False}
    found = _unread(columns, read=["chosen", "none"])
    assert found.names == ["id", "score", "h", "i"]
    assert found.lost == []


@pytest.mark.parametrize(
    "name",
    [
        "context",
        "Context",
        "systemPrompt",
        "SYSTEM PROMPT",
        "tools",
        "images",
        "history",
        "chat_template_kwargs",
        "initial_reason_steps",
        "chosen_reasoning",
        "options",
    ],
)
def test_columns_with_meaning_are_lost_unless_they_are_left_out(name):
    columns = {name: "Bob went home on Monday."}
    assert _unread(columns).lost == [name]
    assert _unread(columns, left_out=[name.lower()]) == ([name], [])
    assert _unread(columns, read=[name]) == ([], [])


@pytest.mark.parametrize(
    ("column", "value", "is_lost"),
    [
        ("question", " Who  went home?", False),  # the question itself
        ("instruction", "Be brief. Who went home?", False),  # part of the prompt
        ("input", "Who", True),  # so short that it may be in the prompt by chance
        ("messages", [{"role": "user", "content": "Who went home?"}, {"role": "assistant", "content": "Eve."}], False),
        ("messages", [{"role": "system", "content": "Guess."}, {"role": "user", "content": "Who went home?"}], True),
        ("messages", [{"from": "human", "value": "Who went home?"}], False),
        ("messages", [{"role": "user", "content": "Who"}, {"role": "user", "content": "home?"}], False),
        ("images", ["Who", "home"], True),  # by chance
        ("tools", [{"type": "function", "function": {"name": "home"}}], True),
    ],
)  # fmt: skip
def test_columns_that_the_pair_repeats_are_not_lost(column, value, is_lost):
    found = _unread({column: value})
    assert (found.names, bool(found.lost)) == ([column], is_lost)


def test_keys_within_a_column():
    row = TrackedRow({"chosen": []}, left_out=["thinking"])
    for key in ("name", "reasoning_content", "thinking"):
        row.drop(key, within="messages")
    found = row.unread(PAIR, question="")
    assert found.names == ["name in messages", "reasoning_content in messages", "thinking in messages"]
    assert found.lost == ["reasoning_content in messages"]


def test_a_column_is_found_under_another_spelling():
    row = TrackedRow({"Prompt": 1, "prompt_": 2, "chosen": 3, "Chosen": 4})
    assert [row.spelt(name) for name in ("prompt", "chosen", "none")] == ["Prompt", "chosen", "none"]


def test_names_are_shown_on_one_line():
    names = _unread({"a\nb": 1, "\ud800": 2, "x" * 1000: 3, "größe": 4}).names
    assert names == ["a\\nb", "\\ud800", "x" * 80, "größe"]


def test_numbers_are_not_empty():
    assert not any(map(is_empty, (0, False, math.nan, "0", [0], {"a": 0})))
