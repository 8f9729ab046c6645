"""Times single steps of this project's own training, on request; see run.py for the protocol.

A step is MinorDPOTrainer's: what it lays out beforehand, forward, backward, reductions, clipping, optimizer, metrics.
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_minordpo import host


def main(settings: dict) -> None:
    import torch

    from nemo_minordpo.config import compose, load
    from nemo_minordpo.core.losses import LOSSES
    from nemo_minordpo.train import run
    from nemo_minordpo.train.launch import prepare_run
    from nemo_minordpo.train.run_folder import RunFolder

    torch.set_num_threads(settings["threads"])
    folder = Path(settings["folder"])
    config = load(
        compose(
            [
                f"pretrained_checkpoint.restore_from_path={settings['nemo']}",
                f"model.data.data_prefix.train=[{settings['pairs']}]",
                f"exp_manager.explicit_log_dir={folder}/run",
                f"model.data.seq_length={settings['seq_length']}",
                f"model.global_batch_size={settings['global_batch_size']}",
                f"model.dpo.ref_policy_kl_penalty={settings['beta']}",
                f"model.optim.lr={settings['lr']}",
                f"model.tensor_model_parallel_size={settings['tensor_parallel']}",
                f"trainer.devices={settings['tensor_parallel']}",
                *settings.get("overrides", []),
            ]
        ),
        loss_names=tuple(LOSSES),
    )
    if int(os.environ["RANK"]) == 0:
        prepare_run(config)
    trainer = run.set_up(config, RunFolder(Path(config.exp_manager.explicit_log_dir)))
    batches = trainer.train.in_file_order()
    trainer.train.training_step = lambda step, *, seed: next(batches)
    trainer.train.reference_log_probs = trainer.train.reference_log_probs  # evaluated in set_up
    say({"ready": True, "matmul_peak_gflops": trainer.throughput.matmul_peak / 1e9, "rss_peak_gib": peak_rss()})
    with ThreadPoolExecutor(max_workers=1) as beside:
        coming = beside.submit(trainer.train.training_step, 0, seed=0)
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            ahead = beside.submit(trainer.train.training_step, 0, seed=0)
            values = trainer._train_step(coming).values
            coming = ahead
            say({"seconds": values["step_s"], "rss_peak_gib": peak_rss(), **values})


def peak_rss() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def say(row: dict) -> None:
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    host.prepare()
    with tempfile.TemporaryDirectory() as temporary:
        given = json.loads(Path(sys.argv[1]).read_text())
        main({"folder": temporary, **given})
