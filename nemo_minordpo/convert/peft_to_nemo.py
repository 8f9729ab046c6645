"""Import a PEFT folder of LoRA adapters as a `.nemo` from which training can start at any layout.

The inverse of peft_folder.py. NeMo adapts queries, keys and values together, and gate and up together, so adapters that
are separate in PEFT must have the same A, as in an exported folder. Merge other adapters into their model first.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.config.lora import ADAPTER_PLACES, LoraFacts, peft_section
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.convert.checkpoint import Chunk, StoredTensor, write_checkpoint
from nemo_minordpo.convert.facts import ModelFacts, facts_from_config, read_config
from nemo_minordpo.convert.hf_folder import DTYPES, dtype_name, parse_dtype
from nemo_minordpo.convert.lora_weights import IN, LAYERS, OUT, TARGETS
from nemo_minordpo.convert.mapping import Row, mapping_table
from nemo_minordpo.convert.nemo_output import publish_nemo, require_free_name
from nemo_minordpo.convert.peft_folder import CONFIG, PREFIX, TENSORS
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file, staging_folder
from nemo_minordpo.records import Manifest
from nemo_minordpo.sidecars import require_tokenizer, tokenizer_folder

# keys of adapter_config.json that are read, and those without effect here
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "base_model_name_or_path"}
_WITHOUT_EFFECT = {
    "task_type", "target_modules", "exclude_modules", "inference_mode", "revision", "peft_version", "auto_mapping",
    "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
_PLAIN = {"bias": "none", "init_lora_weights": (True, "gaussian", "orthogonal")}
_MERGE = "; merge the adapters into their model with peft (merge_and_unload), save it, and import that"


def is_peft_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def import_peft(
    source: Path, output: Path, *, base: Path | None = None, dtype: str | None = None, overwrite: bool = False
) -> Manifest:
    """Convert a PEFT folder into `output` and, beside it, `<stem>.tokenizer/` and `<stem>.manifest.json`.

    Args:
        source: folder with adapter_config.json and adapter_model.safetensors.
        output: the file to write, named `*.nemo`.
        base: the model that the adapters were trained on, a Hugging Face folder or its import; None = the folder that
            adapter_config.json names.
        dtype: float32, bfloat16 or float16; None = the adapters' own type.
        overwrite: replace an existing output.

    Raises:
        UserError: the adapters are damaged, belong to another model, or cannot be expressed as NeMo's plain LoRA.
    """
    require_free_name(output, overwrite=overwrite)
    settings = _read_settings(source / CONFIG)
    hf = _base_folder(source / CONFIG, settings, base)
    facts = facts_from_config(read_config(hf), where=str(hf / "config.json"))
    tensors = _read_tensors(source / TENSORS)
    stored, lora = _converted(source / TENSORS, tensors, settings, facts, dtype=parse_dtype(dtype))
    with staging_folder(output) as folder:
        write_checkpoint(folder / file_names.NEMO_WEIGHTS, stored, [])
        main_dtype = stored[0].dtype
        config = nemo_config.model_config(facts, tokenizer=tokenizer_folder(output).absolute(), dtype=main_dtype)
        manifest = Manifest(
            stage="import-hf",
            inputs={
                str(path): sha256_of_file(path) for path in (source / CONFIG, source / TENSORS, hf / "config.json")
            },
            settings={"adapters": "peft", "base": str(hf), "dtype": dtype_name(main_dtype), **asdict(lora)},
            counts={"peft_tensors": len(tensors), "parameters": sum(tensor.numel() for tensor in tensors.values())},
        )
        config |= {"peft": peft_section(lora)}
        publish_nemo(folder, output, config=config, sidecars_of=hf, manifest=manifest)
    return manifest


def _read_settings(path: Path) -> dict[str, Any]:
    """adapter_config.json of plain LoRA: y = W x + lora_alpha / r * B A x, and nothing else."""
    settings = read_json_object(path)
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type={settings.get('peft_type')!r}: only LORA can be converted")
    # also rejects unknown keys of newer PEFT versions, unless they are off
    for key in sorted(settings.keys() - _READ - _WITHOUT_EFFECT):
        value, plain = settings[key], _PLAIN.get(key)
        if value and not (value in plain if isinstance(plain, tuple) else value == plain):
            raise UserError(f"{path}: {key}={value!r}: only plain LoRA can be converted{_MERGE}")
    for key, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(settings.get(key), kind) or isinstance(settings[key], bool) or not settings[key] > 0:
            raise UserError(f"{path}: {key}={settings.get(key)!r}: expected a positive number")
    return settings


def _base_folder(path: Path, settings: dict[str, Any], base: Path | None) -> Path:
    """The Hugging Face folder of the model that the adapters were trained on."""
    if base is not None and base.suffix == ".nemo":
        base = tokenizer_folder(base)
    folder = base or Path(settings.get("base_model_name_or_path") or "")
    if not (folder / "config.json").is_file():
        said = settings.get("base_model_name_or_path")
        named = f"no config.json in {folder}" if base else f"base_model_name_or_path={said!r} is not a model folder"
        raise UserError(
            f"{path}: {named}: name the model that the adapters were trained on with --base, its Hugging Face folder "
            "or its .nemo"
        )
    require_tokenizer(folder)
    return folder


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; save the adapters as safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise UserError(f"{path}: {name} has type {dtype_name(tensor.dtype)}: expected one of {', '.join(DTYPES)}")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is not finite")
    return tensors


def _converted(
    path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], facts: ModelFacts, *, dtype: torch.dtype | None
) -> tuple[list[StoredTensor], LoraFacts]:
    """The adapters by their names in a checkpoint, and their settings."""
    names = {LAYERS + weight: name for name, weight in zip(ADAPTER_PLACES, TARGETS.values(), strict=True)}
    left = set(tensors)
    stored, targets = [], []
    for row in mapping_table(facts):
        if row.megatron not in names:
            continue
        stems = [[_stem(name) for name in row.hf_names(layer)] for layer in row.layers(facts)]
        wanted = {f"{stem}.lora_{side}.weight" for layer in stems for stem in layer for side in "AB"}
        if not wanted & left:
            continue
        if missing := sorted(wanted - left):
            raise UserError(
                f"{path}: {missing[0]} is missing ({len(missing)} in all): NeMo adapts {_in_words(row)} together, in "
                f"every layer{_MERGE}"
            )
        left -= wanted
        target = names[row.megatron]
        pairs = [_layer(path, tensors, layer, row, facts, rank=settings["r"]) for layer in stems]
        for part, whole in zip((IN, OUT), map(torch.stack, zip(*pairs, strict=True)), strict=True):
            name = f"{LAYERS}{ADAPTER_PLACES[target]}{part}"
            stored.append(_stored(name, whole if dtype is None else whole.to(dtype)))
        targets.append(target)
    if left or not stored:
        found = sorted(left)[0] if left else "it is empty"
        raise UserError(f"{path}: {found}: expected adapters of the linear layers of config.json's model{_MERGE}")
    if len(types := {tensor.dtype for tensor in stored}) > 1:
        raise UserError(
            f"{path}: tensors have types {', '.join(sorted(map(dtype_name, types)))}: pick one with --dtype"
        )
    return stored, LoraFacts(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        dropout=settings.get("lora_dropout") or 0.0,
        targets=tuple(targets),
    )


def _layer(
    path: Path, tensors: dict[str, Tensor], stems: list[str], row: Row, facts: ModelFacts, *, rank: int
) -> tuple[Tensor, Tensor]:
    """A and B of one of Megatron's linear layers, from those of its projections."""
    for stem, (outputs, inputs) in zip(stems, row.hf.values(), strict=True):
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            found = tuple(tensors[f"{stem}.lora_{side}.weight"].shape)
            if found != shape:
                raise UserError(
                    f"{path}: {stem}.lora_{side}.weight has shape {found}; rank {rank} and config.json imply {shape}"
                )
    first, *others = [tensors[f"{stem}.lora_A.weight"] for stem in stems]
    if not all(torch.equal(first, other) for other in others):
        raise UserError(
            f"{path}: {_in_words(row)} have different lora_A ({stems[0]}); NeMo has a single one for all{_MERGE}"
        )
    return first, row.join([tensors[f"{stem}.lora_B.weight"] for stem in stems], facts)


def _stem(weight: str) -> str:
    return PREFIX + weight.removesuffix(".weight")


def _in_words(row: Row) -> str:
    names = [name.removesuffix(".weight").rpartition(".")[2] for name in row.hf]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _stored(name: str, tensor: Tensor) -> StoredTensor:
    shape = tuple(tensor.shape)
    return StoredTensor(name, shape, tensor.dtype, [Chunk((0,) * len(shape), shape, lambda: tensor)])
