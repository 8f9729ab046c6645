"""Export LoRA adapters as a PEFT folder, for `PeftModel.from_pretrained(base model, folder)`.

NeMo adapts queries, keys and values together, and gate and up together: one A, and a B with rows for each. PEFT adapts
them separately: each gets the same A and its own rows of B, which gives the same product.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.convert.facts import ModelFacts
from nemo_minordpo.convert.hf_folder import parse_dtype
from nemo_minordpo.convert.lora_weights import Adapters, read_adapters, require_fitting
from nemo_minordpo.convert.mapping import mapping_table
from nemo_minordpo.convert.model_card import write_card
from nemo_minordpo.convert.nemo_source import NemoSource, open_source
from nemo_minordpo.convert.nemo_to_hf import hf_side, inputs_of
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import manifest_of_nemo
from nemo_minordpo.files import publish, refuse_existing, staging_folder
from nemo_minordpo.records import Manifest
from nemo_minordpo.sidecars import LICENSES

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def export_peft(
    source: Path,
    output: Path,
    *,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    base_nemo: Path | None = None,
    base_name: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write `adapter_config.json` and `adapter_model.safetensors`, with PEFT's names, and the model card.

    Args:
        source: as for export_hf, with LoRA adapters.
        output: the folder to write.
        tokenizer: Hugging Face folder with the model's config.json; None = the one that the checkpoint names.
        dtype: float32, bfloat16 or float16; None = the adapters' own type.
        base_nemo: the model that the adapters were trained on; None = the one that the run names.
        base_name: the base model's name on the hub, for the model card and `adapter_config.json`; None = as write_card
            finds it, and the folder that the base was imported from.
        overwrite: replace an existing output.

    Raises:
        UserError: the source has no adapters, or adapters that PEFT cannot express; or as for export_hf.
    """
    target_dtype = parse_dtype(dtype)
    refuse_existing(output, overwrite=overwrite)
    with staging_folder(output) as folder:
        scratch, staged = folder / "unpacked", folder / "peft"
        scratch.mkdir()
        staged.mkdir()
        opened = open_source(source, scratch=scratch, base=base_nemo, only_adapters=True)
        if opened.adapters is None:
            raise UserError(f"{opened.origin}: no adapters in it; export it without --adapters peft")
        config_folder, facts = hf_side(opened, tokenizer)
        adapters = read_adapters(opened)
        shapes = {row.megatron: row.shape(facts) for row in mapping_table(facts)}
        require_fitting(adapters, shapes, where=config_folder / "config.json")
        tensors = dict(_peft_tensors(adapters, facts, dtype=target_dtype))
        save_file(tensors, staged / TENSORS, metadata={"format": "pt"})
        named_base = base_name or _hf_base(opened)
        (staged / CONFIG).write_text(json.dumps(_peft_config(adapters, tensors, named_base), indent=2))
        manifest = Manifest(
            stage="export-hf",
            inputs=inputs_of(replace(opened, base=None)),  # the base was not read
            settings={
                "adapters": "peft",
                "source": str(opened.origin),
                "trained_on": None if opened.base is None else str(opened.base),
                "base_model": named_base,
            },
            counts={"peft_tensors": len(tensors), "bytes": sum(tensor.nbytes for tensor in tensors.values())},
        )
        manifest.write(staged)
        for name in LICENSES:
            if (config_folder / name).is_file():
                shutil.copyfile(config_folder / name, staged / name)
        write_card(staged, source=opened, sidecars=config_folder, output=output, base_name=base_name, as_peft=True)
        publish(staged, output)
    return manifest


def _peft_tensors(adapters: Adapters, facts: ModelFacts, *, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for row in mapping_table(facts):
        if row.megatron not in adapters.targets:
            continue
        for layer in range(facts.num_layers):
            a, b = adapters.read(row.megatron, layer)
            for name, rows in zip(row.hf_names(layer), row.split(b, facts), strict=True):
                stem = PREFIX + name.removesuffix(".weight")
                # a slice shares storage with its neighbours, which safetensors rejects
                yield f"{stem}.lora_A.weight", a.to(dtype or a.dtype, copy=True)
                yield f"{stem}.lora_B.weight", rows.to(dtype or rows.dtype).clone(memory_format=torch.contiguous_format)


def _peft_config(adapters: Adapters, tensors: dict[str, Tensor], base: str | None) -> dict[str, Any]:
    alpha = adapters.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _hf_base(source: NemoSource) -> str | None:
    """The Hugging Face folder that the base was imported from, according to its manifest.

    Manifests store paths as typed, so a relative path may belong to another working directory.
    """
    beside = manifest_of_nemo(source.base or source.origin)
    if not beside.is_file():
        return None
    inputs = read_json_object(beside).get("inputs", {})
    config = next((Path(path) for path in inputs if Path(path).name == "config.json"), None)
    if config is None or not (config.is_absolute() or config.is_file()):
        return None
    return str(config.parent.absolute())
