"""docs/extending.md, walked: its code blocks are put where the page says, and used."""

import json
import math
import sys
from types import ModuleType

import pytest
import torch

from nemo_minordpo import config
from nemo_minordpo.convert import facts
from nemo_minordpo.convert.mapping import mapping_table
from nemo_minordpo.core import metrics
from nemo_minordpo.core.losses import Pairs
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.sources import find_sources
from nemo_minordpo.train.model.preference_loss import loss_called, require_usable_loss
from tests.losses import options_with
from tests.unit.convert.tiny_hf import config_of
from tests.unit.docs.reading import ROOT, blocks

OPTIONS = options_with(beta=2.0)
PAIRS = Pairs(
    chosen_log_ratio=torch.tensor([0.5, -1.0], dtype=torch.float64),
    rejected_log_ratio=torch.tensor([-0.5, 1.0], dtype=torch.float64),
    chosen_log_probs=torch.tensor([-4.0, -6.0], dtype=torch.float64),
    rejected_log_probs=torch.tensor([-9.0, -2.0], dtype=torch.float64),
    shared_log_probs=torch.tensor([-1.0, 0.0], dtype=torch.float64),
    chosen_num_tokens=torch.tensor([4, 2]),
    rejected_num_tokens=torch.tensor([3, 2]),
    reward_margin=torch.tensor([1.0, 1.0]),
)


def block_with(text):
    """The one code block that has a text in it."""
    (found,) = [block.text for block in blocks(ROOT / "docs/extending.md", "python") if text in block.text]
    return found


def test_every_block_is_walked_here():
    walked = [block_with(text) for text in ("def simpo", "PairMetric(", "TriviaRecipe", "Family(", "class Csv")]
    assert len(set(walked)) == len([*blocks(ROOT / "docs/extending.md", "python")])


def test_a_loss_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_losses.py").write_text(block_with("def simpo"))
    settings = config.load(
        config.compose(
            [
                "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[pairs.jsonl]",
                "model.dpo.preference_loss=my_losses:simpo", "model.dpo.ref_policy_kl_penalty=2.0",
                "exp_manager.explicit_log_dir=run",
            ]
        )
    )  # fmt: skip
    try:
        require_usable_loss(settings.model.dpo)
        values = loss_called("my_losses:simpo")(PAIRS, OPTIONS)
    finally:
        sys.modules.pop("my_losses", None)
    # by hand: 2 * (-4 / 4 + 9 / 3) - 0.5 = 3.5 and 2 * (-6 / 2 + 2 / 2) - 0.5 = -4.5
    assert values.tolist() == pytest.approx([math.log1p(math.exp(-3.5)), math.log1p(math.exp(4.5))])


def test_a_metric():
    # where the page says: behind the last entry, before what is derived from all of them
    source = (ROOT / "nemo_minordpo/core/metrics.py").read_text()
    assert source.count("\nROWS = ") == 1
    changed = ModuleType("changed_metrics")
    monkeypatched = sys.modules[changed.__name__] = changed  # dataclasses look their module up
    try:
        exec(source.replace("\nROWS = ", f"\n{block_with('PairMetric(')}\nROWS = "), vars(monkeypatched))
        values = changed.summary(changed.pair_metrics(PAIRS, OPTIONS, torch.zeros(2, dtype=torch.float64)))
    finally:
        del sys.modules[changed.__name__]
    assert values.pop("rewards/chosen_per_token") == pytest.approx((0.5 / 4 - 1.0 / 2) / 2)
    assert values == metrics.summary(metrics.pair_metrics(PAIRS, OPTIONS, torch.zeros(2, dtype=torch.float64)))


def test_a_recipe(tmp_path, monkeypatch):
    module = ModuleType("trivia")
    monkeypatch.setitem(sys.modules, "trivia", module)
    exec(block_with("TriviaRecipe"), vars(module))
    rows = [{"question": f"What is {n}?", "right": f"It is {n}.", "wrong": f"It is {n + 1}."} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "Why?"}]))
    sources = find_sources([str(tmp_path / "rows.jsonl")], subset=None, split="train")
    options = BuildOptions(workers=1, max_rejected=0.5)
    manifest = build(module.TriviaRecipe(), sources, tmp_path / "pairs", options)
    written = [json.loads(line) for line in (tmp_path / "pairs/train.jsonl").read_text().splitlines()]
    assert [pair["chosen_response"].strip() for pair in written] == [row["right"] for row in rows]
    assert manifest.counts["rejected"] == 1


def test_a_model_family(monkeypatch):
    new = config_of("llama", num_key_value_heads=None) | {"model_type": "yi", "architectures": ["YiForCausalLM"]}
    with pytest.raises(UserError, match="not supported"):
        facts.facts_from_config(new, where="config.json")
    monkeypatch.setattr(facts, "FAMILIES", dict(facts.FAMILIES))
    exec(block_with("Family("), vars(facts))
    with pytest.raises(UserError, match="not a multiple of num_key_value_heads=4"):
        facts.facts_from_config(new, where="config.json")
    found = facts.facts_from_config(new | {"num_key_value_heads": 2}, where="config.json")
    llama = facts.facts_from_config(config_of("llama"), where="config.json")
    assert mapping_table(found) == mapping_table(llama)


def test_a_logger(tmp_path):
    module = ModuleType("csv_logger")
    exec(block_with("class Csv"), vars(module))
    logger = module.Csv(tmp_path)
    logger.start(0)
    logger.log({"train/loss": 0.5, "train/lr": 1e-6}, 1)
    logger.close(failed=False)
    module.Csv(tmp_path).close(failed=True)  # one that was never started
    assert (tmp_path / "metrics.csv").read_text() == "1,train/loss,0.5\n1,train/lr,1e-06\n"
