"""The names of the files that stages share, and the contents of a run folder.

Launchers are shell scripts and repeat these names, with a comment that refers to this module.
"""

import re
from pathlib import Path

MANIFEST = "manifest.json"  # records.Manifest, in every stage's output

# A folder of pairs or of questions, as `minordpo prepare` writes it.
TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
TEST = "test.jsonl"  # only questions

# A run folder, as `minordpo train` writes it.
CONFIG = "config.yaml"  # the resolved configuration; written last: it marks the folder as a run's
DATA = "data"  # for each split: token arrays, left_out_pairs.jsonl, counts.json (pairs/tokens.py)
METRICS = "metrics.jsonl"  # one line per step (records.StepMetrics)
EVENTS = "events.jsonl"  # one line per event of the run (records.RunEvent)
FAILURES = "failures"  # errors, one file per rank (records.Failure)
ATTEMPT = "attempt.json"  # the process that writes to the folder (train/folder/attempt.py)
PRODUCTS = "products.json"  # how matrix products are computed on CPUs (train/products.py)
CHECKPOINTS = "checkpoints"  # one folder per checkpoint, to resume from (train/folder/checkpoints.py)
STEP = re.compile(r"step_(\d+)")
WATCH = "watch"  # the model's answers during training (train/answers.py)
LOGS = "logs"  # the launcher's logs (launchers/common.sh)
WAITING = "waiting"  # in LOGS: what the launcher is waiting for
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"
NEMO = "model.nemo"  # the trained model, written at the end, next to its tokenizer (sidecars.tokenizer_folder)
# Added to a run folder by sweeps and launchers.
HF = "hf"  # the trained model as a Hugging Face folder
EVALUATION = "evaluation"
SCORED_PAIRS = "scored_pairs"  # `minordpo score` of training pairs, against the model before training

# An evaluation, as `minordpo evaluate` writes it.
PREDICTIONS = "predictions.jsonl"  # records.Prediction
SCORE = "score.json"  # records.Score
PAIR_SCORES = "pair_scores.jsonl"  # the metrics of each pair
PAIR_SCORE = "pair_score.json"  # records.PairScore

# NeMo's names inside a .nemo, as far as two stages use them.
MODEL_CONFIG = "model_config.yaml"  # the model's own configuration; also in a run folder, for export-hf
NEMO_WEIGHTS = "model_weights"
NEMO_RANK_WEIGHTS = "model_weights.ckpt"

REPORT = "report.md"  # written by `minordpo report`; a sweep checks this file to see whether the report exists


def manifest_of_nemo(nemo: Path) -> Path:
    """The manifest of a `.nemo` that was converted, next to it."""
    return nemo.with_name(f"{nemo.stem}.{MANIFEST}")


def step_name(step: int) -> str:
    """Name of the checkpoint, and of the sampled answers, after `step` optimizer steps."""
    return f"step_{step:06d}"
