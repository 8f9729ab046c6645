"""Megatron-Bridge 0.6 with Megatron-Core 0.19 on a machine without CUDA or Transformer Engine.

Megatron-Bridge imports Transformer Engine unconditionally, for layers that a CPU does not use. So a stand-in whose
attributes are empty classes is there during that import, and only then: Megatron-Core, which is imported before, uses
Transformer Engine wherever it finds it.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nemo_minordpo.errors import UserError, require_upstream
from nemo_minordpo.host import StandIn, distributed_optimizer, random_states

_NAME, _VERSION = "transformer_engine", "2.9.0"
# imported by name before Transformer Engine's stand-in is there
_OF_MEGATRON = (
    "models.gpt.gpt_layer_specs", "models.gpt.gpt_model", "optimizer", "distributed", "transformer.transformer_block",
    "tensor_parallel.random",
)  # fmt: skip


class _Empty(type):
    """A class whose attributes are classes like it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (object,), {})


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012
    __version__ = _VERSION

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (object,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] == _NAME:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def install(*, cuda: bool, transformer_engine: bool) -> list[StandIn]:
    """Make `megatron.bridge` importable and runnable here; call before any other import of Megatron.

    Raises:
        UserError: Megatron-Bridge is not installed.
    """
    # its own spec, not the parent's: `megatron` is a namespace that Megatron-Core shares
    if importlib.util.find_spec("megatron.bridge") is None:
        raise UserError(
            "host=bridge needs Megatron-Bridge (Python 3.12 and later), which is not installed here: "
            "see docs/megatron-bridge.md; `make setup-bridge` sets up an environment in .venv-bridge"
        )
    logging.disable(logging.INFO)  # a line for each optional import that fails
    for name in _OF_MEGATRON:
        importlib.import_module(f"megatron.core.{name}")
    active = [] if cuda else [random_states.install()]
    active.extend(distributed_optimizer.install())
    with contextlib.nullcontext() if transformer_engine else _transformer_engine():
        importlib.import_module("megatron.bridge")
    if not transformer_engine:
        # found during the import above, where some of its layers were None
        adapters: Any = importlib.import_module("megatron.bridge.peft.utils")
        require_upstream(adapters, "HAVE_TE")
        adapters.HAVE_TE = False
        active.append(
            StandIn(
                "Transformer Engine", "Megatron-Core's local layers; empty classes where Megatron-Bridge imports it"
            )
        )
    return active


@contextlib.contextmanager
def _transformer_engine() -> Iterator[None]:
    finder, version = _Finder(), importlib.metadata.version

    def of_stand_in(name: str) -> str:
        return _VERSION if name.replace("-", "_").startswith(_NAME) else version(name)

    sys.meta_path.append(finder)
    importlib.metadata.version = of_stand_in
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        importlib.metadata.version = version
        for name in [name for name in sys.modules if name.split(".")[0] == _NAME]:
            del sys.modules[name]
