"""What Megatron-Bridge 0.6 with Megatron-Core 0.19 needs on a machine without CUDA and Transformer Engine.

Megatron-Bridge imports Transformer Engine unconditionally, for layers that are not used here. So a stand-in whose
attributes are empty classes is there during that import, and only then: Megatron-Core, which is imported before, uses
Transformer Engine wherever it finds it.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

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


def prepare() -> Any:
    """Make `megatron.bridge` importable on a CPU and return it; call once, before any other import of Megatron."""
    from nemo_minordpo.host import cuda

    cuda.install()
    for name in _OF_MEGATRON:
        importlib.import_module(f"megatron.core.{name}")
    random: Any = sys.modules["megatron.core.tensor_parallel.random"]
    # it would fork the random numbers of a GPU for dropout, which is off
    random.CudaRNGStatesTracker.fork = _no_fork
    logging.disable(logging.INFO)  # a line for each optional import that fails
    with _transformer_engine():
        return importlib.import_module("megatron.bridge")


@contextlib.contextmanager
def _no_fork(self: Any, name: str = "") -> Iterator[None]:
    yield


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
