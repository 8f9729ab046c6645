"""From the CPU's memory to a GPU's, while the GPU computes something else."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; the CPU does not wait for what a GPU is at.

    From pageable memory CUDA copies only once the work before it is done, whatever ``non_blocking`` says: between two
    rows the GPU would have nothing in its queue. Page-locked memory stays reserved until the copy is made.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
