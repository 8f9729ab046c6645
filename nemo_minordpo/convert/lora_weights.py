"""NeMo's LoRA adapters, and weights with the adapters merged.

To a linear layer with weights W [out, in], NeMo adds A (`linear_in`) [r, in] and B (`linear_out`) [out, r]:
``y = W x + alpha / r * B A x``, which equals a layer with weights ``W + alpha / r * B A``. The rows of B are ordered
like those of W: queries, keys and values interleaved by group, gate before up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_minordpo.config.lora import ADAPTER, ADAPTER_PLACES, LoraFacts, lora_facts
from nemo_minordpo.convert.checkpoint import PREFIX, Checkpoint
from nemo_minordpo.convert.nemo_source import NemoSource, rank_files
from nemo_minordpo.convert.rank_files import read_rank_files
from nemo_minordpo.errors import UserError

_WEIGHTS = {
    "attention_qkv": "self_attention.linear_qkv.weight",
    "attention_dense": "self_attention.linear_proj.weight",
    "mlp_fc1": "mlp.linear_fc1.weight",
    "mlp_fc2": "mlp.linear_fc2.weight",
}
# where NeMo stores an adapter in a layer -> the weight that it adapts
TARGETS = {place: _WEIGHTS[name] for name, place in ADAPTER_PLACES.items()}
LAYERS = "decoder.layers."
IN, OUT = ".linear_in.weight", ".linear_out.weight"


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The LoRA adapters of a model.

    `targets` are Megatron's names of the adapted weights, including `decoder.layers.`; `read` returns A and B as
    stored, for one of them in a layer (from 0).
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    read: Callable[[str, int], tuple[Tensor, Tensor]]

    def product(self, target: str, layer: int) -> Tensor:
        """``alpha / r * B A`` in float32, in the shape of the weight."""
        a, b = self.read(target, layer)
        return self.alpha / self.rank * (b.float() @ a.float())


class MergedCheckpoint(Checkpoint):
    """A checkpoint that reads as if the adapters had been merged into its weights."""

    def __init__(self, folder: Path, adapters: Adapters, *, dtype: torch.dtype | None = None) -> None:
        """Open the weights and check the adapters' shapes against them.

        Args:
            folder: the weights' folder; adapters in it are ignored.
            adapters: the adapters to merge.
            dtype: type that merged weights are rounded to, once; None = the type of the weights.

        Raises:
            UserError: the adapters belong to another model.
        """
        super().__init__(folder)
        self._adapters, self._merged_dtype = adapters, dtype
        self.tensors = {name: shape for name, shape in self.tensors.items() if ADAPTER not in name}
        require_fitting(adapters, {name: shape[1:] for name, shape in self.tensors.items()}, where=folder)

    def read(self, name: str, *, layer: int | None = None) -> Tensor:
        """Like Checkpoint.read, but adapted weights can only be read one layer at a time."""
        whole = super().read(name, layer=layer)
        if name not in self._adapters.targets:
            return whole
        assert layer is not None
        return (whole.float() + self._adapters.product(name, layer)).to(self._merged_dtype or whole.dtype)


def require_fitting(adapters: Adapters, shapes: dict[str, tuple[int, ...]], *, where: Path) -> None:
    """Raise UserError unless the adapters fit the shapes of their weights.

    Args:
        adapters: the adapters to check; only the first layer is checked.
        shapes: shapes of the weights in one layer.
        where: the weights' location, for messages.
    """
    for target in adapters.targets:
        a, b = adapters.read(target, 0)
        fitting, found = shapes.get(target), (b.shape[0], a.shape[1])
        if fitting != found:
            raise UserError(f"{where}: {PREFIX}{target} has shape {fitting}, but its adapter is for {found}")


def open_weights(source: NemoSource, *, dtype: torch.dtype | None = None) -> Checkpoint:
    """The weights of a source, with its adapters merged; `dtype` as in MergedCheckpoint."""
    if source.adapters is None:
        return Checkpoint(source.weights)
    return MergedCheckpoint(source.weights, read_adapters(source), dtype=dtype)


def read_adapters(source: NemoSource) -> Adapters:
    """The adapters of a source that has some.

    Raises:
        UserError: the adapters are not plain LoRA, are damaged, or have no config with their scale.
    """
    assert source.adapters is not None
    if rank_files(source.adapters):
        stored = read_rank_files(source.adapters, source.config or {})
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        read: Callable[[str, int], Tensor] = lambda name, layer: stored[name][layer]  # noqa: E731
    else:
        checkpoint = Checkpoint(source.adapters)
        shapes = {name: shape for name, shape in checkpoint.tensors.items() if ADAPTER in name}
        read = lambda name, layer: checkpoint.read(name, layer=layer)  # noqa: E731
    places = _places(shapes, source.adapters)
    ranks = {shapes[place + IN][1] for place in places.values()} | {shapes[place + OUT][2] for place in places.values()}
    if len(ranks) != 1:
        raise UserError(f"{source.adapters}: adapters of different ranks {sorted(ranks)}")
    (rank,) = ranks
    facts = _facts(source, rank=rank)
    return Adapters(
        rank=rank,
        alpha=facts.alpha,
        dropout=facts.dropout,
        targets=tuple(places),
        read=lambda target, layer: (read(places[target] + IN, layer), read(places[target] + OUT, layer)),
    )


def _places(names: dict[str, tuple[int, ...]], where: Path) -> dict[str, str]:
    """Weight -> location of its adapter, which has A [layers, r, in] and B [layers, out, r]."""
    places = {LAYERS + weight: LAYERS + place for place, weight in TARGETS.items()}
    known = {place + part for place in places.values() for part in (IN, OUT)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise UserError(f"{where}: {PREFIX}{unknown[0]}: only plain LoRA adapters can be exported")
    found = {target: place for target, place in places.items() if place + IN in names or place + OUT in names}
    for place in found.values():
        for part in (IN, OUT):
            if len(names.get(place + part, ())) != 3:
                raise UserError(f"{where}: {PREFIX}{place}{part} is missing or damaged")
    return found


def _facts(source: NemoSource, *, rank: int) -> LoraFacts:
    """The model config's LoRA settings: without alpha, the scale of the adapters is unknown."""
    config = source.config or {}
    if not config.get("peft"):
        raise UserError(
            f"{source.origin}: no model config in or above it has peft.lora_tuning, which sets the scale of the "
            "adapters; name the run's folder or its .nemo"
        )
    facts = lora_facts(config, where=str(source.origin))
    if facts.rank != rank:
        raise UserError(f"{source.origin}: adapters of rank {rank}, but peft.lora_tuning.adapter_dim={facts.rank}")
    return facts
