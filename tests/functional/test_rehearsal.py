"""The parts of gpu-check's rehearsal that run without a GPU: bfloat16 with main weights on a simulated GPU.

`make gpu-rehearsal` runs all of it, including FP8, in an environment like that of a GPU machine.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Megatron's distributed optimizer and torch's AdamW in NeMo's wrapper; several rows per step; validation in between
CHECKS = (
    "stopped and resumed, bf16",
    "stopped and resumed, bf16, torch's AdamW",
    "20 steps against CPU, bf16, several rows each",
    "validation, bf16",
    # with the lists of blocks as the kernels read them
    "attention of long pairs, bfloat16",
    "large biases, bf16",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    output = tmp_path_factory.mktemp("rehearsal") / "rehearsal.json"
    command = [sys.executable, "-m", "tests.gpu.rehearsal", "--output", output, "--only", *CHECKS, "model, FP8"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert output.exists(), done.stderr
    return {row["name"]: row for row in json.loads(output.read_text())["rows"]}


@pytest.mark.parametrize("name", CHECKS)
def test_bfloat16_with_main_weights(rows, name):
    assert rows[name]["result"] == "passed", "\n".join([rows[name]["reason"], *rows[name]["log"][-20:]])


def test_fp8_needs_transformer_engine(rows):
    row = rows["model, FP8"]
    assert (row["result"], row["reason"]) == ("not run", "Transformer Engine is not installed")
