"""Export a `.nemo`, a checkpoint or a run to a Hugging Face folder that any library can load."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo import file_names
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.convert.checkpoint import PREFIX, Checkpoint
from nemo_minordpo.convert.facts import ModelFacts, facts_from_config, read_config
from nemo_minordpo.convert.hf_folder import dtype_name, parse_dtype, write_weights
from nemo_minordpo.convert.lora_weights import open_weights
from nemo_minordpo.convert.mapping import EMBEDDING, HEAD, VOCAB, Row, mapping_table
from nemo_minordpo.convert.model_card import write_card
from nemo_minordpo.convert.nemo_source import NemoSource, open_source, rank_files
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import publish, refuse_existing, sha256_of_file, staging_folder, write_text
from nemo_minordpo.host.heap import return_freed_memory
from nemo_minordpo.prompts import ways_of_run
from nemo_minordpo.records import Manifest
from nemo_minordpo.sidecars import copy_sidecars, require_tokenizer
from nemo_minordpo.terminal import progress_bar, say


def export_hf(
    source: Path,
    output: Path,
    *,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    base_nemo: Path | None = None,
    base_name: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Convert to a Hugging Face folder: safetensors (sharded at 5 GB), config, tokenizer, chat template, model card.

    Config, tokenizer, chat template and generation config are copied byte for byte from the imported model. Only
    config.json may change: the type of the weights, and `tie_word_embeddings` if training untied them. LoRA adapters
    are merged into their weights.

    Args:
        source: a `.nemo`, its unpacked folder, a distributed checkpoint's folder, a run's folder (its `model.nemo`, or
            else its newest checkpoint), or NeMo-Aligner's results (the newest).
        output: the folder to write.
        tokenizer: Hugging Face folder with config.json and tokenizer; None = the one that the checkpoint names.
        dtype: float32, bfloat16 or float16; None = the checkpoint's type.
        base_nemo: for adapters, the model that they were trained on; None = the one that the run names.
        base_name: the base model's name on the hub, for the model card; None = as write_card finds it.
        overwrite: replace an existing output.

    Returns:
        The manifest written to the folder, with counts of tensors and bytes.

    Raises:
        UserError: the source is damaged, of an unknown kind, or contradicts config.json; or the output exists.
    """
    return_freed_memory()
    target_dtype = parse_dtype(dtype)
    refuse_existing(output, overwrite=overwrite)
    with staging_folder(output) as folder:
        scratch, staged = folder / "unpacked", folder / "hf"
        scratch.mkdir()
        staged.mkdir()
        opened = open_source(source, scratch=scratch, base=base_nemo)
        base, facts = hf_side(opened, tokenizer)
        checkpoint = open_weights(opened, dtype=target_dtype)
        facts = _with_actual_tie(checkpoint, facts, opened.origin)
        rows = mapping_table(facts)
        _require_tensors(checkpoint, rows, facts, opened.origin)
        copy_sidecars(base, staged)
        main_dtype = target_dtype or checkpoint.dtype(EMBEDDING)
        _write_config(staged / "config.json", read_config(base), dtype=main_dtype, tied=facts.tied)
        described = _described(checkpoint, rows, facts, dtype=target_dtype)
        num_bytes = write_weights(staged, described, _tensors(checkpoint, rows, facts, dtype=target_dtype))
        manifest = Manifest(
            stage="export-hf",
            inputs=inputs_of(opened),
            settings={"dtype": dtype_name(main_dtype), "tokenizer": str(base), "source": str(opened.origin)},
            prompts=ways_of_run(opened.origin),
            counts={"hf_tensors": sum(len(row.layers(facts)) * len(row.hf) for row in rows), "bytes": num_bytes},
        )
        manifest.write(staged)
        write_card(staged, source=opened, sidecars=base, output=output, base_name=base_name)
        publish(staged, output)
    return manifest


def hf_side(source: NemoSource, tokenizer: Path | None) -> tuple[Path, ModelFacts]:
    """The Hugging Face folder that belongs to a source, and the facts in its config.json.

    Raises:
        UserError: there is none, or it contradicts the source's own model config.
    """
    base = _base_folder(source, tokenizer)
    facts = facts_from_config(read_config(base), where=str(base / "config.json"))
    _require_agreement(source, facts, base)
    return base, facts


def _base_folder(source: NemoSource, tokenizer: Path | None) -> Path:
    """The Hugging Face folder that provides config and tokenizer for the output."""
    candidates = source.tokenizers if tokenizer is None else [tokenizer]
    for folder in candidates:
        if (folder / "config.json").is_file():
            require_tokenizer(folder)
            return folder
    raise UserError(
        f"{source.origin}: no config.json in {' or '.join(map(str, candidates))}: "
        "pass the folder of the imported model with --tokenizer"
    )


def _require_agreement(source: NemoSource, facts: ModelFacts, base: Path) -> None:
    if source.config is None:
        say(f"{source.origin}: no {file_names.MODEL_CONFIG} in or above it; trusting {base / 'config.json'}")
        return
    found = nemo_config.differences(facts, source.config)
    if found:
        raise UserError(
            f"{source.origin}: its {file_names.MODEL_CONFIG} contradicts {base / 'config.json'}: {'; '.join(found)}; "
            "pass the folder of the imported model with --tokenizer"
        )


def _with_actual_tie(checkpoint: Checkpoint, facts: ModelFacts, where: Path) -> ModelFacts:
    """Correct `tied` to match the checkpoint: Hugging Face would silently drop the output layer of a tied model.

    NeMo's own converters untie tied models, and training then lets the two matrices drift apart.
    """
    if HEAD not in checkpoint.tensors:
        if not facts.tied:
            raise UserError(f"{where}: no {PREFIX}{HEAD}, but config.json says tie_word_embeddings=false")
        return facts
    if not facts.tied:
        return facts
    if checkpoint.has_equal_rows(HEAD, EMBEDDING, num_rows=facts.vocab_size):
        return facts
    say(f"{where}: the output layer differs from the embedding: exported with tie_word_embeddings=false")
    return replace(facts, tied=False)


def _require_tensors(checkpoint: Checkpoint, rows: list[Row], facts: ModelFacts, where: Path) -> None:
    expected = {row.megatron: row for row in rows}
    missing = sorted(set(expected) - set(checkpoint.tensors))
    if missing:
        raise UserError(f"{where}: {PREFIX}{missing[0]} is missing ({len(missing)} in all), config.json requires it")
    known = {*expected, HEAD} if facts.tied else set(expected)  # a tied model's copy of its embedding was checked above
    unknown = sorted(set(checkpoint.tensors) - known)
    if unknown:
        raise UserError(f"{where}: {PREFIX}{unknown[0]} ({len(unknown)} in all) is not part of such a model")
    for name, row in expected.items():
        shape = row.shape(facts)
        found = checkpoint.tensors[name]
        inner = found[1:] if row.per_layer else found
        if row.layout is VOCAB and len(inner) == 2 and inner[0] >= facts.vocab_size:
            inner = (shape[0], *inner[1:])  # any padding is fine
        if inner != shape or (row.per_layer and found[0] != facts.num_layers):
            wanted = (facts.num_layers, *shape) if row.per_layer else shape
            raise UserError(f"{where}: {PREFIX}{name} has shape {found}, but config.json implies {wanted}")


def _described(
    checkpoint: Checkpoint, rows: list[Row], facts: ModelFacts, *, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Type and shape of every Hugging Face tensor, as a tensor on the meta device."""
    return {
        name.format(layer): torch.empty(shape, dtype=dtype or checkpoint.dtype(row.megatron), device="meta")
        for row, layer in _in_order(rows, facts)
        for name, shape in row.hf.items()
    }


def _tensors(
    checkpoint: Checkpoint, rows: list[Row], facts: ModelFacts, *, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor), for one Megatron tensor of one layer at a time."""
    with progress_bar() as progress:
        for row, layer in progress.track(_in_order(rows, facts), description="reading tensors"):
            whole = checkpoint.read(row.megatron, layer=layer)
            parts = row.split(whole if dtype is None else whole.to(dtype), facts)
            yield from zip(row.hf_names(layer), parts, strict=True)


def _in_order(rows: list[Row], facts: ModelFacts) -> list[tuple[Row, int | None]]:
    tensors = [(row, layer) for row in rows for layer in row.layers(facts)]
    return sorted(tensors, key=lambda tensor: tensor[0].turn(tensor[1], facts))


def _write_config(path: Path, config: dict[str, Any], *, dtype: torch.dtype, tied: bool) -> None:
    changed: dict[str, Any] = {"dtype" if "dtype" in config else "torch_dtype": dtype_name(dtype)}
    if config.get("tie_word_embeddings", False) != tied:
        changed["tie_word_embeddings"] = tied
    if any(config.get(key) != value for key, value in changed.items()):
        write_text(path, json.dumps({**config, **changed}, indent=2, ensure_ascii=False) + "\n")


def inputs_of(source: NemoSource) -> dict[str, str]:
    """{file: sha256} of the files that identify a source."""
    # Only the table of contents of a checkpoint is hashed, which identifies it: a training run's files also contain the
    # optimizer's state and may be a hundred times larger than the data read here.
    places = [(source.origin, source.adapters or source.weights)]
    if source.base is not None:
        places.append((source.base, source.weights))
    paths = []
    for origin, folder in places:
        paths += [origin] if origin.is_file() else rank_files(folder) or [folder / ".metadata"]
    return {str(path): sha256_of_file(path) for path in paths}
