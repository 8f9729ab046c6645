"""Compare two running models module by module, on the same inputs.

A mistake in one layer changes everything after it. So each Megatron module gets the recorded input of its Hugging Face
counterpart, and any difference is due to that module alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nemo_minordpo.convert.diagnosis import layers_in_words

# kinds of modules, in the order of a forward pass
KINDS = ("embedding", "norm before attention", "attention", "norm before MLP", "MLP", "final norm", "head")
# Largest difference between two correct float32 implementations, relative to the largest value: for sums over the
# hidden size, and for norms.
_NOISE, _NOISE_OF_NORMS = 1e-5, 2e-6


@dataclass
class Trace:
    """Inputs and outputs of every module, by kind and layer (None outside the layers); [tokens, ...]."""

    inputs: dict[tuple[str, int | None], Tensor]
    outputs: dict[tuple[str, int | None], Tensor]


@dataclass(frozen=True)
class KindDifference:
    """Differences between modules of one kind on equal inputs, relative to the largest output value."""

    kind: str
    largest: float
    num_modules: int
    differing: list[int | None]  # layers where the module differs by more than rounding

    def __str__(self) -> str:
        if not self.differing:
            return f"{self.kind}: equal"
        which = "" if self.differing == [None] else f" in {layers_in_words(self.differing, self.num_modules)}"
        return f"{self.kind}: differs{which}, by up to {self.largest:.1e} of the largest value"


def trace_hf(model: Any, run: Callable[[], Any]) -> Trace:
    """Run a Llama-like Hugging Face model on one text and record inputs and outputs of its modules."""
    trace = Trace({}, {})

    def keep(place: tuple[str, int | None]) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            given = arguments[0] if arguments else named["hidden_states"]
            out = output[0] if isinstance(output, tuple) else output
            trace.inputs[place], trace.outputs[place] = given[0].cpu(), out[0].cpu()

        return hook

    handles = [module.register_forward_hook(keep(place), with_kwargs=True) for place, module in _hf_modules(model)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def compare_modules(model: Any, wanted: Trace, run: Callable[[], Any]) -> list[KindDifference]:
    """Run Megatron's GPT model in float32 on the same text, giving each module the input of its counterpart.

    With Transformer Engine a norm is part of the module after it, so that module gets the norm's input.
    """
    differences: dict[str, dict[int | None, float]] = {}
    handles = []

    def attach(place: tuple[str, int | None], module: Any, given: Tensor | None) -> None:
        def replace(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            assert given is not None
            return (given[:, None].to(arguments[0]), *arguments[1:])

        def compare(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            target = wanted.outputs[place].float()
            found = out[:, 0].cpu().float()[..., : target.shape[-1]]
            scale = target.abs().max().clamp(min=1e-30)
            differences.setdefault(place[0], {})[place[1]] = ((found - target).abs().max() / scale).item()

        if given is not None:
            handles.append(module.register_forward_pre_hook(replace))
        handles.append(module.register_forward_hook(compare))

    for place, module, start in _megatron_modules(model):
        attach(place, module, None if place[0] == "embedding" else wanted.inputs[start])
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [_of_kind(kind, found) for kind, found in differences.items()]


def _of_kind(kind: str, found: dict[int | None, float]) -> KindDifference:
    noise = _NOISE_OF_NORMS if "norm" in kind else _NOISE
    differing = [layer for layer, value in found.items() if not value <= noise]  # NaN differs
    return KindDifference(kind, max(found.values()), len(found), differing)


def _hf_modules(model: Any) -> Iterator[tuple[tuple[str, int | None], Any]]:
    inner = model.model
    yield ("embedding", None), inner.embed_tokens
    for number, layer in enumerate(inner.layers):
        modules = layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp
        yield from (((kind, number), module) for kind, module in zip(KINDS[1:5], modules, strict=True))
    yield ("final norm", None), inner.norm
    yield ("head", None), model.lm_head


def _megatron_modules(model: Any) -> Iterator[tuple[tuple[str, int | None], Any, tuple[str, int | None]]]:
    """(place, module, the place that its input is taken from)."""
    yield ("embedding", None), model.embedding, ("embedding", None)
    for number, layer in enumerate(model.decoder.layers):
        for norm_kind, norm, kind, module in (
            (KINDS[1], layer.input_layernorm, KINDS[2], layer.self_attention),
            (KINDS[3], layer.pre_mlp_layernorm, KINDS[4], layer.mlp),
        ):
            fused = not any(True for _ in norm.parameters())
            if not fused:
                yield (norm_kind, number), norm, (norm_kind, number)
            yield (kind, number), module, (norm_kind if fused else kind, number)
    yield ("final norm", None), model.decoder.final_layernorm, ("final norm", None)
    yield ("head", None), model.output_layer, ("head", None)
