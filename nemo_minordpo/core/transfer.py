"""Copy from CPU to GPU memory while the GPU computes."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without making the CPU wait for the GPU.

    CUDA copies pageable memory only after all earlier work is done, whatever ``non_blocking`` says, so the GPU's queue
    would run empty between two rows. Page-locked memory stays reserved until the copy is done. What is on a GPU
    already, such as log-probabilities of the live reference, cannot be page-locked.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
