"""Every layout of published preference data, and rows that fit none."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.columns import Columns
from nemo_minordpo.prepare.preference import prepare_preference
from nemo_minordpo.prepare.row_formats import REPEATED, Preference, read_preference
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair
from tests.unit.prepare.templates import CHATML, TOOLS, save_tokenizer

USER, GOOD, BAD = (
    {"role": "user", "content": "Sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "assistant", "content": "Green."},
)
WHOLE = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
HH = "\n\nHuman: Sky?\n\nAssistant:"
LONG_HH = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D"
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def _read(row, **columns):
    return read_preference(TrackedRow(row), Columns(**columns))


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
        # UltraFeedback, binarized: also has the user's turn as a string, and scores
        (
            {"prompt": "Sky?", **WHOLE, "score_chosen": 8.5, "score_rejected": 2},
            [USER], (8.5, 2),
        ),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], (None, None)),
        ({"prompt": "Sky?", "chosen": [GOOD], "rejected": [BAD]}, [USER], (None, None)),
        # UltraFeedback as first published
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
        # Alpaca: the input follows the instruction, the history precedes it
        ({"instruction": "Say:", "input": "sky", "chosen": "Blue.", "rejected": "Green."}, "Say:\nsky", (None, None)),
        ({"instruction": "Sky?", "input": "<noinput>", "chosen": "Blue.", "rejected": "Green."}, "Sky?", (None, None)),
        ({"instruction": "Sky?", "input": " Sky? ", "chosen": "Blue.", "rejected": "Green."}, "Sky?", (None, None)),
        ({"instruction": "", "input": "Sky?", "chosen": "Blue.", "rejected": "Green."}, "Sky?", (None, None)),
        (
            {
                "instruction": "Sky?", "input": "", "history": [["Hi", "Hello"]], "system": "Be brief.",
                "chosen": "Blue.", "rejected": "Green.",
            },
            [SYSTEM, *FIRST, USER], (None, None),
        ),
        ({"Prompt": "Sky?", "Chosen": "Blue.", "REJECTED": "Green."}, "Sky?", (None, None)),
        # LLaMA-Factory's ShareGPT, and rows with nothing but messages
        ({"conversations": _share_gpt(USER), "chosen": GOOD, "rejected": BAD, "system": ""}, [USER], (None, None)),
        ({"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], (None, None)),
        # a system turn both in a column and in the conversation
        (
            {"system": "Be  brief.", "prompt": [SYSTEM, USER], "chosen": "Blue.", "rejected": "Green."},
            [SYSTEM, USER], (None, None),
        ),
        # messages as JSON text, as in tables without list columns
        (
            {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)},
            [USER], (None, None),
        ),
        ({"prompt": "Sky?", **{key: json.dumps(value) for key, value in WHOLE.items()}}, [USER], (None, None)),
        # ShareGPT's names for roles
        ({"chosen": _share_gpt(USER, GOOD), "rejected": _share_gpt(USER, BAD)}, [USER], (None, None)),
    ],
)  # fmt: skip
def test_layouts(row, prompt, rewards):
    chosen_reward, rejected_reward = rewards
    assert _read(row) == Preference(
        prompt=prompt, chosen=GOOD, rejected=BAD, chosen_reward=chosen_reward, rejected_reward=rejected_reward
    )


def test_hh_dialogues_share_their_beginning():
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    row = {"chosen": f"{shared} Blue.", "rejected": f"{shared} Green.\nOr red."}
    found = _read(row)
    assert (found.prompt, found.chosen["content"], found.rejected["content"]) == (shared, " Blue.", " Green.\nOr red.")


@pytest.mark.parametrize(
    "text", ['[{"content": 3}]', '{"value": "x"}', "{'value': 3}", '{"role": "admin", "name": "x"}', "[]"]
)
def test_json_that_is_not_a_message_is_an_answer(text):
    found = _read({"prompt": "Sky?", "chosen": text, "rejected": "Green."})
    assert (found.prompt, found.chosen["content"]) == ("Sky?", text)


@pytest.mark.parametrize("beginning", ["", "\n\n", " "])
def test_dialogues_may_be_trimmed(beginning):
    hh = f"{beginning}Human: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    for row in ({"chosen": f"{hh} B", "rejected": f"{hh} G"}, {"prompt": hh, "chosen": " B", "rejected": " G"}):
        found = _read(row)
        assert found.turns() == [*FIRST, USER]
        assert (found.chosen["content"], found.rejected["content"]) == (" B", " G")


def test_a_call_may_be_a_turn_of_its_own():
    called = {"from": "function_call", "value": '{"name": "sky", "arguments": {"n": 1}}'}
    row = {"conversations": [{"from": "human", "value": "Sky?"}, called, {"from": "observation", "value": "Blue."}]}
    call = {"type": "function", "function": {"name": "sky", "arguments": {"n": 1}}}
    assert _read(row | {"chosen": GOOD, "rejected": BAD}).prompt == [
        USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "Blue."}
    ]  # fmt: skip
    assert _read({"prompt": "Sky?", "chosen": called, "rejected": BAD}).chosen["tool_calls"] == [call]


def test_columns_are_mapped():
    row = {"q": "Sky?", "sys": "Be brief.", "good": "Blue.", "bad": "Green.", "g": 3, "b": 1, "prompt": "other"}
    columns = {"prompt": "q", "system": "sys", "chosen": "good", "rejected": "bad"}
    assert _read(row, **columns, chosen_reward="g", rejected_reward="b") == Preference(
        prompt=[SYSTEM, USER], chosen=GOOD, rejected=BAD, chosen_reward=3, rejected_reward=1
    )
    with pytest.raises(ValueError, match=r"missing column 'none' \(found: b, bad, g, good"):
        _read(row, prompt="none", chosen="good", rejected="bad")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "found"),
    [
        # the prompt as text before the responses
        ("Q: Sky?\nA: ", "Q: Sky?\nA: Blue.", "Q: Sky?\nA: Green.", "Q: Sky?\nA: "),
        (HH, f"{HH} Blue.", f"{HH} Green.", HH),
        ("Sky?", f"{HH} Blue.", f"{HH} Green.", HH),
        ([SYSTEM, USER], f"{HH} Blue.", f"{HH} Green.", [SYSTEM, USER]),
        ([SYSTEM, USER], "Sky? Blue.", "Sky? Green.", [SYSTEM, USER]),
        ([USER], [{**GOOD, "content": "Sky?\nBlue."}], [{**BAD, "content": "Sky?\nGreen."}], [USER]),
        # turns of the prompt at the start of the conversations
        ([SYSTEM, *FIRST, USER], [USER, GOOD], [USER, BAD], [SYSTEM, *FIRST, USER]),
        ([*FIRST, USER], [SYSTEM, *FIRST, USER, GOOD], [SYSTEM, *FIRST, USER, BAD], [SYSTEM, *FIRST, USER]),
        ([USER], [*FIRST, USER, GOOD], [*FIRST, USER, BAD], [*FIRST, USER]),
        ([SYSTEM], [USER, GOOD], [USER, BAD], [SYSTEM, USER]),
        ([SYSTEM, FIRST[0]], [*FIRST, USER, GOOD], [*FIRST, USER, BAD], [SYSTEM, *FIRST, USER]),
        # with different white space
        ([{**USER, "content": "Sky?\n"}], [USER, GOOD], [USER, BAD], [{**USER, "content": "Sky?\n"}]),
        ("Sky? ", [USER, GOOD], [{**USER, "content": " Sky?"}, BAD], [USER]),
    ],
)  # fmt: skip
def test_a_repeated_prompt_appears_once(prompt, chosen, rejected, found):
    preference = _read({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert preference.prompt == found
    assert [turn["content"].strip() for turn in (preference.chosen, preference.rejected)] == ["Blue.", "Green."]


def test_last_turns_may_differ_only_in_white_space():
    indented = {**GOOD, "content": " Blue."}
    found = _read({"chosen": [USER, GOOD], "rejected": [USER, indented]})
    assert (found.prompt, found.chosen, found.rejected) == ([USER], GOOD, indented)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [USER, *FIRST], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "are repeated"),
        ({"prompt": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "are repeated"),
        ({"prompt": [SYSTEM, USER], "chosen": [SYSTEM, FIRST[0], GOOD], "rejected": [SYSTEM, FIRST[0], BAD]}, "repeat"),
        ({"prompt": [FIRST[0]], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "do not fit: user, then user"),
        ({"prompt": FIRST, "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "assistant, then system"),
        ({"prompt": "Sea?", "chosen": f"{HH} Blue.", "rejected": f"{HH} Green."}, "neither the beginning nor a turn"),
        ({"prompt": "Sky?", "chosen": f"{HH} Blue.", "rejected": "Green."}, "one of .* is a dialogue"),
        ({"prompt": "Is it?", "chosen": "Is it? Yes.", "rejected": "No."}, "one response begins with the prompt"),
        ({"prompt": "", "chosen": "Blue.", "rejected": "Green."}, "no prompt, or an empty one"),
        ({"prompt": " \n", "chosen": [GOOD], "rejected": [BAD]}, "no prompt, or an empty one"),
        ({"prompt": [], "chosen": GOOD, "rejected": BAD}, "no prompt, or an empty one"),
        ({"prompt": "\n\nHuman: \n\nAssistant:", "chosen": "Blue.", "rejected": "Green."}, "an empty message"),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [{**SYSTEM, "content": "Rhyme."}, USER, BAD]}, "more than one"),
        ({"prompt": [SYSTEM, USER], "system": "Rhyme.", "chosen": "C", "rejected": "R"}, "two system turns"),
        ({"prompt": "P", "history": "Hi", "chosen": "C", "rejected": "R"}, "history must be pairs of turns"),
        ({"prompt": "P", "history": [["Hi"]], "chosen": "C", "rejected": "R"}, "history must be pairs of turns"),
        ({"prompt": "P", "system": ["S"], "chosen": "C", "rejected": "R"}, "'system' must be a string"),
        ({"prompt": "P", "tools": "none", "chosen": "C", "rejected": "R"}, "tools: text that is not JSON"),
        ({"prompt": "P", "chosen": "C", "rejected": "R", "score_rejected": float("inf")}, "a finite number, not inf"),
    ],
)  # fmt: skip
def test_repeated_missing_or_contradictory_parts_are_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        _read(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "column 'chosen'"),
        ({"prompt": "P", "chosen": "C", "rejected": None}, "column 'rejected'"),
        ({"chosen": "It is blue.", "rejected": "It is green."}, "no prompt, or an empty one: name its column"),
        ({"prompt": 3, "chosen": "C", "rejected": "R"}, "prompt must be a string or messages: found int"),
        ({"prompt": "P", "chosen": 3, "rejected": "R"}, "chosen must be a string or messages: found int"),
        ({"prompt": "P", "chosen": "C", "rejected": [BAD]}, "one of chosen and rejected is a string"),
        ({"prompt": "P", "chosen": [], "rejected": [BAD]}, "missing or empty: column 'chosen'"),
        ({"prompt": "P", "chosen": [None, GOOD], "rejected": [BAD]}, "not a message: NoneType"),
        ({"prompt": "P", "chosen": [{"role": "robot", "content": "C"}], "rejected": [BAD]}, "unknown role: 'robot'"),
        ({"prompt": "P", "chosen": [{"role": [], "content": "C"}], "rejected": [BAD]}, "unknown role"),
        ({"prompt": "P", "chosen": [{"role": "assistant", "content": None}], "rejected": [BAD]}, "is not text"),
        ({"prompt": "P", "chosen": {"role": "assistant", "content": [{}]}, "rejected": [BAD]}, "is not text"),
        ({"prompt": "P", "chosen": [{"role": "assistant", "content": " "}], "rejected": [BAD]}, "an empty message"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "both are equal"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "only the beginning"),
        ({"chosen": [USER, GOOD, *FIRST], "rejected": [USER, BAD]}, "chosen has more than one turn"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD, USER]}, "rejected has more than one turn"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt, or an empty one: .* share no turn"),
        ({"chosen": [GOOD, USER], "rejected": [GOOD, BAD]}, "chosen ends with a turn of another role"),
        ({"prompt": "Sea?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not one of the user's turns"),
        ({"prompt": str([USER]), "chosen": "C", "rejected": "R"}, "prompt looks like messages but is not JSON"),
        ({"prompt": "P", "chosen": str(GOOD), "rejected": "R"}, "chosen looks like messages but is not JSON"),
        ({"prompt": "P", "chosen": json.dumps([GOOD])[:-2], "rejected": "R"}, "chosen looks like messages"),
        ({"prompt": [{"from": "function_call", "value": "sky()"}], "chosen": "C", "rejected": "R"}, "not JSON"),
        ({"chosen": f"{HH} Blue.\n\nHuman: Why?", "rejected": f"{HH} Green."}, "turns follow .* in chosen"),
        ({"prompt": HH, "chosen": "A", "rejected": "B\n\nHuman: C\n\nAssistant: D"}, "turns follow .* in rejected"),
        ({"chosen": f"{HH} Blue.", "rejected": f"{HH} "}, "rejected is empty, or nothing but the prompt"),
        ({"prompt": "Is it blue?", "chosen": "Is it blue?", "rejected": "Is it blue? No."}, "chosen is empty, or"),
        ({"instruction": "P", "completions": "C"}, "completions must be a list"),
        ({"instruction": "P", "completions": [{"response": "C", "overall_score": 1}] * 3}, "none is better"),
        ({"instruction": "P", "completions": [3]}, "completions contains something that is not an object"),
        ({"prompt": "P", "chosen": "C", "rejected": "R", "chosen_reward": "9"}, "'chosen_reward' must be a number"),
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
def test_rows_that_give_no_pair_are_rejected_with_the_reason(row, reason):
    with pytest.raises(ValueError, match=reason):
        _read(row)


def _prepared(folder, rows, **options):
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = prepare_preference(
        [str(source)], folder / "out", options=BuildOptions(max_rejected=1, overwrite=True), **options
    )
    pairs = [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()]
    reasons = [json.loads(line)["reason"] for line in (folder / "out/rejected_rows.jsonl").read_text().splitlines()]
    return pairs, reasons, manifest


def test_strings_are_used_as_they_are_without_a_template(tmp_path):
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
    assert reason.startswith("messages, history and a system turn need a chat template: --template chat")


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
    for part, reason in zip(("the user's turn", "special token in a text", "an empty message"), reasons, strict=True):
        assert part in reason
    # The user's turns are the question, so rows of one dialogue stay together in any layout.
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


def test_pairs_whose_rewards_contradict_them_are_counted(tmp_path):
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    rewards = [(1, 2), (2, 1), (1, 1), (None, 3)]
    rows = [row | {"prompt": f"{n}?", "chosen_reward": c, "rejected_reward": r} for n, (c, r) in enumerate(rewards)]
    pairs, _, manifest = _prepared(tmp_path, rows)
    assert len(pairs) == 4
    assert manifest.counts["note: chosen has the lower reward"] == 1


def test_short_turns_of_the_history_may_recur():
    row = {"prompt": "Go on.", "history": [["Sky?", "Blue."], ["Go on.", "And grey."]], "chosen": "C", "rejected": "R"}
    assert [turn["content"] for turn in _read(row).prompt] == ["Sky?", "Blue.", "Go on.", "And grey.", "Go on."]


def test_white_space_after_a_removed_prompt_is_dropped_in_chat_and_kept_in_plain_text(tmp_path):
    rows = [{"prompt": HH, "chosen": f"{HH} Blue.", "rejected": f"{HH} Green."}]
    rows += [{"prompt": "What is the sky?", "chosen": "What is the sky? Blue.", "rejected": "What is the sky? Green."}]
    rows += [{"prompt": "Sea?", "chosen": " Blue.", "rejected": "Green."}]
    plain, _, manifest = _prepared(tmp_path, rows)
    assert [pair["chosen_response"] for pair in plain] == [" Blue."] * 3
    assert manifest.counts[f"note: {REPEATED}"] == 2
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    chat, _, _ = _prepared(tmp_path, rows, prompting=prompting)
    assert [pair["chosen_response"] for pair in chat] == ["Blue.", "Blue.", " Blue."]
    assert chat[0]["prompt"] == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"


TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "sky", "arguments": "{}"}}]}
LOST = [
    {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "id": 1, "tools": [TOOL]},
    {"prompt": "Sea?", "chosen": "Blue.", "rejected": "Green.", "id": 2, "context": "By night."},
    {"prompt": "Ice?", "chosen": {**GOOD, "reasoning_content": "Cold.", "name": "Eve"}, "rejected": BAD, "id": 3},
    {"prompt": "Sun?", "chosen": "Red.", "rejected": "Green.", "id": 4, "context": "", "tools": "[]"},
    {"prompt": "Fog?", "chosen": "Grey.", "rejected": "Green.", "context": "At noon."},
]


def test_unread_columns_with_meaning_stop_the_build_until_they_are_ignored(tmp_path, capsys):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    with pytest.raises(ValueError, match="the pairs would lose columns or keys that carry meaning") as refusal:
        _prepared(tmp_path, LOST, prompting=prompting)
    assert not (tmp_path / "out").exists()
    assert str(refusal.value).splitlines()[1:4] == [
        f"  1 x tools, first at {tmp_path}/rows.jsonl:1",
        f"  2 x context, first at {tmp_path}/rows.jsonl:2",
        f"  1 x reasoning_content in messages, first at {tmp_path}/rows.jsonl:3",
    ]
    assert str(refusal.value).endswith("--ignore-columns tools,context,reasoning_content")
    ignored = ["tools", "context", "reasoning_content"]
    pairs, _, manifest = _prepared(tmp_path, LOST, prompting=prompting, ignore_columns=ignored)
    assert len(pairs) == 5
    assert manifest.unread == {
        "id": 4, "context": 2, "tools": 1, "reasoning_content in messages": 1, "name in messages": 1,
    }  # fmt: skip
    assert manifest.settings["ignore_columns"] == ignored
    line = "id (4), context (2), tools (1), reasoning_content in messages (1), name in messages (1)"
    assert f"not read (number of rows): {line}\n" in capsys.readouterr().out


def test_only_the_most_frequent_of_many_unread_columns_are_shown(tmp_path, capsys):
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b", "id": n, f"key {n}": 1} for n in range(40)]
    _, _, manifest = _prepared(tmp_path, rows)
    assert len(manifest.unread) == 41
    shown = capsys.readouterr().out
    assert "not read (number of rows): id (40), key 0 (1), " in shown
    assert shown.count("key ") == 29
    assert "(1), and 11 more in manifest.json\n" in shown


def test_tools_and_calls_go_through_a_template_that_uses_them(tmp_path):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", TOOLS))
    result = {"role": "tool", "content": "It is blue."}
    rows = [
        {"prompt": "Sky?", "chosen": CALL, "rejected": BAD, "tools": json.dumps([TOOL["function"]])},
        {"prompt": [USER, CALL, result], "chosen": "Blue.", "rejected": "Green.", "functions": [TOOL]},
    ]
    pairs, _, manifest = _prepared(tmp_path, rows, prompting=prompting)
    head = f"<|im_start|>system\n{json.dumps([TOOL])}<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n"
    call = '<tool_call>{"name": "sky", "arguments": {}}</tool_call>'
    assert [pair["prompt"].removeprefix(head) for pair in pairs] == [
        "<|im_start|>assistant\n",
        f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>tool\nIt is blue.<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert [pair["chosen_response"] for pair in pairs] == [call, "Blue."]
    assert manifest.unread == {}


def test_tools_and_a_system_turn_need_a_template(tmp_path):
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    with pytest.raises(ValueError, match="1 x tools, first at"):
        _prepared(tmp_path, [row | {"tools": [TOOL]}])
    pairs, reasons, _ = _prepared(tmp_path, [row, row | {"system": "Be brief."}])
    assert len(pairs) == 1
    assert "a system turn need a chat template" in reasons[0]


def test_a_turn_that_the_template_would_empty_is_refused(tmp_path):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    rows = [{"prompt": "Sky?", "chosen": CALL, "rejected": BAD}, LOST[3]]
    _, reasons, _ = _prepared(tmp_path, rows, prompting=prompting)
    assert reasons == ["the chat template does not use tool_calls, and a turn contains nothing else"]


def test_unused_keys_of_completions_are_named():
    completions = [{"response": text, "overall_score": n, "principle": "truth"} for n, text in enumerate("ab")]
    row = TrackedRow({"instruction": "Sky?", "completions": completions})
    read_preference(row, Columns())
    pair = PreferencePair(prompt="Sky?", chosen_response="b", rejected_response="a")
    assert row.unread(pair, question="Sky?") == (["principle in completions"], [])
