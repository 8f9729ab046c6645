import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, fields

import pytest

from nemo_minordpo.core.gsm8k import ANSWER_RULES
from nemo_minordpo.evaluate import run
from nemo_minordpo.evaluate.generate import TransformersEngine
from nemo_minordpo.evaluate.partial import KEY_NAME, PREDICTIONS_NAME
from nemo_minordpo.evaluate.run import evaluate
from nemo_minordpo.files import write_json
from nemo_minordpo.records import Manifest, Prediction, Score
from nemo_minordpo.report.runs import read_score

SHORT = {"batch_size": 3, "max_new_tokens": 8, "device": "cpu"}


def _predictions(folder):
    return [Prediction(**json.loads(line)) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def engine(monkeypatch):
    """Records the requests of the last call and counts its answers; `stop_after` interrupts."""
    seen = {"requests": [], "answers": 0, "stop_after": None}
    original = TransformersEngine.answers

    def answers(self, requests, **options):
        seen.update(requests=requests, answers=0)
        for answer in original(self, requests, **options):
            if seen["answers"] == seen["stop_after"]:
                raise KeyboardInterrupt
            seen["answers"] += 1
            yield answer

    monkeypatch.setattr(TransformersEngine, "answers", answers)
    return seen


def test_results_are_in_file_order_though_the_longest_prompts_go_first(model_folder, questions, tmp_path, engine):
    result = evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    predictions = _predictions(tmp_path / "out")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    assert [one.index for one in predictions] == list(range(10))
    assert [one.question for one in predictions] == [row["question"] for row in rows]
    assert [one.gold for one in predictions] == [str(number) for number in range(10)]
    lengths = [len(request.prompt) for request in engine["requests"]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]
    assert result.num_questions == 10
    assert json.loads((tmp_path / "out/score.json").read_text())["num_questions"] == 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "predictions.jsonl", "score.json",
    ]  # fmt: skip


def test_batch_size_changes_no_prediction(model_folder, questions, tmp_path):
    for size in (1, 4):
        evaluate(model_folder, questions, tmp_path / str(size), batch_size=size, max_new_tokens=30, device="cpu")
    assert _predictions(tmp_path / "1") == _predictions(tmp_path / "4")


SAMPLED = {"samples": 3, "temperature": 1.0, "seed": 7, "limit": 4, "max_new_tokens": 20, "device": "cpu"}


def _lines(folder):
    return (folder / "predictions.jsonl").read_text()


def test_samples_depend_on_the_seed_and_on_nothing_else(model_folder, questions, tmp_path, engine):
    evaluate(model_folder, questions, tmp_path / "whole", batch_size=5, **SAMPLED)
    rows = [json.loads(line) for line in _lines(tmp_path / "whole").splitlines()]
    assert [(row["index"], row["sample"]) for row in rows] == [(i, s) for i in range(4) for s in range(3)]
    assert len({row["output"] for row in rows}) == 12, "all samples differ, or the comparisons below prove little"

    engine.update(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, questions, tmp_path / "resumed", batch_size=2, **SAMPLED)
    engine.update(stop_after=None)
    evaluate(model_folder, questions, tmp_path / "resumed", batch_size=3, **SAMPLED)
    assert engine["answers"] == 7
    assert _lines(tmp_path / "resumed") == _lines(tmp_path / "whole")
    # another number of samples or questions leaves the others as they are
    evaluate(model_folder, questions, tmp_path / "fewer", **(SAMPLED | {"samples": 2, "limit": 3}))
    fewer = [json.loads(line) for line in _lines(tmp_path / "fewer").splitlines()]
    assert fewer == [row for row in rows if row["index"] < 3 and row["sample"] < 2]
    evaluate(model_folder, questions, tmp_path / "other", **(SAMPLED | {"seed": 8}))
    others = [json.loads(line) for line in _lines(tmp_path / "other").splitlines()]
    assert all(one["output"] != other["output"] for one, other in zip(rows, others, strict=True))


def test_a_sampled_score_is_read_back_and_has_its_settings(model_folder, questions, tmp_path):
    score = evaluate(model_folder, questions, tmp_path / "out", top_p=0.9, **SAMPLED)
    assert (score.num_questions, score.num_samples, score.temperature, score.top_p, score.seed) == (4, 3, 1.0, 0.9, 7)
    assert read_score(tmp_path / "out") == json_round_trip(score)
    manifest = Manifest.read(tmp_path / "out")
    assert {name: manifest.settings[name] for name in ("samples", "temperature", "top_p", "seed")} == {
        "samples": 3, "temperature": 1.0, "top_p": 0.9, "seed": 7,
    }  # fmt: skip
    assert manifest.counts["answers"] == 12


def json_round_trip(score):
    return type(score).from_json(json.dumps(asdict(score)))


def test_greedy_results_have_no_trace_of_samples(model_folder, questions, tmp_path):
    evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    assert all("sample" not in json.loads(line) for line in _lines(tmp_path / "out").splitlines())
    assert set(json.loads((tmp_path / "out/score.json").read_text())) == {one.name for one in fields(Score)}
    assert not {"samples", "temperature"} & set(Manifest.read(tmp_path / "out").settings)


def test_manifest_names_inputs_and_settings(model_folder, questions, tmp_path):
    evaluate(model_folder, questions, tmp_path / "out", limit=2, **SHORT)
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.inputs[str(questions)] == hashlib.sha256(questions.read_bytes()).hexdigest()
    assert str(model_folder / "model.safetensors") in manifest.inputs
    assert manifest.counts == {"questions": 2, "taken from an interrupted run": 0}
    expected = {"template": "plain", "batch_size": 3, "max_new_tokens": 8, "limit": 2, "dtype": "float32"}
    expected["answer_rules"] = ANSWER_RULES
    assert {name: manifest.settings[name] for name in expected} == expected
    assert manifest.settings["first_prompt"].endswith(" 0 pens?\n")


@pytest.mark.parametrize("half_a_line", ["", '{"index": 9, "question": "An'])
def test_an_interrupted_run_resumes(model_folder, questions, tmp_path, engine, half_a_line):
    evaluate(model_folder, questions, tmp_path / "whole", **SHORT)
    engine.update(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out/predictions.jsonl").exists()
    with (tmp_path / "out" / PREDICTIONS_NAME).open("a") as partial:
        partial.write(half_a_line)
    engine.update(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    engine.update(stop_after=None)
    evaluate(model_folder, questions, tmp_path / "out", **(SHORT | {"batch_size": 1}))
    assert engine["answers"] == 1
    assert _predictions(tmp_path / "out") == _predictions(tmp_path / "whole")
    assert Manifest.read(tmp_path / "out").counts["taken from an interrupted run"] == 9
    assert not (tmp_path / "out" / KEY_NAME).exists()


def test_a_run_interrupted_at_the_very_end_is_finished(model_folder, questions, tmp_path, monkeypatch, engine):
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    engine.update(requests=[])
    assert evaluate(model_folder, questions, tmp_path / "out", **SHORT).num_questions == 10
    assert engine["requests"] == []


def _interrupted(model, questions, output, engine):
    engine.update(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, questions, output, **SHORT)
    engine.update(stop_after=None)


def test_an_interrupted_run_with_other_inputs_is_refused(model_folder, questions, tmp_path, engine, monkeypatch):
    model = shutil.copytree(model_folder, tmp_path / "model")
    out = tmp_path / "out"
    _interrupted(model, questions, out, engine)
    before = (out / PREDICTIONS_NAME).read_bytes()

    with pytest.raises(ValueError, match=r"settings/max_new_tokens: 8 there, 9 now"):
        evaluate(model, questions, out, **(SHORT | {"max_new_tokens": 9}))
    with pytest.raises(ValueError, match=r"settings/limit: None there, 5 now"):
        evaluate(model, questions, out, limit=5, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(run, "ANSWER_RULES", ANSWER_RULES + 1)
        with pytest.raises(ValueError, match=rf"settings/answer_rules: {ANSWER_RULES} there, {ANSWER_RULES + 1} now"):
            evaluate(model, questions, out, **SHORT)
    with pytest.raises(ValueError, match=r"settings/dtype: float32 there, bfloat16 now"):
        evaluate(model, questions, out, dtype="bfloat16", **SHORT)
    other_model = json.loads((model / "config.json").read_text()) | {"rope_theta": 20000.0}
    (model / "config.json").write_text(json.dumps(other_model))
    with pytest.raises(ValueError, match=r"model/config.json: [0-9a-f]{64} there") as refusal:
        evaluate(model, questions, out, **SHORT)
    assert "questions" not in str(refusal.value)
    questions.write_text(questions.read_text().replace("pens", "hats"))
    with pytest.raises(ValueError, match=r"questions: [0-9a-f]{64} there"):
        evaluate(model_folder, questions, out, **SHORT)

    assert (out / PREDICTIONS_NAME).read_bytes() == before
    evaluate(model_folder, questions, out, overwrite=True, **SHORT)
    assert _predictions(out)[0].question.endswith("hats?")
    assert Manifest.read(out).counts["taken from an interrupted run"] == 0


def test_a_damaged_partial_file_is_refused(model_folder, questions, tmp_path, engine):
    _interrupted(model_folder, questions, tmp_path / "out", engine)
    partial = tmp_path / "out" / PREDICTIONS_NAME
    partial.write_text("{}\n" + partial.read_text())
    with pytest.raises(ValueError, match=f"{PREDICTIONS_NAME}:1: not a prediction"):
        evaluate(model_folder, questions, tmp_path / "out", **SHORT)


def test_existing_results_are_replaced_only_on_demand(model_folder, questions, tmp_path, engine):
    evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    engine.update(requests=[])
    with pytest.raises(ValueError, match="exists already"):
        evaluate(model_folder, questions, tmp_path / "out", **SHORT)
    assert engine["requests"] == []
    evaluate(model_folder, questions, tmp_path / "out", limit=2, overwrite=True, **SHORT)
    assert len(_predictions(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 2}, "samples is 2, but temperature 0 is greedy"),
        ({"seed": 2}, "seed is 2, but temperature 0 is greedy"),
        ({"top_p": 0.9}, "top_p is 0.9, but temperature 0 is greedy"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1.0, "seed": -1}, "seed is -1"),
        ({"engine": "fast"}, "engine is 'fast': choose auto, transformers, vllm"),
        ({"engine": "vllm"}, "the package vllm is not installed"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"template": "fancy"}, "'fancy'"),
        ({"template": "chat"}, "no chat template"),
        ({"system": "Be brief."}, "system turn was given"),
        ({"date": "2024-03-09"}, "date was given"),
        ({"template_options": {"enable_thinking": False}}, "template option was given"),
    ],
)
def test_impossible_options_are_refused(model_folder, questions, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate(model_folder, questions, tmp_path / "out", **(SHORT | options))
    assert not (tmp_path / "out").exists()


def test_bad_questions_are_named_before_the_model_is_loaded(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Q?", "answer": "#### 1"}\n\n{"question": "Q?", "answer": "1"}\n' + "[]\n" * 6)
    with pytest.raises(ValueError, match=r"jsonl:3: no '####(.|\n)*jsonl:4: (.|\n)*jsonl:7: .*\n\.\.\. and 2 more"):
        evaluate(tmp_path / "no model", path, tmp_path / "out")
    path.write_text("\n")
    with pytest.raises(ValueError, match="no questions"):
        evaluate(tmp_path / "no model", path, tmp_path / "out")
    with pytest.raises(ValueError, match="no such file"):
        evaluate(tmp_path / "no model", tmp_path / "none.jsonl", tmp_path / "out")


def test_questions_beyond_the_context_are_refused(model_folder, questions, tmp_path):
    with pytest.raises(ValueError, match=r"context of 512: set max_new_tokens to at most (\d+)") as refusal:
        evaluate(model_folder, questions, tmp_path / "out", device="cpu", max_new_tokens=500)
    room = int(str(refusal.value).rsplit(" ", 1)[1])
    with pytest.raises(ValueError, match=f"at most {room}"):
        evaluate(model_folder, questions, tmp_path / "out", device="cpu", max_new_tokens=room + 1)
    evaluate(model_folder, questions, tmp_path / "out", device="cpu", max_new_tokens=room, limit=1)
    with questions.open("a") as more:
        more.write(json.dumps({"question": "long " * 200, "answer": "#### 1"}) + "\n")
    with pytest.raises(ValueError, match="shorten the question"):
        evaluate(model_folder, questions, tmp_path / "longer", device="cpu", max_new_tokens=1)


def test_a_tokenizer_that_is_not_the_models_is_refused(model_folder, questions, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Q"] = 999
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    questions.write_text('{"question": "Q?", "answer": "#### 1"}\n')
    with pytest.raises(ValueError, match="token id 999, but the model has 257 embeddings"):
        evaluate(model, questions, tmp_path / "out", **SHORT)


def test_a_chat_template_is_used_if_there_is_one(model_folder, questions, tmp_path):
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    for name, options, start, end in [
        ("auto", {}, "user: You", " pens?\nassistant:"),
        ("system", {"system": "Hi."}, "system: Hi.\nuser: You", " pens?\nassistant:"),
        ("plain", {"template": "plain"}, "You", " pens?\n"),
    ]:
        evaluate(model, questions, tmp_path / name, limit=1, **SHORT, **options)
        prompt = Manifest.read(tmp_path / name).settings["first_prompt"]
        assert prompt.startswith(start)
        assert prompt.endswith(end)


@pytest.fixture
def dated_model(model_folder, tmp_path):
    """A model whose template shows the date, and an empty thought if thinking is off."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{{ strftime_now('%d %b %Y') }}: {{ messages[-1].content }}:{% if enable_thinking is false %}<think>{% endif %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    return model


def test_date_and_options_reach_the_template_and_the_manifest(dated_model, questions, tmp_path, capsys):
    given = {"date": "2024-03-09", "template_options": {"enable_thinking": False}}
    evaluate(dated_model, questions, tmp_path / "out", limit=1, **SHORT, **given)
    manifest = Manifest.read(tmp_path / "out")
    assert {name: manifest.settings[name] for name in given} == given
    prompt = manifest.settings["first_prompt"]
    assert prompt.startswith("09 Mar 2024: You")
    assert prompt.endswith(" pens?:<think>")
    assert "the chat template prints the date: all prompts say 2024-03-09" in capsys.readouterr().err


def test_an_evaluation_resumed_on_another_day_uses_the_date_of_the_first(
    dated_model, questions, tmp_path, engine, monkeypatch
):
    # two time zones whose dates always differ
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    _interrupted(dated_model, questions, tmp_path / "out", engine)
    key = (tmp_path / "out" / KEY_NAME).read_text()
    first = json.loads(key)["settings"]["date"]
    monkeypatch.setenv("TZ", "Etc/GMT+12")
    time.tzset()
    with pytest.raises(ValueError, match=rf"settings/date: {first} there, 2024-03-09 now"):
        evaluate(dated_model, questions, tmp_path / "out", date="2024-03-09", **SHORT)
    evaluate(dated_model, questions, tmp_path / "out", **SHORT)
    assert Manifest.read(tmp_path / "out").settings["date"] == first
    assert Manifest.read(tmp_path / "out").counts["taken from an interrupted run"] == 3
    # control: started over, it has the current date
    (tmp_path / "out" / KEY_NAME).write_text(key)
    evaluate(dated_model, questions, tmp_path / "out", overwrite=True, **SHORT)
    assert Manifest.read(tmp_path / "out").settings["date"] != first
    monkeypatch.undo()
    time.tzset()


def test_the_warning_about_prompts_unlike_those_of_the_training(dated_model, questions, tmp_path, capsys):
    trained_on = {"template": "chat", "system": None, "date": "2024-03-09", "template_options": {}}
    write_json(dated_model / "manifest.json", {"stage": "export-hf", "prompts": [trained_on]})
    line = f"{dated_model} was trained on prompts in another format: template: chat there, plain now"
    for options, warnings in (({"template": "plain"}, 1), ({"prompts_of": dated_model}, 0)):
        evaluate(dated_model, questions, tmp_path / str(warnings), limit=1, **SHORT, **options)
        assert capsys.readouterr().err.count(line) == warnings
    assert Manifest.read(tmp_path / "0").settings["first_prompt"].startswith("09 Mar 2024: You")
