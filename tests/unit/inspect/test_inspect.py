"""`minordpo inspect`: a planted fault of each kind is found, and a clean set has none."""

import csv
import json
import random
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.errors import UserError
from nemo_minordpo.inspect.kinds import FLAGS, MODEL, TEST, TOKENIZER
from nemo_minordpo.inspect.run import inspect_pairs
from nemo_minordpo.prepare.arithmetic import write_arithmetic
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.columns import Columns
from nemo_minordpo.prepare.gsm8k import prepare_gsm8k
from nemo_minordpo.prepare.preference import prepare_preference
from tests.unit.prepare.templates import QWEN, save_tokenizer

NUMBER = 60
_WORDS = [
    "river", "stone", "garden", "window", "letter", "market", "bridge", "winter", "engine", "pocket", "silver",
    "doctor", "island", "basket", "candle", "forest", "mirror", "ladder", "orange", "castle", "pencil", "summer",
    "thunder",
    "village", "button", "carpet", "dragon", "feather", "hammer", "jacket", "kettle",
]  # fmt: skip


def text(seed, count=24):
    """A sentence of random words, unlike that of another seed."""
    draw = random.Random(seed)
    return " ".join(draw.choices(_WORDS, k=count)).capitalize() + "."


def clean(number):
    return {
        "prompt": f"Human: {text(f'p{number}')}\n\nAssistant: ",
        "chosen_response": text(f"c{number}", 20 + number % 3),
        "rejected_response": text(f"r{number}", 20 + number % 5),
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def flagged(output):
    """Flag -> line numbers, from pairs.csv."""
    found = {}
    for row in table(output):
        for name in FLAGS:
            if row.get(name) == "1":
                found.setdefault(name, []).append(int(row["pair"].rpartition(":")[2]))
    return found


def table(output):
    with (output / "pairs.csv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def inspect(folder, rows, **options):
    output = folder / "out"
    path = write(folder / "pairs.jsonl", rows)
    inspect_pairs([str(path)], output=output, workers=1, **options)
    return output


RUSSIAN = "".join(chr(0x430 + place % 32) for place in range(40)) + "."
CHINESE = "".join(chr(0x4E00 + place) for place in range(40)) + "\u3002"
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# name -> (changes of the pair, flags that it then has)
PLANTED = {
    "spaces and capitals": ({"rejected_response": clean(0)["chosen_response"].upper() + " "}, {"same_words"}),
    "another script": (
        {"rejected_response": RUSSIAN}, {"other_script"},
    ),
    "Han": ({"chosen_response": CHINESE}, {"other_script"}),
    "chosen refuses": (
        {"chosen_response": "I\u2019m sorry, but I can\u2019t help with that request."}, {"refusal", "chosen_refusal"},
    ),
    "rejected refuses": (
        {"rejected_response": "As an AI language model, I don't have personal opinions on rivers."},
        {"refusal", "rejected_refusal"},
    ),
    "chosen is cut": ({"chosen_response": text("c") [:-9] + ", and then the"}, {"cut", "chosen_cut"}),
    "code is not closed": (
        {"rejected_response": text("c") + "\n```python\nprint(1)\n"}, {"cut", "rejected_cut"},
    ),
    "two templates": ({"prompt": CHATML.format("[INST] " + text("t") + " [/INST]")}, {"templated_twice"}),
    "a template in itself": ({"prompt": CHATML.format(CHATML.format(text("t")))}, {"templated_twice"}),
    "a response with a turn's opening": (
        {"chosen_response": "<|start_header_id|>assistant<|end_header_id|>\n\n" + text("c")}, {"templated_twice"},
    ),
    "another template's end": (
        {"prompt": CHATML.format(text("t")), "chosen_response": text("c") + "<|eot_id|>"}, {"templated_twice"},
    ),
    "NUL": ({"chosen_response": "before\0after. " + text("c")}, {"nul"}),
    "reward": ({"chosen_reward": 1, "rejected_reward": 2.5}, {"lower_reward"}),
}  # fmt: skip


def test_a_clean_set_has_no_flag(tmp_path):
    output = inspect(tmp_path, [clean(number) for number in range(NUMBER)])
    assert flagged(output) == {}
    assert len(table(output)) == NUMBER


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_of_one_pair(tmp_path, name):
    changes, expected = PLANTED[name]
    rows = [clean(number) for number in range(20)]
    rows[7] = clean(0) | {"prompt": rows[7]["prompt"]} | changes
    rows[0] = clean(99)
    assert flagged(inspect(tmp_path, rows)) == {flag: [8] for flag in expected}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pair: pair, {"duplicate", "duplicate_prompt"}),
        (lambda pair: pair | {"prompt": pair["prompt"].replace(" ", "  ")}, {"duplicate", "duplicate_prompt"}),
        (lambda pair: {k: v[:-9] + "others." for k, v in pair.items()}, {"near_duplicate", "near_duplicate_prompt"}),
        (lambda pair: clean(98) | {"prompt": pair["prompt"]}, {"duplicate_prompt"}),
        (lambda pair: clean(98) | {"prompt": "Oh. " + pair["prompt"]}, {"near_duplicate_prompt"}),
        (lambda pair: pair | {"prompt": clean(98)["prompt"]}, set()),  # same responses to another prompt
    ],
    ids=["pair", "white space", "nearly the pair", "prompt", "nearly the prompt", "responses"],
)
def test_copies(tmp_path, change, expected):
    rows = [clean(number) for number in range(20)]
    rows[15] = change(dict(rows[3]))
    output = inspect(tmp_path, rows)
    assert flagged(output) == {flag: [16] for flag in expected}
    for name in expected:  # the earlier one is named
        assert table(output)[15][f"{name}_of"].endswith("pairs.jsonl:4")


def test_copies_across_files(tmp_path):
    train = write(tmp_path / "train.jsonl", [clean(number) for number in range(20)])
    other = [
        clean(100),
        clean(101) | {"prompt": clean(5)["prompt"]},
        clean(102) | {"prompt": "So. " + clean(6)["prompt"]},
    ]
    validation = write(tmp_path / "validation.jsonl", other)
    inspect_pairs([str(train), str(validation)], output=tmp_path / "out", workers=2)
    rows = table(tmp_path / "out")
    assert [row["prompt_in_other_file_of"] for row in rows[20:]] == ["", f"{train}:6", ""]
    assert [row["near_prompt_in_other_file_of"] for row in rows[20:]] == ["", "", f"{train}:7"]
    assert flagged(tmp_path / "out")["prompt_in_other_file"] == [2]  # lines of the other file alone


def test_questions_of_a_test_set(tmp_path):
    def question(number):
        return clean(number)["prompt"].removeprefix("Human: ").partition("\n")[0]

    words = question(9).split()
    tests = write(tmp_path / "test.jsonl", [
        {"question": question(50)}, {"question": question(4)},
        {"question": " ".join([*words[:12], "unrelated", *words[12:]])},
    ])  # fmt: skip
    rows = [clean(number) for number in range(20)]
    rows[4]["prompt"] = "Question: 1 + 1?\nAnswer: 2\n\n" * 40 + rows[4]["prompt"].upper()  # a few shots before it
    output = inspect(tmp_path, rows, test=[str(tests)])
    assert flagged(output) == {"in_test": [5], "near_test": [10]}
    assert [table(output)[line]["test_question"] for line in (4, 9)] == [f"{tests}:2", f"{tests}:3"]


def test_a_system_turn_does_not_make_prompts_alike(tmp_path):
    system = "You are a careful assistant. " + text("system", 300)
    rows = [clean(number) | {"prompt": f"{system}\n{text(number, 8)}"} for number in range(NUMBER)]
    assert flagged(inspect(tmp_path, rows)) == {}


def test_tokens_and_lengths(model_folder, tmp_path):
    rows = [clean(0), clean(1)]
    rows[1]["chosen_response"] += " More." * 200
    rows[0]["rejected_response"] = "No."
    output = inspect(tmp_path, rows, tokenizer=model_folder, seq_length=1024)
    first, second = table(output)
    # the tokenizer has a token per byte, and the response's end is one
    assert int(first["rejected_tokens"]) == 4
    assert int(first["prompt_tokens"]) == len(rows[0]["prompt"])
    assert (first["overlong"], second["overlong"]) == ("0", "1")
    assert float(first["length_ratio"]) == len(rows[0]["chosen_response"]) / 3
    page = (output / "inspect.html").read_text(encoding="utf-8")
    assert "The chosen response has more tokens in 100.0%" in page


def test_a_model_that_prefers_the_rejected_response(model_folder, tmp_path):
    rows = [
        clean(number) | {"chosen_response": text(f"c{number}", 3), "rejected_response": text(number, 9)}
        for number in range(3)
    ]
    rows.append({name: rows[0][name] for name in ("prompt",)} | {
        "chosen_response": rows[0]["rejected_response"], "rejected_response": rows[0]["chosen_response"],
    })  # fmt: skip
    output = inspect(tmp_path, rows, model=model_folder)
    found = table(output)
    for row in found:
        margin = float(row["chosen_logp"]) - float(row["rejected_logp"])
        assert float(row["logp_margin"]) == pytest.approx(margin, abs=1e-6)
        assert row["chosen_less_likely"] == str(int(margin < 0))
    assert float(found[0]["logp_margin"]) == pytest.approx(-float(found[3]["logp_margin"]), abs=1e-3)
    assert {found[0]["chosen_less_likely"], found[3]["chosen_less_likely"]} == {"0", "1"}
    assert all(row["ches_per_token"] for row in found)


def test_a_flag_is_planted_somewhere():
    """Every flag that needs neither a test set nor a model has a test here."""
    planted = {flag for _, flags in PLANTED.values() for flag in flags}
    planted |= {"duplicate", "near_duplicate", "duplicate_prompt", "near_duplicate_prompt", "prompt_in_other_file"}
    planted |= {"near_prompt_in_other_file"}
    assert planted == {name for name, kind in FLAGS.items() if kind.needs not in (TEST, TOKENIZER, MODEL)}


def test_gsm8k_pairs(tmp_path):
    write_arithmetic(tmp_path / "problems", num_train=300, num_test=50, seed=1, overwrite=False)
    prepare_gsm8k(
        str(tmp_path / "problems/train.jsonl"), tmp_path / "pairs", options=BuildOptions(num_validation=30, workers=1)
    )
    files = [str(tmp_path / "pairs" / name) for name in ("train.jsonl", "validation.jsonl")]
    inspect_pairs(files, output=tmp_path / "out", workers=1)
    assert flagged(tmp_path / "out") == {}
    rows = table(tmp_path / "out")
    assert len(rows) == 300
    assert max(float(row["edit_distance"]) for row in rows) < 0.1  # one number differs


def test_pairs_shaped_like_hh(tmp_path):
    """Dialogues whose responses are cut, refuse, and repeat."""
    dialogues = [
        f"\n\nHuman: {text(f'a{number}')}\n\nAssistant: {text(f'b{number}')}\n\nHuman: Why?" for number in range(30)
    ]
    rows = [
        {
            "chosen": f"{start}\n\nAssistant: {text(f'c{number}')}",
            "rejected": f"{start}\n\nAssistant: {text(f'd{number}')}",
        }
        for number, start in enumerate(dialogues)
    ]
    rows[4]["rejected"] = f"{dialogues[4]}\n\nAssistant: I'm not able to help with that, because it is dangerous."
    rows[9]["chosen"] += " And this is what I would"
    rows[20] = {name: value.replace("Why?", "Why is that?") for name, value in rows[3].items()}
    path = write(tmp_path / "hh.jsonl", rows)
    prepare_preference([str(path)], tmp_path / "pairs", columns=Columns(), options=BuildOptions(workers=1))
    inspect_pairs([str(tmp_path / "pairs/train.jsonl")], output=tmp_path / "out", workers=1)
    assert flagged(tmp_path / "out") == {
        "refusal": [5], "rejected_refusal": [5], "cut": [10], "chosen_cut": [10],
        "near_duplicate": [21], "near_duplicate_prompt": [21],
    }  # fmt: skip


def test_pairs_shaped_like_ultrafeedback(tmp_path):
    """Messages, rendered by a template with a system turn; two pairs per prompt, and long chosen responses."""
    save_tokenizer(tmp_path / "tokenizer", QWEN)
    rows = []
    for number in range(30):
        prompt = text(f"p{number // 2}", 12)
        chosen, rejected = text(f"c{number}", 40), text(f"r{number}", 20)
        turns = [{"role": "user", "content": prompt}]
        rows.append(
            {
                "prompt": prompt, "score_chosen": 8.0, "score_rejected": 9.0 if number == 6 else 3.0,
                "chosen": [*turns, {"role": "assistant", "content": chosen}],
                "rejected": [*turns, {"role": "assistant", "content": rejected}],
            }
        )  # fmt: skip
    path = write(tmp_path / "ultrafeedback.jsonl", rows)
    prepare_preference(
        [str(path)], tmp_path / "pairs", columns=Columns(), options=BuildOptions(workers=1),
        prompting=Prompting(template="chat", tokenizer=tmp_path / "tokenizer"),
    )  # fmt: skip
    summary, _ = inspect_pairs([str(tmp_path / "pairs/train.jsonl")], output=tmp_path / "out", workers=1)
    assert flagged(tmp_path / "out") == {"duplicate_prompt": list(range(2, 31, 2)), "lower_reward": [7]}
    assert "more words in 100.0% (95 % interval 88.6% to 100.0%) of the pairs; mean difference +20.00" in summary


GARBAGE = [
    b"\x00\x00", b"\xff\xfe not text", b"{}", b"[1, 2]", b"null", b"{" * 5000,
    b'{"prompt": "\\ud800", "chosen_response": "a", "rejected_response": "b"}',
    b'{"\\ud800": 1}',
    b'{"prompt": "p", "chosen_response": "same", "rejected_response": "same"}',
]  # fmt: skip


def test_garbage_is_listed_and_the_rest_is_inspected(tmp_path):
    odd = [
        {
            "prompt": "<script>alert(1)</script> & 'x'",
            "chosen_response": "<b>yes</b>",
            "rejected_response": "<img src=x>",
        },
        {
            "prompt": "\u202e\u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da? \U0001f469\u200d\U0001f680",
            "chosen_response": "\u0637\u064a\u0628 \0\x1b[31m",
            "rejected_response": "\u2066\U0001f600",
        },
        {"prompt": "p", "chosen_response": "a" * 3_000_000, "rejected_response": "b" * 10},
    ]
    good = [json.dumps(row).encode() for row in odd]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([*GARBAGE, *good, b"", b"  "]))
    summary, manifest = inspect_pairs([str(path)], output=tmp_path / "out", drop=["nul"], workers=1)
    assert manifest.counts == {"pairs": 3, "invalid_lines": len(GARBAGE), "kept": 2, "dropped": 1}
    assert f"{len(GARBAGE)} lines are not pairs" in summary
    page = (tmp_path / "out/inspect.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "\0" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;<mark>img" in page or "&lt;img" in page
    assert "\u2400" in page  # NUL, visibly
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected_rows.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rejected] == [f"{path}:{line}" for line in [*range(1, len(GARBAGE) + 1), 11]]
    assert all(row["reason"] for row in rejected)


def test_only_garbage_is_an_error(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join(GARBAGE))
    with pytest.raises(UserError, match="none of the lines is a pair"):
        inspect_pairs([str(path)], workers=1)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no pairs"):
        inspect_pairs([str(path)], workers=1)


def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_minordpo.inspect.lines.parts_of.__kwdefaults__", {"size": 1000})
    path = write(tmp_path / "pairs.jsonl", [clean(number % 40) for number in range(NUMBER)])
    for workers in (1, 2):
        inspect_pairs([str(path)], output=tmp_path / str(workers), workers=workers)
    assert table(tmp_path / "1") == table(tmp_path / "2")
    assert len(flagged(tmp_path / "1")["duplicate"]) == 20


def test_the_command(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [clean(0), clean(1), clean(0)])
    done = CliRunner().invoke(app, ["inspect", str(path), "--drop", "duplicate", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "3 pairs in 1 file; 0 lines are not pairs." in done.output
    assert "duplicate                              1  33.33%" in done.output
    assert f"3 pairs, 0 invalid lines, 2 kept, 1 dropped -> {tmp_path / 'out'}" in done.output


def test_neither_nemo_nor_torch_is_loaded_without_a_model(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [clean(0), clean(1)])
    script = (
        "import sys\nfrom pathlib import Path\nfrom nemo_minordpo.inspect.run import inspect_pairs\n"
        f"inspect_pairs([{str(path)!r}], output=Path({str(tmp_path / 'out')!r}), workers=1, drop=['refusal'])\n"
        "print([name for name in ('torch', 'nemo', 'megatron', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_pairs_with_one_prompt(tmp_path):
    """All of the prompt is what most prompts share, and still only equal pairs are equal."""
    rows = [clean(number) | {"prompt": clean(0)["prompt"]} for number in range(20)]
    rows[9] = dict(rows[4], chosen_response=rows[4]["chosen_response"][:-1] + "!")
    assert flagged(inspect(tmp_path, rows)) == {"duplicate_prompt": list(range(2, 21)), "near_duplicate": [10]}
