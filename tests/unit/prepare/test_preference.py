"""Every layout in which preference data is published, and what is not one."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.preference import Columns, Preference, prepare_preference, read_preference
from tests.unit.prepare.templates import CHATML, save_tokenizer

USER, GOOD, BAD = (
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "assistant", "content": "Green."},
)
WHOLE = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
LONG_HH = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D"
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def _share_gpt(*messages):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


@pytest.mark.parametrize(
    ("row", "prompt", "rewards"),
    [
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, "Sky?", (None, None)),
        ({"question": "Sky?", "chosen": "Blue.", "rejected": "Green.", "prompt": None}, "Sky?", (None, None)),
        # TRL: explicit and implicit prompt
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER], (None, None)),
        ({"prompt": [SYSTEM, *FIRST, USER], "chosen": [GOOD], "rejected": [BAD]}, [SYSTEM, *FIRST, USER], (None, None)),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], (None, None)),
        ({"chosen": [*FIRST, USER, GOOD], "rejected": [*FIRST, USER, BAD]}, [*FIRST, USER], (None, None)),
        # UltraFeedback, binarized: the user's turn as a string, too, and scores
        (
            {"prompt": "Sky?", **WHOLE, "score_chosen": 8.5, "score_rejected": 2},
            [USER], (8.5, 2),
        ),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], (None, None)),
        ({"prompt": "Sky?", "chosen": [GOOD], "rejected": [BAD]}, [USER], (None, None)),
        # UltraFeedback as it was published first
        (
            {
                "instruction": "Sky?",
                "completions": [
                    {"response": "Grey.", "overall_score": 5.0}, {"response": "Blue.", "overall_score": 9},
                    {"response": "Green.", "overall_score": 1.5}, {"response": "None.", "overall_score": None},
                ],
            },
            "Sky?", (9, 1.5),
        ),
        # NeMo-Aligner
        (
            {
                "prompt": "Sky?", "chosen_response": "Blue.", "rejected_response": "Green.",
                "chosen_reward": 1.0, "rejected_reward": 0,
            },
            "Sky?", (1.0, 0),
        ),
        ({"prompt": [SYSTEM, USER], "chosen_response": GOOD, "rejected_response": BAD}, [SYSTEM, USER], (None, None)),
        ({"prompt": [USER], "chosen_response": "Blue.", "rejected_response": "Green."}, [USER], (None, None)),
        # ShareGPT's names of roles
        ({"chosen": _share_gpt(USER, GOOD), "rejected": _share_gpt(USER, BAD)}, [USER], (None, None)),
    ],
)  # fmt: skip
def test_layouts(row, prompt, rewards):
    assert read_preference(row, Columns()) == Preference(prompt, "Blue.", "Green.", *rewards)


def test_hh_dialogues_share_their_beginning():
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    row = {"chosen": f"{shared} Blue.", "rejected": f"{shared} Green.\nOr red."}
    assert read_preference(row, Columns()) == Preference(shared, " Blue.", " Green.\nOr red.", None, None)


def test_columns_are_mapped():
    row = {"q": "Sky?", "sys": "Be brief.", "good": "Blue.", "bad": "Green.", "g": 3, "b": 1, "prompt": "other"}
    columns = Columns(prompt="q", system="sys", chosen="good", rejected="bad", chosen_reward="g", rejected_reward="b")
    assert read_preference(row, columns) == Preference([SYSTEM, USER], "Blue.", "Green.", 3, 1)
    with pytest.raises(ValueError, match=r"missing column 'none' \(found: b, bad, g, good"):
        read_preference(row, Columns(prompt="none", chosen="good", rejected="bad"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "column 'chosen'"),
        ({"prompt": "P", "chosen": "C", "rejected": None}, "column 'rejected'"),
        ({"chosen": "It is blue.", "rejected": "It is green."}, "no prompt: name its column"),
        ({"prompt": 3, "chosen": "C", "rejected": "R"}, "prompt must be a string or messages: found int"),
        ({"prompt": "P", "chosen": 3, "rejected": "R"}, "chosen must be a string or messages: found int"),
        ({"prompt": "P", "chosen": "C", "rejected": [BAD]}, "one of chosen and rejected is a string"),
        ({"prompt": "P", "chosen": [], "rejected": [BAD]}, "chosen has no message"),
        ({"prompt": "P", "chosen": [None], "rejected": [BAD]}, "no message: NoneType"),
        ({"prompt": "P", "chosen": [{"role": "robot", "content": "C"}], "rejected": [BAD]}, "unknown role: 'robot'"),
        ({"prompt": "P", "chosen": [{"role": [], "content": "C"}], "rejected": [BAD]}, "unknown role"),
        ({"prompt": "P", "chosen": [{"role": "assistant", "content": None}], "rejected": [BAD]}, "not a text"),
        ({"prompt": "P", "chosen": {"role": "assistant", "content": [{}]}, "rejected": [BAD]}, "not a text"),
        ({"prompt": "P", "chosen": [{"role": "assistant", "content": " "}], "rejected": [BAD]}, "an empty message"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "both are equal"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "only the beginning"),
        ({"chosen": [USER, GOOD, *FIRST], "rejected": [USER, BAD]}, "chosen has more than one turn"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD, USER]}, "rejected has more than one turn"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt: chosen and rejected begin with different turns"),
        ({"chosen": [GOOD, USER], "rejected": [GOOD, BAD]}, "chosen ends with a turn of another role"),
        ({"prompt": "Sea?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not one of the turns"),
        ({"instruction": "P", "completions": "C"}, "completions must be a list"),
        ({"instruction": "P", "completions": [{"response": "C", "overall_score": 1}] * 3}, "none is better"),
        ({"instruction": "P", "completions": [3]}, "completions holds what is no object"),
        ({"prompt": "P", "chosen": "C", "rejected": "R", "chosen_reward": "9"}, "chosen_reward must be a number"),
        ({"prompt": "P", "chosen": "C", "rejected": "R", "chosen_reward": float("nan")}, "a finite number"),
        ({"prompt": "P", "chosen": "C", "rejected": "R", "chosen_reward": 10**400}, "a finite number"),
        (
            {"chosen": LONG_HH, "rejected": "\n\nHuman: A\n\nAssistant: E"},
            "differ before the assistant's last turn",
        ),
        (
            {"chosen": "\n\nHuman: A\n\nAssistant: E", "rejected": LONG_HH},
            "differ before the assistant's last turn",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_told(row, reason):
    with pytest.raises(ValueError, match=reason):
        read_preference(row, Columns())


def _prepared(folder, rows, **options):
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = prepare_preference([str(source)], folder / "out", options=BuildOptions(max_rejected=1), **options)
    pairs = [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()]
    reasons = [json.loads(line)["reason"] for line in (folder / "out/rejected_rows.jsonl").read_text().splitlines()]
    return pairs, reasons, manifest


def test_strings_are_taken_as_they_are_without_a_template(tmp_path):
    rows = [
        {
            "prompt": "<|im_start|>user\nSky?<|im_end|>\n",
            "chosen": " Blue.",
            "rejected": "Green.\n",
            "chosen_reward": 2,
        },
        {"prompt": [USER], "chosen": "Blue.", "rejected": "Green."},
        {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."},
    ]
    (pair, hh), (reason,), _ = _prepared(tmp_path, rows)
    assert pair == {
        "prompt": "<|im_start|>user\nSky?<|im_end|>\n", "chosen_response": " Blue.", "rejected_response": "Green.\n",
        "chosen_reward": 2, "rejected_reward": None, "source": f"{tmp_path}/rows.jsonl:1",
    }  # fmt: skip
    assert (hh["prompt"], hh["chosen_response"]) == ("\n\nHuman: Sky?\n\nAssistant:", " Blue.")
    assert reason == "messages need a chat template: --template chat and --tokenizer"


def test_conversations_go_through_the_template(tmp_path):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    hh = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    rows = [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "chosen_reward": 2.5, "rejected_reward": 1},
        {"chosen": [*FIRST, USER, GOOD], "rejected": [*FIRST, USER, BAD]},
        {"chosen": f"{hh} Blue.", "rejected": f"{hh} Grey."},
        {"prompt": hh, "chosen": " Light blue.", "rejected": "Grey. "},
        {"prompt": [*FIRST], "chosen": [GOOD], "rejected": [BAD]},
        {
            "prompt": "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n",
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {"chosen": "\n\nHuman:\n\nAssistant: Blue.", "rejected": "\n\nHuman:\n\nAssistant: Green."},
    ]
    pairs, reasons, manifest = _prepared(tmp_path, rows, prompting=prompting)
    single = "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    longer = f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n{single}"
    assert [pair["prompt"] for pair in pairs] == [single, longer, longer, longer]
    assert [pair["chosen_response"] for pair in pairs] == ["Blue.", "Blue.", "Blue.", "Light blue."]
    assert [pair["rejected_response"] for pair in pairs] == ["Green.", "Green.", "Grey.", "Grey."]
    assert (pairs[0]["chosen_reward"], pairs[0]["rejected_reward"]) == (2.5, 1)
    for reason, told in zip(("the user's turn", "special token in a text", "an empty message"), reasons, strict=True):
        assert reason in told
    # Human's turns are the question: rows of one dialogue stay together, whatever the layout was.
    assert manifest.counts["repeated_questions"] == 2
    assert str(tmp_path / "hf/tokenizer.json") in manifest.inputs


def test_several_files_of_several_kinds(tmp_path):
    parquet.write_table(
        pyarrow.Table.from_pylist([{"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]}]),
        tmp_path / "a.parquet",
    )
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "Sea?", "chosen": "Blue.", "rejected": "Green."}]))
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    sources = [str(tmp_path / "*.parquet"), str(tmp_path / "b.json")]
    manifest = prepare_preference(sources, tmp_path / "out", prompting=prompting)
    pairs = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [pair["source"] for pair in pairs] == [f"{tmp_path}/a.parquet:1", f"{tmp_path}/b.json:1"]
    assert set(manifest.inputs) >= {f"{tmp_path}/a.parquet", f"{tmp_path}/b.json"}
