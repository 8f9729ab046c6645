"""Mutated rows of public preference sets: each gives a pair that has everything in the row, or a reason."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.overlap import squeezed
from nemo_minordpo.prepare.preference import PreferenceRecipe
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair
from tests.fuzzing import FUZZ, NUM_EXAMPLES
from tests.unit.prepare.templates import TOOLS, save_tokenizer
from tests.unit.prepare.test_fuzz import SEEDS, _mutated_row

Q, C, R = "Name three tips for better sleep.", "Go to bed early, eat well.", "Read the news all night."
USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", Q), ("assistant", C), ("assistant", R)))
WHOLE = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
HUMAN, GPT, GPT_BAD = {"from": "human", "value": Q}, {"from": "gpt", "value": C}, {"from": "gpt", "value": R}
# UltraFeedback (binarized; Argilla's), Orca, distilabel, HH (also trimmed), OpenHermes, Capybara, LLaMA-Factory, TRL
ROWS = [
    *SEEDS["hf"],
    {"prompt": Q, "prompt_id": "a1", **WHOLE, "messages": [USER, GOOD], "score_chosen": 8.5, "score_rejected": 4.0},
    {"source": "evol", "prompt": Q, **WHOLE, "chosen-rating": 5.0, "rejected-rating": 2.0, "chosen-model": "x"},
    {"system": "You are an assistant.", "question": Q, "chosen": C, "rejected": R},
    {"system": "Be kind.", "input": Q, "chosen": C, "rejected": R, "generations": [C, R], "rating": [9.0, 2.0]},
    {"chosen": f"Human: Hi\n\nAssistant: Hello\n\nHuman: {Q}\n\nAssistant: {C}",
     "rejected": f"Human: Hi\n\nAssistant: Hello\n\nHuman: {Q}\n\nAssistant: {R}"},
    {"source": None, "prompt": Q, "candidates_completions": [C, R], "ranks": [0, 1], **WHOLE},
    {"chosen": [{"role": "system", "content": "Rhyme."}, USER, BAD, USER | {"content": "Why?"}, GOOD],
     "rejected": [{"role": "system", "content": "Rhyme."}, USER, BAD, USER | {"content": "Why?"}, BAD]},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_BAD, "system": "Be kind.", "tools": ""},
    {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "tips", "arguments": {"n": 3}}'},
     {"from": "observation", "value": "[1, 2, 3]"}], "chosen": GPT, "rejected": GPT_BAD, "tools": '[{"name": "tips"}]'},
    {"instruction": "Name tips.", "input": Q, "chosen": C, "rejected": R, "system": "Be kind.",
     "history": [["A", "B"]]},
    {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
    {"prompt": None, **WHOLE, "messages": None, "margin": 2.5},
]  # fmt: skip
_LABELS = re.compile(r"(?:\A\s*|\n\n)(?:Human|Assistant):")


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    chat = Prompting(template="chat", tokenizer=save_tokenizer(folder / "hf", TOOLS))
    return [PreferenceRecipe(prompting=prompting).open(folder) for prompting in (Prompting(), chat)]


def said(value):
    """The texts in messages, pairs of turns, dialogues or plain text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    if isinstance(value, str):
        return [text for text in _LABELS.split(value) if text.strip()]
    if isinstance(value, dict):
        return said(value.get("content") or value.get("value") or "")
    return [text for one in value for text in said(one)] if isinstance(value, list) else []


def check_nothing_is_lost(row, pair, named):
    """The pair contains the texts of the usual columns, or the column is named as unread."""
    responses = [squeezed(text) for text in (pair.chosen_response, pair.rejected_response)]
    whole = " ".join((squeezed(pair.prompt), *responses))
    for column in ("prompt", "instruction", "question", "conversations", "chosen", "rejected", "system", "history"):
        for text in said(row.get(column)) if column not in named else []:
            # a response that repeats the prompt is split
            ways = [squeezed(text), *(squeezed(text).removesuffix(response).rstrip() for response in responses)]
            assert any(way in whole for way in ways), (column, text)


def test_mutated_rows(makers):
    seen = Counter()

    @FUZZ
    @given(st.sampled_from(ROWS), st.sampled_from([0, 1]), st.booleans(), st.randoms(use_true_random=False))
    def try_one(row, kind, is_mutated, draw):
        row = _mutated_row(draw, row) if is_mutated else row
        fields = TrackedRow(row)
        try:
            made = makers[kind](fields, "rows.jsonl:1", 1)
            PreferencePair.from_json(json.dumps(vars(made.pair)))
        except UserError:
            seen["rejected"] += 1
            return
        seen["pair"] += 1
        unread = fields.unread(made.pair, question=made.question)
        assert set(unread.lost) <= set(unread.names)
        check_nothing_is_lost(row, made.pair, unread.names)

    try_one()
    assert seen.total() >= NUM_EXAMPLES
    assert min(seen["pair"], seen["rejected"]) > 0.1 * NUM_EXAMPLES, seen


def test_every_unmutated_row_has_a_known_layout(makers):
    for row in ROWS:
        made = makers[1](TrackedRow(row), "rows.jsonl:1", 1)
        check_nothing_is_lost(row, made.pair, ())


def test_a_loss_would_be_noticed(makers):
    row = ROWS[-3]
    made = makers[1](TrackedRow(row), "rows.jsonl:1", 1)
    for column in ("instruction", "system", "history", "chosen"):
        with pytest.raises(AssertionError, match=column):
            check_nothing_is_lost({**row, column: "Something else."}, made.pair, ())
