import json
import math
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoTokenizer

from nemo_minordpo.core.gsm8k import plain_prompt
from nemo_minordpo.evaluate.engine import Limits, Request, Text
from nemo_minordpo.evaluate.engines import load_engine
from nemo_minordpo.evaluate.generate import TransformersEngine
from nemo_minordpo.evaluate.sampling import Sampling

QUESTIONS = ["1?", "Ann has twenty-three pens and gives one away. How many?", "Short one", "And a middling question?"]


def load_generator(folder, *, dtype, device):
    limits = Limits(batch_size=None, max_new_tokens=1)
    return load_engine(folder, name="transformers", dtype=dtype, device=device, limits=limits)


@pytest.fixture(scope="module")
def generator(model_folder):
    return load_generator(model_folder, dtype="auto", device="cpu")


def _prompts(generator):
    return [generator.text.encode(plain_prompt(question)) for question in QUESTIONS]


def _generate(generator, prompts, *, max_new_tokens, batch_size=None, on_tokens=lambda count: None):
    requests = [Request(index=index, sample=0, prompt=prompt) for index, prompt in enumerate(prompts)]
    limits = Limits(batch_size=batch_size, max_new_tokens=max_new_tokens)
    answers = generator.answers(requests, limits=limits, sampling=Sampling(), on_tokens=on_tokens)
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0].index)]


def _naive(generator, prompt, number):
    """Reference: greedy generation without cache, batch or padding."""
    ids = list(prompt)
    for _ in range(number):
        with torch.inference_mode():
            best = int(generator.model(torch.tensor([ids])).logits[0, -1].argmax())
        if best in generator.text.stop_ids:
            return ids[len(prompt) :], True
        ids.append(best)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_batch_gives_the_same_as_each_prompt_alone(generator, batch_size):
    prompts = _prompts(generator)
    assert len({len(prompt) for prompt in prompts}) == 4
    together = _generate(generator, prompts, max_new_tokens=40, batch_size=batch_size)
    generator.model.config._attn_implementation = "sdpa"
    assert [(one.token_ids, one.finished) for one in together] == [_naive(generator, p, 40) for p in prompts]
    assert len({tuple(one.token_ids) for one in together}) == 4, "a model that ignores its prompt proves nothing"


def test_no_warnings_and_progress_is_reported(generator, caplog):
    ticks = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _generate(generator, _prompts(generator)[:2], max_new_tokens=5, on_tokens=ticks.append)
    assert ticks == [2] * 5
    assert not caplog.records


def test_an_end_of_text_ends_only_its_own_row(generator):
    prompts = _prompts(generator)
    free = _generate(generator, prompts, max_new_tokens=20)
    # From now on, the token at position 7 of the first answer ends answers.
    stop = free[0].token_ids[7]
    stopping = TransformersEngine(generator.model, Text(tokenizer=generator.text.tokenizer, stop_ids=[stop]))
    for before, after in zip(free, _generate(stopping, prompts, max_new_tokens=20), strict=True):
        ends = stop in before.token_ids
        assert after.finished is ends
        assert after.token_ids == (before.token_ids[: before.token_ids.index(stop)] if ends else before.token_ids)
    first_place = free[0].token_ids.index(stop)
    assert _generate(stopping, prompts[:1], max_new_tokens=first_place)[0].finished is False
    assert _generate(stopping, prompts[:1], max_new_tokens=first_place + 1)[0].finished is True


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(model_folder, tmp_path, value):
    folder = _copy(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"in float32: not finite: model\.layers\.1\.mlp\.down_proj\.weight$"):
        load_generator(folder, dtype="auto", device="cpu")


def test_weights_that_a_smaller_type_cannot_hold_are_refused(model_folder, tmp_path):
    folder = _copy(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 70000.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights in float16: not finite: model\.norm\.weight$"):
        load_generator(folder, dtype="float16", device="cpu")
    load_generator(folder, dtype="float32", device="cpu")


def test_logits_that_are_not_finite_are_refused(model_folder, tmp_path):
    """Weights fit into float32, but their products do not."""
    folder = _copy(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generator = load_generator(folder, dtype="auto", device="cpu")
    with pytest.raises(ValueError, match="logits are not finite in float32, though its weights are"):
        _generate(generator, _prompts(generator)[:1], max_new_tokens=2)


def _copy(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def _edit(path, **changes):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def test_stops_at_every_end_token_that_the_folder_names(model_folder, tmp_path):
    folder = _copy(model_folder, tmp_path)
    _edit(folder / "generation_config.json", eos_token_id=[5, 7])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.save_pretrained(folder)
    assert load_generator(folder, dtype="auto", device="cpu").text.stop_ids == [0, 5, 7, len(tokenizer) - 1]
    assert load_generator(model_folder, dtype="auto", device="cpu").text.stop_ids == [0]


def test_a_folder_without_an_end_of_text_is_refused(model_folder, tmp_path):
    folder = _copy(model_folder, tmp_path)
    for name in ("generation_config.json", "config.json"):
        _edit(folder / name, eos_token_id=None)
    _edit(folder / "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match="end-of-text"):
        load_generator(folder, dtype="auto", device="cpu")


def test_a_prompt_is_encoded_as_it_is(generator):
    text = "Q? <|endoftext|>"
    assert generator.text.tokenizer.decode(generator.text.encode(text)) == text


@pytest.mark.parametrize("bos_token", ["<|endoftext|>", None])
def test_a_prompt_begins_as_in_training(model_folder, tmp_path, bos_token):
    folder = _copy(model_folder, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [special, text, special], "pair": [special, text, text],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    _edit(folder / "tokenizer_config.json", bos_token=bos_token)
    generator = load_generator(folder, dtype="auto", device="cpu")
    (letter,) = generator.text.tokenizer.encode("a", add_special_tokens=False)
    assert generator.text.tokenizer.encode("a") == [0, letter, 0], "control: this tokenizer adds tokens on both sides"
    # Only a beginning-of-text token, only in front, and only once.
    assert generator.text.encode("a") == ([0, letter] if bos_token else [letter])
    assert generator.text.encode("<|endoftext|>a") == [0, letter]


def test_a_tokenizer_without_a_beginning_token_gets_none(model_folder, tmp_path):
    folder = _copy(model_folder, tmp_path)
    _edit(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    assert len(load_generator(folder, dtype="auto", device="cpu").text.encode("a")) == 1


def test_dtype(model_folder, tmp_path):
    assert load_generator(model_folder, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    folder = _copy(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    _edit(folder / "config.json", torch_dtype="bfloat16")
    assert load_generator(folder, dtype="auto", device="cpu").model.dtype == torch.float32


def test_an_unloadable_model_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_generator(tmp_path / "none", dtype="auto", device="cpu")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        load_generator(model_folder, dtype="int8", device="cpu")
    for device in ("tpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
            load_generator(model_folder, dtype="auto", device=device)
    folder = _copy(model_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing .*layers\.1\.mlp\.down_proj"):
        load_generator(folder, dtype="auto", device="cpu")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_generator(folder, dtype="auto", device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor model"):
        load_generator(folder, dtype="auto", device="cpu")


def test_other_files_that_look_like_weights_are_named(model_folder, tmp_path, capsys):
    folder = _copy(model_folder, tmp_path)
    (folder / "pytorch_model.bin").touch()
    load_generator(folder, dtype="auto", device="cpu")
    said = "reading weights from model.safetensors, like transformers, not from pytorch_model.bin\n"
    assert said in capsys.readouterr().err
