"""A tiny model and pairs, and all runs that the tests compare: one spawn a number of ranks."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_minordpo.records import StepMetrics
from tests.parallel.round_trip import write_architectures
from tests.ports import port_for_ranks
from tests.tiny import write_model, write_pairs

ROOT = Path(__file__).parent.parent.parent
NUM_STEPS = 10
# SGD: Adam divides by the root of tiny second moments and so turns rounding into differences of whole steps.
SGD = [
    "model.optim.name=sgd", "model.optim.betas=null", "model.optim.lr=5e-3", "model.optim.weight_decay=0",
    "model.dpo.preference_loss=minordpo", f"trainer.dpo.max_steps={NUM_STEPS}", "trainer.dpo.max_epochs=9",
]  # fmt: skip
ADAM = [
    "model.optim.name=adamw", "model.optim.lr=1e-3", "model.optim.weight_decay=0.01", "trainer.dpo.max_steps=8",
    "trainer.dpo.max_epochs=9", "trainer.dpo.save_interval=3", "+model.hidden_dropout=0.1",
]  # fmt: skip
# Of another layout goes on what has no dropout: its masks belong to a rank.
ADAM_WITHOUT_DROPOUT = ADAM[:-1]
FP8 = [*ADAM_WITHOUT_DROPOUT, "model.data.packed_sequence_size=96"]
BEST = [
    "trainer.dpo.save_interval=1", "trainer.dpo.val_check_interval=1",
    "exp_manager.checkpoint_callback_params.keep_last=1", "exp_manager.checkpoint_callback_params.save_top_k=2",
    "exp_manager.checkpoint_callback_params.monitor=rewards/margin",
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
# From adapters that say themselves what they are.
CONTINUED = [*SGD, "model.peft.peft_scheme=lora", "model.optim.lr=0.1", "trainer.dpo.max_steps=3"]
WATCH = ["trainer.dpo.watch.interval=5", "trainer.dpo.watch.num_prompts=3", "trainer.dpo.watch.max_new_tokens=30"]
WATCH_LAYOUTS = ("one", "tp2", "pp2", "sp2", "dp2", "tp2pp2", "sp2pp2")
LORA_LAYOUTS = ("one", "recompute", "tp2", "pp2", "pp2_recompute", "dp2")
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


@dataclass
class Runs:
    """Folders of everything that was run."""

    path: Path

    def metrics(self, name: str, split: str = "train") -> list[StepMetrics]:
        lines = (self.path / name / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(StepMetrics.from_json, lines) if line.split == split]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    for name, kind in (("hf", {}), ("hf_tied", {"tied": True}), ("hf_qwen3", {"qwen3": True})):
        write_model(folder / name, **kind)
        import_hf(folder / name, folder / f"{name}.nemo")
    write_architectures(folder / "architectures")
    write_pairs(folder / "train.jsonl", count=22, seed=0)
    write_pairs(folder / "validation.jsonl", count=5, seed=1)
    return folder


@pytest.fixture(scope="session")
def runs(workspace) -> Runs:
    """Every run that is compared, in the order in which one goes on where another one ended."""
    stop_resume = [job(workspace, f"stopped_{k}", ADAM, dies_after=k) for k in (1, 4, 7)]
    spawn(
        workspace,
        ranks=4,
        jobs=[
            *(job(workspace, name, SGD, layout=name) for name in LAYOUTS if ranks_of(name) == 4),
            *watched(workspace, ranks=4),
            job(workspace, "moved", ADAM_WITHOUT_DROPOUT, layout="tp2pp2", dies_after=4),
            job(workspace, "moved_whole", ADAM_WITHOUT_DROPOUT, layout="tp2pp2"),
            # new adapters depend on the layout: other layouts go on with those of this one
            job(workspace, "lora", LORA, layout="tp2pp2"),
            job(workspace, "lora_died", LORA, layout="tp2pp2", dies_after=4),
            job(workspace, "separate_tp2pp2", SGD, layout="tp2pp2", separate=10),
            round_trip(workspace, "tp2pp2"),
            round_trip(workspace, "tp3"),
        ],
    )
    adapters = workspace / "lora/model.nemo", through_peft(workspace / "lora", workspace)
    spawn(
        workspace,
        ranks=2,
        jobs=[
            *(job(workspace, name, SGD, layout=name) for name in LAYOUTS if ranks_of(name) == 2),
            *watched(workspace, ranks=2),
            job(workspace, "watch_one_prompt", [*SGD, *WATCH, "trainer.dpo.watch.num_prompts=1"], layout="dp2"),
            job(workspace, "watch_lora", [*LORA, *WATCH], layout="tp2"),
            job(workspace, "tied_tp2", SGD, layout="tp2", model="hf_tied"),
            job(workspace, "tied_pp2", SGD, layout="pp2", model="hf_tied"),
            *(
                job(workspace, f"qwen3_{name}", SGD, layout=name, model="hf_qwen3")
                for name in QWEN3_LAYOUTS
                if ranks_of(name) == 2
            ),
            round_trip(workspace, "tp2"),
            round_trip(workspace, "pp2"),
            job(workspace, "qwen3_lora", LORA, layout="tp2", model="hf_qwen3"),
            job(workspace, "qwen3_lora_one", LORA, layout="tp2", model="hf_qwen3", dies_after=4),
            job(workspace, "live_pp2", [*SGD, "model.dpo.reference_log_probs=live"], layout="pp2"),
            job(workspace, "log_probs_tp2", SGD, layout="tp2", log_probs=True),
            job(workspace, "separate_tp2", SGD, layout="tp2", separate=15),
            job(workspace, "separate_pp2", [*SGD, "model.dpo.preference_loss=dpop"], layout="pp2", separate=15),
            *(
                job(workspace, f"lora_{name}", LORA, layout=name, copy_of="lora_died")
                for name in LORA_LAYOUTS
                if ranks_of(name) == 2
            ),
            continued(workspace, "continued_tp2", adapters[0], layout="tp2"),
            continued(workspace, "continued_pp2", adapters[1], layout="pp2", dies_after=1),
        ],
    )
    spawn(
        workspace,
        ranks=1,
        jobs=[
            *(job(workspace, name, SGD, layout=name) for name in LAYOUTS if ranks_of(name) == 1),
            *(
                job(workspace, f"lora_{name}", LORA, layout=name, copy_of="lora_died")
                for name in LORA_LAYOUTS
                if ranks_of(name) == 1
            ),
            continued(workspace, "continued_one", adapters[0]),
            continued(workspace, "continued_ranks", by_rank(adapters[1], workspace / "by_rank")),
            # of another attempt and layout, which must not begin with the adapters again
            continued(workspace, "continued_pp2", adapters[1]),
            *watched(workspace, ranks=1),
            job(workspace, "watch_adam", [*ADAM, *WATCH]),
            job(workspace, "watch_stopped", [*ADAM, *WATCH], dies_after=7),
            job(workspace, "watch_stopped", [*ADAM, *WATCH]),
            job(workspace, "live", [*SGD, "model.dpo.reference_log_probs=live"]),
            job(workspace, "tied_one", SGD, model="hf_tied"),
            round_trip(workspace, "one"),
            job(workspace, "qwen3_one", SGD, model="hf_qwen3"),
            job(workspace, "qwen3_lora_one", LORA, model="hf_qwen3"),
            job(workspace, "log_probs_one", SGD, log_probs=True),
            job(workspace, "separate_one", SGD, separate=40),
            job(workspace, "separate_one_recompute", [*SGD, *RECOMPUTE, "model.dpo.preference_loss=dpo"], separate=10),
            job(workspace, "separate_one_tied", SGD, model="hf_tied", separate=10),
            *(
                job(workspace, f"loss_{name}", [*SGD, f"model.dpo.preference_loss={name}", "model.optim.lr=1e-4"])
                for name in ("dpo", "dpop", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl")
            ),
            job(workspace, "sft", [*SGD, "model.dpo.sft_loss_weight=0.5", "model.optim.lr=1e-4"]),
            job(workspace, "cosine", [*SGD, "model.optim.sched.name=cosine", "model.optim.sched.warmup_steps=2"]),
            job(workspace, "small", [*SGD, "model.global_batch_size=64", "trainer.dpo.max_steps=2"]),
            job(workspace, "whole", ADAM),
            job(workspace, "best", [*ADAM, *BEST]),
            *stop_resume,
            *[{**stopped, "dies_after": None} for stopped in stop_resume],
            job(workspace, "moved", ADAM_WITHOUT_DROPOUT),
            *(
                {**job(workspace, f"damaged_{file}", ADAM, copy_of="whole"), "damaged": file}
                for file in ("common.pt", ".metadata", "__0_0.distcp")
            ),
            *in_fp8(workspace),
            job(workspace, "time_limit", [*ADAM, "exp_manager.max_time_per_run=00:00:00:00"]),
        ],
    )
    return Runs(workspace)


def through_peft(run: Path, folder: Path) -> Path:
    """The adapters of a run, exported as a PEFT folder and imported again."""
    from nemo_minordpo.convert.peft_folder import export_peft
    from nemo_minordpo.convert.peft_to_nemo import import_peft

    export_peft(run, folder / "peft")
    import_peft(folder / "peft", folder / "imported.nemo")
    return folder / "imported.nemo"


def by_rank(nemo: Path, folder: Path) -> Path:
    """Adapters as NeMo writes them, a file a rank; for one rank."""
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
    return folder


def continued(workspace: Path, name: str, adapters: Path, **more: Any) -> dict:
    """A run that starts from adapters."""
    overrides = [*CONTINUED, f"model.peft.restore_from_path={adapters}", "trainer.dpo.save_interval=1"]
    return job(workspace, name, overrides, **more)


def watched(workspace: Path, *, ranks: int) -> list[dict]:
    """Runs whose answers are looked at before the first step, after the fifth and after the last."""
    layouts = [name for name in WATCH_LAYOUTS if ranks_of(name) == ranks]
    return [job(workspace, f"watch_{name}", [*SGD, *WATCH], layout=name) for name in layouts]


def in_fp8(workspace: Path) -> list[dict]:
    """Runs through layers that compute as FP8's do (delayed_scaling.py)."""
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


def round_trip(workspace: Path, layout: str) -> dict:
    """NeMo loads and saves every architecture (round_trip.py) at a layout of its LAYOUTS."""
    folder = workspace / "architectures"
    return {"round_trip": {"folder": str(folder), "layout": layout, "tokenizer": str(workspace / "hf")}}


def spawn(workspace: Path, *, ranks: int, jobs: list[dict], log: str | None = None) -> None:
    """Run jobs one after another on `ranks` processes over gloo; each rank says what it does in log_LOG_RANK.txt."""
    log = log or str(ranks)
    first = port_for_ranks()
    file = workspace / f"jobs_{log}.json"
    file.write_text(json.dumps([{**item, "port": first + 1} for item in jobs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.worker", str(file)],
            cwd=ROOT,
            env={
                **environment,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "GROUP_RANK": "0",
                "LOCAL_WORLD_SIZE": str(ranks),
                "TORCHELASTIC_RUN_ID": "tests",
            },
            stdout=(workspace / f"log_{log}_{rank}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait(timeout=1800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        said = (workspace / f"log_{log}_{codes.index(next(filter(None, codes)))}.txt").read_text()
        raise AssertionError(f"ranks ended with {codes}:\n{said[-6000:]}")
