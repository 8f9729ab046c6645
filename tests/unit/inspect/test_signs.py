"""Refusals, cut ends, scripts and templates: on both sides of each line."""

import pytest

from nemo_minordpo.core.template_marks import RENDERED, families, templated_twice
from nemo_minordpo.inspect.responses import is_refusal, seems_cut
from nemo_minordpo.inspect.scripts import SCRIPTS, differ, letters_of, main_script


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I\u2019m sorry, but I can\u2019t.", True),
        ("I apologize, but I cannot provide this.", True),
        ("As an AI language model, I don't have feelings.", True),
        ("I am unable to fulfill your request.", True),
        ("I must respectfully decline.", True),
        ("Unfortunately, I will not write this.", True),
        ("I'm sorry to hear that! Here is what helps.", False),
        ("I'm sorry, but the answer in the book is wrong: it is 5.", False),
        ("You can't provide a negative number here.", False),
        ("I can't wait to see it. The answer is 4.", False),
        ("The song is called I Won't Back Down.", False),
        ("The answer is 7. " * 20 + "I cannot help you further.", False),
    ],
)
def test_refusals(response, expected):
    assert is_refusal(response) is expected


LONG = "This is a sentence that is long enough to be judged"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (LONG, True),
        (LONG + ",", True),
        (LONG + ":", True),
        (LONG + ".", False),
        (LONG + '."', False),
        (LONG + "!)", False),
        (LONG + " \U0001f600", False),
        (LONG + "\u3002", False),
        (LONG + ".\n#### 42", False),
        (LONG + ": the answer is 42", False),
        (LONG + ".<|im_end|>", False),
        (LONG + "<|im_end|>", True),
        (LONG + ":\n- apples\n- a pear", False),
        (LONG + ":\n2. a pear", False),
        (LONG + ".\n```\nprint(1)", True),
        (LONG + ".\n```\nprint(1)\n```", False),
        ("the red one", False),
        ("\u0e01" * 60, False),  # Thai has no full stop
        ("\u4e00" * 60, True),
    ],
)
def test_cut_ends(response, expected):
    assert seems_cut(response) is expected


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "Latin"),
        ("\u00dcb\u00e9r \u00df\u00f8", "Latin"),
        ("\uff28\uff45\uff4c\uff4c\uff4f", "Latin"),  # full width
        ("\u043f" * 5, "Cyrillic"),
        ("\u4f60" * 5, "Han"),
        ("\u3053\u3093\u306b\u30c1\u30cf", "Kana"),
        ("\ud55c" * 5, "Hangul"),
        ("\u0645" * 5, "Arabic"),
        ("\u05e9" * 5, "Hebrew"),
        ("\u0928" * 5, "Devanagari"),
        ("\u13a0" * 5, "other"),
        ("42 + 1 = x", "none"),
        ("", "none"),
        ("\U0001f600" * 9, "none"),
    ],
)
def test_scripts(text, script):
    assert SCRIPTS[main_script(letters_of(text))] == script


def test_texts_differ_if_two_have_no_script_in_common():
    latin, cyrillic, han, kana = (letters_of(one * 20) for one in ("a", "\u043f", "\u4e00", "\u306b"))
    both = letters_of("a" * 90 + "\u043f" * 10)
    little = letters_of("a" * 91 + "\u043f" * 9)
    number = letters_of("1 + 1")
    assert differ([latin, cyrillic, latin])
    assert differ([latin, latin, cyrillic])
    assert differ([han, latin])
    assert not differ([both, cyrillic])
    assert differ([little, cyrillic])
    assert not differ([han, kana])
    assert not differ([latin, number, latin])


@pytest.mark.parametrize(
    ("prompt", "responses", "expected"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", ["a<|im_end|>", "b"], ""),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", ["a<|eot_id|>", "b"], ""),
        ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", ["a", "b<end_of_turn>"], ""),
        ("<s>[INST] Hi [/INST] Hello</s> [INST] Why? [/INST]", ["a</s>", "b"], ""),
        ("<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n", ["a</s>", "b"], ""),
        ("Below is an instruction that describes a task.\n\n### Instruction:\nHi\n\n### Response:\n", ["a", "b"], ""),
        ("Hi", ["a</s>", "b"], ""),
        ("Hi", ["What does [INST] mean?", "b"], ""),
        ("<|im_start|>user\n<|im_start|>user\nHi", ["a", "b"], "opens inside another"),
        ("<s>[INST] <s>[INST] Hi [/INST]", ["a", "b"], "opens inside another"),
        ("### Instruction:\n### Instruction:\nHi", ["a", "b"], "opens inside another"),
        ("<|im_start|>user\n### Human: Hi<|im_end|>\n", ["a", "b"], "marks of ChatML and Alpaca"),
        ("Hi", ["a", " [INST] b"], "a response begins with"),
        ("<|im_start|>user\nHi<|im_end|>\n", ["a</s>", "b"], "is of ChatML"),
    ],
)  # fmt: skip
def test_templates(prompt, responses, expected):
    found = templated_twice(prompt, *responses)
    assert expected in found if expected else found == ""


def test_every_family_is_recognised_at_the_beginning():
    openings = ["<|im_start|>user", "<|begin_of_text|>", "<|user|>", "<start_of_turn>", "[INST] ", "### Human:"]
    assert [families(text) for text in openings] == [
        ["ChatML"], ["Llama 3"], ["Zephyr/Phi"], ["Gemma"], ["Llama 2/Mistral"], ["Alpaca"],
    ]  # fmt: skip
    assert all(RENDERED.match(f"\n{text}") for text in [*openings, "<s>", "<bos>"])
    assert not RENDERED.match("Hi <s>")
