"""Adapt NeMo 2.1 - 2.4 and Megatron-Core 0.10 - 0.12 to newer libraries: torch and NumPy, which write distributed
checkpoints, and the tokenizer files of transformers 5.
"""

import dataclasses
import inspect
import types
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint.filesystem as torch_writer

from nemo_minordpo.errors import require_upstream
from nemo_minordpo.host import StandIn
from nemo_minordpo.hugging_face import find_tokenizer


def install() -> list[StandIn]:
    """Adapt to changes in torch and NumPy since Megatron-Core's release; no-op with older versions."""
    _tokenizers_of_transformers_5()
    return [*_product_of_newer_numpy(), *_write_item_of_newer_torch(), *_metadata_of_newer_torch()]


def _tokenizers_of_transformers_5() -> None:
    """Make NeMo load tokenizers like every other stage; nothing changes for files of older transformers."""
    import nemo.collections.common.tokenizers.huggingface.auto_tokenizer as auto_tokenizer

    require_upstream(auto_tokenizer, "AUTOTOKENIZER")

    def from_pretrained(pretrained_model_name_or_path: str, **options: Any) -> Any:
        return find_tokenizer(pretrained_model_name_or_path, **options)

    module: Any = auto_tokenizer
    module.AUTOTOKENIZER = types.SimpleNamespace(from_pretrained=from_pretrained)


def _product_of_newer_numpy() -> list[StandIn]:
    """NumPy 2 lacks `product`, which Megatron-Core 0.10 - 0.11 uses to count the elements of optimizer shards."""
    numpy: Any = np
    if hasattr(numpy, "product"):
        return []
    numpy.product = np.prod
    return [StandIn("the NumPy that Megatron-Core was written for", "numpy.product is numpy.prod")]


def _write_item_of_newer_torch() -> list[StandIn]:
    """Torch 2.7 added two arguments to `_write_item`; Megatron-Core 0.10 - 0.12 passes four."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as megatron_writer

    parameters = list(inspect.signature(torch_writer._write_item).parameters)
    if parameters == ["stream", "data", "write_item", "storage_key"]:
        return []
    expected = ["transforms", "stream", "data", "write_item", "storage_key", "serialization_format"]
    if parameters != expected:
        raise ImportError(
            f"torch {torch.__version__}: _write_item takes {parameters}, expected {expected}; "
            "distributed checkpoints cannot be written with this version"
        )
    require_upstream(megatron_writer, "_write_item")
    original: Any = torch_writer._write_item
    transforms = torch_writer._StorageWriterTransforms

    def write_item(*arguments: Any) -> Any:
        # Megatron-Core 0.12 passes the transforms if torch has them; 0.10 and 0.11 never do.
        if isinstance(arguments[0], transforms):
            arguments = arguments[1:]
        return original(transforms(), *arguments[:4], torch_writer.SerializationFormat.TORCH_SAVE)

    module: Any = megatron_writer
    module._write_item = write_item
    return [StandIn("the torch that Megatron-Core was written for", "a checkpoint writer adapted to this version")]


def _metadata_of_newer_torch() -> list[StandIn]:
    """The writer of some torch releases copies the metadata field by field before writing it (2.11; not 2.13).

    Megatron-Core 0.10 - 0.12 adds `mcore_data`, an attribute that is not a field and holds the shapes of flattened
    tensors. Without it, a checkpoint of the distributed optimizer is written but cannot be loaded.
    """
    if "dataclasses.replace" not in inspect.getsource(torch_writer.FileSystemWriter.finish):
        return []

    def replace(instance: Any, **changes: Any) -> Any:
        copy = dataclasses.replace(instance, **changes)
        if hasattr(instance, "mcore_data") and not hasattr(copy, "mcore_data"):
            copy.mcore_data = instance.mcore_data
        return copy

    module: Any = torch_writer
    module.dataclasses = types.SimpleNamespace(**{**vars(dataclasses), "replace": replace})
    return [StandIn("the torch that Megatron-Core was written for", "checkpoint metadata that include Megatron's part")]
