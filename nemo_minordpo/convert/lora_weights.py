"""LoRA adapters of NeMo, and the weights with the adapters merged into them.

To a linear layer with weights W [out, in] NeMo adds A (`linear_in`) [r, in] and B (`linear_out`) [out, r]:
``y = W x + alpha / r * B A x``, which is the layer with ``W + alpha / r * B A`` in the place of W. The rows of B lie as
those of W do: queries, keys and values interleaved by group, gate before up.
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
# where NeMo keeps an adapter in a layer -> the weight that it is added to
TARGETS = {place: _WEIGHTS[name] for name, place in ADAPTER_PLACES.items()}
LAYERS = "decoder.layers."
IN, OUT = ".linear_in.weight", ".linear_out.weight"


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA of one model.

    `targets` are Megatron's names of the weights, `decoder.layers.` included; `read` gives A and B, as stored, of one
    of them in a layer (from 0).
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    read: Callable[[str, int], tuple[Tensor, Tensor]]

    def product(self, target: str, layer: int) -> Tensor:
        """``alpha / r * B A`` in float32, of the shape of the weight."""
        a, b = self.read(target, layer)
        return self.alpha / self.rank * (b.float() @ a.float())


class MergedCheckpoint(Checkpoint):
    """A checkpoint of weights that is read as if the adapters had been merged into it."""

    def __init__(self, folder: Path, adapters: Adapters, *, dtype: torch.dtype | None = None) -> None:
        """Open the weights and hold the shapes of the adapters against them.

        Args:
            folder: of the weights; adapters in it are passed over.
            adapters: to be merged.
            dtype: what merged weights are rounded to, once; None = the type of the weights.

        Raises:
            ValueError: adapters of another model.
        """
        super().__init__(folder)
        self._adapters, self._merged_dtype = adapters, dtype
        self.tensors = {name: shape for name, shape in self.tensors.items() if ADAPTER not in name}
        require_fitting(adapters, {name: shape[1:] for name, shape in self.tensors.items()}, where=folder)

    def read(self, name: str, *, layer: int | None = None) -> Tensor:
        """As Checkpoint; an adapted weight is read layer by layer only."""
        whole = super().read(name, layer=layer)
        if name not in self._adapters.targets:
            return whole
        assert layer is not None
        return (whole.float() + self._adapters.product(name, layer)).to(self._merged_dtype or whole.dtype)


def require_fitting(adapters: Adapters, shapes: dict[str, tuple[int, ...]], *, where: Path) -> None:
    """Raise ValueError unless the weights that are adapted have the shapes of their adapters.

    Args:
        adapters: what is looked at; the first layer stands for all.
        shapes: of weights, of one layer.
        where: their place, for messages.
    """
    for target in adapters.targets:
        a, b = adapters.read(target, 0)
        fitting, found = shapes.get(target), (b.shape[0], a.shape[1])
        if fitting != found:
            raise UserError(f"{where}: {PREFIX}{target} has shape {fitting}, but its adapter is made for {found}")


def open_weights(source: NemoSource, *, dtype: torch.dtype | None = None) -> Checkpoint:
    """The weights of a source, its adapters merged into them; `dtype` as MergedCheckpoint has it."""
    if source.adapters is None:
        return Checkpoint(source.weights)
    return MergedCheckpoint(source.weights, read_adapters(source), dtype=dtype)


def read_adapters(source: NemoSource) -> Adapters:
    """The adapters of a source that has some.

    Raises:
        ValueError: adapters of a kind other than plain LoRA, damaged ones, or no config that says how they are scaled.
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
    """Weight -> where its adapter is; [layers, r, in] and [layers, out, r]."""
    places = {LAYERS + weight: LAYERS + place for place, weight in TARGETS.items()}
    known = {place + part for place in places.values() for part in (IN, OUT)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise UserError(f"{where}: {PREFIX}{unknown[0]}: adapters of this kind cannot be exported (only plain LoRA)")
    found = {target: place for target, place in places.items() if place + IN in names or place + OUT in names}
    for place in found.values():
        for part in (IN, OUT):
            if len(names.get(place + part, ())) != 3:
                raise UserError(f"{where}: {PREFIX}{place}{part} is missing or damaged")
    return found


def _facts(source: NemoSource, *, rank: int) -> LoraFacts:
    """What the model config says: without alpha nobody knows what the adapters do."""
    config = source.config or {}
    if not config.get("peft"):
        raise UserError(
            f"{source.origin}: no model config in or above it has peft.lora_tuning, which says how its adapters are "
            "scaled; name the run's folder or its .nemo"
        )
    facts = lora_facts(config, where=str(source.origin))
    if facts.rank != rank:
        raise UserError(f"{source.origin}: adapters of rank {rank}, but peft.lora_tuning.adapter_dim={facts.rank}")
    return facts
