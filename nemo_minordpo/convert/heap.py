"""Memory that a conversion has freed goes back to the system."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20


def return_freed_memory() -> None:
    """From now on every block of a MiB or more is the system's again once it is freed, in this process.

    glibc raises that size to the largest block that it has freed. Tensors then come from its heap, whose free pieces
    the next ones may not fit into: a third of the runs of a small model took twice the memory. Other C libraries have
    no `mallopt`, and their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
