"""Results of NeMo-Aligner's own DPO, full and LoRA: export-hf reads them, and transformers computes the same logits.

One process (`python -m tests.functional.test_aligner_results FOLDER`) trains with upstream's trainer, experiment
manager and checkpoints, as upstream's script does, computes the trained model's logits, then exports and verifies.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
IDS = [[5, 17, 100, 3, 250, 42, 77, 1, 399, 8, 8, 64]]
LORA = {
    "peft_scheme": "lora",
    "restore_from_path": None,
    "lora_tuning": {
        "target_modules": ["all"], "adapter_dim": 4, "alpha": 6, "adapter_dropout": 0.0, "column_init_method": "xavier",
        "row_init_method": "xavier", "layer_selection": None, "weight_tying": False,
        "position_embedding_strategy": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligner")
    command = [sys.executable, "-m", "tests.functional.test_aligner_results", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def logits_of(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).float()(torch.tensor(IDS)).logits[0]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_exported_model_is_the_trained_one(folder: Path, name: str) -> None:
    trained = torch.load(folder / f"{name}.pt")
    exported = logits_of(folder / f"{name}-hf")
    assert (exported - trained[:, : exported.shape[1]]).abs().max() < 1e-4
    assert (exported - logits_of(folder / "hf")).abs().max() > 1e-2  # control: training changed it


def test_the_right_checkpoint_was_exported(folder: Path) -> None:
    """For full training the last, distributed checkpoint; for LoRA the .nemo, since NeMo writes no such checkpoints."""
    sources = {
        name: Path(json.loads((folder / f"{name}-hf" / "manifest.json").read_text())["settings"]["source"]).name
        for name in ("full", "lora")
    }
    assert sources["full"].startswith("megatron_gpt--val_loss=")
    assert sources["full"].endswith("-step=2-consumed_samples=8-epoch=1-last")
    assert sources["lora"] == "megatron_gpt.nemo"


@pytest.mark.parametrize("name", ["full", "full.nemo", "lora"])
def test_verify_accepts_the_results_too(folder: Path, name: str) -> None:
    message = json.loads((folder / "verified.json").read_text())[name]
    assert message.startswith("logits differ by at most")
    assert "argmax equal for 100.00%" in message


def test_verify_notices_training(folder: Path) -> None:
    message = json.loads((folder / "verified.json").read_text())["lora against its base"]
    assert "is not the model of" in message
    for names in ("gate_proj.weight, mlp.up_proj.weight", "o_proj.weight", "down_proj.weight"):
        assert f"{names} in every layer: different numbers (another model, or trained since)" in message
    for kind in ("embedding", "norm before attention", "norm before MLP", "final norm", "head"):
        assert f"  {kind}: equal" in message


def _main(folder: Path) -> None:
    import os

    from nemo_minordpo import host
    from nemo_minordpo.convert.hf_to_nemo import import_hf
    from nemo_minordpo.convert.nemo_to_hf import export_hf
    from nemo_minordpo.convert.verify import verify
    from tests.benchmarks import be_the_only_rank
    from tests.parallel.worker import forget_run
    from tests.tiny import write_model, write_pairs

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    be_the_only_rank()
    host.prepare()
    write_model(folder / "hf")
    import_hf(folder / "hf", folder / "base.nemo")
    write_pairs(folder / "all.jsonl", count=8, seed=0)
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    fields = ("prompt", "chosen_response", "rejected_response")  # upstream's collation fails on null rewards
    (folder / "pairs.jsonl").write_text("".join(json.dumps({k: row[k] for k in fields}) + "\n" for row in rows))
    verified = {}
    for number, (name, peft) in enumerate((("full", None), ("lora", LORA))):
        os.environ["MASTER_PORT"] = str(29510 + number)
        torch.save(_train(folder, folder / name, peft), folder / f"{name}.pt")
        torch.distributed.destroy_process_group()
        forget_run()
        export_hf(folder / name, folder / f"{name}-hf")
    del os.environ["MASTER_PORT"]
    for name in ("full", "lora"):
        verified[name] = str(verify(folder / f"{name}-hf", folder / name))
    verified["full.nemo"] = str(verify(folder / "full-hf", folder / "full" / "checkpoints" / "megatron_gpt.nemo"))
    try:
        verified["lora against its base"] = str(verify(folder / "hf", folder / "lora"))
    except ValueError as error:
        verified["lora against its base"] = str(error)
    (folder / "verified.json").write_text(json.dumps(verified))


def _train(folder: Path, results: Path, peft: dict[str, Any] | None) -> torch.Tensor:
    """Train two steps as NeMo-Aligner's train_gpt_dpo.py does; returns the trained model's logits for `IDS`."""
    import functools

    from nemo.utils.exp_manager import exp_manager
    from nemo_aligner.algorithms.dpo import DPOTrainer, dpo_custom_collate
    from nemo_aligner.data.nlp import builders
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
    from nemo_aligner.utils import train_script_utils as script
    from nemo_aligner.utils import utils
    from nemo_aligner.utils.distributed import Timer
    from omegaconf import OmegaConf

    from tests.benchmarks import Settings
    from tests.benchmarks import aligner_worker as upstream

    nemo, pairs = str(folder / "base.nemo"), str(folder / "pairs.jsonl")
    settings = Settings(
        hf="", nemo=nemo, pairs=pairs, global_batch_size=4, micro_batch_size=1, seq_length=128, beta=0.1, lr=0.05,
        tensor_parallel=1, threads=1, steps=2,
    )  # fmt: skip
    cfg = upstream.configuration(settings, Path(pairs))
    cfg.trainer.dpo.update(save_interval=1, val_check_interval=1, limit_val_batches=1)
    cfg.model.optim = {"name": "sgd", "lr": settings.lr}
    cfg.pretrained_checkpoint = {"restore_from_path": nemo}
    cfg.exp_manager = {
        "explicit_log_dir": str(results), "name": "megatron_gpt", "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True, "create_checkpoint_callback": True, "log_tflops_per_sec_per_gpu": False,
        "checkpoint_callback_params": {
            "monitor": "val_loss", "save_top_k": 1, "mode": "min", "save_nemo_on_train_end": True,
            "filename": "megatron_gpt--{val_loss:.3f}-{step}-{consumed_samples}-{epoch}", "model_parallel_size": 1,
            "save_best_model": False,
        },
    }  # fmt: skip
    if peft:
        cfg.model.peft = peft
    cfg.model = utils.load_and_override_model_config(nemo, cfg.model)
    upstream._drop_the_mask()
    lightning_trainer = script.resolve_and_create_trainer(cfg, "dpo")
    exp_manager(lightning_trainer, cfg.exp_manager)
    logger = script.CustomLoggerWrapper(lightning_trainer.loggers)
    model: Any = utils.load_from_nemo(MegatronGPTDPOModel, cfg.model, lightning_trainer, strict=True, restore_path=nemo)
    script.init_distributed(lightning_trainer, model, False)
    if peft:
        script.init_peft(model, cfg.model)
    model.ref_policy_state_dict = None if peft else utils.retrieve_model_state_dict_in_cpu(model, megatron_amp_O2=False)
    data = cfg.model.data
    train, validation, _ = builders.build_train_valid_test_dpo_datasets(
        cfg=cfg.model, data_prefix=data.data_prefix, data_impl=data.data_impl, splits_string=None,
        train_valid_test_num_samples=[-4] * 3, seq_length=data.seq_length, seed=1, tokenizer=model.tokenizer,
    )  # fmt: skip
    batches, validation_batches = (
        builders.build_dataloader(
            cfg=cfg, dataset=dataset, consumed_samples=0, mbs=1, gbs=4, load_gbs=True,
            collate_fn=builders.identity_collate, use_random_sampler=False,
        )
        for dataset in (train, validation)
    )  # fmt: skip
    script.init_using_ptl(lightning_trainer, model, batches, train)
    optimizer, scheduler = script.extract_optimizer_scheduler_from_ptl_model(model)
    callback = script.add_custom_checkpoint_callback(lightning_trainer, model)
    logger.log_hyperparams(OmegaConf.to_container(cfg))
    trainer = DPOTrainer(
        cfg=cfg.trainer.dpo, model=model, optimizer=optimizer, scheduler=scheduler, train_dataloader=batches,
        val_dataloader=validation_batches, test_dataloader=None,
        collate_fn=functools.partial(dpo_custom_collate, eos_id=model.tokenizer.eos_id), logger=logger,
        ckpt_callback=callback, run_timer=Timer(None),
    )  # fmt: skip
    trainer.fit()
    model.eval()
    with torch.no_grad():
        ids = torch.tensor(IDS)
        return model.model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None], attention_mask=None)[0]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
