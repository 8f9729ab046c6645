"""Write checkpoints in threads instead of forked processes.

Megatron-Core forks a process per checkpoint, which forks one per file. A training process has dozens of threads, and a
fork copies locks that another thread holds at that moment: with CPython 3.11 the child then waits forever for the list
of threads (`_PyThreadState_DeleteExcept` in `PyOS_AfterFork_Child`), and all ranks wait for it. Saving waits for the
files in any case, so threads lose nothing: serialisation and writing release the interpreter's lock for large tensors.
"""

import multiprocessing
import multiprocessing.dummy
from typing import Any

from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async

from nemo_minordpo.errors import require_upstream


class _ThreadsForForks:
    """The module multiprocessing, except that the context "fork" starts threads."""

    def get_context(self, method: str | None = None) -> Any:
        return multiprocessing.dummy if method == "fork" else multiprocessing.get_context(method)

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def install() -> None:
    """For Megatron-Core 0.10 - 0.12, with and without a GPU."""
    for module in (async_utils, filesystem_async):
        require_upstream(module, "mp")
        module.mp = _ThreadsForForks()  # pyright: ignore[reportAttributeAccessIssue]
