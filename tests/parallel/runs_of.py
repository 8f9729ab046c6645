"""The runs that the tests compare, in groups: the jobs for `worker.py` and their number of ranks.

Groups run in the order of GROUPS on four ranks, then on two, then on one: some jobs resume runs of earlier ones.
"""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

RANKS = (4, 2, 1)
NUM_STEPS = 10
# SGD: Adam divides by the root of tiny second moments, which turns rounding into differences of whole steps.
SGD = [
    "model.optim.name=sgd", "model.optim.betas=null", "model.optim.lr=5e-3", "model.optim.weight_decay=0",
    "model.dpo.preference_loss=minordpo", f"trainer.dpo.max_steps={NUM_STEPS}", "trainer.dpo.max_epochs=9",
]  # fmt: skip
ADAM = [
    "model.optim.name=adamw", "model.optim.lr=1e-3", "model.optim.weight_decay=0.01", "trainer.dpo.max_steps=8",
    "trainer.dpo.max_epochs=9", "trainer.dpo.save_interval=3", "+model.hidden_dropout=0.1",
]  # fmt: skip
# Only runs without dropout can resume at another layout: dropout masks belong to a rank.
ADAM_WITHOUT_DROPOUT = ADAM[:-1]
FP8 = [*ADAM_WITHOUT_DROPOUT, "model.data.packed_sequence_size=96"]
BF16 = "precision=bf16"
BF16_LAYOUTS = ("one", "tp2", "pp2", "dp2", "sp2")
SHARDED = [*ADAM_WITHOUT_DROPOUT, "model.optim.name=mcore_distributed_optim"]
CURVE = [*ADAM_WITHOUT_DROPOUT, "trainer.dpo.max_steps=20", "trainer.dpo.val_check_interval=1"]
CURVE_SEEDS = (1, 2, 3)
BEST = [
    "trainer.dpo.save_interval=1", "trainer.dpo.val_check_interval=1",
    "exp_manager.checkpoint_callback_params.keep_last=1", "exp_manager.checkpoint_callback_params.save_top_k=2",
    "exp_manager.checkpoint_callback_params.monitor=rewards/margin",
]  # fmt: skip
# Losses that together read every input, with and without the reference, per response and per token.
MIX = [
    "model.dpo.preference_loss={minordpo:1.0,simpo:0.5,bdpo:0.3,rpo_sq:0.1}", "model.dpo.sft_loss_weight=0.2",
    "model.dpo.preference_average_log_probs=true", "model.dpo.label_smoothing=0.1",
]  # fmt: skip
RECOMPUTE = [
    "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]  # fmt: skip
SELECTIVE = ["model.activations_checkpoint_granularity=selective"]
SPLIT_SEQUENCE = ["model.sequence_parallel=true"]
LORA = [
    *SGD, "model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]",
    "model.peft.lora_tuning.adapter_dim=4", "model.peft.lora_tuning.alpha=6", "model.optim.lr=0.1",
    "trainer.dpo.save_interval=3",
]  # fmt: skip
# Start from adapters that carry their own settings.
CONTINUED = [*SGD, "model.peft.peft_scheme=lora", "model.optim.lr=0.1", "trainer.dpo.max_steps=3"]
WATCH = ["trainer.dpo.watch.interval=5", "trainer.dpo.watch.num_prompts=3", "trainer.dpo.watch.max_new_tokens=30"]
WATCH_LAYOUTS = ("one", "tp2", "pp2", "sp2", "dp2", "tp2pp2", "sp2pp2")
LORA_LAYOUTS = ("one", "recompute", "tp2", "pp2", "pp2_recompute", "dp2")
TIED_LAYOUTS = ("one", "tp2", "pp2")
QWEN3_LAYOUTS = ("one", "tp2", "pp2", "sp2")
LAYOUTS = {
    # name: (tensor-parallel, pipeline-parallel, data-parallel, tokens of a row, more)
    "one": (1, 1, 1, 4096, []),
    "rows96": (1, 1, 1, 96, []),
    "rows200": (1, 1, 1, 200, []),
    "recompute": (1, 1, 1, 200, RECOMPUTE),
    "selective": (1, 1, 1, 200, SELECTIVE),
    "tp2": (2, 1, 1, 4096, []),
    "pp2": (1, 2, 1, 200, []),
    "pp2_recompute": (1, 2, 1, 96, RECOMPUTE),
    "dp2": (1, 1, 2, 200, []),
    "sp2": (2, 1, 1, 200, SPLIT_SEQUENCE),
    "sp2_recompute": (2, 1, 1, 4096, [*SPLIT_SEQUENCE, *RECOMPUTE]),
    "tp2pp2": (2, 2, 1, 96, []),
    "sp2pp2": (2, 2, 1, 200, SPLIT_SEQUENCE),
    "tp2dp2": (2, 1, 2, 4096, []),
}


def layouts(workspace: Path, ranks: int) -> list[dict]:
    """One trajectory at every layout, also with tied embeddings and with query and key norms."""
    jobs = [job(workspace, name, SGD, layout=name) for name in LAYOUTS if ranks_of(name) == ranks]
    for prefix, model, names in (("tied", "hf_tied", TIED_LAYOUTS), ("qwen3", "hf_qwen3", QWEN3_LAYOUTS)):
        jobs += [
            job(workspace, f"{prefix}_{name}", SGD, layout=name, model=model)
            for name in names
            if ranks_of(name) == ranks
        ]
    if ranks == 1:
        jobs.append(job(workspace, "small", [*SGD, "model.global_batch_size=64", "trainer.dpo.max_steps=2"]))
    return jobs


def losses(workspace: Path, ranks: int) -> list[dict]:
    """Every loss and schedule, and log-probabilities token by token."""
    if ranks == 2:
        return [
            job(workspace, "log_probs_tp2", SGD, layout="tp2", log_probs=True),
            job(workspace, "mix_dp2", [*SGD, *MIX], layout="dp2"),
        ]
    if ranks != 1:
        return []
    return [
        job(workspace, "log_probs_one", SGD, log_probs=True),
        job(workspace, "mix_one", [*SGD, *MIX]),
        *(
            job(workspace, f"loss_{name}", [*SGD, f"model.dpo.preference_loss={name}", "model.optim.lr=1e-4"])
            for name in ("dpo", "dpop", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl", "simpo")
        ),
        job(workspace, "sft", [*SGD, "model.dpo.sft_loss_weight=0.5", "model.optim.lr=1e-4"]),
        job(workspace, "cosine", [*SGD, "model.optim.sched.name=cosine", "model.optim.sched.warmup_steps=2"]),
    ]


def live(workspace: Path, ranks: int) -> list[dict]:
    """The reference evaluated at every step."""
    overrides = [*SGD, "model.dpo.reference_log_probs=live"]
    if ranks == 2:
        return [job(workspace, "live_pp2", overrides, layout="pp2")]
    return [job(workspace, "live", overrides)] if ranks == 1 else []


def adapters(workspace: Path, ranks: int) -> list[dict]:
    """LoRA: new adapters depend on the layout, so other layouts resume from a checkpoint of one layout."""
    if ranks == 4:
        return [
            job(workspace, "lora", LORA, layout="tp2pp2"),
            job(workspace, "lora_died", LORA, layout="tp2pp2", dies_after=4),
        ]
    jobs = [
        job(workspace, f"lora_{name}", LORA, layout=name, copy_of="lora_died")
        for name in LORA_LAYOUTS
        if ranks_of(name) == ranks
    ]
    if ranks == 2:
        jobs.append(job(workspace, "qwen3_lora", LORA, layout="tp2", model="hf_qwen3"))
        jobs.append(job(workspace, "qwen3_lora_one", LORA, layout="tp2", model="hf_qwen3", dies_after=4))
    else:
        jobs.append(job(workspace, "qwen3_lora_one", LORA, model="hf_qwen3"))
    return jobs


def from_adapters(workspace: Path, ranks: int) -> list[dict]:
    """Runs that start from trained adapters: this project's, Megatron's files per rank, a PEFT folder's."""
    trained, imported = workspace / "lora/model.nemo", workspace / "imported.nemo"
    if ranks == 2:
        through_peft(workspace / "lora", imported)
        return [
            continued(workspace, "continued_tp2", trained, layout="tp2"),
            continued(workspace, "continued_pp2", imported, layout="pp2", dies_after=1),
        ]
    if ranks != 1:
        return []
    return [
        continued(workspace, "continued_one", trained),
        continued(workspace, "continued_ranks", by_rank(trained, workspace / "by_rank")),
        # a second attempt at another layout, which must not start from the adapters again
        continued(workspace, "continued_pp2", imported),
    ]


def watch(workspace: Path, ranks: int) -> list[dict]:
    """Answers before the first step, after the fifth and after the last."""
    jobs = [
        job(workspace, f"watch_{name}", [*SGD, *WATCH], layout=name)
        for name in WATCH_LAYOUTS
        if ranks_of(name) == ranks
    ]
    if ranks == 2:
        one_prompt = [*SGD, *WATCH, "trainer.dpo.watch.num_prompts=1"]
        jobs.append(job(workspace, "watch_one_prompt", one_prompt, layout="dp2"))
        jobs.append(job(workspace, "watch_lora", [*LORA, *WATCH], layout="tp2"))
    if ranks == 1:
        jobs.append(job(workspace, "watch_adam", [*ADAM, *WATCH]))
        jobs.append(job(workspace, "watch_stopped", [*ADAM, *WATCH], dies_after=7))
        jobs.append(job(workspace, "watch_stopped", [*ADAM, *WATCH]))
    return jobs


def separate(workspace: Path, ranks: int) -> list[dict]:
    """Packed pairs against the same sequences one by one."""
    if ranks == 4:
        return [job(workspace, "separate_tp2pp2", [*SGD, *MIX], layout="tp2pp2", separate=10)]
    if ranks == 2:
        dpop = [*SGD, "model.dpo.preference_loss=dpop"]
        return [
            job(workspace, "separate_tp2", SGD, layout="tp2", separate=15),
            job(workspace, "separate_pp2", dpop, layout="pp2", separate=15),
        ]
    dpo = [*SGD, *RECOMPUTE, "model.dpo.preference_loss=dpo"]
    return [
        job(workspace, "separate_one", SGD, separate=40),
        job(workspace, "separate_one_recompute", dpo, separate=10),
        job(workspace, "separate_one_tied", SGD, model="hf_tied", separate=10),
    ]


def round_trips(workspace: Path, ranks: int) -> list[dict]:
    """NeMo loads and saves every architecture (round_trip.py) at one of its LAYOUTS."""
    folder = workspace / "architectures"
    return [
        {"round_trip": {"folder": str(folder), "layout": layout, "tokenizer": str(workspace / "hf")}}
        for layout in {4: ("tp2pp2", "tp3"), 2: ("tp2", "pp2"), 1: ("one",)}[ranks]
    ]


def resumed(workspace: Path, ranks: int) -> list[dict]:
    """Runs that die and resume, at the same layout and another, from intact and damaged checkpoints."""
    if ranks == 4:
        return [job(workspace, "moved", ADAM_WITHOUT_DROPOUT, layout="tp2pp2", dies_after=4)]
    if ranks != 1:
        return []
    stopped = [job(workspace, f"stopped_{step}", ADAM, dies_after=step) for step in (1, 4, 7)]
    return [
        job(workspace, "best", [*ADAM, *BEST]),
        *stopped,
        *({**one, "dies_after": None} for one in stopped),
        job(workspace, "moved", ADAM_WITHOUT_DROPOUT),
        *(
            {**job(workspace, f"damaged_{file}", ADAM, copy_of="whole"), "damaged": file}
            for file in ("common.pt", ".metadata", "__0_0.distcp")
        ),
        job(workspace, "time_limit", [*ADAM, "exp_manager.max_time_per_run=00:00:00:00"]),
    ]


def whole(workspace: Path, ranks: int) -> list[dict]:
    """Uninterrupted runs to compare others with."""
    if ranks == 4:
        return [job(workspace, "moved_whole", ADAM_WITHOUT_DROPOUT, layout="tp2pp2")]
    return [job(workspace, "whole", ADAM)] if ranks == 1 else []


def fp8(workspace: Path, ranks: int) -> list[dict]:
    """Runs with layers that emulate FP8 (delayed_scaling.py)."""
    if ranks != 1:
        return []
    looks = [*FP8, *WATCH, "trainer.dpo.val_check_interval=1"]
    live = "model.dpo.reference_log_probs=live"
    apart = f"model.dpo.reference_cache={workspace}/reference_cache_without_scales"
    kinds = (
        ("whole", FP8, {}),
        ("looks", looks, {}),
        ("stopped", looks, {"dies_after": 4}),
        ("stopped", looks, {}),
        ("live", [*FP8, live], {}),
        ("live_looks", [*looks, live], {}),
        ("without_find_scales", [*FP8, apart], {"without": "find_scales"}),
        ("without_scales_kept", looks, {"without": "scales_kept"}),
    )
    return [
        {
            **job(workspace, f"fp8_{name}", overrides, dies_after=more.get("dies_after")),
            "fp8": {"without": more.get("without")},
        }
        for name, overrides, more in kinds
    ]


def bfloat16(workspace: Path, ranks: int) -> list[dict]:
    """bfloat16 weights with float32 main weights: layouts, both optimizers that have them, resumed runs, curves."""

    def resumed(name: str, overrides: list[str], *, layout: str) -> list[dict]:
        return [
            job(workspace, f"bf16_{run}", [*overrides, BF16], layout=layout, dies_after=dies_after)
            for run, dies_after in ((name, None), (f"{name}_stopped", 4), (f"{name}_stopped", None))
        ]

    jobs = [
        job(workspace, f"bf16_{name}", [*SGD, BF16], layout=name) for name in BF16_LAYOUTS if ranks_of(name) == ranks
    ]
    if ranks == 2:
        return [
            *jobs,
            *resumed("sharded", SHARDED, layout="dp2"),
            *resumed("lora", LORA, layout="tp2"),
            job(workspace, "bf16_moved", [*SHARDED, BF16], layout="dp2", dies_after=4),
        ]
    if ranks != 1:
        return []
    return [
        *jobs,
        *resumed("whole", [*ADAM, *WATCH], layout="one"),
        job(workspace, "bf16_moved", [*SHARDED, BF16]),
        job(workspace, "bf16_live", [*SGD, BF16, "model.dpo.reference_log_probs=live"]),
        job(workspace, "log_probs_bf16", [*SGD, BF16], log_probs=True),
        *(job(workspace, f"curve_{seed}", [*CURVE, f"model.seed={seed}"]) for seed in CURVE_SEEDS),
        job(workspace, "curve_bf16", [*CURVE, f"model.seed={CURVE_SEEDS[0]}", BF16]),
    ]


# In running order.
GROUPS = {
    "layouts": layouts, "losses": losses, "live": live, "adapters": adapters, "from adapters": from_adapters,
    "watch": watch, "separate": separate, "round trips": round_trips, "whole": whole, "resumed": resumed, "fp8": fp8,
    "bfloat16": bfloat16,
}  # fmt: skip


def through_peft(run: Path, nemo: Path) -> None:
    """Export a run's adapters as a PEFT folder, `peft` next to `nemo`, and import them again."""
    from nemo_minordpo.convert.peft_folder import export_peft
    from nemo_minordpo.convert.peft_to_nemo import import_peft

    export_peft(run, nemo.parent / "peft")
    import_peft(nemo.parent / "peft", nemo)


def by_rank(nemo: Path, folder: Path) -> Path:
    """Adapters as NeMo writes them, one file per rank; here for one rank."""
    from nemo_minordpo.convert.checkpoint import Checkpoint

    with tarfile.open(nemo) as archive:
        archive.extractall(folder, filter="data")
    stored = Checkpoint(folder / "model_weights")
    state = {
        f"model.{name}".replace("layers.", f"layers.{layer}."): stored.read(name, layer=layer)
        for name, (num_layers, *_) in stored.tensors.items()
        for layer in range(num_layers)
    }
    torch.save(state, folder / "model_weights.ckpt")
    shutil.rmtree(folder / "model_weights")
    config: Any = OmegaConf.load(folder / "model_config.yaml")
    config.tensor_model_parallel_size = config.pipeline_model_parallel_size = 1
    OmegaConf.save(config, folder / "model_config.yaml")
    return folder


def continued(workspace: Path, name: str, adapters: Path, **more: Any) -> dict:
    """A run that starts from adapters."""
    overrides = [*CONTINUED, f"model.peft.restore_from_path={adapters}", "trainer.dpo.save_interval=1"]
    return job(workspace, name, overrides, **more)


def ranks_of(layout: str) -> int:
    tp, pp, dp, *_ = LAYOUTS[layout]
    return tp * pp * dp


def job(
    workspace: Path,
    name: str,
    overrides: list[str],
    *,
    layout: str = "one",
    model: str = "hf",
    dies_after: int | None = None,
    log_probs: bool = False,
    copy_of: str | None = None,
    separate: int = 0,
) -> dict:
    tp, pp, dp, row, more = LAYOUTS[layout]
    return {
        "overrides": [
            f"pretrained_checkpoint.restore_from_path={workspace / model}.nemo",
            f"model.data.data_prefix.train=[{workspace}/train.jsonl]",
            f"model.data.data_prefix.validation=[{workspace}/validation.jsonl]",
            f"exp_manager.explicit_log_dir={workspace / name}",
            "exp_manager.create_tensorboard_logger=false",
            "model.dpo.ref_policy_kl_penalty=0.1",
            "model.global_batch_size=8",
            f"model.tensor_model_parallel_size={tp}",
            f"model.pipeline_model_parallel_size={pp}",
            f"model.data.packed_sequence_size={row}",
            f"trainer.devices={tp * pp * dp}",
            *more,
            *overrides,
        ],
        "dies_after": dies_after,
        "separate": separate,
        "copy_of": copy_of and str(workspace / copy_of),
        "log_probs": str(workspace / f"{name}.pt") if log_probs else None,
    }
