"""vLLM's output, from a stand-in with its interface, reaches the same records; no GPU is needed."""

import json
import math
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

from nemo_minordpo.evaluate import engines
from nemo_minordpo.evaluate.run import evaluate
from nemo_minordpo.records import Manifest

WRITTEN = "So the answer is: 3"


@dataclass
class Parameters:
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop_token_ids: list
    logprobs: int
    detokenize: bool


@pytest.fixture
def vllm(monkeypatch, model_folder):
    """A module `vllm` whose model writes `WRITTEN`, followed by its end or cut."""
    seen = {"made": None, "asked": [], "log_prob": -1.0}

    class LLM:
        def __init__(self, **options):
            seen["made"] = options
            config = SimpleNamespace(dtype="torch.bfloat16", max_model_len=512)
            self.llm_engine = SimpleNamespace(model_config=config)

        def generate(self, prompts, parameters, *, use_tqdm):
            seen["asked"] += list(zip([one["prompt_token_ids"] for one in prompts], parameters, strict=True))
            return [self._output(one) for one in parameters]

        def _output(self, one):
            tokens = [1 + LETTERS.index(letter) for letter in _bytes(WRITTEN)] + one.stop_token_ids[:1]
            cut = tokens[: one.max_tokens]
            reason = "stop" if len(cut) == len(tokens) else "length"
            answer = SimpleNamespace(token_ids=cut, finish_reason=reason, cumulative_logprob=seen["log_prob"])
            return SimpleNamespace(outputs=[answer])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, Parameters  # pyright: ignore[reportAttributeAccessIssue]
    module.__spec__ = SimpleNamespace()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", module)
    yield seen
    sys.modules.pop("nemo_minordpo.evaluate.vllm_engine", None)


def _bytes(text):
    return text.replace(" ", "\u0120")  # byte-level BPE writes a space as U+0120


def _letters():
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


LETTERS = _letters()


def test_its_output_gives_the_same_records(vllm, model_folder, questions, tmp_path):
    score = evaluate(model_folder, questions, tmp_path / "out", engine="vllm", batch_size=7, max_new_tokens=40)
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert {(row["output"], row["finished"], row["num_tokens"]) for row in rows} == {(WRITTEN, True, len(WRITTEN))}
    assert score.strict_accuracy == 0.1  # the answer to question 3
    assert vllm["made"]["max_num_seqs"] == 7
    assert vllm["made"]["generation_config"] == "vllm"
    prompt, parameters = vllm["asked"][0]
    assert (parameters.temperature, parameters.max_tokens, parameters.stop_token_ids) == (0.0, 40, [0])
    assert len(prompt) == max(len(ids) for ids, _ in vllm["asked"])
    settings = Manifest.read(tmp_path / "out").settings
    assert (settings["engine"], settings["dtype"], settings["device"]) == ("vllm", "bfloat16", "cuda")


def test_a_cut_answer_is_not_finished(vllm, model_folder, questions, tmp_path):
    score = evaluate(model_folder, questions, tmp_path / "out", engine="vllm", max_new_tokens=5)
    assert (score.unfinished_rate, score.mean_tokens) == (1.0, 5.0)


def test_every_sample_has_a_seed_of_its_own(vllm, model_folder, questions, tmp_path):
    options = {"engine": "vllm", "max_new_tokens": 40, "temperature": 0.7, "top_p": 0.9, "samples": 3}
    evaluate(model_folder, questions, tmp_path / "out", seed=1, **options)
    first = [parameters for _, parameters in vllm["asked"]]
    assert len({one.seed for one in first}) == 30
    assert {(one.temperature, one.top_p) for one in first} == {(0.7, 0.9)}
    vllm["asked"].clear()
    evaluate(model_folder, questions, tmp_path / "other", seed=2, **options)
    assert not {one.seed for one in first} & {one.seed for _, one in vllm["asked"]}


def test_values_that_are_not_finite_stop_the_evaluation(vllm, model_folder, questions, tmp_path):
    vllm["log_prob"] = math.nan
    with pytest.raises(ValueError, match="vLLM's log-probabilities are not finite in bfloat16"):
        evaluate(model_folder, questions, tmp_path / "out", engine="vllm", max_new_tokens=40)


def test_it_is_chosen_only_on_a_gpu(vllm, model_folder, questions, tmp_path, monkeypatch, capsys):
    evaluate(model_folder, questions, tmp_path / "cpu", max_new_tokens=4, limit=1)
    assert vllm["made"] is None
    monkeypatch.setattr(engines.torch.cuda, "is_available", lambda: True)
    evaluate(model_folder, questions, tmp_path / "gpu", max_new_tokens=4, limit=1)
    assert vllm["made"]["model"] == str(model_folder)
    assert "answering with vLLM, which is installed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="device 'cpu' needs 'transformers'"):
        evaluate(model_folder, questions, tmp_path / "no", engine="vllm", device="cpu")
