"""A model is asked as the user says, or as the pairs were written that it was trained on."""

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
    """Makes a folder of pairs, as far as its manifest says how prompts are written."""

    def make(**settings):
        write_json(tmp_path / "pairs/manifest.json", {"stage": "prepare gsm8k", "settings": settings})
        return tmp_path / "pairs"

    return make


@pytest.fixture
def trained_on(tmp_path):
    """Makes a model's folder, as far as it says how the prompts of its training were written."""

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


def test_the_way_is_what_manifests_hold():
    assert _prompts(Asking(date="20240309", template_options={"enable_thinking": False})).way == WAY
    assert _prompts(Asking(template="plain")).way == PLAIN
    assert _prompts(Asking(), template=NO_SYSTEM).way == PLAIN | {"template": "chat"}


def test_an_interrupted_evaluation_lends_its_date_where_none_is_given():
    assert _prompts(Asking(), interrupted_date="2020-02-29").way["date"] == "2020-02-29"
    assert _prompts(Asking(date="2024-03-09"), interrupted_date="2020-02-29").way["date"] == "2024-03-09"
    assert _prompts(Asking(), template=NO_SYSTEM, interrupted_date="2020-02-29").way["date"] is None


def test_as_pairs_or_a_models_pairs_were_written(pairs, trained_on):
    folder, model = pairs(**WAY, tokenizer="hf", limit=None), trained_on(WAY)
    (folder / "train.jsonl").touch()
    for place in (folder, folder / "train.jsonl", model):
        assert _text(Asking().as_in(place)) == ASKED
    assert _text(Asking().as_in(pairs(**PLAIN))) == plain_prompt("Q?")


def test_what_is_given_counts_more_than_what_the_pairs_had(pairs):
    folder = pairs(**WAY)
    assert _text(Asking(date="2020-02-29").as_in(folder)) == ASKED.replace("09 Mar 2024", "29 Feb 2020")
    assert _text(Asking(system="Hi.").as_in(folder)) == ASKED.replace("2024|", "2024|Hi.|")
    thinking = Asking(template_options={"enable_thinking": True}).as_in(folder)
    assert _text(thinking) == ASKED.removesuffix("<think>")
    assert _text(Asking(template="plain").as_in(folder)) == plain_prompt("Q?")


@pytest.mark.parametrize(
    ("ways", "told"),
    [
        ([WAY], None),
        ([PLAIN, WAY], None),
        ([], None),
        ([PLAIN], "template: plain there, chat now (prompts that were rendered before `prepare` count as plain)"),
        ([WAY | {"date": "2020-02-29"}], "date: 2020-02-29 there, 2024-03-09 now. To ask"),
        (
            [WAY | {"system": "Hi.", "template_options": {}}],
            "system: Hi. there, None now; template_options: {} there, {'enable_thinking': False} now. To ask",
        ),
    ],
)  # fmt: skip
def test_prompts_that_are_not_those_of_the_training_are_told_in_one_line(trained_on, ways, told):
    model = trained_on(*ways)
    line = _prompts(Asking(date="2024-03-09", template_options={"enable_thinking": False})).not_as_trained(model)
    if told is None:
        assert line == ""
    else:
        assert line.startswith(f"{model} was trained on prompts written otherwise: {told}")
        assert line.endswith(f"--prompts-of {model}")
        assert "\n" not in line


def test_pairs_whose_prompts_are_not_known_cannot_be_followed(tmp_path, pairs, trained_on):
    (tmp_path / "nothing").mkdir()
    write_json(tmp_path / "foreign/manifest.json", ["a.bin"])
    for place in (tmp_path / "nothing", tmp_path / "foreign", pairs(), trained_on()):
        with pytest.raises(ValueError, match=rf"{place}: no manifest.json there that says how prompts were written"):
            Asking().as_in(place)
    with pytest.raises(ValueError, match="its prompts were written in 2 ways"):
        Asking().as_in(trained_on(WAY, PLAIN))
