"""What threads of a CPU process do while they wait for one another.

OpenMP's threads wait at the end of every operation, and by default they spin: a waiting thread occupies a core although
it has nothing to do. If another process needs that core, the operating system may take it from the thread that the
others wait for, and all of them lose a time slice, thousands of times per second. Threads that sleep leave the core.
"""

import os


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user set otherwise. Call before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # GNU, in torch's own packages
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel and LLVM, in conda's
