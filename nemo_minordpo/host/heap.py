"""Control what glibc does with freed memory in this process; no effect with C libraries that lack `mallopt`."""

import ctypes

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGE = 1 << 20


def keep_freed_memory() -> None:
    """Keep freed memory in the process, like CUDA's caching allocator.

    By default glibc returns every large block to the system and requests it again page by page: a tenth of a step.
    """
    _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Return every block of a MiB or more to the system as soon as it is freed.

    By default glibc raises this threshold to the largest block freed so far. Tensors then come from its heap, where
    free blocks may not fit the next ones: a third of a small model's imports took twice the memory.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
