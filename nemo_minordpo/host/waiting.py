"""What threads of a CPU process do while they wait for one another.

At the end of every operation, OpenMP's threads wait, and by default they spin for milliseconds: a waiting thread
occupies a core although it has nothing to do. If another process needs that core, the operating system may take it
from the thread that the others wait for, and all of them lose a time slice, thousands of times per second. Threads that
soon sleep leave the core. Threads that sleep at once are slower where nothing else runs: waking them takes time.
"""

import os


def wait_briefly() -> None:
    """Let OpenMP's threads spin for microseconds and then sleep, unless the user chose otherwise.

    Call before importing torch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU, in torch's own packages
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel and LLVM, in conda's; in milliseconds
