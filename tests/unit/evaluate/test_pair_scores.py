"""Log-probabilities of pairs under a Hugging Face model, against an obvious form in float64."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.core.intervals import mean_interval, wilson_interval
from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.pair_scores import score_pairs
from nemo_minordpo.records import PairScore

PAIRS = [
    {"prompt": f"{number} + 1 = ", "chosen_response": f"{number} and 1 is {number + 1}.", "rejected_response": wrong}
    for number, wrong in enumerate(["0 and 1 is 7.", "no", "2 and 1 is 30, I think, or more."])
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


@pytest.fixture
def other_model(model_folder, tmp_path):
    """The same tokenizer, other weights."""
    folder = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def by_hand(folder, pair, response):
    """(sum over the response and its end, its tokens), one forward pass over the unpadded sequence, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    prompt = tokenizer(pair["prompt"]).input_ids
    ids = [*prompt, *tokenizer(pair[response]).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    tokens = [log_probs[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
    return sum(tokens), len(tokens)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "pair_scores.jsonl").read_text().splitlines()]


def test_log_probabilities_of_each_pair(model_folder, pairs, tmp_path):
    score_pairs(model_folder, [str(pairs)], tmp_path / "scores")
    for number, (row, pair) in enumerate(zip(rows_of(tmp_path / "scores"), PAIRS, strict=True), start=1):
        (chosen, chosen_tokens), (rejected, rejected_tokens) = (
            by_hand(model_folder, pair, f"{name}_response") for name in ("chosen", "rejected")
        )
        assert row["pair"] == f"{pairs}:{number}"
        assert row["logps/chosen"] == pytest.approx(chosen, abs=1e-4)
        assert row["logps/rejected"] == pytest.approx(rejected, abs=1e-4)
        assert row["logps/margin"] == pytest.approx(chosen - rejected, abs=2e-4)
        assert row["logps/accuracy"] == (chosen > rejected)
        assert row["logps/average_accuracy"] == (chosen / chosen_tokens > rejected / rejected_tokens)


def test_both_kinds_of_accuracy_occur_above(model_folder, pairs, tmp_path):
    """Otherwise a constant would pass."""
    score_pairs(model_folder, [str(pairs)], tmp_path / "scores")
    found = [(row["logps/accuracy"], row["logps/average_accuracy"]) for row in rows_of(tmp_path / "scores")]
    assert len(set(found)) > 1


def test_rewards_against_a_reference(model_folder, other_model, pairs, tmp_path):
    found = score_pairs(other_model, [str(pairs)], tmp_path / "scores", reference=model_folder)
    for row, pair in zip(rows_of(tmp_path / "scores"), PAIRS, strict=True):
        (policy, tokens), (known, _) = (
            by_hand(folder, pair, "chosen_response") for folder in (other_model, model_folder)
        )
        assert row["rewards/chosen"] == pytest.approx(policy - known, abs=2e-4)
        assert abs(row["rewards/chosen"]) > 1e-2
        assert row["deviation/chosen"] == pytest.approx((policy - known) / tokens, abs=2e-4)
    assert found.reference == str(model_folder)


def test_a_model_is_no_better_than_itself(model_folder, pairs, tmp_path):
    found = score_pairs(model_folder, [str(pairs)], tmp_path / "scores", reference=model_folder).metrics
    assert found["rewards/chosen"] == found["rewards/margin"] == 0
    assert found["rewards/accuracy"] == 0.5


def test_means_and_intervals(model_folder, pairs, tmp_path):
    score_pairs(model_folder, [str(pairs)], tmp_path / "scores")
    found = PairScore.from_json((tmp_path / "scores/pair_score.json").read_text())
    margins = [row["logps/margin"] for row in rows_of(tmp_path / "scores")]
    right = sum(row["logps/accuracy"] for row in rows_of(tmp_path / "scores"))
    assert found.num_pairs == 3
    assert found.metrics["logps/margin"] == pytest.approx(sum(margins) / 3)
    assert found.intervals_95["logps/margin"] == pytest.approx(mean_interval(margins))
    assert found.intervals_95["logps/accuracy"] == pytest.approx(wilson_interval(right, 3))


def test_one_pair_has_no_interval(model_folder, pairs, tmp_path):
    found = score_pairs(model_folder, [str(pairs)], tmp_path / "scores", limit=1)
    assert (found.num_pairs, found.intervals_95) == (1, {})


def test_an_invalid_pair_is_named_or_left_out(model_folder, pairs, tmp_path):
    with pairs.open("a") as file:
        file.write(json.dumps(PAIRS[0] | {"rejected_response": PAIRS[0]["chosen_response"]}) + "\n")
    with pytest.raises(UserError, match=r"pairs.jsonl:4: .*are equal"):
        score_pairs(model_folder, [str(pairs)], tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    assert score_pairs(model_folder, [str(pairs)], tmp_path / "scores", invalid_pairs="drop").num_pairs == 3


def test_files_that_do_not_exist(model_folder, tmp_path):
    with pytest.raises(UserError, match=r"pairs: 'nowhere.jsonl' matches no file"):
        score_pairs(model_folder, ["nowhere.jsonl"], tmp_path / "scores")


def test_long_pairs_are_left_out_and_counted(model_folder, pairs, tmp_path, capsys):
    found = score_pairs(model_folder, [str(pairs)], tmp_path / "scores", seq_length=30)
    assert found.num_pairs == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "1 longer than" in words
    (left_out,) = (tmp_path / "scores/data/left_out_pairs.jsonl").read_text().splitlines()
    assert json.loads(left_out)["place"] == f"{pairs}:3"


def test_replaced_scores_are_of_the_new_pairs(model_folder, pairs, tmp_path):
    score_pairs(model_folder, [str(pairs)], tmp_path / "scores")
    pairs.write_text(json.dumps(PAIRS[1]) + "\n")
    assert score_pairs(model_folder, [str(pairs)], tmp_path / "scores", overwrite=True).num_pairs == 1


def test_another_tokenizer_is_refused(model_folder, other_model, pairs, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(other_model)
    tokenizer.add_tokens("<more>")
    tokenizer.save_pretrained(other_model)
    with pytest.raises(UserError, match="different tokenizers"):
        score_pairs(model_folder, [str(pairs)], tmp_path / "scores", reference=other_model)


def test_an_output_is_not_replaced_unasked(model_folder, pairs, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        score_pairs(model_folder, [str(pairs)], tmp_path / "scores")


def test_the_command(model_folder, pairs, tmp_path):
    done = CliRunner().invoke(app, ["score", str(model_folder), str(pairs), str(tmp_path / "scores")])
    assert done.exit_code == 0, done.output
    assert "logps/accuracy" in done.output
    assert f"3 pairs -> {tmp_path / 'scores'}" in done.output
    (manifest,) = (tmp_path / "scores").glob("manifest.json")
    assert str(pairs) in json.loads(manifest.read_text())["inputs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--invalid-pairs", "keep"], "choose refuse or drop"), (["--limit", "0"], "limit")],
)
def test_bad_options(model_folder, pairs, tmp_path, arguments, words):
    done = CliRunner().invoke(app, ["score", str(model_folder), str(pairs), str(tmp_path / "scores"), *arguments])
    assert done.exit_code == 2
    assert words in done.output


def ches_by_hand(folder, pair):
    """CHES from the hidden states that transformers returns, before the output layer, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    prompt = tokenizer(pair["prompt"]).input_ids
    sums = []
    for name in ("chosen_response", "rejected_response"):
        ids = [*prompt, *tokenizer(pair[name]).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        sums.append((sum(states[place - 1] for place in range(len(prompt), len(ids))), len(ids) - len(prompt)))
    (chosen, length), (rejected, other) = sums
    total = (chosen * rejected).sum() - (chosen**2).sum()
    per_token = ((chosen / length) * (rejected / other)).sum() - ((chosen / length) ** 2).sum()
    return total.item(), per_token.item()


def test_ches_of_each_pair_under_the_model_before_training(model_folder, other_model, pairs, tmp_path):
    score_pairs(model_folder, [str(pairs)], tmp_path / "base")
    score_pairs(other_model, [str(pairs)], tmp_path / "trained", reference=model_folder)
    score_pairs(other_model, [str(pairs)], tmp_path / "alone")
    for pair, *rows in zip(PAIRS, *(rows_of(tmp_path / name) for name in ("base", "trained", "alone")), strict=True):
        total, per_token = ches_by_hand(model_folder, pair)
        for row in rows[:2]:
            assert row["ches/total"] == pytest.approx(total, rel=1e-4)
            assert row["ches/per_token"] == pytest.approx(per_token, rel=1e-4)
        assert rows[2]["ches/total"] != pytest.approx(total, rel=1e-2)
