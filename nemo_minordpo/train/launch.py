"""From the command line to running ranks. Everything that can be checked without NeMo is checked here, in seconds."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from nemo_minordpo import host
from nemo_minordpo.config import (
    DataSection,
    TrainConfig,
    closest,
    compose,
    duration_in_seconds,
    hydra_value,
    load,
    unread_notes,
)
from nemo_minordpo.core.losses import needs_reference
from nemo_minordpo.core.metrics import METRICS
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MODEL_CONFIG
from nemo_minordpo.files import publish, staging_folder, write_text
from nemo_minordpo.host.processor import bfloat16_in_words
from nemo_minordpo.hugging_face import find_tokenizer
from nemo_minordpo.pairs.tokens import TokenArrays, expand_files, load_arrays, tokenize_files
from nemo_minordpo.sidecars import copy_sidecars, has_tokenizer, tokenizer_folder
from nemo_minordpo.terminal import say
from nemo_minordpo.train.data.dataset import segment_lengths_of
from nemo_minordpo.train.folder.attempt import ReplacedError, record_failure
from nemo_minordpo.train.folder.run_folder import RunFolder, rank_of_process
from nemo_minordpo.train.folder.stopping import StopRequest
from nemo_minordpo.train.model import starting_adapters
from nemo_minordpo.train.model.model_config import build_model_config, checkpoint_config, model_size
from nemo_minordpo.train.model.preference_loss import losses_of, require_usable_loss, source_of
from nemo_minordpo.train.schedule import schedule_notes

# Tells the ranks that torchrun starts to stop before the first step.
ONLY_REFERENCE = "--only-reference"


def main(overrides: list[str], *, only_reference: bool = False) -> None:
    """Check, prepare and run.

    A single rank runs in this process; for several ranks, this process becomes torchrun. A process that torchrun or
    srun started runs as one rank.

    Args:
        overrides: Hydra overrides, as typed after `minordpo train`.
        only_reference: evaluate the reference log-probabilities, and stop before the first step.

    Raises:
        UserError: the configuration, the checkpoint or the pairs are wrong; raised before anything is loaded.
    """
    config = read_settings(overrides)
    section = config.model.dpo
    if only_reference and not any(map(needs_reference, losses_of(section))):
        raise UserError(
            f"model.dpo.preference_loss={hydra_value(section.preference_loss)} needs no reference: there is nothing to "
            "evaluate"
        )
    started_by_launcher = "WORLD_SIZE" in os.environ or "SLURM_NTASKS" in os.environ
    if config.trainer.num_nodes > 1 and not started_by_launcher:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start one process per rank with srun or torchrun: "
            "torchrun --nnodes=... --nproc-per-node=... -m nemo_minordpo.train KEY=VALUE ..."
        )
    if rank_of_process() == 0:
        prepare_run(config)
    folder = RunFolder(Path(config.exp_manager.explicit_log_dir))
    if (result := folder.result(config)).exists():
        if rank_of_process() == 0:
            say(f"this run is complete: {result}")
        return
    if started_by_launcher or config.trainer.num_nodes * config.trainer.devices == 1:
        if rank_of_process() == 0:
            num_pairs = len(load_arrays(folder.data("train")))
            notes = [*_precision_notes(config), *unread_notes(config), *schedule_notes(config, num_pairs=num_pairs)]
            for note in notes:
                say(f"note: {note}")
        run_this_rank(config, only_reference=only_reference)
        return
    _start_ranks(config.trainer.devices, [ONLY_REFERENCE, *overrides] if only_reference else overrides)


def run_this_rank(config: TrainConfig, *, only_reference: bool = False) -> bool:
    """Train as one rank, in this process; errors, from the import of Megatron on, are recorded in its `failures/`.

    Args:
        config: configuration of a run prepared by :func:`prepare_run`.
        only_reference: stop before the first step, once the reference log-probabilities are cached.

    Returns:
        Whether the run is complete.
    """
    folder = RunFolder(Path(config.exp_manager.explicit_log_dir))
    limit = config.exp_manager.max_time_per_run
    stop = StopRequest(max_seconds=None if limit is None else duration_in_seconds(limit))
    stop.listen()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers warn about threads when the checkpoint writer forks
    try:
        stand_ins = host.prepare(config.host)
        from nemo_minordpo.train.run import run_rank  # imports Megatron

        return run_rank(config, folder, stop, stand_ins=stand_ins, only_reference=only_reference)
    except ReplacedError:
        raise
    except Exception as error:
        record_failure(folder.path, error, rank=rank_of_process())
        raise


def read_settings(overrides: list[str]) -> TrainConfig:
    """Compose the settings of a run, and check what can be checked without opening a file.

    Raises:
        UserError: a setting is wrong.
    """
    config = load(compose(overrides))
    _check_monitor(config)
    require_usable_loss(config.model.dpo)
    return config


def prepare_run(config: TrainConfig) -> None:
    """Make the run folder and tokenise the pairs; does nothing if that is done."""
    checkpoint = Path(config.pretrained_checkpoint.restore_from_path)
    model_config = build_model_config(
        config, checkpoint_config(config, checkpoint), cuda=host.has_cuda(), te=host.has_transformer_engine()
    )
    if (adapters := config.model.peft.restore_from_path) is not None:
        words = starting_adapters.in_words(model_config, Path(adapters))
        say(f"note: {words}")
    if (other := config.pretrained_checkpoint.reference_from_path) is not None:
        checkpoint_config(config, Path(other), setting="pretrained_checkpoint.reference_from_path")
    data = config.model.data
    files = {
        split: expand_files(patterns)
        for split, patterns in (("train", data.data_prefix.train), ("validation", data.data_prefix.validation))
        if patterns
    }
    tokenizer_path = Path(model_config.tokenizer.type)
    folder = RunFolder(Path(config.exp_manager.explicit_log_dir))
    tokenizer = load_tokenizer(tokenizer_path)

    def make_data() -> None:
        for split, paths in files.items():
            tokenize_files(paths, folder.data(split), tokenizer=tokenizer, data=data, split=split)
            arrays = load_arrays(folder.data(split))
            _check_rows(arrays, split, data)
            _check_tokens(arrays, split, model_config, tokenizer)
            _check_context(arrays, split, model_config)

    folder.prepare(
        config,
        inputs={
            **_weights(config),
            "tokenizer": [tokenizer_path] if tokenizer_path.exists() else [],
            **source_of(config.model.dpo),
            **files,
        },
        make_data=make_data,
    )
    # for export-hf, which can export a checkpoint of an unfinished run, even on another machine
    write_text(folder.path / MODEL_CONFIG, OmegaConf.to_yaml(model_config))
    _copy_tokenizer(tokenizer_path, tokenizer_folder(folder.nemo))


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer into the run folder, once; a tokenizer named on a hub has nothing to copy."""
    if target.exists() or not has_tokenizer(source):
        return
    with staging_folder(target) as folder:
        staged = folder / target.name
        staged.mkdir()
        copy_sidecars(source, staged)
        publish(staged, target)


def _check_monitor(config: TrainConfig) -> None:
    section = config.exp_manager.checkpoint_callback_params
    name = f"exp_manager.checkpoint_callback_params.monitor={section.monitor}"
    if section.monitor not in METRICS:
        hint = closest(section.monitor, METRICS)
        raise UserError(f"{name}: validation gives {', '.join(METRICS)}{hint}")
    if section.save_top_k and not config.model.data.data_prefix.validation:
        raise UserError(f"{name} needs validation pairs (model.data.data_prefix.validation)")


def _weights(config: TrainConfig) -> dict[str, list[Path]]:
    """Files of the starting weights, the checkpoint and adapters if any; and of the reference, if it is another."""
    adapters, other = config.model.peft.restore_from_path, config.pretrained_checkpoint.reference_from_path
    start = [Path(config.pretrained_checkpoint.restore_from_path), *([Path(adapters)] if adapters else [])]
    return {"reference": start} if other is None else {"start": start, "reference": [Path(other)]}


def _check_rows(arrays: TokenArrays, split: str, data: DataSection) -> None:
    longest = int(segment_lengths_of(arrays).max())
    if longest > data.packed_sequence_size:
        raise UserError(
            f"model.data.packed_sequence_size={data.packed_sequence_size}: the largest of the {split} pairs needs "
            f"{longest} tokens of a row; set model.data.packed_sequence_size={longest} or more, or a smaller "
            "model.data.seq_length"
        )


def _check_tokens(arrays: TokenArrays, split: str, model_config: Any, tokenizer: Any) -> None:
    """Refuse token ids beyond the model's own vocabulary: those rows of the embedding are untrained padding."""
    size = model_size(model_config, vocab_size=len(tokenizer)).vocab_size
    if (largest := int(arrays.tokens.max())) >= size:
        raise UserError(
            f"token id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) of the {split} pairs is beyond the "
            f"model's vocabulary of {size} tokens; its tokenizer has {len(tokenizer)}: use a tokenizer without added "
            "tokens, or a model whose embedding was resized for them"
        )


def _check_context(arrays: TokenArrays, split: str, model_config: Any) -> None:
    """Check for sequences longer than the model's context: an error with learned positions, else only a note."""
    context = model_config.get("max_position_embeddings")
    lengths = np.maximum(*arrays.sequence_lengths)
    if context is None or (longest := int(lengths.max())) <= context:
        return
    words = (
        f"{(lengths > context).sum()} of {len(lengths)} {split} pairs are longer than the model's context of {context} "
        f"tokens (the longest: {longest}); model.data.seq_length={context} leaves them out"
    )
    if model_config.get("position_embedding_type", "learned_absolute") == "learned_absolute":
        raise UserError(words)
    say(f"note: {words}")


def load_tokenizer(path: Path) -> Any:
    """The checkpoint's Hugging Face tokenizer.

    Raises:
        UserError: it is missing, or has no EOS token.
    """
    try:
        return find_tokenizer(str(path), needs_eos=True)
    except UserError as error:
        moved = "" if path.is_dir() else "; if it has moved, set +model.tokenizer.type=FOLDER"
        raise UserError(f"model.tokenizer.type={path}, from the checkpoint: {error}{moved}") from error


def _precision_notes(config: TrainConfig) -> list[str]:
    """Says so if a run in bfloat16 computes on the CPU: on a machine with a broken GPU, for example."""
    if config.trainer.precision == "32-true" or host.has_cuda():
        return []
    return [f"no GPU, so this run computes on the CPU: {bfloat16_in_words()}"]


def _start_ranks(devices: int, overrides: list[str]) -> None:
    """Replace this process by torchrun, which stops all ranks when one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads(devices))}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}",
        "-m", "nemo_minordpo.train", *overrides,
    ]  # fmt: skip
    os.execve(sys.executable, command, environment)


def _threads(devices: int) -> str:
    """Cores per rank, for ranks that compute on the CPU."""
    return str(max(1, len(os.sched_getaffinity(0)) // devices))
