"""Diagnose a wrong conversion: compare both sides' weights tensor by tensor and recognise the usual mistakes.

A wrong conversion seems right: shapes fit, and the model generates text. But each mistake leaves its own pattern in the
weights, or changes settings (rotary base, epsilon), which are read from both running models.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.facts import ModelFacts
from nemo_minordpo.convert.hf_folder import HfWeights, dtype_name
from nemo_minordpo.convert.mapping import EMBEDDING, GATE_UP, HEAD, QKV, VOCAB, Row, mapping_table

_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


@dataclass(frozen=True)
class Finding:
    """A difference in the weights, the same in all `layers` ([None] outside the layers)."""

    tensors: tuple[str, ...]  # Hugging Face names, with {} for the layer
    layers: list[int | None]
    what: str
    num_layers: int  # in the model

    def __str__(self) -> str:
        names = ", ".join(name.replace("model.layers.{}.", "") for name in self.tensors)
        if self.layers == [None]:
            return f"{names}: {self.what}"
        return f"{names} in {layers_in_words(self.layers, self.num_layers)}: {self.what}"


def layers_in_words(layers: list[int | None], num_layers: int) -> str:
    """Describe a subset of the layers, e.g. "layers 0, 3 of 24"."""
    if len(layers) == num_layers > 1:
        return "every layer"
    numbers = ", ".join(map(str, layers[:4])) + ", ..." * (len(layers) > 4)
    return f"layer{'s' * (len(layers) > 1)} {numbers} of {num_layers}"


def compare_weights(checkpoint: Checkpoint, hf: HfWeights, facts: ModelFacts) -> list[Finding]:
    """Compare every tensor of a model on both sides; empty if all are equal.

    Args:
        checkpoint: Megatron's checkpoint, with any adapters merged.
        hf: the Hugging Face folder.
        facts: the model's facts from the Hugging Face folder.
    """
    found: dict[tuple[tuple[str, ...], str], list[int | None]] = {}
    for row in mapping_table(facts):
        for layer in row.layers(facts):
            what = _difference(checkpoint, hf, facts, row, layer)
            if what:
                found.setdefault((tuple(row.hf), what), []).append(layer)
    has_head = facts.tied and HEAD in checkpoint.tensors
    if has_head and not checkpoint.has_equal_rows(HEAD, EMBEDDING, num_rows=facts.vocab_size):
        what = (
            "separate from the embedding in the checkpoint, but tied to it in the Hugging Face folder "
            "(tie_word_embeddings=true): the head was untied (export-hf writes it, with tie_word_embeddings=false)"
        )
        found[("lm_head.weight",), what] = [None]
    return [Finding(names, layers, what, facts.num_layers) for (names, what), layers in found.items()]


def compare_rotation(wanted: Tensor, found: Tensor) -> str:
    """Describe how NeMo's inverse rotary frequencies (`found`) differ from Hugging Face's; "" if they do not."""
    if wanted.shape != found.shape:
        return f"rotary embeddings rotate {2 * len(found)} of a head's dimensions instead of {2 * len(wanted)}"
    if torch.allclose(wanted, found, rtol=1e-5, atol=0.0):
        return ""
    theirs, ours = _rotary_base(wanted), _rotary_base(found)
    if theirs is not None and ours is not None and not torch.allclose(theirs, ours, rtol=1e-3):
        return f"wrong rotary base: NeMo uses {ours:.6g}, Hugging Face {theirs:.6g}"
    ratio = found / wanted
    if torch.allclose(ratio, ratio[0], rtol=1e-4):
        return f"wrong position scale: NeMo rotates {ratio[0].item():.4g} times as far as Hugging Face"
    return "wrong scaling of rotary frequencies (rope_scaling): some are scaled on one side only"


def compare_epsilons(wanted: set[float], found: set[float]) -> str:
    """Describe how the epsilons of all norms differ; "" if they do not."""
    if wanted == found:
        return ""
    return f"wrong rms_norm_eps: NeMo's norms have {sorted(found)}, Hugging Face's {sorted(wanted)}"


def _difference(checkpoint: Checkpoint, hf: HfWeights, facts: ModelFacts, row: Row, layer: int | None) -> str:
    """Describe what is wrong with one tensor of the checkpoint; "" if it is equal."""
    if row.megatron not in checkpoint.tensors:
        missing = "missing in the checkpoint"
        return f"{missing}, which uses the embedding instead: the head was dropped" if row.megatron == HEAD else missing
    stored, shape = checkpoint.tensors[row.megatron][row.per_layer :], row.shape(facts)
    if row.layout is VOCAB:  # any padding is fine
        stored, shape = (min(stored[0], facts.vocab_size), *stored[1:]), (facts.vocab_size, *shape[1:])
    if stored != shape:
        return f"shape {stored} instead of {shape}"
    whole, originals = checkpoint.read(row.megatron, layer=layer), [hf.read(name) for name in row.hf_names(layer)]
    found, wanted = [part.float() for part in row.split(whole, facts)], [part.float() for part in originals]
    if all(map(torch.equal, found, wanted)):
        return ""
    # Rounding is not a layout mistake: compare both sides at the precision of the coarser type.
    coarse = max(whole.dtype, originals[0].dtype, key=lambda dtype: torch.finfo(dtype).eps)
    rounded = [[part.to(coarse).float() for part in parts] for parts in (found, wanted)]
    what = _rounding(found, wanted, coarse) or next(_mistakes(row, rounded[0], rounded[1], facts), "")
    return what or _other_norm(row, layer, found[0], hf) or _distance(found, wanted)


def _rounding(found: list[Tensor], wanted: list[Tensor], coarse: torch.dtype) -> str:
    for dtype in (coarse, torch.bfloat16, torch.float16):
        for a, b, side in ((found, wanted, "the checkpoint"), (wanted, found, "the Hugging Face side")):
            if all(map(torch.equal, a, (part.to(dtype).float() for part in b))):
                return f"rounded to {dtype_name(dtype)} in {side} only"
    return ""


def _other_norm(row: Row, layer: int | None, found: Tensor, hf: HfWeights) -> str:
    (name, *_) = row.hf_names(layer)
    for own, other in (_NORMS, _NORMS[::-1]):
        if name.endswith(own) and _close(found, hf.read(name.replace(own, other)).float()):
            return f"holds the weights of {other.removesuffix('.weight')}: the two norms are swapped"
    return ""


def _distance(found: list[Tensor], wanted: list[Tensor]) -> str:
    largest = max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))
    if largest < 1e-5 * max(part.abs().max().item() for part in wanted):
        return "differs by less than 1e-5 of the largest value: float32 rounding (computed elsewhere?)"
    return "different numbers (another model, or trained since)"


def _mistakes(row: Row, found: list[Tensor], wanted: list[Tensor], facts: ModelFacts) -> Iterator[str]:
    """Layout mistakes that turn `wanted` into `found`."""
    if row.layout is GATE_UP and _all_close(found, wanted[::-1]):
        yield "gate and up are swapped"
    if row.layout is QKV:
        q, k, v = wanted
        plain = torch.cat(wanted)
        candidates: list[tuple[list[Tensor], str]] = [
            ([q, v, k], "keys and values are swapped"),
            (row.split(plain, facts), "QKV order: [q; k; v] concatenated plainly instead of interleaved by group"),
            ([_interleaved(q, facts), _interleaved(k, facts), v], "rotary halves interleaved (q and k permuted)"),
            ([_halved(q, facts), _halved(k, facts), v], "rotary halves interleaved the other way (q and k permuted)"),
        ]
        for candidate, what in candidates:
            if _all_close(found, candidate):
                yield what
    for a, b in zip(found, wanted, strict=True):
        if a.dim() == 2 and a.shape[0] == a.shape[1] and _close(a, b.T):
            yield "transposed"


def _interleaved(part: Tensor, facts: ModelFacts) -> Tensor:
    """Interleave a head's two halves as pairs (the order of Meta and rotary_interleaved); the inverse of `_halved`."""
    heads = part.reshape(-1, 2, facts.head_dim // 2, *part.shape[1:])
    return heads.transpose(1, 2).reshape(part.shape)


def _halved(part: Tensor, facts: ModelFacts) -> Tensor:
    heads = part.reshape(-1, facts.head_dim // 2, 2, *part.shape[1:])
    return heads.transpose(1, 2).reshape(part.shape)


def _all_close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.shape == y.shape and _close(x, y) for x, y in zip(a, b, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())


def _rotary_base(frequencies: Tensor) -> Tensor | None:
    """The base if the frequencies are its powers; None if they are not (when scaled)."""
    steps = frequencies[:-1] / frequencies[1:]
    return steps[0] ** len(frequencies) if len(steps) and torch.allclose(steps, steps[0], rtol=1e-3) else None
