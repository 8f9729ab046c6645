"""For what is newer than NeMo 2.1 - 2.4 and Megatron-Core 0.10 - 0.12: torch and NumPy, with which distributed
checkpoints are written, and the tokenizer files of transformers 5.
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
    """Adapt what this machine's torch and NumPy have changed; nothing where they are as old as Megatron-Core."""
    _tokenizers_of_transformers_5()
    return [*_product_of_newer_numpy(), *_write_item_of_newer_torch(), *_metadata_of_newer_torch()]


def _tokenizers_of_transformers_5() -> None:
    """NeMo reads a model's tokenizer as every stage does; of what older ones wrote it changes nothing."""
    import nemo.collections.common.tokenizers.huggingface.auto_tokenizer as auto_tokenizer

    require_upstream(auto_tokenizer, "AUTOTOKENIZER")

    def from_pretrained(pretrained_model_name_or_path: str, **options: Any) -> Any:
        return find_tokenizer(pretrained_model_name_or_path, **options)

    module: Any = auto_tokenizer
    module.AUTOTOKENIZER = types.SimpleNamespace(from_pretrained=from_pretrained)


def _product_of_newer_numpy() -> list[StandIn]:
    """NumPy 2 has no `product`, with which Megatron-Core 0.10 - 0.11 counts the elements of an optimizer's shards."""
    numpy: Any = np
    if hasattr(numpy, "product"):
        return []
    numpy.product = np.prod
    return [StandIn("the NumPy that Megatron-Core was written for", "numpy.product is numpy.prod")]


def _write_item_of_newer_torch() -> list[StandIn]:
    """Torch 2.7 gave `_write_item` two more arguments; Megatron-Core 0.10 - 0.12 calls it with four."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as megatron_writer

    parameters = list(inspect.signature(torch_writer._write_item).parameters)
    if parameters == ["stream", "data", "write_item", "storage_key"]:
        return []
    expected = ["transforms", "stream", "data", "write_item", "storage_key", "serialization_format"]
    if parameters != expected:
        raise ImportError(
            f"torch {torch.__version__}: _write_item takes {parameters}, {expected} was expected; "
            "distributed checkpoints cannot be written with this version"
        )
    require_upstream(megatron_writer, "_write_item")
    original: Any = torch_writer._write_item
    transforms = torch_writer._StorageWriterTransforms

    def write_item(*arguments: Any) -> Any:
        # Megatron-Core 0.12 passes the transforms where torch has them, 0.10 and 0.11 do not.
        if isinstance(arguments[0], transforms):
            arguments = arguments[1:]
        return original(transforms(), *arguments[:4], torch_writer.SerializationFormat.TORCH_SAVE)

    module: Any = megatron_writer
    module._write_item = write_item
    return [StandIn("the torch that Megatron-Core was written for", "its checkpoint writer is adapted to this one")]


def _metadata_of_newer_torch() -> list[StandIn]:
    """The writer of some torch releases copies the metadata field by field before it writes them (2.11; not 2.13).

    Megatron-Core 0.10 - 0.12 adds an attribute, `mcore_data`, that is no field. It has the shapes of flattened tensors:
    without it a checkpoint of the distributed optimizer is written, and cannot be loaded.
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
    return [StandIn("the torch that Megatron-Core was written for", "its checkpoint's metadata keep Megatron's part")]
