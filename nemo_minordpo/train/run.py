"""One rank of a training run, from set-up to the trained model.

Imports Megatron, so call `host.prepare()` before importing this module.
"""

from typing import Any

import torch

from nemo_minordpo.config import TrainConfig, duration_in_seconds
from nemo_minordpo.host import StandIn
from nemo_minordpo.train.folder.attempt import Attempt, record_failure
from nemo_minordpo.train.folder.checkpoints import remove_leftovers, save_model
from nemo_minordpo.train.folder.run_folder import RunFolder, rank_of_process
from nemo_minordpo.train.folder.run_log import RunLog
from nemo_minordpo.train.folder.stopping import StallDetector, StopRequest
from nemo_minordpo.train.model.layout import layout_in_words
from nemo_minordpo.train.set_up import set_up
from nemo_minordpo.train.trainer import MinorDPOTrainer


def run_rank(
    config: TrainConfig, folder: RunFolder, stop: StopRequest, *, stand_ins: list[StandIn], only_reference: bool
) -> bool:
    """Set up this rank, train, and write the model at the end. Returns whether the run is complete.

    launch.prepare_run must have made the run folder and the tokenised pairs.

    Args:
        config, folder: the run's.
        stop: requests to end the run early.
        stand_ins: result of `host.prepare()`.
        only_reference: stop before the first step, once the reference log-probabilities are cached.
    """
    own = _begin(folder) if rank_of_process() == 0 and not only_reference else None
    with RunLog(config, folder, own, stand_ins=stand_ins) as log:
        trainer = set_up(config, folder, only_reference=only_reference)
        reason = "only the reference" if only_reference else _train(config, folder, trainer, own, log, stop)
    torch.distributed.destroy_process_group()
    return not reason


def _begin(folder: RunFolder) -> Attempt:
    """Claim the run for a new attempt; on the first rank only."""
    attempt = Attempt.claim(folder.path)
    attempt.note("begun", step=0)
    return attempt


def _train(
    config: TrainConfig,
    folder: RunFolder,
    trainer: MinorDPOTrainer,
    own: Attempt | None,
    log: RunLog,
    stop: StopRequest,
) -> str:
    """Train from the newest checkpoint to the trained model. Returns why it stopped early; empty if it is complete.

    `own` is the attempt on the first rank, None on others.
    """
    attempt = _known_to_all(own, folder)
    limit = config.exp_manager.max_time_without_progress
    stalls = StallDetector(
        max_seconds=None if limit is None else duration_in_seconds(limit),
        on_stall=lambda reason: record_failure(folder.path, reason, rank=rank_of_process()),
    )
    resumed = trainer.resume(attempt).step
    if own is not None:
        own.note("started", step=resumed, detail=layout_in_words(config), max_steps=trainer.max_steps)
    try:
        with log.training(resumed=resumed, max_steps=trainer.max_steps):
            reason = trainer.fit(log, attempt=attempt, stop=stop, stalls=stalls)
        if not reason and config.trainer.dpo.save_nemo:
            stalls.beat("the trained model")
            save_model(folder.result(config), host=trainer.host, attempt=attempt)
    finally:
        stalls.end()
    if own is not None:
        own.note("stopped" if reason else "complete", step=trainer.progress.step, detail=reason)
    log.finish(reason=reason)
    return reason


def _known_to_all(own: Attempt | None, folder: RunFolder) -> Attempt:
    """Broadcast the first rank's attempt to every rank."""
    if own is not None:
        remove_leftovers(folder.checkpoints, own)
    claimed: list[Any] = [own]
    torch.distributed.broadcast_object_list(claimed)
    return claimed[0]
