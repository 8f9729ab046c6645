"""Optimizer steps of TRL's DPOTrainer (protocol: tests/benchmarks/__init__.py).

Runs in its own environment, with current TRL, transformers and torch, and imports nothing of ours.

Everything is TRL's own: tokenisation, collation, the fused head, metrics, loop. Options, each the faster or an equal
choice for TRL:

- `precompute_ref_log_probs`: the reference is evaluated before the first step and not timed; `reference_seconds` of
  the ready line says how long it took.
- `gradient_checkpointing=False` (true by default): recomputation costs time.
- `bf16`, true by default, is false unless the settings ask for it: the weights stay float32, autocast multiplies in
  bfloat16.
- Attention is transformers' choice (sdpa on CPUs), padding is to the longest sequence of a micro-batch.
- Fused AdamW, constant learning rate, no weight decay, gradients clipped to 1.0, no shuffling.
- `logging_steps=1`, so that every step reports its loss; TRL computes metrics for every micro-batch anyway.

A step is timed from the request to the end of its log line: loading the next batches, forward and backward of each
micro-batch, clipping, optimizer, metrics.
"""

import os
import tempfile
import time
from importlib.metadata import version
from typing import Any

from tests.benchmarks import Conversation, Settings


def main() -> None:
    settings = Settings.from_arguments()
    conversation = Conversation(pairs=settings.global_batch_size)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer, reference_seconds = build_trainer(settings, folder)
        trainer.add_callback(_step_callback(conversation))
        conversation.ready(
            load_seconds=time.perf_counter() - started - reference_seconds,
            reference_seconds=reference_seconds,
            reference_pairs=len(trainer.train_dataset),
            attention=trainer.model.config._attn_implementation,
            optimizer=str(trainer.args.optim),
            parameters=trainer.model.num_parameters(),
            threads=torch.get_num_threads(),
            versions={name: version(name) for name in ("trl", "transformers", "accelerate", "torch")},
        )
        trainer.train()


def build_trainer(settings: Settings, folder: str) -> tuple[Any, float]:
    """The trainer, and the seconds that evaluating the reference took."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class TimedReference(DPOTrainer):
        seconds = 0.0

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._precompute_ref_logps(*args, **kwargs)
            self.seconds += time.perf_counter() - started
            return result

    accumulation, rest = divmod(settings.global_batch_size, settings.micro_batch_size)
    if rest:
        raise ValueError(f"global_batch_size must be a multiple of micro_batch_size={settings.micro_batch_size}")
    names = {"prompt": "prompt", "chosen": "chosen_response", "rejected": "rejected_response"}
    pairs = [{new: row[old] for new, old in names.items()} for row in settings.read_pairs()]
    trainer = TimedReference(
        model=settings.hf,
        args=DPOConfig(
            output_dir=folder,
            loss_type=["sigmoid"],
            beta=settings.beta,
            max_length=settings.seq_length,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_steps=settings.steps,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            use_cpu=True,
            bf16=settings.precision == "bf16",
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(settings.hf),
    )
    return trainer, trainer.seconds


def _step_callback(conversation: Conversation) -> Any:
    """Waits before the first batch is loaded, and after the log line of every step."""
    from transformers import TrainerCallback

    class StepByStep(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            if not conversation.wait_for_step():
                raise SystemExit

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **unused: Any) -> None:
            if "loss" in logs:  # not the summary at the end of training
                conversation.step_done(loss=logs["loss"])
                control.should_training_stop = not conversation.wait_for_step()

    return StepByStep()


if __name__ == "__main__":
    main()
