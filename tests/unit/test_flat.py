"""Flattening nested settings, and the differences between two sets of them."""

from nemo_minordpo.flat import differences, flatten


def test_nested_settings_get_dotted_keys_in_the_same_order():
    nested = {"b": {"y": 1, "x": {"z": None}}, "a": [1, {"not": "flat"}], "c": ""}
    assert list(flatten(nested).items()) == [("b.y", 1), ("b.x.z", None), ("a", [1, {"not": "flat"}]), ("c", "")]


def test_empty_mappings_disappear_and_empty_lists_stay():
    assert flatten({"a": {}, "b": {"c": {}}, "d": []}) == {"d": []}


def test_the_later_of_a_nested_and_a_dotted_key_wins():
    assert flatten({"a": {"b": 1}, "a.b": 2}) == {"a.b": 2}
    assert flatten({"a.b": 2, "a": {"b": 1}}) == {"a.b": 1}


def test_another_separator_is_used_at_all_levels():
    assert flatten({"model": {"a.json": {"sha256": "x"}}}, separator="/") == {"model/a.json/sha256": "x"}


def test_differences_are_named_by_key_and_a_missing_one_is_none():
    assert differences({"b": 1, "a": 2, "same": 3}, {"a": 4, "same": 3}) == [
        "  a: 2 there, 4 now",
        "  b: 1 there, None now",
    ]
