"""docs/settings.md and the help of `train` match the declarations."""

import re
import subprocess
import sys
from pathlib import Path

from nemo_minordpo import config
from nemo_minordpo.commands.training import train
from nemo_minordpo.config.page import page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    command = "python -m nemo_minordpo.config.page > docs/settings.md"
    assert PAGE.read_text(encoding="utf-8") == page(), f"made by: {command}"
    assert command in page()


def test_every_setting_has_one_complete_row():
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)$", page(), re.MULTILINE))
    assert rows.keys() == config.DECLARED.keys()
    beta, path, steps = (
        rows[key]
        for key in ("model.dpo.ref_policy_kl_penalty", "model.data.data_prefix.train", "trainer.dpo.max_steps")
    )
    assert beta.startswith(" required | number > 0 | per nat | no | Beta, ")
    assert "| the path, not the contents |" in path
    assert steps.startswith(" `-1` | whole number >= 1; `-1`: no limit | steps | no |")
    assert rows["model.dpo.dpop_lambda"].endswith("Read by `dpop`. |")
    assert "`cached`, `live`" in rows["model.dpo.reference_log_probs"]


def test_the_help_of_train_names_settings():
    named = re.findall(r"\b((?:model|trainer|exp_manager|pretrained_checkpoint)\.[\w.]+)=", train.__doc__ or "")
    assert len(named) >= 10
    assert set(named) <= config.DECLARED.keys()


def test_the_page_is_made_without_torch():
    code = "import sys, nemo_minordpo.config.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
