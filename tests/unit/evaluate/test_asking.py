"""A model is prompted as the user says, or in the format of its training pairs."""

import pytest

from nemo_minordpo.core.gsm8k import paper_prompt, plain_prompt
from nemo_minordpo.evaluate.asking import Asking
from nemo_minordpo.files import write_json
from tests.unit.prepare.templates import NO_SYSTEM, make_tokenizer

TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}|{% for m in messages %}{{ m.content }}|{% endfor %}"
    "{% if enable_thinking is false %}<think>{% endif %}"
)
WAY = {"template": "chat", "system": None, "date": "2024-03-09", "template_options": {"enable_thinking": False}}
PLAIN = {"template": "plain", "system": None, "date": None, "template_options": {}}
ASKED = f"09 Mar 2024|{paper_prompt('Q?')}|<think>"


def _prompts(asking, *, template=TEMPLATE, interrupted_date=None):
    return asking.prompts(make_tokenizer(template), interrupted_date=interrupted_date)


def _text(asking, **settings):
    return _prompts(asking, **settings).text("Q?")


@pytest.fixture
def pairs(tmp_path):
    """Makes a folder of pairs, with only the manifest's prompt format."""

    def make(**settings):
        write_json(tmp_path / "pairs/manifest.json", {"stage": "prepare gsm8k", "settings": settings})
        return tmp_path / "pairs"

    return make


@pytest.fixture
def trained_on(tmp_path):
    """Makes a model's folder, with only the prompt formats of its training."""

    def make(*ways):
        write_json(tmp_path / "model/manifest.json", {"stage": "export-hf", "settings": {}, "prompts": list(ways)})
        return tmp_path / "model"

    return make


def test_plain_or_chat():
    assert _text(Asking(template="plain")) == plain_prompt("Q?")
    assert _text(Asking(), template=None) == plain_prompt("Q?")
    chat = Asking(system="Hi.", date="2024-03-09", template_options={"enable_thinking": False})
    assert _text(chat) == f"09 Mar 2024|Hi.|{paper_prompt('Q?')}|<think>"
    with pytest.raises(ValueError, match="rejects the conversation: System role not supported"):
        _text(Asking(system="Hi."), template=NO_SYSTEM)


def test_the_format_is_as_in_manifests():
    assert _prompts(Asking(date="20240309", template_options={"enable_thinking": False})).way == WAY
    assert _prompts(Asking(template="plain")).way == PLAIN
    assert _prompts(Asking(), template=NO_SYSTEM).way == PLAIN | {"template": "chat"}


def test_the_date_defaults_to_that_of_the_interrupted_evaluation():
    assert _prompts(Asking(), interrupted_date="2020-02-29").way["date"] == "2020-02-29"
    assert _prompts(Asking(date="2024-03-09"), interrupted_date="2020-02-29").way["date"] == "2024-03-09"
    assert _prompts(Asking(), template=NO_SYSTEM, interrupted_date="2020-02-29").way["date"] is None


def test_the_format_is_taken_from_pairs_or_from_a_models_pairs(pairs, trained_on):
    folder, model = pairs(**WAY, tokenizer="hf", limit=None), trained_on(WAY)
    (folder / "train.jsonl").touch()
    for place in (folder, folder / "train.jsonl", model):
        assert _text(Asking().as_in(place)) == ASKED
    assert _text(Asking().as_in(pairs(**PLAIN))) == plain_prompt("Q?")


def test_given_options_override_those_of_the_pairs(pairs):
    folder = pairs(**WAY)
    assert _text(Asking(date="2020-02-29").as_in(folder)) == ASKED.replace("09 Mar 2024", "29 Feb 2020")
    assert _text(Asking(system="Hi.").as_in(folder)) == ASKED.replace("2024|", "2024|Hi.|")
    thinking = Asking(template_options={"enable_thinking": True}).as_in(folder)
    assert _text(thinking) == ASKED.removesuffix("<think>")
    assert _text(Asking(template="plain").as_in(folder)) == plain_prompt("Q?")


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([WAY], None),
        ([PLAIN, WAY], None),
        ([], None),
        ([PLAIN], "template: plain there, chat now (prompts rendered before `prepare` count as plain)"),
        ([WAY | {"date": "2020-02-29"}], "date: 2020-02-29 there, 2024-03-09 now. To use"),
        (
            [WAY | {"system": "Hi.", "template_options": {}}],
            "system: Hi. there, None now; template_options: {} there, {'enable_thinking': False} now. To use",
        ),
    ],
)  # fmt: skip
def test_prompts_unlike_those_of_the_training_are_reported_in_one_line(trained_on, ways, expected):
    model = trained_on(*ways)
    line = _prompts(Asking(date="2024-03-09", template_options={"enable_thinking": False})).not_as_trained(model)
    if expected is None:
        assert line == ""
    else:
        assert line.startswith(f"{model} was trained on prompts in another format: {expected}")
        assert line.endswith(f"--prompts-of {model}")
        assert "\n" not in line


def test_pairs_with_an_unknown_or_ambiguous_format_are_refused(tmp_path, pairs, trained_on):
    (tmp_path / "nothing").mkdir()
    write_json(tmp_path / "foreign/manifest.json", ["a.bin"])
    for place in (tmp_path / "nothing", tmp_path / "foreign", pairs(), trained_on()):
        with pytest.raises(ValueError, match=rf"{place}: no manifest.json with a prompt format"):
            Asking().as_in(place)
    with pytest.raises(ValueError, match="its prompts have 2 formats"):
        Asking().as_in(trained_on(WAY, PLAIN))
