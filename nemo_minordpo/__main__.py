"""The command line: one command per stage; a command imports only its own stage."""

from collections.abc import Callable
from typing import Any

import typer

from nemo_minordpo.commands import data, experiments, inspection, models, results, training
from nemo_minordpo.commands.cli import PLAIN, Command, Commands
from nemo_minordpo.host.waiting import wait_briefly

_FLOW = """Preference training (DPO, DPOP, MinorDPO) on NeMo-Aligner and Megatron-Core, from data to a measured model.

The pipeline in order; each command reads and writes files:
  minordpo doctor                                          what this machine has and lacks
  minordpo prepare gsm8k gsm8k/train.jsonl pairs           GSM8K -> preference pairs
  minordpo inspect pairs/train.jsonl --output inspected    what is wrong with the pairs
  minordpo preview pairs/train.jsonl --tokenizer hf/base   pairs as training will read them
  minordpo import-hf hf/base base.nemo                     Hugging Face -> .nemo
  minordpo verify hf/base base.nemo                        check that both give the same logits
  minordpo reference KEY=VALUE ...                         reference log-probabilities, computed once for many runs
  minordpo plan KEY=VALUE ...                              layout, memory and time, before a job waits in a queue
  minordpo train model.dpo.preference_loss=minordpo ...    .nemo + pairs -> a run folder
  minordpo status runs/minordpo                            a run's progress and its failures
  minordpo export-hf runs/minordpo hf/minordpo             run folder -> Hugging Face
  minordpo evaluate hf/minordpo gsm8k/test.jsonl runs/minordpo/evaluation
  minordpo score hf/minordpo pairs/validation.jsonl scores    does it prefer the chosen responses?
  minordpo report runs/dpo runs/minordpo --output report   tables, figures, a page

All of it at once, on a small model that needs no download:
  minordpo sweep demo

Existing files are replaced only with --overwrite. `minordpo COMMAND --help` explains a command by example.
"""

# The arguments of these commands are Hydra overrides.
_OVERRIDES: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(help=_FLOW, cls=Commands, add_completion=False, pretty_exceptions_enable=False, **PLAIN)
prepare = typer.Typer(help="Make questions, and preference pairs from them.", **PLAIN)


def _add(group: typer.Typer, name: str, function: Callable[..., None], **context_settings: Any) -> None:
    group.command(name, cls=Command, context_settings=context_settings or None)(function)


_add(prepare, "arithmetic", data.prepare_arithmetic)
_add(prepare, "gsm8k", data.prepare_gsm8k)
_add(prepare, "metamath", data.prepare_metamath)
_add(prepare, "hf", data.prepare_hf)
_add(prepare, "choices", data.prepare_choices)
_add(prepare, "answers", data.prepare_answers)

_add(app, "doctor", experiments.doctor)
app.add_typer(prepare, name="prepare")
_add(app, "inspect", inspection.inspect)
_add(app, "preview", data.preview)
_add(app, "gguf-to-hf", models.gguf_to_hf)
_add(app, "import-hf", models.import_hf)
_add(app, "verify", models.verify)
_add(app, "reference", training.reference, **_OVERRIDES)
_add(app, "plan", training.plan, **_OVERRIDES)
_add(app, "train", training.train, **_OVERRIDES)
_add(app, "status", training.status)
_add(app, "export-hf", models.export_hf)
_add(app, "evaluate", results.evaluate)
_add(app, "score", results.score)
_add(app, "report", results.report)
_add(app, "sweep", experiments.sweep)


def main() -> None:
    """Entry point of `minordpo`."""
    wait_briefly()  # commands import torch later
    app(prog_name="minordpo")


if __name__ == "__main__":
    main()
