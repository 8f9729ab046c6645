import pytest

from nemo_minordpo.core.boundaries import beginning_of, end_ids, end_texts, missing_beginning, split_end
from tests.unit.prepare.templates import CHATML, make_tokenizer


class Tokenizer:
    bos_token_id = 7

    def __init__(self, ids_of_nothing):
        self.ids_of_nothing = ids_of_nothing

    def __call__(self, text):
        assert text == ""
        return type("Encoding", (), {"input_ids": self.ids_of_nothing})


@pytest.mark.parametrize(("ids_of_nothing", "expected"), [([7], [7]), ([], []), ([9], []), ([7, 9], [7])])
def test_bos_only_where_the_tokenizer_adds_it(ids_of_nothing, expected):
    assert beginning_of(Tokenizer(ids_of_nothing)) == expected


@pytest.mark.parametrize(("prompt", "expected"), [([1, 2], [7]), ([7, 1], []), ([1, 7], [7])])
def test_bos_is_not_doubled(prompt, expected):
    assert missing_beginning(prompt, [7]) == expected
    assert missing_beginning(prompt, []) == []


@pytest.mark.parametrize(
    ("eos", "vocabulary", "expected"),
    [
        (2, {"a": 1}, {2}),
        (2, {"<|im_end|>": 5}, {2, 5}),
        (2, {"<|eot_id|>": 6}, {2, 6}),
        (5, {"<|im_end|>": 5}, {5}),
        (None, {"a": 1}, set()),
    ],
)
def test_the_end_of_a_turn_ends_a_response_too(eos, vocabulary, expected):
    tokenizer = type("Tokenizer", (), {"eos_token_id": eos, "get_vocab": lambda self: vocabulary})()
    assert end_ids(tokenizer) == expected


def test_ends_as_texts():
    assert set(end_texts(make_tokenizer(CHATML, eos="<|endoftext|>"))) == {"<|endoftext|>", "<|im_end|>", "<|eot_id|>"}


@pytest.mark.parametrize(
    ("response", "body", "end"),
    [
        ("It is 2.", "It is 2.", ""),
        ("It is 2.\n", "It is 2.\n", ""),
        ("It is 2.<end>", "It is 2.", "<end>"),
        ("It is 2. <end>\n", "It is 2. ", "<end>"),
        ("It is 2.\n<end> \t\n\n", "It is 2.\n", "<end>"),
        ("It is 2.<end>\n<eos>", "It is 2.", "<end>"),
        ("It is 2.<eos><eos>\n", "It is 2.", "<eos>"),
        ("It <end> is 2.", "It <end> is 2.", ""),
        ("<end>\n", "", "<end>"),
        ("", "", ""),
    ],
)
def test_a_response_and_its_end(response, body, end):
    assert split_end(response, ["<eos>", "<end>", ""]) == (body, end)
    assert split_end(response, []) == (response, "")
