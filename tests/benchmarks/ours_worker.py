"""Optimizer steps of this project (protocol: tests/benchmarks/__init__.py).

The steps are MinorDPOTrainer's own, on the first pairs of the file, laid out during the previous step: forward,
backward, reduction, clipping, optimizer, metrics. The reference is evaluated before the first step and not timed, as
for TRL; `reference_seconds` of the ready line says how long it took.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nemo_minordpo import host
from nemo_minordpo.host.waiting import wait_briefly
from tests.benchmarks import Conversation, Settings, keep_torch_matmul


def main() -> None:
    wait_briefly()
    settings = Settings.from_arguments()
    conversation = Conversation(pairs=settings.global_batch_size, silent=os.environ.get("RANK", "0") != "0")
    if settings.torch_products:
        keep_torch_matmul()
    stand_ins = host.prepare()
    import torch

    torch.set_num_threads(settings.threads)
    folder = Path(settings.work or tempfile.mkdtemp())
    started = time.perf_counter()
    trainer = build_trainer(settings, folder)
    conversation.ready(
        load_seconds=time.perf_counter() - started,
        matmul_peak_gflops=trainer.throughput.matmul_peak / 1e9,
        stand_ins=[f"{stand_in.lacks}: {stand_in.instead}" for stand_in in stand_ins],
    )
    for coming in batches_in_file_order(trainer):
        if not conversation.wait_for_step():
            break
        values = trainer._train_step(coming).values
        conversation.step_done(**values)
    torch.distributed.destroy_process_group()


def build_trainer(settings: Settings, folder: Path) -> Any:
    """The trainer of `minordpo train`, on the first pairs of the file."""
    from nemo_minordpo.config import compose, load
    from nemo_minordpo.train.folder.run_folder import RunFolder
    from nemo_minordpo.train.launch import prepare_run
    from nemo_minordpo.train.set_up import set_up

    pairs = folder / "pairs.jsonl"
    overrides = [
        f"pretrained_checkpoint.restore_from_path={settings.nemo}",
        f"model.data.data_prefix.train=[{pairs}]",
        f"exp_manager.explicit_log_dir={folder}/run",
        f"model.data.seq_length={settings.seq_length}",
        f"model.global_batch_size={settings.global_batch_size}",
        f"model.dpo.ref_policy_kl_penalty={settings.beta}",
        "model.dpo.preference_loss=dpo",
        f"model.optim.lr={settings.lr}",
        "model.optim.sched.name=constant",
        "model.optim.sched.warmup_ratio=0",
        f"model.tensor_model_parallel_size={settings.tensor_parallel}",
        f"trainer.devices={settings.tensor_parallel}",
        f"precision={settings.precision}",
    ]
    if int(os.environ.get("RANK", "0")) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        pairs.write_text("".join(json.dumps(pair) + "\n" for pair in settings.read_pairs()))
        prepare_run(load(compose(overrides)))
    config = load(compose(overrides))
    return set_up(config, RunFolder(Path(config.exp_manager.explicit_log_dir)))


def batches_in_file_order(trainer: Any) -> Iterator["Future[Any]"]:
    """Like the trainer's own: the next step is laid out while the current one computes."""
    batches = trainer.train.in_file_order()
    with ThreadPoolExecutor(max_workers=1) as executor:
        coming = executor.submit(next, batches, None)
        while coming.result() is not None:
            ahead = executor.submit(next, batches, None)
            yield coming
            coming = ahead


if __name__ == "__main__":
    main()
