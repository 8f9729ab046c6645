"""Prompts come from the tokenizer's own template and match what the model sees when it is evaluated."""

import pytest

from nemo_minordpo.core.chat_template import FixedTemplate
from nemo_minordpo.prepare.chat import ChatTemplate, Prompting
from tests.unit.prepare import templates
from tests.unit.prepare.templates import make_tokenizer

USER = {"role": "user", "content": "What is 1 + 1?"}
TALK = [USER, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "And 2 + 2?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def _chat(template, *, system=None, options=None, **special):
    tokenizer = make_tokenizer(template, **special)
    return ChatTemplate(tokenizer, FixedTemplate(tokenizer, name="hf", options=options), name="hf", system=system)


def _pair(template, messages, *, chosen="Four.", rejected="Five.", **settings):
    return _chat(template, **settings).pair(messages, chosen=chosen, rejected=rejected)


@pytest.mark.parametrize(
    ("template", "messages", "prompt"),
    [
        (templates.CHATML, [USER], "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"),
        (
            templates.QWEN, [USER],
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            templates.SMOLLM2, TALK,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
            "<|im_start|>user\nAnd 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            templates.LLAMA_3, TALK,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nAnd 2 + 2?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            templates.NO_SYSTEM, [USER],
            "<start_of_turn>user\nWhat is 1 + 1?<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)  # fmt: skip
def test_prompts_end_with_the_generation_prompt_and_responses_are_as_written(template, messages, prompt):
    pair, note = _pair(template, messages)
    assert pair.prompt == prompt
    assert (pair.chosen_response, pair.rejected_response) == ("Four.", "Five.")
    assert note == ""


def test_the_system_turn_is_the_option_unless_a_conversation_has_its_own():
    with_option, _ = _pair(templates.QWEN, [USER], system="Be long.")
    assert with_option.prompt.startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\n")
    own, _ = _pair(templates.QWEN, [SYSTEM, USER], system="Be long.")
    assert own.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert own == _pair(templates.QWEN, [SYSTEM, USER])[0]


def test_a_template_without_system_turns_rejects_them_with_its_own_message():
    with pytest.raises(ValueError, match=r"hf: the chat template cannot be used with .* System role not supported"):
        _chat(templates.NO_SYSTEM, system="Be brief.")
    with pytest.raises(ValueError, match="rejects the conversation: System role not supported"):
        _pair(templates.NO_SYSTEM, [SYSTEM, USER])
    with pytest.raises(ValueError, match="rejects the conversation: Conversation roles must alternate"):
        _pair(templates.NO_SYSTEM, [USER, USER])


@pytest.mark.parametrize("chosen", ["<think>\nOne and one.\n</think>\n\nTwo.", "<think>\n\n</think>\n\nTwo.", "Two."])
def test_thoughts_of_a_response_are_not_mangled(chosen):
    pair, note = _pair(templates.QWEN_3, [USER], chosen=chosen, rejected="<think>\nHm.\n</think>\n\nThree.")
    assert pair.prompt == "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert pair.chosen_response == chosen
    # Without thoughts, the template itself would put an empty <think> before the response.
    assert note == (
        "the template would rewrite the response\n"
        "as written:      'Two.'\n"
        "by the template: '<think>\\n\\n</think>\\n\\nTwo.'"
        if chosen == "Two."
        else ""
    )


def test_thoughts_can_be_disabled_by_a_template_option():
    pair, note = _pair(templates.QWEN_3, [USER], options={"enable_thinking": False})
    assert pair.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert note == ""
    for number in range(2):
        responses = ["Two.", "Three."]
        responses[number] = "<think>\nHm.\n</think>\n\nTwo or three."
        with pytest.raises(ValueError, match="both prompt and response open <think>"):
            _pair(
                templates.QWEN_3, [USER], options={"enable_thinking": False}, chosen=responses[0], rejected=responses[1]
            )


def test_a_think_tag_in_the_question_is_allowed():
    asked = [{"role": "user", "content": "What is <think>?"}]
    assert _pair(templates.QWEN_3, asked, chosen="<think>\n\n</think>\n\nA tag.", rejected="<think>\n</think>\nNo.")


def test_thoughts_of_earlier_turns_are_left_to_the_template():
    talk = [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nTwo."}, TALK[2]]
    pair, _ = _pair(templates.QWEN_3, talk)
    assert "Hm." not in pair.prompt
    assert "<|im_start|>assistant\nTwo.<|im_end|>" in pair.prompt


def test_a_template_that_opens_the_thought_itself():
    pair, note = _pair(templates.R1, [USER], chosen="1 + 1.\n</think>Two.", rejected="Three.")
    assert pair.prompt == "<|User|>What is 1 + 1?<|Assistant|><think>\n"
    assert pair.chosen_response == "1 + 1.\n</think>Two."
    assert note == (
        "the template begins an assistant's turn differently from its generation prompt\n"
        "generation prompt: '<|Assistant|><think>\\n'\n"
        "assistant's turn:  '<|Assistant|>Two.<|end|>'"
    )
    with pytest.raises(ValueError, match="both prompt and response open <think>"):
        _pair(templates.R1, [USER], chosen="<think>\n1 + 1.\n</think>Two.")


def test_a_template_that_trims_the_response_is_noted():
    pair, note = _pair(templates.LLAMA_3, [USER], chosen=" Two. ")
    assert pair.chosen_response == " Two. "
    assert note.splitlines()[1:] == ["as written:      ' Two. '", "by the template: 'Two.'"]


def test_a_space_that_the_template_adds_is_noted():
    pair, note = _pair(templates.MISTRAL, [USER], eos="</s>", bos="<s>")
    assert (pair.prompt, pair.chosen_response) == ("<s>[INST] What is 1 + 1? [/INST]", "Four.")
    assert note.splitlines()[1:] == ["as written:      'Four.'", "by the template: ' Four.'"]
    assert _pair(templates.MISTRAL, [USER], eos="</s>", bos="<s>", chosen=" Four.", rejected=" Five.")[1] == ""


def test_a_note_on_a_long_response_shows_where_it_differs():
    _, note = _pair(templates.LLAMA_3, [USER], chosen="One and one are, as we know, two. " * 9)
    shown = "... 're, as we know, two."
    assert note.splitlines()[1:] == [f"as written:      {shown} '", f"by the template: {shown}'"]
    _, note = _pair(templates.LLAMA_3, [USER], chosen=" " + "x" * 200)
    assert note.splitlines()[1:] == [
        f"as written:      ' {'x' * 79}' ...", f"by the template: '{'x' * 80}' ...",
    ]  # fmt: skip


def test_a_template_that_rewrites_the_prompt_is_refused():
    with pytest.raises(ValueError, match=r"hf: .* rewrites the prompt once the response is added"):
        _chat(templates.FORGETFUL)


def test_a_template_that_drops_turns_is_refused():
    with pytest.raises(ValueError, match="leaves out a user turn"):
        _chat("{% if add_generation_prompt %}A:{% else %}A:{{ messages[-1].content }}{% endif %}")


@pytest.mark.parametrize(
    ("messages", "chosen"),
    [
        ([{"role": "user", "content": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}], "Two."),
        ([USER], "Two.<|im_end|>\n<|im_start|>user\nMore"),
    ],
)
def test_already_rendered_texts_are_refused(messages, chosen):
    with pytest.raises(ValueError, match=r"special token in a text: '<\|im_(start|end)\|>'"):
        _pair(templates.CHATML, messages, chosen=chosen)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|im_end|>\n<|im_end|> \n"])
@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_a_response_may_include_its_end_of_turn(eos, end):
    pair, note = _pair(templates.CHATML, [USER], chosen=f"Two.{end}", eos=eos)
    assert (pair.chosen_response, note) == (f"Two.{end}", "")
    assert _pair(templates.LLAMA_3, [USER], chosen="Two.<|eot_id|>\n", eos="<|eot_id|>")[1] == ""
    with pytest.raises(ValueError, match="differ only in how they end"):
        _pair(templates.CHATML, [USER], chosen=f"Two.{end}", rejected="Two.", eos=eos)


def test_an_end_of_turn_that_is_not_eos_gives_advice():
    assert _chat(templates.CHATML).advice == ""
    assert "ends an assistant's turn with '<|im_end|>\\n'" in _chat(templates.CHATML, eos="<|endoftext|>").advice
    assert "EOS '<|endoftext|>'" in _chat(templates.CHATML, eos="<|endoftext|>").advice


@pytest.mark.parametrize(
    "expression",
    ["{{ messages[0].content + 1 }}", "{{ messages[9].content }}", "{{ 1 / 0 }}", "{% for %}", "{{ nope() }}"],
)
def test_a_broken_template_is_a_user_error(expression):
    with pytest.raises(ValueError, match="hf: the chat template cannot be used"):
        _chat(templates.CHATML + expression)


def test_options_must_fit_the_template(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        _chat(None)
    for options, reason in (
        ({"template": "chat"}, "needs a tokenizer folder"),
        ({"tokenizer": tmp_path}, "no use for tokenizer"),
        ({"system": "Be brief."}, "no use for system"),
        ({"date": "2024-03-09"}, "no use for date"),
        ({"template_options": {"enable_thinking": False}}, "no use for template_options"),
        ({"template": "jinja"}, "choose 'plain' or 'chat'"),
    ):
        with pytest.raises(ValueError, match=reason):
            Prompting(**options)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="cannot load a Hugging Face tokenizer"):
        Prompting(template="chat", tokenizer=tmp_path).open()


@pytest.mark.parametrize(
    ("prompt", "chosen", "mark"),
    [
        ("<|user|>\nWhat is 1 + 1?</s>\n<|assistant|>\n", "Two.", "<|user|>"),
        ("[INST] What is 1 + 1? [/INST]", "Two.", "[INST]"),
        ("### Instruction:\nAdd 1 and 1.\n\n### Response:", "Two.", "### Instruction:"),
        ("What is 1 + 1?", "Two.</s>\n", "</s>"),
        ("What is [INST] in a prompt?", "It begins one, as <s> and </s> do.", None),
        ("What is 1 + 1?", "Two.<|im_end|>\n", None),  # the template's own
    ],
)
def test_marks_of_another_template_are_noted(prompt, chosen, mark):
    _, note = _pair(templates.CHATML, [{"role": "user", "content": prompt}], chosen=chosen)
    assert note.startswith("texts seem to be rendered by another template already\n") is (mark is not None)
    assert mark is None or f"found {mark!r}: " in note
