import json
import math

import numpy as np
import pytest

from nemo_minordpo.config import DataSection
from nemo_minordpo.pairs.tokens import expand_files, load_arrays, tokenize_files
from tests.unit.prepare.templates import CHATML, make_tokenizer

from .conftest import pair


def tokenize(files, folder, tokenizer, **settings):
    tokenize_files(list(files), folder, tokenizer=tokenizer, data=DataSection(**settings), split="train")
    return load_arrays(folder)


def test_sequences_are_prompt_response_and_eos(write, tmp_path, tokenizer):
    arrays = tokenize([write(pair(), pair(chosen="4", rejected="five"))], tmp_path / "data", tokenizer)
    assert len(arrays) == 2
    eos = tokenizer.eos_token
    for number, texts in enumerate((("2 + 2 = 4", "2 + 2 = 5"), ("4", "five"))):
        for rejected, text in enumerate(texts):
            ids = arrays.sequence(number, rejected=bool(rejected))
            assert tokenizer.decode(ids) == f"Two plus two?\n{text}{eos}"
            assert tokenizer.decode(ids[arrays.prompt_lengths[number] :]) == f"{text}{eos}"


def test_without_eos(write, tmp_path, tokenizer):
    arrays = tokenize([write(pair())], tmp_path / "data", tokenizer, append_eos=False)
    assert tokenizer.decode(arrays.sequence(0, rejected=False)) == "Two plus two?\n2 + 2 = 4"


def test_eos_is_not_doubled(write, tmp_path, tokenizer):
    row = pair(chosen="4<|endoftext|>", rejected="5")
    arrays = tokenize([write(row)], tmp_path / "data", tokenizer)
    assert tokenizer.decode(arrays.sequence(0, rejected=False)).count("<|endoftext|>") == 1


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|im_end|>\n\n \t", "<|im_end|>\n<|im_end|>\n"])
def test_a_response_that_includes_its_end_gets_no_second_one(write, tmp_path, capsys, eos, end):
    """The end as a chat template writes it, followed by white space, whichever token is the tokenizer's EOS."""
    chatml = make_tokenizer(CHATML, eos=eos)
    rows = [pair(chosen=f"4{end}", rejected=f"5 <|im_end|> 5\n{end}"), pair(chosen="4\n", rejected="5")]
    arrays = tokenize([write(*rows)], tmp_path / "data", chatml)
    texts = [
        chatml.decode(arrays.sequence(number, rejected=rejected)[arrays.prompt_lengths[number] :])
        for number in range(2)
        for rejected in (False, True)
    ]
    assert texts == ["4<|im_end|>", "5 <|im_end|> 5\n<|im_end|>", f"4\n{eos}", f"5{eos}"]
    message = "train: 2 responses cut at their end, which white space or a second end followed"
    assert capsys.readouterr().err.count(message) == (end != "<|im_end|>")
    without = tokenize([write(*rows)], tmp_path / "without", chatml, append_eos=False)
    assert chatml.decode(without.sequence(0, rejected=False)).endswith(f"4{end}")


def test_responses_that_only_differ_in_their_end_are_equal(write, tmp_path):
    path = write(pair(chosen="4", rejected="4<|im_end|>\n"))
    with pytest.raises(ValueError, match="have the same tokens"):
        tokenize([path], tmp_path / "data", make_tokenizer(CHATML))


def test_rewards_and_their_defaults(write, tmp_path, tokenizer):
    rows = write(pair(), pair(chosen_reward=2.5, rejected_reward=-1))
    arrays = tokenize([rows], tmp_path / "data", tokenizer, default_chosen_reward=0.75, default_rejected_reward=0.25)
    assert arrays.reward_margins.tolist() == [0.5, 3.5]


def test_the_largest_rewards_stay_finite(write, tmp_path, tokenizer):
    largest = 1.7e38
    arrays = tokenize([write(pair(chosen_reward=largest, rejected_reward=-largest))], tmp_path / "data", tokenizer)
    assert arrays.reward_margins.tolist() == [np.float32(2 * largest)]
    assert np.isfinite(arrays.reward_margins).all()


def common_beginning(chosen, rejected):
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    return count


@pytest.mark.parametrize("append_eos", [True, False])
def test_shared_tokens_end_where_the_sequences_diverge(write, tmp_path, tokenizer, append_eos):
    rows = write(
        pair(),
        pair(chosen="yes", rejected="no"),
        pair(chosen="4", rejected="4\n\n!"),
        pair(chosen="4\n\n!", rejected="4"),
        pair(chosen="the answer is 4 now", rejected="the answer is 5 now"),
    )
    arrays = tokenize([rows], tmp_path / "data", tokenizer, append_eos=append_eos)
    assert arrays.shared_lengths.dtype == np.int32
    assert len(arrays.shared_lengths) == 5
    for number, shared in enumerate(arrays.shared_lengths):
        chosen, rejected = (arrays.sequence(number, rejected=rejected).tolist() for rejected in (False, True))
        assert shared == common_beginning(chosen, rejected) >= arrays.prompt_lengths[number]
    nothing, prefix = arrays.shared_lengths[1], arrays.shared_lengths[2]
    assert nothing == arrays.prompt_lengths[1]
    assert arrays.shared_lengths[0] > arrays.prompt_lengths[0]
    # without EOS, one response is a prefix of the other, so no token differs
    assert prefix == len(arrays.sequence(2, rejected=False)) - append_eos
    assert arrays.shared_lengths[3] == prefix


FAULTS = {
    "invalid JSON": "{not json",
    "a JSON object was expected": "[1, 2]",
    "missing field 'rejected_response'": {"prompt": "a", "chosen_response": "b"},
    "field 'prompt' must be a string": pair(prompt=3),
    "empty field 'chosen_response'": pair(chosen="  "),
    "empty field 'prompt'": pair(prompt=""),
    "contains half a surrogate pair": pair(prompt="Two\ud800?\n"),
    "chosen_response and rejected_response are equal": pair(rejected="2 + 2 = 4"),
    "merge with the first of the response": pair(prompt="the ans", chosen="wer is 4", rejected="wer is 5"),
    "field 'chosen_reward' must be a number": pair(chosen_reward="high"),
    "field 'chosen_reward' must be a finite number, not nan": pair(chosen_reward=math.nan),
    "field 'rejected_reward' must be a finite number, not inf": pair(rejected_reward=math.inf),
    "field 'rejected_reward' must be a finite number, not -inf": pair(chosen_reward=2, rejected_reward=-math.inf),
    "field 'chosen_reward' is 1e+39: a finite float32 number": pair(chosen_reward=1e39),
    "field 'chosen_reward' must be a finite number, not 1000000000000": pair(chosen_reward=10**400),
}


@pytest.mark.parametrize("message", FAULTS)
def test_every_fault_is_reported_with_its_place(write, tmp_path, tokenizer, message):
    path = write(pair(), FAULTS[message], pair(chosen="4", rejected="3"))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        tokenize([path], tmp_path / "data", tokenizer)
    assert message in str(error.value)
    assert f"{path}:2:" in str(error.value)
    assert "model.data.invalid_pairs=drop" in str(error.value)
    assert not (tmp_path / "data").exists()
    arrays = tokenize([path], tmp_path / "data", tokenizer, invalid_pairs="drop")
    assert len(arrays) == 2
    left_out = [json.loads(line) for line in (tmp_path / "data/left_out_pairs.jsonl").read_text().splitlines()]
    assert [item["place"] for item in left_out] == [f"{path}:2"]
    assert message in left_out[0]["reason"]


def test_overlong_pairs_are_left_out_and_counted(write, tmp_path, tokenizer, capsys):
    fits = len(tokenizer("Two plus two?\n2 + 2 = 4").input_ids) + 1
    path = write(pair(), pair(rejected="2 + 2 = 5, or so it seems to me"))
    arrays = tokenize([path], tmp_path / "data", tokenizer, seq_length=fits)
    assert len(arrays) == 1
    assert "1 longer than model.data.seq_length" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no train pairs can be used"):
        tokenize([path], tmp_path / "less", tokenizer, seq_length=fits - 1)


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(write, tmp_path, tokenizer):
    path = write("", pair(), "   ", "broken")
    with pytest.raises(ValueError, match=f"{path}:4:"):
        tokenize([path], tmp_path / "data", tokenizer)


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"prompt": "\xff\xfe"}\n'])
def test_files_without_pairs_are_rejected(tmp_path, tokenizer, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no train pairs can be used|not UTF-8"):
        tokenize([path], tmp_path / "data", tokenizer)


def test_a_complete_folder_is_not_changed(write, tmp_path, tokenizer):
    tokenize([write(pair())], tmp_path / "data", tokenizer)
    before = (tmp_path / "data/tokens.npy").stat().st_mtime_ns
    tokenize([write(pair(), pair(chosen="4"))], tmp_path / "data", tokenizer)
    assert (tmp_path / "data/tokens.npy").stat().st_mtime_ns == before


def test_chunks_preserve_the_order_of_the_file(write, tmp_path, tokenizer):
    path = write(*(pair(chosen=f"{number} is it") for number in range(1100)))
    arrays = tokenize([path], tmp_path / "data", tokenizer)
    for number in (0, 511, 512, 1099):
        text = tokenizer.decode(arrays.sequence(number, rejected=False)[arrays.prompt_lengths[number] :])
        assert text.startswith(f"{number} is it")
    assert np.all(np.diff(arrays.starts) > 0)


def test_files_by_name_and_pattern(write, tmp_path):
    b, a = write(pair(), name="b.jsonl"), write(pair(), name="a.jsonl")
    assert expand_files([str(b), f"{tmp_path}/*.jsonl"]) == [b, a]
    with pytest.raises(ValueError, match="matches no file"):
        expand_files([f"{tmp_path}/c*.jsonl"])
