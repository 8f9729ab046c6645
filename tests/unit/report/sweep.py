"""Run folders that look like a sweep: three losses, four betas, two learning rates, two seeds.

`python -m tests.unit.report.sweep FOLDER` writes them; view them with `minordpo report`.
"""

import json
import math
import random
import sys
from pathlib import Path

import yaml

from nemo_minordpo.core.intervals import wilson_interval

LOSSES, BETAS, RATES, SEEDS = ("dpo", "dpop", "minordpo"), (0.02, 0.05, 0.1, 0.2), (1e-6, 1e-5), (1, 2)
QUESTIONS, BASE_ACCURACY = 500, 0.52


def write_config(folder, *, loss, beta=0.1, rate=2e-5, seed=1234, **more):
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model": {
            "seed": seed, "global_batch_size": 128, "optim": {"lr": rate},
            "dpo": {"preference_loss": loss, "ref_policy_kl_penalty": beta, "dpop_lambda": 50.0},
        },
        "trainer": {"devices": 2, "dpo": {"save_nemo": True}},
        "exp_manager": {"explicit_log_dir": str(folder)},
    }  # fmt: skip
    for key, value in more.items():
        config["model"][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_score(folder, right, *, questions=QUESTIONS, degenerate=0.0, **changes):
    """A score with `right` correct answers; keywords override its fields."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = wilson_interval(right, questions)
    score = {
        "model": "hf", "questions": "test.jsonl", "num_questions": questions,
        "strict_accuracy": right / questions, "strict_interval_95": [low, high],
        "flexible_accuracy": right / questions, "flexible_interval_95": [low, high],
        "degenerate_rate": degenerate, "no_answer_rate": degenerate, "unfinished_rate": degenerate, "mean_tokens": 90.0,
    }  # fmt: skip
    (folder / "score.json").write_text(json.dumps({**score, **changes}))
    return folder


def write_answers(folder, outcomes, *, outputs=None):
    """The answers and the score of an evaluation.

    Args:
        folder: the evaluation's.
        outcomes: for each question, one of "right", "flexible" (right, but not in the requested format), "wrong",
            "degenerate".
        outputs: for each question, what the model wrote; None = something short.
    """
    lines = []
    for index, outcome in enumerate(outcomes):
        gold, given = str(index + 2), str(index + 2 if outcome in ("right", "flexible") else index + 1)
        lines.append(
            {
                "index": index, "question": f"How many are {index} + 2?", "num_tokens": 9, "finished": True,
                "output": outputs[index] if outputs else f"Let me see.\nSo the answer is: {given}",
                "gold": gold, "strict": None if outcome == "flexible" else given, "flexible": given,
                "degenerate": "loop" if outcome == "degenerate" else None,
            }
        )  # fmt: skip
    total, right, degenerate = len(outcomes), outcomes.count("right"), outcomes.count("degenerate")
    flexible = right + outcomes.count("flexible")
    write_score(
        folder, right, questions=total, degenerate=degenerate / total,
        flexible_accuracy=flexible / total, flexible_interval_95=wilson_interval(flexible, total),
    )  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def outcomes_of(right, degenerate, chance):
    """Outcomes of so many right answers; the first questions are the easiest, and degenerate answers are wrong."""
    ease = sorted(range(QUESTIONS), key=lambda index: index / QUESTIONS + chance.gauss(0, 0.25))
    outcomes = ["wrong"] * QUESTIONS
    for index in ease[:right]:
        outcomes[index] = "right"
    for index in ease[QUESTIONS - min(round(degenerate * QUESTIONS), QUESTIONS - right) :]:
        outcomes[index] = "degenerate"
    return outcomes


def write_events(folder, max_steps, *, end=None, alarm=None):
    events = [("started", 0, "2 ranks", max_steps), *([("alarm", alarm, "they repeat themselves", 0)] if alarm else [])]
    events += [(end, max_steps, "", 0)] if end else []
    with (folder / "events.jsonl").open("w") as out:
        for second, (event, step, detail, of) in enumerate(events):
            line = {"time": f"2024-01-01T00:00:{second:02d}+00:00", "attempt": 1, "job": "job_1.0", "event": event}
            out.write(json.dumps({**line, "step": step, "detail": detail, "max_steps": of}) + "\n")


def metrics_line(step, values, split="train"):
    return json.dumps({"split": split, "step": step, "epoch": 0, "consumed_pairs": 128 * step, "values": values}) + "\n"


def answers_line(step, degenerate, *, divergence):
    values = {
        "degenerate_rate": degenerate, "repeated_4grams": degenerate / 2, "unfinished_rate": degenerate,
        "mean_tokens": 90.0, "kl_reference": divergence, "step_s": 1.0,
    }  # fmt: skip
    return metrics_line(step, values, "watch")


def _held_out(values):
    """The same on pairs that were not trained on: a little worse."""
    margin = values["rewards/margin"] * 0.9
    accuracy = {"rewards/accuracy": min(0.98, 0.5 + margin / 25), "logps/accuracy": min(0.9, 0.4 + margin / 30)}
    return {"loss": values["loss"] * 1.05, "rewards/margin": margin, **accuracy}


def _ends(loss, beta, rate):
    """(chosen, rejected, accuracy, degenerate rate) at the end of such a run, roughly as in the paper."""
    strength = (1.0 if rate < 5e-6 else 5.0) * (0.05 / beta) ** 0.6
    if loss == "dpo":
        ruin = min(strength / 8, 1.0)
        return -14 * strength, -34 * strength, BASE_ACCURACY - 0.04 - 0.46 * ruin, max(0.0, 1.4 * (ruin - 0.6))
    if loss == "dpop":
        over = max(0.0, strength - 6)
        return 1.5 * math.sqrt(strength), -1.2 * strength, BASE_ACCURACY + 0.06 - 0.08 * over, 0.06 * over
    return 3.0 * math.sqrt(strength), -2.2 * strength, BASE_ACCURACY + 0.11 - 0.001 * strength, 0.0


def write_run(folder, *, loss, beta, rate, seed, steps=300, stop=None):
    """One run; `stop`: the step after which it was killed."""
    chance = random.Random(f"{loss} {beta} {rate} {seed}")
    write_config(folder, loss=loss, beta=beta, rate=rate, seed=seed)
    chosen_end, rejected_end, accuracy, degenerate = _ends(loss, beta, rate)
    chosen_end, rejected_end = (end * chance.uniform(0.93, 1.07) for end in (chosen_end, rejected_end))
    with (folder / "metrics.jsonl").open("w") as out:
        out.write(answers_line(0, 0.0, divergence=0.0))
        for step in range(1, (stop or steps) + 1):
            part = (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4))
            chosen = chosen_end * part + chance.gauss(0, 0.04 * abs(chosen_end))
            rejected = rejected_end * part + chance.gauss(0, 0.04 * abs(rejected_end))
            margin = chosen - rejected
            pull = 1 / (1 + math.exp(min(beta * margin, 500)))
            values = {
                "loss": math.log1p(math.exp(-beta * margin)), "rewards/chosen": chosen, "rewards/rejected": rejected,
                "rewards/margin": margin, "rewards/accuracy": min(1.0, 0.5 + margin / 20),
                "logps/chosen": -90 + chosen, "logps/rejected": -95 + rejected, "dpo/coefficient": beta * pull,
                "minordpo/rejected_below_reference": min(1.0, 0.5 + part * 0.45),
                "dpop/chosen_below_reference": min(max(0.5 - chosen / 20, 0.02), 0.99),
                "lr": rate, "grad_norm": 40 * pull * chance.lognormvariate(0, 0.3), "step_s": 2 + chance.random() / 5,
                "pairs_per_s": 60.0, "tokens_per_s": 9000.0, "peak_memory_gib": 3.5,
            }  # fmt: skip
            out.write(metrics_line(step, values))
            if step % (steps // 6) == 0:
                out.write(metrics_line(step, _held_out(values), "validation"))
                out.write(answers_line(step, degenerate * part, divergence=abs(chosen)))
    write_events(folder, steps, end=None if stop else "complete", alarm=steps // 2 if degenerate > 0.2 else None)
    if stop is None:
        (folder / "model.nemo").touch()
        right = round(QUESTIONS * min(max(accuracy + chance.gauss(0, 0.012), 0.0), 1.0))
        write_answers(folder / "evaluation", outcomes_of(right, degenerate, chance))
    return folder


def write_sweep(folder, *, steps=300, losses=LOSSES, betas=BETAS, rates=RATES, seeds=SEEDS):
    """Every run of the sweep, and the base model's score. Returns the run folders, and the base's."""
    runs = [
        write_run(folder / f"{loss}-{beta}-{rate}-{seed}", loss=loss, beta=beta, rate=rate, seed=seed, steps=steps)
        for loss in losses for rate in rates for beta in betas for seed in seeds
    ]  # fmt: skip
    base = outcomes_of(round(BASE_ACCURACY * QUESTIONS), 0.0, random.Random("base"))
    return runs, write_answers(folder / "base", base)


if __name__ == "__main__":
    write_sweep(Path(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 300)
