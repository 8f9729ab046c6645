"""Sets up one rank: the host with its model and optimizer, the reference and the data.

Imports Megatron, so call `host.prepare()` before importing this module.
"""

from pathlib import Path
from typing import Any

import torch

from nemo_minordpo import file_names, host
from nemo_minordpo.config import TrainConfig
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import find_tokenizer
from nemo_minordpo.pairs.tokens import TokenArrays, load_arrays
from nemo_minordpo.train.answers import AnswerWatch, stop_ids_of, watched_prompts
from nemo_minordpo.train.data.dataset import PairBatches, segment_lengths_of
from nemo_minordpo.train.folder.run_folder import RunFolder
from nemo_minordpo.train.model import fp8
from nemo_minordpo.train.model.generation import GenerationLimits
from nemo_minordpo.train.model.model_config import (
    build_model_config,
    checkpoint_config,
    num_rows_multiple_of,
    row_multiple_of,
)
from nemo_minordpo.train.model.pair_model import PairModel
from nemo_minordpo.train.products import agree_on_products
from nemo_minordpo.train.reference import evaluate_reference
from nemo_minordpo.train.reference_cache import ReferenceCache, load_or_evaluate, reference_folder, reference_key
from nemo_minordpo.train.require_finite import places_in
from nemo_minordpo.train.throughput import Throughput, measure_matmul_peak
from nemo_minordpo.train.trainer import MinorDPOTrainer


def set_up(config: TrainConfig, folder: RunFolder, *, only_reference: bool = False) -> MinorDPOTrainer:
    """Set up process groups, model, reference, optimizer and data of this rank, and return the trainer with them.

    With `only_reference`, the model is the reference, even if training starts from another.

    Raises:
        UserError: the reference is another model, and its log-probabilities are not cached.
    """
    other = config.pretrained_checkpoint.reference_from_path if only_reference else None
    checkpoint = Path(other or config.pretrained_checkpoint.restore_from_path)
    model_config = build_model_config(
        config, checkpoint_config(config, checkpoint), cuda=host.has_cuda(), te=host.has_transformer_engine()
    )
    start = config.model.peft.restore_from_path
    hosted = _build_of(config)(
        config,
        model_config,
        checkpoint,
        adapters=Path(start) if start is not None and other is None else None,
        on_groups=lambda: None if host.has_cuda() else agree_on_products(folder),
    )
    model = hosted.model
    if model.uses_fp8:
        # the first pairs of the file, independent of the seed: runs share the reference, which uses these scales
        first = _pair_batches(
            config,
            model,
            load_arrays(folder.data("train")),
            row_capacity=config.model.data.packed_sequence_size,
        )
        fp8.find_scales(hosted, next(first.in_file_order()))
    has_validation = bool(config.model.data.data_prefix.validation)
    return MinorDPOTrainer(
        config=config,
        host=hosted,
        train=_batches(config, folder, "train", model, only_reference=only_reference),
        validation=(
            _batches(config, folder, "validation", model, only_reference=only_reference) if has_validation else None
        ),
        checkpoints=folder.checkpoints,
        throughput=_throughput(config, model),
        answers=_answer_watch(config, folder, model) if config.trainer.dpo.watch.interval else None,
    )


def _batches(config: TrainConfig, folder: RunFolder, split: str, model: PairModel, *, only_reference: bool) -> Any:
    """The packed batches of a split, with the reference's log-probabilities if those are cached."""
    arrays = load_arrays(folder.data(split))
    batches = _pair_batches(config, model, arrays, row_capacity=config.model.data.packed_sequence_size)
    section = config.model
    if model.needs_reference and section.dpo.reference_log_probs == "cached":
        _, size = model.data_parallel
        layout = f"TP={section.tensor_model_parallel_size} x PP={section.pipeline_model_parallel_size} x DP={size}"

        def evaluate() -> Any:
            if (other := config.pretrained_checkpoint.reference_from_path) is not None and not only_reference:
                raise UserError(
                    f"the log-probabilities of the {split} pairs under pretrained_checkpoint.reference_from_path="
                    f"{other} are not cached in {reference_folder(config)}: run `minordpo reference` with the same "
                    "settings first"
                )
            places = places_in(config, split)
            return evaluate_reference(model, batches, title=f"reference of {split} pairs", places=places)

        batches.reference_log_probs = load_or_evaluate(
            ReferenceCache(reference_folder(config)),
            reference_key(config, folder, split, model.cfg),
            num_pairs=len(arrays),
            evaluate=evaluate,
            layout=layout,
        )
    return batches


def _build_of(config: TrainConfig) -> Any:
    """The host's function that sets up this rank; hosts are imported only if they are used."""
    if config.host == "bridge":
        from nemo_minordpo.train.hosts.bridge.host import build
    else:
        from nemo_minordpo.train.hosts.aligner.host import build
    return build


def _vocab_size(model: PairModel) -> int:
    """Number of rows of the embedding, over all ranks."""
    return model.cfg.get("override_vocab_size") or model.padded_vocab_size


def _pair_batches(config: TrainConfig, model: PairModel, arrays: TokenArrays, *, row_capacity: int) -> Any:
    """The packed batches of some pairs, for this data-parallel rank."""
    rank, size = model.data_parallel
    return PairBatches(
        arrays,
        global_batch_size=config.model.global_batch_size,
        row_capacity=row_capacity,
        row_multiple=row_multiple_of(model.cfg),
        data_parallel_rank=rank,
        data_parallel_size=size,
        num_rows_multiple=num_rows_multiple_of(model.cfg),
        # any token: nothing attends to padding, and nothing is predicted there
        pad_id=0,
    )


def _answer_watch(config: TrainConfig, folder: RunFolder, model: PairModel) -> Any:
    """The watch on the model's answers, to prompts of the validation pairs or, without any, of the training pairs."""
    settings, data = config.trainer.dpo.watch, config.model.data

    def batches_of(pairs: TokenArrays) -> Any:
        # a pair of sampled answers may be longer than the pairs in the files
        row_capacity = max(data.packed_sequence_size, int(segment_lengths_of(pairs).max()))
        return _pair_batches(config, model, pairs, row_capacity=row_capacity)

    arrays = load_arrays(folder.data("validation" if data.data_prefix.validation else "train"))
    tokenizer = find_tokenizer(model.cfg.tokenizer.type, needs_eos=True)
    return AnswerWatch(
        folder=folder.path / file_names.WATCH,
        model=model,
        tokenizer=tokenizer,
        prompts=watched_prompts(arrays, count=settings.num_prompts, max_length=data.seq_length),
        limits=GenerationLimits(
            stop_ids=stop_ids_of(tokenizer),
            max_new_tokens=settings.max_new_tokens,
            max_length=data.seq_length,
            row_capacity=data.packed_sequence_size,
            row_multiple=row_multiple_of(model.cfg),
        ),
        batches_of=batches_of,
        data_parallel=model.data_parallel,
        vocab_size=_vocab_size(model),
        seed=config.model.seed,
    )


def _throughput(config: TrainConfig, model: PairModel) -> Any:
    torch.distributed.barrier()  # ranks of one machine share its cores
    dtype = next(model.get_model_module_list()[0].parameters()).dtype
    peak = torch.tensor(measure_matmul_peak(dtype), dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(peak)
    frozen = config.model.peft.peft_scheme != "none"
    return Throughput(size=model.size, matmul_peak=peak.item(), frozen=frozen)
