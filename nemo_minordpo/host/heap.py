"""Control what glibc does with freed memory in this process; no effect with C libraries that lack `mallopt`."""

import ctypes
import os

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20
_LARGEST_THRESHOLD = 32 << 20  # that glibc accepts


def keep_freed_memory() -> None:
    """Keep freed memory in the process, like CUDA's caching allocator, except in blocks of 32 MiB or more.

    By default glibc returns every large block to the system and requests it again page by page: a tenth of a step.
    But kept blocks of the largest sizes, such as the gradient of an embedding, are cut up for smaller ones and missing
    in the next step: a model of 0.2B weights took a quarter more memory. Those come from the system each time, in pages
    of 2 MiB where it has them (torch's own option), which costs a third of the time of small ones.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first allocates 2 MiB
    _set({_M_MMAP_THRESHOLD: _LARGEST_THRESHOLD, _M_TRIM_THRESHOLD: 2**31 - 1})


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
