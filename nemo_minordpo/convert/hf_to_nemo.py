"""Import a Hugging Face folder as a `.nemo` that Megatron can load at any tensor- and pipeline-parallel size."""

import math
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nemo_minordpo import file_names
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.convert.checkpoint import Chunk, StoredTensor, write_checkpoint
from nemo_minordpo.convert.facts import ModelFacts, facts_from_config, read_config
from nemo_minordpo.convert.hf_folder import HfWeights, dtype_name, parse_dtype
from nemo_minordpo.convert.mapping import Row, extra_state_keys, mapping_table
from nemo_minordpo.convert.nemo_output import publish_nemo, require_free_name
from nemo_minordpo.convert.tokenizers import check_tokenizer
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file, staging_folder
from nemo_minordpo.host.heap import return_freed_memory
from nemo_minordpo.records import Manifest
from nemo_minordpo.sidecars import require_tokenizer, tokenizer_folder
from nemo_minordpo.terminal import progress_bar, say


def import_hf(source: Path, output: Path, *, overwrite: bool = False, dtype: str | None = None) -> Manifest:
    """Convert a Hugging Face folder to `output`, with `<stem>.tokenizer/` and `<stem>.manifest.json` next to it.

    The `.nemo` is an uncompressed tar of `model_config.yaml` and `model_weights/`. Weights keep their type unless
    `dtype` is given; the vocabulary is padded with zero rows to a multiple of 128.

    Args:
        source: folder with config.json, *.safetensors and a tokenizer.
        output: the file to write, named `*.nemo`.
        overwrite: replace an existing output.
        dtype: float32, bfloat16 or float16; None = the source's type.

    Returns:
        The manifest, with counts of tensors and parameters.

    Raises:
        UserError: the source is damaged, incomplete or cannot be converted, or the output exists.
    """
    return_freed_memory()
    target_dtype = parse_dtype(dtype)
    require_free_name(output, overwrite=overwrite)
    facts = facts_from_config(read_config(source), where=str(source / "config.json"))
    require_tokenizer(source)
    weights = HfWeights(source, facts)
    if target_dtype is None:
        _require_one_type_a_kind(weights, facts)
    for line in [weights.found.note, *check_tokenizer(source, vocab_size=facts.vocab_size)]:
        if line is not None:
            say(line)
    main_dtype = target_dtype or weights.dtypes["model.embed_tokens.weight"]
    num_bytes = _num_parameters(facts) * main_dtype.itemsize
    _require_room(output.parent.absolute(), num_bytes=2 * num_bytes)
    with staging_folder(output) as folder:
        _write_weights(folder / file_names.NEMO_WEIGHTS, weights, facts, dtype=target_dtype)
        config = nemo_config.model_config(facts, tokenizer=tokenizer_folder(output).absolute(), dtype=main_dtype)
        manifest = _manifest(source, weights, facts, dtype=main_dtype)
        publish_nemo(folder, output, config=config, sidecars_of=source, manifest=manifest)
    return manifest


def _require_room(folder: Path, *, num_bytes: int) -> None:
    """Raise UserError if the file system of `folder`, or of its nearest existing parent, has less free space."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(f"{folder}: {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB needed")


def _require_one_type_a_kind(weights: HfWeights, facts: ModelFacts) -> None:
    """Megatron has one tensor, hence one type, for a weight in all layers and for the projections that it joins."""
    for row in mapping_table(facts):
        first: dict[torch.dtype, str] = {}
        for name in (name for layer in row.layers(facts) for name in row.hf_names(layer)):
            first.setdefault(weights.dtypes[name], name)
        if len(first) > 1:
            found = " and ".join(f"{name} {dtype_name(dtype)}" for dtype, name in first.items())
            rounding = next(dtype_name(dtype) for dtype in first if dtype != torch.float32)
            raise UserError(
                f"{weights.folder}: tensors of one kind differ in type ({found}), but a checkpoint has one type for "
                f"them: --dtype float32 keeps every value exactly, --dtype {rounding} rounds"
            )


def _write_weights(folder: Path, weights: HfWeights, facts: ModelFacts, *, dtype: torch.dtype | None) -> None:
    rows = mapping_table(facts)
    with progress_bar() as progress:
        total = sum(len(row.layers(facts)) * row.layout.num_blocks for row in rows)
        task = progress.add_task("writing tensors", total=total)
        blocks: deque[Tensor] = deque()

        def load(row: Row, layer: int | None) -> Tensor:
            # the writer requests the blocks of a tensor one after another, so the tensor is joined only once
            if not blocks:
                whole = row.join([weights.read(name) for name in row.hf_names(layer)], facts)
                blocks.extend((whole if dtype is None else whole.to(dtype)).chunk(row.layout.num_blocks))
            progress.advance(task)
            return blocks.popleft()

        tensors = []
        for row in rows:
            stored_dtype = dtype or weights.dtypes[row.hf_names(row.layers(facts)[0])[0]]
            tensors.append(_stored(row, facts, dtype=stored_dtype, load=partial(load, row)))
        write_checkpoint(folder, tensors, extra_state_keys(facts))


def _stored(row: Row, facts: ModelFacts, *, dtype: torch.dtype, load: Callable[[int | None], Tensor]) -> StoredTensor:
    """One chunk per layer and block, since readers fetch whole chunks."""
    shape = row.shape(facts)
    layer_axis = (facts.num_layers,) if row.per_layer else ()
    block_rows = shape[0] // row.layout.num_blocks
    chunks = [
        Chunk(
            offsets=(() if layer is None else (layer,)) + (block * block_rows,) + (0,) * (len(shape) - 1),
            sizes=(() if layer is None else (1,)) + (block_rows, *shape[1:]),
            load=partial(load, layer),
            turn=row.turn(layer, facts),
        )
        for layer in row.layers(facts)
        for block in range(row.layout.num_blocks)
    ]
    return StoredTensor(row.megatron, (*layer_axis, *shape), dtype, chunks)


def _num_parameters(facts: ModelFacts) -> int:
    """Parameters of the model itself, without the padding of the vocabulary."""
    rows = mapping_table(facts)
    return sum(math.prod(shape) * len(row.layers(facts)) for row in rows for shape in row.hf.values())


def _manifest(source: Path, weights: HfWeights, facts: ModelFacts, *, dtype: torch.dtype) -> Manifest:
    index = [weights.found.index] if weights.found.index else []
    files = sorted([*weights.found.read, *index, source / "config.json"])
    return Manifest(
        stage="import-hf",
        inputs={str(path): sha256_of_file(path) for path in files},
        settings={"dtype": dtype_name(dtype), **asdict(facts)},
        counts={
            "hf_tensors": sum(len(row.layers(facts)) * len(row.hf) for row in mapping_table(facts)),
            "parameters": _num_parameters(facts),
            "padded_vocab_rows": facts.padded_vocab_size - facts.vocab_size,
        },
    )
