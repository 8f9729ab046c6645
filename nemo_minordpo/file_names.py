"""The names of the files that stages find in one another's folders, and what lies in a run folder.

Launchers are shell and write these names again, with a comment that leads here.
"""

import re

MANIFEST = "manifest.json"  # records.Manifest, in what every stage writes

# A folder of pairs or of questions, as `minordpo prepare` writes it.
TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
TEST = "test.jsonl"  # questions alone

# A run folder, as `minordpo train` writes it.
CONFIG = "config.yaml"  # the resolved configuration; written last: with it the folder belongs to a run
DATA = "data"  # of each split: token arrays, left_out_pairs.jsonl, counts.json (train/data/tokens.py)
METRICS = "metrics.jsonl"  # a line per step (records.StepMetrics)
EVENTS = "events.jsonl"  # what happened to the run, a line each (records.RunEvent)
FAILURES = "failures"  # what broke, a file per rank (records.Failure)
ATTEMPT = "attempt.json"  # which process writes the run (train/folder/attempt.py)
CHECKPOINTS = "checkpoints"  # what a stopped run resumes from, each a folder (train/folder/checkpoints.py)
STEP = re.compile(r"step_(\d+)")
WATCH = "watch"  # what the model answered while it was trained (train/answers.py)
LOGS = "logs"  # a launcher's (launchers/common.sh)
WAITING = "waiting"  # in LOGS: what the launcher waits for
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"
NEMO = "model.nemo"  # the trained model, at the end; its tokenizer lies beside it (sidecars.tokenizer_folder)
# What sweeps and launchers add to a run folder.
HF = "hf"  # the trained model as a Hugging Face folder
EVALUATION = "evaluation"

# An evaluation, as `minordpo evaluate` writes it.
PREDICTIONS = "predictions.jsonl"  # records.Prediction
SCORE = "score.json"  # records.Score

# A .nemo, and of NeMo's names in it what two stages know.
MODEL_CONFIG = "model_config.yaml"  # the model's own configuration; in a run folder, too, for export-hf
NEMO_WEIGHTS = "model_weights"
NEMO_RANK_WEIGHTS = "model_weights.ckpt"

REPORT = "report.md"  # of the files of `minordpo report` the one by which a sweep knows that it is there


def step_name(step: int) -> str:
    """Of the checkpoint, and of the watched answers, after so many optimizer steps."""
    return f"step_{step:06d}"
