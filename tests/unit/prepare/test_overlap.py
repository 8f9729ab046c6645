"""A prompt that both responses repeat is removed from them once, or the row is refused."""

import pytest

from nemo_minordpo.prepare.overlap import is_telling, rest_behind, without_prompt


@pytest.mark.parametrize(
    ("text", "beginning", "rest"),
    [
        ("Q: 2+2?\nA: 4", "Q: 2+2?\nA:", " 4"),
        ("Q: 2+2?\nA: 4", "Q: 2+2?\nA: ", "4"),
        ("Q:  2+2?\n\nA:\n4 ", " Q: 2+2?\nA: ", "4 "),  # other white space
        ("Q:2+2?4", "Q:2+2?", "4"),
        ("High noon", "Hi", None),  # ends within a word
        ("Hi there", "Hi", " there"),
        ("你好吗", "你好", "吗"),  # no spaces between words
        ("What is it? It", "What was it?", None),
        ("What", "What is it?", None),
        ("What", " ", None),
    ],
)
def test_the_rest_after_a_beginning(text, beginning, rest):
    assert rest_behind(text, beginning) == rest


@pytest.mark.parametrize(
    ("text", "telling"),
    [("Hello", False), ("Good morning, Ann", False), ("How are you?", True), ("Answer: ", True), ("3 + 3 =", True),
     ("Tell me a joke", True), ("你好", False), ("请讲一个笑话", True)],
)  # fmt: skip
def test_texts_that_no_response_begins_with_by_chance(text, telling):
    assert is_telling(text) is telling


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "rests"),
    [
        ("Q: 3+3?\nA: ", "Q: 3+3?\nA: 6", "Q: 3+3?\nA: 7", ("6", "7")),
        ("What is 3+3?", "What  is 3+3? 6.", "What is\n3+3? 7.", (" 6.", " 7.")),
        # only the end of the prompt: one line, several, a label
        ("Read this.\n\nWhat is in it?", "What is in it?\nWords.", "What is in it?\nDots.", ("\nWords.", "\nDots.")),
        ("Do it.\n### Response:\n", "### Response:\nYes.", "### Response:\nNo.", ("Yes.", "No.")),
        ("Q: 3+3? A:", "A: 6", "A: 7", (" 6", " 7")),
        # no repetition
        ("What is 3+3?", "6", "7", None),
        ("Is it A or B", "B", "B because", None),
        ("Hi", "High five", "His hat", None),
        ("Hello", "Hello, Ann", "Good day", None),  # a greeting in one response only
        ("Q: 3+3?\nA:", "A: 6", "7", None),  # a label that only one response repeats is its style
    ],
)
def test_the_prompt_is_removed_from_both(prompt, chosen, rejected, rests):
    assert without_prompt(prompt, chosen=chosen, rejected=rejected) == rests


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ("What is 3+3?", "What is 3+3? 6.", "7", "one response begins with the prompt, the other does not"),
        ("What is 3+3?", "7", "What is 3+3? 6.", "one response begins with the prompt, the other does not"),
        ("Hello", "Hello, Ann", "Hello, Bob", "so short that this may be chance"),
        (
            "What is 3+3?",
            "Question: What is 3+3?\nAnswer: 6",
            "Question: What is 3+3?\nAnswer: 7",
            "after the same opening words",
        ),
    ],
)
def test_ambiguous_repetition_is_refused(prompt, chosen, rejected, reason):
    with pytest.raises(ValueError, match=reason):
        without_prompt(prompt, chosen=chosen, rejected=rejected)
