"""Which tensors are page-locked on their way to a GPU; the copies themselves need one."""

from typing import Any

import torch

from nemo_minordpo.core.transfer import to_device

GPU = torch.device("cuda", 0)


class _Tensor:
    """Records what is done to it; like torch's, only page-locks memory of the CPU."""

    def __init__(self, device: str) -> None:
        self.device, self.done = torch.device(device), []

    def pin_memory(self) -> "_Tensor":
        if self.device.type != "cpu":
            raise RuntimeError("cannot pin 'torch.cuda.DoubleTensor' only dense CPU tensors can be pinned")
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, **options: Any) -> "_Tensor":
        self.done.append((device, options))
        return self


def _done(start: str, end: torch.device) -> list[Any]:
    tensor: Any = _Tensor(start)
    return to_device(tensor, end).done  # pyright: ignore[reportAttributeAccessIssue]


def test_a_tensor_of_the_cpu_is_page_locked_and_copied_without_waiting() -> None:
    assert _done("cpu", GPU) == ["pinned", (GPU, {"non_blocking": True})]


def test_a_tensor_that_is_already_on_the_gpu_is_not_page_locked() -> None:
    assert _done("cuda:0", GPU) == [(GPU, {})]


def test_without_a_gpu_nothing_is_page_locked() -> None:
    cpu = torch.device("cpu")
    assert _done("cpu", cpu) == [(cpu, {})]
