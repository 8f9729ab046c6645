"""Build from mutated rows and files: every row is accounted for, or a UserError is raised; never a crash."""

import copy
import gzip
import json
import random
from collections import Counter
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.choices import ChoicesRecipe
from nemo_minordpo.prepare.gsm8k import Gsm8kRecipe
from nemo_minordpo.prepare.metamath import MetaMathRecipe
from nemo_minordpo.prepare.preference import PreferenceRecipe
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.records import PreferencePair
from tests.unit.prepare.templates import TOOLS, save_tokenizer

_TURN, _GOOD, _BAD = (
    {"role": role, "content": text} for role, text in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Red."))
)
_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "sky", "arguments": {"a": 1}}}]}
_HH = "\n\nHuman: Sky?\n\nAssistant: "
_MATHS = "Ann has 3 + 4 = <<3+4=7>>7 eggs.\nShe eats 7 - 2 = <<7-2=5>>5.\n#### 5"
# recipe -> good rows in every layout that it knows
SEEDS = {
    "gsm8k": [
        {"question": "How many?", "answer": _MATHS},
        {"query": "How many?", "response": "3 + 4 = 7, 7 - 2 = 5.\nThe answer is: 5", "original_question": "How many?"},
        {"problem": "Find x.", "solution": r"$2 \cdot 3 = 6$ and $6 + 1 = \boxed{7}$."},
    ],
    "metamath": [{"prompt": "Question: A?\nAnswer: 1\nQuestion: B?\nA:", "chosen": "It is 2", "rejected": "It is 3"}],
    "hf": [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red.", "chosen_reward": 2.5, "rejected_reward": 1},
        {"prompt": [_TURN], "chosen": [_GOOD], "rejected": [_BAD]},
        {"chosen": [_TURN, _GOOD], "rejected": [_TURN, _BAD]},
        {"instruction": "Sky?", "completions": [{"response": "x" * n, "overall_score": n} for n in (3, 9)]},
        {"chosen": f"{_HH}Blue.", "rejected": f"{_HH}Red."},
        {"prompt": [_TURN], "chosen_response": _GOOD, "rejected_response": _BAD},
        {"instruction": "Say:", "input": "sky", "history": [["Hi", "Hello"]], "chosen": "Blue.", "rejected": "Red."},
        {"prompt": "Q: Sky?\nA: ", "chosen": "Q: Sky?\nA: Blue.", "rejected": "Q: Sky?\nA: Red.", "system": "Guess."},
        {
            "prompt": [_TURN, _CALL, {"role": "tool", "content": "Blue.", "name": "sky"}], "chosen": [_GOOD],
            "rejected": [_BAD | {"reasoning_content": "Hm."}], "tools": [{"name": "sky", "parameters": {"a": []}}],
        },
    ],
    "choices": [
        {"question": "Gas?", "choices": {"text": ["air", "iron"], "label": ["A", "B"]}, "answerKey": "A"},
        {"ctx": "He [title] sits", "endings": ["down.", "up.", "left."], "label": "2", "activity_label": "Sitting"},
    ],
}  # fmt: skip
_VALUES = [
    None, True, 0, -1, 10**30, 1e308, float("nan"), float("inf"), "", " ", "\0", "a\0b", "\ud800", "\udfff x", "\u2028",
    "\x07\x1b[31m", "\u202e\ufeff", "x" * 200_000, "=" * 5000, "[" * 5000, "{{ 1/0 }}", "{% raise %}", "<|im_end|>",
    "<think>", "</think>", "\\boxed{" * 500, "1 + 1 = " * 500, "####", "The answer is: ", "9" * 6000, "A: " * 3000,
    "\n" * 3000, [], {}, [[]], [{}], {"": None}, [None] * 50, {"role": None, "content": None}, [{"role": "user"}],
    [[[[[[None]]]]]], {"text": None, "label": None}, {"a": {"b": {"c": [None, {}]}}},
]  # fmt: skip


def _mutated_row(draw, row):
    """A row with one to three of its values (at any depth) changed, removed, renamed or cut."""
    row = json.loads(json.dumps(row))
    for _ in range(draw.randint(1, 3)):
        places = list(_places(row))
        if not places:
            break
        inside, key = draw.choice(places)
        what = draw.randrange(6)
        if what == 0:
            del inside[key]
        elif what == 1 and isinstance(inside, dict):
            inside[f"{key}_"] = inside.pop(key)
        elif what == 2 and isinstance(inside[key], str):
            inside[key] = inside[key][: draw.randint(0, len(inside[key]))]
        elif what == 3 and isinstance(inside[key], str):
            at = draw.randint(0, len(inside[key]))
            junk = "".join(
                chr(draw.choice((draw.randrange(32), draw.randrange(0xD800), draw.randrange(0xE000, 0x110000))))
                for _ in range(8)
            )
            inside[key] = inside[key][:at] + junk + inside[key][at:]
        else:
            inside[key] = copy.deepcopy(draw.choice(_VALUES))
    return row


def _places(value):
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _mutated_bytes(draw, data):
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, what = draw.randrange(len(data)), draw.randrange(5)
        if what == 0:
            data[at] = draw.randrange(256)
        elif what == 1:
            del data[at : at + draw.randint(1, 40)]
        elif what == 2:
            data[at:at] = draw.randbytes(draw.randint(1, 20))
        elif what == 3:
            data[at:at] = data[: draw.randint(1, 200)]
        else:
            del data[max(1, at) :]
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def prompting(tmp_path_factory):
    return Prompting(template="chat", tokenizer=save_tokenizer(tmp_path_factory.mktemp("tokenizer"), TOOLS))


def _recipes(prompting):
    for one in (Prompting(), prompting):
        yield "gsm8k", Gsm8kRecipe(prompting=one)
        yield "metamath", MetaMathRecipe(prompting=one, marker="Question:")
        yield "hf", PreferenceRecipe(prompting=one)
        yield "choices", ChoicesRecipe(prompting=one)


def _check(output, manifest, num_rows):
    """Rows = pairs + rejected, in the counts and in the files; training accepts every pair."""
    counts = manifest.counts
    assert counts["rows"] == num_rows == counts["pairs"] + counts["rejected"]
    pairs = (output / "train.jsonl").read_bytes().decode().split("\n")[:-1]
    rejected = (output / "rejected_rows.jsonl").read_bytes().decode().split("\n")[:-1]
    assert (len(pairs), len(rejected)) == (counts["pairs"], counts["rejected"])
    for line in pairs:
        PreferencePair.from_json(line)
    reasons = [json.loads(line)["reason"] for line in rejected]
    assert all(reasons)
    assert sum(manifest.rejected.values()) == len(reasons)
    return Counter(reasons)


@pytest.mark.parametrize("case", range(8))
def test_mutated_rows(tmp_path, prompting, case):
    name, recipe = list(_recipes(prompting))[case]
    draw = random.Random(case)
    good = SEEDS[name] * 3
    rows = [*good, *(_mutated_row(draw, draw.choice(SEEDS[name])) for _ in range(350))]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [
        _mutated_bytes(draw, json.dumps(draw.choice(SEEDS[name])).encode()).replace(b"\n", b" ") for _ in range(150)
    ]
    lines += [
        b"[" * 20_000,
        b'{"a":' * 20_000,
        "{}".encode("utf-16"),
        b"\xff\xfe\x00",
        b'{"a": "\x00"}',
        b"null",
        b'"x"',
        b"1e999",
    ]
    lines = [line for line in lines if line.strip()]
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    options = BuildOptions(max_rejected=1)
    manifest, error = _result(lambda: build(recipe, find_sources([source]), tmp_path / "out", options))
    if error:  # columns with meaning would be lost: pass the option that the error names
        recipe = replace(recipe, ignore_columns=tuple(error.rpartition("--ignore-columns ")[2].split(",")))
        manifest = build(recipe, find_sources([source]), tmp_path / "out", options)
        assert manifest.unread
    reasons = _check(tmp_path / "out", manifest, len(lines))
    # Both outcomes are frequent, or the mutations would test nothing.
    assert manifest.counts["pairs"] > 10
    assert len(reasons) > 20


def _result(call):
    """(result of a call, its ValueError as text)."""
    try:
        return call(), ""
    except ValueError as error:
        return None, str(error) or "no reason"


def _files(draw, rows):
    """(suffix, bytes) of one good file of every kind."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pyarrow.Table.from_pylist(rows)
    out = pyarrow.BufferOutputStream()
    parquet.write_table(table, out, compression=draw.choice(("snappy", "zstd", "none")))
    yield ".jsonl", lines
    yield ".json", json.dumps(rows).encode()
    yield ".json", json.dumps(rows, indent=1).encode()
    yield ".jsonl.gz", gzip.compress(lines)
    yield ".parquet", out.getvalue().to_pybytes()


def test_mutated_files(tmp_path):
    """1,000 damaged files are each read to the end, or to an error that names the file."""
    draw = random.Random(9)
    read = refused = 0
    for _ in range(200):
        rows = [
            {"prompt": f"P{n}?", "chosen": f"C{n}.", "rejected": f"R{n}.", "more": [{"a": None}] * n}
            for n in range(draw.randint(1, 30))
        ]
        for suffix, data in _files(draw, rows):
            path = tmp_path / f"file{suffix}"
            path.write_bytes(_mutated_bytes(draw, data))
            (source,) = find_sources([path])
            found, error = _result(lambda source=source: list(source.rows()))
            if error:
                assert str(path) in error
                refused += 1
                continue
            read += 1
            assert [row.number for row in found] == sorted({row.number for row in found})
            for row in found:
                fields, reason = _result(row.fields)
                assert reason or isinstance(fields, dict)
    assert read + refused == 1000
    assert min(read, refused) > 200, (read, refused)


def test_damaged_files_through_the_whole_build(tmp_path):
    draw = random.Random(4)
    built = refused = 0
    for number in range(12):
        rows = [{"prompt": f"P{n}?", "chosen": f"C{n}.", "rejected": f"R{n}."} for n in range(20)]
        for kind, (suffix, data) in enumerate(_files(draw, rows)):
            source, output = tmp_path / f"file{suffix}", tmp_path / f"out{number}_{kind}"
            source.write_bytes(_mutated_bytes(draw, data))
            manifest, error = _result(
                lambda source=source, output=output: build(
                    PreferenceRecipe(), find_sources([source]), output, BuildOptions(max_rejected=1)
                )
            )
            if error:
                assert str(source) in error or "no rows" in error
                refused += 1
                continue
            _check(output, manifest, manifest.counts["rows"])
            built += 1
            assert not list(tmp_path.glob(f".{output.name}*"))
    assert built >= 10
    assert refused > 10
