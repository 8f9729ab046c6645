"""`minordpo preview` shows the tokens that training will see."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_minordpo.config import DataSection
from nemo_minordpo.pairs.preview import preview
from nemo_minordpo.pairs.tokens import load_arrays, tokenize_files
from tests.unit.prepare.templates import CHATML, make_tokenizer, save_tokenizer

PROMPT = "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
PAIR = {"prompt": PROMPT, "chosen_response": "It is blue.", "rejected_response": "It is red.<|im_end|>"}


@pytest.fixture
def shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def show(*pairs, number=9, seq_length=200, append_eos=True):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        tokenizer = save_tokenizer(tmp_path / "hf", CHATML)
        preview(
            [str(tmp_path / "*.jsonl")],
            tokenizer=tokenizer,
            number=number,
            seq_length=seq_length,
            append_eos=append_eos,
        )
        return capsys.readouterr().out

    return show


def test_counts_boundary_and_eos_match_training(shown, tmp_path):
    text = shown(PAIR)
    data = DataSection(seq_length=200)
    tokenize_files(
        [tmp_path / "pairs.jsonl"], tmp_path / "tokens", tokenizer=make_tokenizer(CHATML), data=data, split="train"
    )
    arrays = load_arrays(tmp_path / "tokens")
    prompt, shared = arrays.prompt_lengths[0], arrays.shared_lengths[0] - arrays.prompt_lengths[0]
    assert (prompt, shared) == (24 - 1, 6)
    assert f"pairs.jsonl:1: {prompt} prompt tokens; the responses share their first {shared}" in text
    lengths = [int(length[0]) - int(prompt) for length in arrays.sequence_lengths]
    assert (
        f"chosen response, which is learnt: {lengths[0]} tokens, ends with EOS '<|im_end|>'\nIt is blue.<|im_end|>"
        in text
    )
    assert (
        f"rejected response, which is learnt: {lengths[1]} tokens, ends with EOS '<|im_end|>'\nIt is red.<|im_end|>"
        in text
    )
    assert f"-- prompt, which is given\n{PROMPT}" in text
    assert r"'a' 'n' 't' '\n' | 'I' 't' ' ' 'i'" in text


def test_without_eos(shown):
    text = shown(PAIR, append_eos=False)
    assert "11 tokens, ends without EOS\nIt is blue.\n" in text
    assert "11 tokens, ends with EOS '<|im_end|>'\nIt is red.<|im_end|>" in text


def test_an_end_that_is_not_eos(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    tokenizer = save_tokenizer(tmp_path / "hf", CHATML, eos="<|endoftext|>")
    preview([str(tmp_path / "pairs.jsonl")], tokenizer=tokenizer, number=1, seq_length=99, append_eos=True)
    text = capsys.readouterr().out
    assert "12 tokens, ends with EOS '<|endoftext|>'\nIt is blue.<|endoftext|>" in text
    assert "11 tokens, ends with '<|im_end|>'\nIt is red.<|im_end|>" in text


def _save_llama_2(folder):
    """A tokenizer that adds a space before every word, and removes the first one when decoding."""
    words = ["<unk>", "</s>", "\u2581Sky", "?", "It", "\u2581It", "\u2581is", "\u2581red", "\u2581blue", "\u2581"]
    words += [f"<0x{byte:02X}>" for byte in "\u4f60".encode()]
    backend = Tokenizer(models.WordLevel(vocab={word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581?[A-Za-z]+|<0x..>|."), "isolated")
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend("\u2581"),
            normalizers.Replace(" ", "\u2581"),
            normalizers.Replace("\u4f60", "".join(words[-3:])),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    return folder


def test_leading_spaces_and_word_boundaries_are_preserved(tmp_path, capsys):
    """Also if the tokenizer drops a leading space, and if a token is only part of a character."""
    pairs = [
        {"prompt": "Sky?", "chosen_response": "It is blue", "rejected_response": "It is red"},
        {"prompt": "Sky?", "chosen_response": " It is blue", "rejected_response": "\u4f60"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = _save_llama_2(tmp_path / "hf")
    preview([str(tmp_path / "pairs.jsonl")], tokenizer=tokenizer, number=2, seq_length=99, append_eos=True)
    first, second = capsys.readouterr().out.split("pairs.jsonl:2")
    assert "-- prompt, which is given\n Sky?\n" in first
    assert "ends with EOS '</s>'\nIt is blue</s>\n" in first
    assert "ends with EOS '</s>'\nIt is red</s>\n" in first
    assert "' Sky' '?' | 'It' ' is' ' blue' '</s>'" in first
    assert "ends with EOS '</s>'\n It is blue</s>\n" in second
    assert "' Sky' '?' | ' It' ' is' ' blue' '</s>'" in second
    assert "4 tokens, ends with EOS '</s>'\n\u4f60</s>\n" in second
    swapped = {"prompt": "Sky?", "chosen_response": "\u4f60", "rejected_response": "It"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(swapped))
    preview([str(tmp_path / "pairs.jsonl")], tokenizer=tokenizer, number=1, seq_length=99, append_eos=True)
    assert "' Sky' '?' | <0xE4> <0xBD> <0xA0> '</s>'" in capsys.readouterr().out


def test_pairs_that_training_leaves_out_are_shown_with_the_reason(shown):
    text = shown({"prompt": "P"}, PAIR, PAIR | {"chosen_response": "x" * 300}, PAIR, number=3)
    assert "pairs.jsonl:1: training leaves it out: missing field 'chosen_response'" in text
    assert "pairs.jsonl:2: 23 prompt tokens" in text
    assert "pairs.jsonl:3: training leaves it out: longer than model.data.seq_length" in text
    assert "pairs.jsonl:4" not in text


def test_prompt_and_responses_have_different_colours(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    preview(
        [str(tmp_path / "pairs.jsonl")],
        tokenizer=save_tokenizer(tmp_path / "hf", CHATML),
        number=1,
        seq_length=99,
        append_eos=True,
    )
    text = capsys.readouterr().out
    assert "\x1b[7m<|im_end|>\x1b[0m" in text
    assert "It is \x1b[1;32mblue." in text
    assert "It is \x1b[1;31mred." in text
    assert "\x1b[2muser" in text


def test_missing_files_and_tokenizers_are_reported(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    options = {"number": 1, "seq_length": 99, "append_eos": True}
    with pytest.raises(ValueError, match="matches no file"):
        preview([str(tmp_path / "none.jsonl")], tokenizer=tmp_path, **options)
    with pytest.raises(ValueError, match="no such tokenizer folder"):
        preview([str(tmp_path / "pairs.jsonl")], tokenizer=tmp_path / "none", **options)
    with pytest.raises(ValueError, match="cannot load a Hugging Face tokenizer"):
        preview([str(tmp_path / "pairs.jsonl")], tokenizer=tmp_path, **options)
    tokenizer = make_tokenizer(CHATML)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "hf")
    with pytest.raises(ValueError, match="no EOS token"):
        preview([str(tmp_path / "pairs.jsonl")], tokenizer=tmp_path / "hf", **options)
