"""Optimizer steps of NeMo-Aligner 0.7.0's DPO (protocol: tests/benchmarks/__init__.py).

Runs in our environment. Model, forward step, head, loss, dataset, collation, loop and metrics are Aligner's own; the
wiring follows its `examples/nlp/gpt/train_gpt_dpo.py` with the values of `gpt_dpo.yaml`. The steps are those of
`DPOTrainer.fit()` itself: it queries its run timer once at the end of each iteration, and ours waits there. A step is
therefore timed from the request to that query: collation, weight swap and reference pass, forward and
backward, gradient reduction, clipping, optimizer, `clear_memory()`, metrics, logger. Validation and checkpoints are
off by Aligner's own settings (intervals of 0).

On a GPU every part is Aligner's own: bfloat16 weights with float32 main weights, Transformer Engine's layers and
attention if installed; the optimizer is Megatron-Core's distributed one, which needs no Apex. Not run on a GPU yet.

Changes needed to run it on CPUs, and why:

- `host.prepare()`: there is no CUDA, Apex or Transformer Engine (see `stand_ins` in the ready line). Matrix products
  and memory stay torch's own.
- `_drop_the_mask`: Aligner passes a dense S x S mask to the attention, but ours reads that argument as the structure of
  a packed row. The mask is still built in every step, but not used: padding is at the end, where causal attention
  hides it from the tokens of a pair. Megatron-Core's own attention, which builds S x S scores, would be slower.
- Fusions that need CUDA are off. Apex's `distributed_fused_adam` becomes torch's fused AdamW, without a schedule.
- float32, hence without `megatron_amp_O2`, which is for bf16 weights.
- Pairs are rewritten with only their texts: a null reward fails in the collation.
- No shuffling, so that every competitor sees the same pairs in a step; EOS appended (`append_eod`), as in ours.
- NeMo logs only errors: Aligner warns for every access to a pair that prompts are strings.
"""

import functools
import json
import logging
import os
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nemo_minordpo import host
from tests.benchmarks import Conversation, Settings, keep_torch

# The part of gpt_dpo.yaml that Aligner's script reads. The model section overrides the checkpoint's configuration.
_CONFIGURATION = """
trainer:
  num_nodes: 1
  devices: ${settings.tensor_parallel}
  accelerator: ${device.accelerator}
  precision: ${device.precision}
  logger: false
  enable_checkpointing: false
  use_distributed_sampler: false
  max_epochs: 1
  max_steps: ${settings.steps}
  gradient_clip_val: 1.0  # Megatron-Core's optimizer clips in its step, by Lightning's limit; others by Aligner's below
  dpo: {max_epochs: 1, max_steps: "${settings.steps}", val_check_interval: 0, save_interval: 0, limit_val_batches: 0,
    gradient_clip_val: 1.0}
exp_manager: {log_tflops_per_sec_per_gpu: false}
model:
  mcore_gpt: true
  precision: ${device.precision}
  micro_batch_size: ${settings.micro_batch_size}
  global_batch_size: ${settings.global_batch_size}
  tensor_model_parallel_size: ${settings.tensor_parallel}
  megatron_amp_O2: ${device.main_weights}
  seed: 1234
  dpo:
    log_prob_forward_micro_batch_size: ${settings.micro_batch_size}
    ref_policy_kl_penalty: ${settings.beta}
    preference_loss: dpo
  data:
    data_impl: jsonl
    splits_string: null
    seq_length: ${settings.seq_length}
    num_workers: 0
    append_eod: true
    data_prefix: {train: ["${file}"], validation: ["${file}"], test: ["${file}"]}  # all three must be given
  overwrite_base_config: {data: {data_prefix: true}}
  transformer_engine: ${device.transformer_engine}
  use_cpu_initialization: ${device.use_cpu_initialization}
  persist_layer_norm: false  # needs Apex
"""


def main() -> None:
    settings = Settings.from_arguments()
    conversation = Conversation(pairs=settings.global_batch_size, silent=os.environ.get("RANK", "0") != "0")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    keep_torch()
    stand_ins = host.prepare()
    import torch
    from nemo.utils import logging as nemo_logging

    torch.set_num_threads(settings.threads)
    nemo_logging.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(pair) + "\n" for pair in settings.read_pairs()))
        trainer = build_trainer(settings, pairs)
    trainer.run_timer, trainer.logger = _step_by_step(conversation)
    conversation.ready(
        ranks=torch.distributed.get_world_size(),
        optimizer=type(trainer.optimizer).__name__,
        parameters_of_rank=sum(parameter.numel() for parameter in trainer.model.parameters()),
        threads=torch.get_num_threads(),
        stand_ins=[f"{stand_in.lacks}: {stand_in.instead}" for stand_in in stand_ins],
        versions={name: version(name) for name in ("nemo-aligner", "nemo_toolkit", "megatron-core", "torch")},
    )
    if conversation.wait_for_step():
        trainer.fit()
    torch.distributed.destroy_process_group()


def configuration(settings: Settings, pairs: Path) -> Any:
    """The configuration of Aligner's script, without the checkpoint's configuration of the model."""
    from omegaconf import OmegaConf

    given = {"settings": asdict(settings), "file": str(pairs), "device": _device()}
    cfg: Any = OmegaConf.merge(given, OmegaConf.create(_CONFIGURATION))
    OmegaConf.resolve(cfg)
    cfg.model.optim = {"lr": settings.lr, "weight_decay": 0.0, "betas": [0.9, 0.999], **cfg.device.optimizer}
    return cfg


def build_trainer(settings: Settings, pairs: Path) -> Any:
    """Aligner's DPOTrainer, wired as in Aligner's own script; timer and logger are set later."""
    from nemo_aligner.algorithms.dpo import DPOTrainer, dpo_custom_collate
    from nemo_aligner.data.nlp import builders
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
    from nemo_aligner.utils import train_script_utils as script
    from nemo_aligner.utils import utils

    cfg = configuration(settings, pairs)
    cfg.model = utils.load_and_override_model_config(settings.nemo, cfg.model)
    if not host.has_cuda():
        _drop_the_mask()
    lightning_trainer = script.resolve_and_create_trainer(cfg, "dpo")
    model = utils.load_from_nemo(
        MegatronGPTDPOModel, cfg.model, lightning_trainer, strict=True, restore_path=settings.nemo
    )
    model.ref_policy_state_dict = utils.retrieve_model_state_dict_in_cpu(
        model, megatron_amp_O2=cfg.model.megatron_amp_O2
    )
    script.init_distributed(lightning_trainer, model, cfg.model.transformer_engine)
    data = cfg.model.data
    dataset, _, _ = builders.build_train_valid_test_dpo_datasets(
        cfg=cfg.model, data_prefix=data.data_prefix, data_impl=data.data_impl, splits_string=data.splits_string,
        train_valid_test_num_samples=[-cfg.model.global_batch_size] * 3, seq_length=data.seq_length,
        seed=cfg.model.seed, tokenizer=model.tokenizer,
    )  # fmt: skip
    batches = builders.build_dataloader(
        cfg=cfg, dataset=dataset, consumed_samples=0, mbs=cfg.model.micro_batch_size, gbs=cfg.model.global_batch_size,
        load_gbs=True, collate_fn=builders.identity_collate, use_random_sampler=False,
    )  # fmt: skip
    script.init_using_ptl(lightning_trainer, model, batches, dataset)
    optimizer, scheduler = script.extract_optimizer_scheduler_from_ptl_model(model)
    return DPOTrainer(
        cfg=cfg.trainer.dpo,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        train_dataloader=batches,
        val_dataloader=[],
        test_dataloader=None,
        collate_fn=functools.partial(dpo_custom_collate, eos_id=model.tokenizer.eos_id),
        logger=None,
        ckpt_callback=script.FakeCheckpointCallback(),
        run_timer=None,
    )


def _device() -> dict[str, Any]:
    """The settings that depend on this machine."""
    if host.has_cuda():
        return {
            "accelerator": "gpu", "precision": "bf16-mixed", "main_weights": True, "use_cpu_initialization": False,
            "transformer_engine": host.has_transformer_engine(), "optimizer": {"name": "mcore_distributed_optim"},
        }  # fmt: skip
    return {
        "accelerator": "cpu", "precision": "32-true", "main_weights": False, "use_cpu_initialization": True,
        "transformer_engine": False, "optimizer": {"name": "adamw", "fused": True},
    }  # fmt: skip


def _drop_the_mask() -> None:
    """The layer spec of `host`, with an attention that replaces Aligner's dense mask by its meaning: causal."""
    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as nemo_gpt

    from nemo_minordpo.layers.pair_attention import PairAttention

    class CausalAttention(PairAttention):
        def forward(self, query: Any, key: Any, value: Any, attention_mask: Any, **unused: Any) -> Any:
            return super().forward(query, key, value, None)

    specs = nemo_gpt.get_specs

    def get_specs(*args: Any, **kwargs: Any) -> Any:
        spec = specs(*args, **kwargs)
        spec.submodules.self_attention.submodules.core_attention = CausalAttention
        return spec

    nemo_gpt.get_specs = get_specs


def _step_by_step(conversation: Conversation) -> tuple[Any, Any]:
    """(run timer, logger) for `DPOTrainer.fit()`: the timer waits for the next step, the logger stores the loss."""
    from nemo_aligner.utils.distributed import Timer
    from nemo_aligner.utils.train_script_utils import CustomLoggerWrapper

    class Losses:
        last = float("nan")

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.last = metrics["train/loss"]

    losses = Losses()

    class WaitingTimer(Timer):
        def is_finished(self) -> bool:
            finished = super().is_finished()  # queries rank 0, as in every run
            conversation.step_done(loss=losses.last)
            return finished or not conversation.wait_for_step()

    return WaitingTimer(None), CustomLoggerWrapper([losses])


if __name__ == "__main__":
    main()
