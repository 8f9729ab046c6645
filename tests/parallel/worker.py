"""One rank of the parallel tests: many runs in one process, since importing NeMo costs most of the time.

Started by torchrun with a JSON file of jobs. A job is a run folder with Hydra overrides and, optionally, the step after
which the process "dies" (an exception between two steps, without a checkpoint).
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

# No NeMo imports at the top: the checkpoint writer starts a helper process that imports this file again.
from nemo_minordpo import host


class Died(Exception):
    """Simulates the death of the process."""


def main(jobs_file: Path) -> None:
    host.prepare()
    from nemo_minordpo.config import compose, load
    from nemo_minordpo.train.launch import prepare_run

    jobs = json.loads(jobs_file.read_text())
    for number, job in enumerate(jobs):
        os.environ["MASTER_PORT"] = str(int(job["port"]) + number)
        if "round_trip" in job:
            round_trip(**job["round_trip"])
            continue
        config = load(compose(job["overrides"]))
        if int(os.environ["RANK"]) == 0:
            if job["copy_of"]:
                shutil.copytree(job["copy_of"], config.exp_manager.explicit_log_dir)
            if "damaged" in job:
                damage(Path(config.exp_manager.explicit_log_dir), job["damaged"])
            prepare_run(config)
        try:
            if "fp8" in job:
                from tests.parallel.delayed_scaling import delayed_scaling

                with delayed_scaling(**job["fp8"]):
                    run(config, job["dies_after"])
            elif job["separate"]:
                compare_with_separate(config, job["separate"])
            elif job.get("log_probs"):
                write_log_probs(config, Path(job["log_probs"]), steps_before=job.get("steps_before", 0))
            else:
                run(config, job.get("dies_after"))
        finally:
            forget_run()


def round_trip(folder: str, layout: str, tokenizer: str) -> None:
    """Run on as many ranks as the layout needs; the others do nothing."""
    from tests.parallel.round_trip import LAYOUTS, save_again

    started, needed = os.environ["WORLD_SIZE"], math.prod(LAYOUTS[layout])
    if int(os.environ["RANK"]) >= needed:
        return
    os.environ |= {"WORLD_SIZE": str(needed), "LOCAL_WORLD_SIZE": str(needed)}
    try:
        save_again(Path(folder), layout, tokenizer=Path(tokenizer))
    finally:
        os.environ |= {"WORLD_SIZE": started, "LOCAL_WORLD_SIZE": started}
        forget_run()


def run(config, dies_after) -> None:
    """Train; raise Died instead of the step after `dies_after`."""
    import torch

    from nemo_minordpo.train import trainer as trainer_module
    from nemo_minordpo.train.launch import run_this_rank

    step = trainer_module.MinorDPOTrainer._train_step

    def mortal_step(self, coming):
        if self.progress.step == dies_after:
            raise Died
        return step(self, coming)

    trainer_module.MinorDPOTrainer._train_step = mortal_step
    try:
        run_this_rank(config)
    except Died:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    finally:
        trainer_module.MinorDPOTrainer._train_step = step


def damage(run_folder: Path, file: str) -> None:
    """Cut off the second half of a file in the newest checkpoint."""
    path = run_folder / "checkpoints/step_000008" / file
    os.truncate(path, path.stat().st_size // 2)


def write_log_probs(config, path: Path, *, steps_before: int) -> None:
    """Write token and sequence log-probabilities of the first step's pairs, as the model's loss sees them.

    Trains `steps_before` steps first, because FP8's scales come from earlier steps.
    """
    import torch
    from megatron.core import parallel_state

    from nemo_minordpo.train.folder.run_folder import RunFolder
    from nemo_minordpo.train.model import pair_model as model_module
    from nemo_minordpo.train.set_up import set_up

    trainer = set_up(config, RunFolder(Path(config.exp_manager.explicit_log_dir)))
    for coming, _ in zip(trainer._coming_batches(), range(steps_before), strict=False):
        trainer._train_step(coming)
    responses = []
    original = model_module.sequence_log_probs

    def recording(token_log_probs, credits):
        responses.append((token_log_probs, credits))
        return original(token_log_probs, credits)

    model_module.sequence_log_probs = recording
    batch = trainer.train.training_step(0, seed=config.model.seed)
    with trainer.model.evaluating():
        sequences = trainer.model.get_logprob_batch(batch)
    model_module.sequence_log_probs = original
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        by_response = {}
        for part, (tokens, credits), sums in zip(batch.micro_batches, responses, sequences, strict=True):
            for row, (entries, value) in enumerate(zip(credits, sums, strict=True)):
                pair, rejected = part.pairs[row % len(part.pairs)], row >= len(part.pairs)
                by_response[int(pair), rejected] = tokens[entries[entries < len(tokens)]], value
        torch.save(by_response, path)
    torch.distributed.destroy_process_group()


def compare_with_separate(config, num_examples: int) -> None:
    import torch

    from nemo_minordpo.train.folder.run_folder import RunFolder
    from nemo_minordpo.train.set_up import set_up
    from tests.parallel.separate import compare

    folder = Path(config.exp_manager.explicit_log_dir)
    trainer = set_up(config, RunFolder(folder))
    compare(trainer, folder / "separate.json", num_examples=num_examples)
    torch.distributed.destroy_process_group()


def forget_run() -> None:
    """Reset the global state of Megatron and NeMo, so that the next job starts as in a new process."""
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.strategies import base
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from nemo.utils import AppState

    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    # it counts the saves of a process, which must be equal on all ranks: idle ranks have fewer
    base.async_calls = base.AsyncCallsQueue()
    app_state = AppState()
    for name in [name for name in vars(app_state) if name.startswith("_")]:
        delattr(app_state, name)
    AppState.__init__(app_state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
