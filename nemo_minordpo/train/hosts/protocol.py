"""What training needs of a host. set_up.py chooses one; the model's part is model/pair_model.py."""

from pathlib import Path
from typing import Any, Protocol

from nemo_minordpo.train.model.pair_model import PairModel


class Host(Protocol):
    """A model at a layout with its optimizer. Every method is collective: all ranks call it.

    Attributes:
        model: the model on packed pairs.
    """

    model: PairModel

    def begin_step(self, *, rate: float, seed: int) -> None:
        """Clear the gradients, and set the learning rate and the seed of dropout."""
        ...

    def reduce_and_clip(self, *, max_norm: float) -> float | None:
        """Sum the gradients over the ranks and scale them down to `max_norm`, which may be infinite.

        Returns:
            The norm before, over all parameters; None if the optimizer clips within :meth:`update_weights`.
        """
        ...

    def update_weights(self) -> float | None:
        """One step of the optimizer. Returns the gradient norm if :meth:`reduce_and_clip` did not."""
        ...

    def write_state(self, folder: Path, progress: dict[str, Any]) -> None:
        """Write model, optimizer and `progress` (plain values) to a folder, in Megatron's distributed format."""
        ...

    def read_state(self, folder: Path) -> dict[str, Any]:
        """Load what :meth:`write_state` wrote, at any layout, and return `progress`.

        Raises:
            OSError, RuntimeError, KeyError, ...: the folder is damaged or of another model (checkpoints.py says so).
        """
        ...

    def save_model(self, path: Path) -> None:
        """Write the trained model to a new file or folder."""
        ...
