"""What glibc does with freed memory in this process; other C libraries have no `mallopt`, and their own ways."""

import ctypes

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGE = 1 << 20


def keep_freed_memory() -> None:
    """Freed memory stays with the process, as with CUDA's caching allocator.

    glibc gives every large block back to the system and asks for it anew, page by page: about a tenth of a step.
    """
    _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Every block of a MiB or more is the system's again once it is freed.

    glibc raises that size to the largest block that it has freed. Tensors then come from its heap, whose free pieces
    the next ones may not fit into: a third of the imports of a small model took twice the memory.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
