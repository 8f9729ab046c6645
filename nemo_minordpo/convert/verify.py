"""Verify that Hugging Face and NeMo compute the same logits for the same text.

Compares logits, not losses, tightly and in float32: a wrong rotary base can lower the loss of a text, and a wrong
epsilon leaves every argmax unchanged. If a model enlarges rounding beyond the usual bound, as Qwen2.5 does with large
attention scores, NeMo's distance from transformers is bounded by the distance of transformers in float32 from itself in
float64. In bfloat16, where rounding alone moves logits by whole units, it is bounded by that of transformers in
bfloat16. If something differs, diagnosis.py and modules.py find out what.
"""

import os
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.convert import diagnosis, nemo_config
from nemo_minordpo.convert.facts import ModelFacts, facts_from_config, read_config
from nemo_minordpo.convert.hf_folder import HfWeights, parse_dtype
from nemo_minordpo.convert.lora_weights import open_weights
from nemo_minordpo.convert.modules import Trace, compare_modules, trace_hf
from nemo_minordpo.convert.nemo_source import NemoSource, open_source
from nemo_minordpo.convert.restored import restore
from nemo_minordpo.convert.tokenizers import tokenizer_problems
from nemo_minordpo.convert.verification import Verification, compare_logits
from nemo_minordpo.core.finite import require_finite_tensors
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MODEL_CONFIG
from nemo_minordpo.files import read_lines
from nemo_minordpo.hugging_face import load_causal_lm, load_tokenizer
from nemo_minordpo.records import PreferencePair
from nemo_minordpo.sidecars import require_tokenizer
from nemo_minordpo.terminal import progress_bar

TEXTS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "A baker fills 7 trays with 12 rolls each and sells 59 of them. 7 * 12 = 84, and 84 - 59 = 25 rolls are left.",
    "Tom reads 15 pages a day. In 2 weeks he reads 15 * 14 = 210 pages. The answer is: 210",
    "def total(prices):\n    return sum(prices) * 1.19  # with tax, in euros",
)
# Per text. All logits of one model are held until the other has run: 0.6 MB per token with a vocabulary of 152,064.
MAX_TOKENS = 512
TOLERANCE = 1e-4  # per logit in float32, unless transformers' own rounding is larger
_NOISE_FACTOR = 2.0  # relative to the effect of transformers' own rounding on the logits

# Settings that change numbers but no shapes: the model still runs if they are wrong.
_NUMBERS = (
    "layernorm_epsilon", "rotary_percentage", "rotary_base", "rotary_interleaved", "seq_len_interpolation_factor",
    "scale_positional_embedding",
)  # fmt: skip


def verify(
    hf: Path,
    nemo: Path,
    *,
    texts: list[str] | None = None,
    pairs: Path | None = None,
    num_samples: int = 8,
    seed: int = 0,
    dtype: str = "float32",
    tolerance: float | None = None,
    base_nemo: Path | None = None,
) -> Verification:
    """Compare a Hugging Face folder with the model that NeMo's MegatronGPTModel restores from a checkpoint.

    Uses Transformer Engine if installed, else Megatron's local layers. Besides the texts, it compares a row of random
    tokens, the tokenizers if the checkpoint's own is found, and the settings of both running models: the effect of a
    wrong epsilon may be too small for any bound on logits.

    Args:
        hf: Hugging Face folder, including the tokenizer.
        nemo: any source that export_hf accepts; adapters are added to their base.
        texts: texts to compare on; None = a few built-in sentences.
        pairs: jsonl of preference pairs to sample further texts from.
        num_samples: number of pairs.
        seed: for the choice of pairs and the random tokens.
        dtype: float32 or bfloat16, the type that NeMo runs in.
        tolerance: largest absolute difference of a logit; None = twice the largest difference due to transformers' own
            rounding, in float32 at least 1e-4.
        base_nemo: for adapters, the model that they were trained on; None = the one that the run names.

    Returns:
        The differences, which are within the tolerance.

    Raises:
        UserError: they are not (the message says what differs), or one side cannot be loaded or is not finite.
    """
    kind = parse_dtype(dtype)
    if kind not in (torch.float32, torch.bfloat16):
        raise UserError(f"dtype {dtype!r}: only float32 and bfloat16 can be verified")
    facts = facts_from_config(read_config(hf), where=str(hf / "config.json"))
    require_tokenizer(hf)
    # On GPUs, float32 must mean float32 on both sides.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    texts = list(texts or TEXTS) + ([] if pairs is None else _sample(pairs, num_samples, seed))
    tokens = _tokenize(hf, texts, limit=min(facts.whole_context, MAX_TOKENS))
    tokens.append(_random_tokens(facts, seed))
    with TemporaryDirectory() as folder:
        scratch, unpacked = Path(folder) / "source", Path(folder) / "restored"
        scratch.mkdir()
        unpacked.mkdir()
        source = open_source(nemo, scratch=scratch, base=base_nemo)
        problems = _settings_that_differ(source, facts, hf)
        of_tokenizer = tokenizer_problems(source.tokenizers, hf, texts)
        problems += of_tokenizer or []
        wanted, trace, settings = _hf_run(hf, tokens)
        require_finite_tensors(((f"logits of text {n}", logits) for n, logits in enumerate(wanted, 1)), where=str(hf))
        bounds: dict[str, Any] = {"tolerance": TOLERANCE if tolerance is None else tolerance}
        if tolerance is None and kind == torch.bfloat16:
            bounds = _bounds_of_rounding(hf, tokens, wanted, torch.bfloat16)
        model = restore(source, tokenizer=hf, scratch=unpacked).model.to(kind)
        require_finite_tensors(model.named_parameters(), where=str(nemo))
        found = [logits[:, : facts.vocab_size] for logits in _nemo_logits(model, tokens)]
        result = replace(compare_logits(found, wanted, tolerance=bounds.pop("tolerance")), dtype=dtype, **bounds)
        if tolerance is None and kind == torch.float32 and not result.passed:
            rounding = _bounds_of_rounding(hf, tokens, wanted, torch.float64)
            result = replace(result, **rounding) if rounding["tolerance"] > TOLERANCE else result
        problems += _live_differences(settings, model)
        if result.passed and not problems:
            note = "; no tokenizer found to compare" if of_tokenizer is None else ""
            return replace(result, note=note)
        problems += _weights_that_differ(source, hf, facts)
        if kind == torch.float32:
            compared = compare_modules(model, trace, partial(_forward, model, tokens[0]))
            problems.append("on equal inputs, by kind of module:")
            problems += [f"  {difference}" for difference in compared]
    raise UserError(
        "\n".join([f"{nemo} is not the model of {hf}:", *(f"  {line}" for line in [str(result), *problems])])
    )


def _bounds_of_rounding(hf: Path, tokens: list[Tensor], wanted: list[Tensor], other: torch.dtype) -> dict[str, Any]:
    """Bounds on the differences of logits, from those between transformers in another type and in float32."""
    noise = compare_logits(_hf_logits(hf, tokens, dtype=other), wanted, tolerance=0.0)
    return {
        "tolerance": _NOISE_FACTOR * noise.max_difference,
        "mean_tolerance": _NOISE_FACTOR * noise.mean_difference,
        "why_tolerance": f": {_NOISE_FACTOR:g} x transformers' own rounding, of mean {noise.mean_difference:.2e}",
    }


def _settings_that_differ(source: NemoSource, facts: ModelFacts, hf: Path) -> list[str]:
    """Differing settings that only change numbers; with any others, the models cannot be compared.

    Raises:
        UserError: there is no model config, or the models do not even have the same shapes.
    """
    if source.config is None:
        raise UserError(f"{source.origin}: no {MODEL_CONFIG} in or above it, which NeMo needs to restore it")
    found = nemo_config.differences(facts, source.config)
    if any(difference.partition(":")[0] not in _NUMBERS for difference in found):
        raise UserError(f"{source.origin} is not the model of {hf}: its {MODEL_CONFIG} has {'; '.join(found)}")
    return [f"settings: {difference} ({MODEL_CONFIG} against config.json)" for difference in found]


def _weights_that_differ(source: NemoSource, hf: Path, facts: ModelFacts) -> list[str]:
    found = diagnosis.compare_weights(open_weights(source), HfWeights(hf, facts), facts)
    return [f"weights: {finding}" for finding in found] or ["weights: all equal"]


def _live_differences(hf_settings: dict[str, Any], model: Any) -> list[str]:
    """Differences between the running models' settings: a correct model config may still be ignored."""
    rotary = model.rotary_pos_emb
    frequencies = rotary.inv_freq.cpu().float() / (rotary.seq_len_interpolation_factor or 1.0)
    epsilons = {module.eps for module in model.modules() if isinstance(getattr(module, "eps", None), float)}
    found = (
        diagnosis.compare_rotation(hf_settings["frequencies"], frequencies),
        diagnosis.compare_epsilons(hf_settings["epsilons"], epsilons),
    )
    return [f"running: {what}" for what in found if what]


def _sample(pairs: Path, num_samples: int, seed: int) -> list[str]:
    """Prompts with their chosen responses, sampled in one pass through the file."""
    draw, chosen = random.Random(seed), list[tuple[int, str]]()
    for count, line in enumerate(read_lines(pairs)):
        place = count if count < num_samples else draw.randrange(count + 1)
        if place < num_samples:
            chosen[place : place + 1] = [line]
    texts = []
    for number, text in chosen:
        try:
            pair = PreferencePair.from_json(text)
        except UserError as error:
            raise UserError(f"{pairs}:{number}: {error}") from error
        texts.append(pair.prompt + pair.chosen_response)
    return texts


def _random_tokens(facts: ModelFacts, seed: int) -> Tensor:
    """Random tokens, to cover vocabulary rows and positions that no short text reaches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(facts.vocab_size, (min(facts.whole_context, MAX_TOKENS // 2),), generator=generator)


def _tokenize(hf: Path, texts: list[str], *, limit: int) -> list[Tensor]:
    tokenizer = load_tokenizer(hf)
    tokens = [torch.tensor(tokenizer(text)["input_ids"][:limit]) for text in texts]
    if any(len(ids) == 0 for ids in tokens):
        raise UserError("a text without tokens cannot be compared")
    return tokens


def _hf_model(hf: Path, dtype: torch.dtype) -> Any:
    # The kernel of layers/pair_attention.py: on a CPU both then agree to the last bit, while eager attention is off by
    # up to 1e-4 for logits around 30.
    model = load_causal_lm(hf, torch_dtype=dtype, attn_implementation="sdpa")
    require_finite_tensors(model.named_parameters(), where=str(hf))
    return model.eval()


@torch.no_grad()
def _hf_logits(hf: Path, tokens: list[Tensor], *, dtype: torch.dtype) -> list[Tensor]:
    model = _hf_model(hf, torch.float32 if dtype == torch.float64 else dtype)
    if dtype == torch.float64:
        _compute_in_float64(model)
    return [logits.float() for logits in _logits_of(model, tokens)]


def _compute_in_float64(model: Any) -> None:
    """Let a float32 model compute in float64, one layer at a time: all weights in float64 may not fit into memory."""
    for part in (model.model.embed_tokens, model.model.norm, model.lm_head):
        part.double()

    def enlarge(layer: Any, *_: Any) -> None:
        layer.double()

    def reduce(layer: Any, *_: Any) -> None:
        layer.float()

    for layer in model.model.layers:
        layer.register_forward_pre_hook(enlarge)
        layer.register_forward_hook(reduce)


@torch.no_grad()
def _hf_run(hf: Path, tokens: list[Tensor]) -> tuple[list[Tensor], Trace, dict[str, Any]]:
    """Logits of all texts, the trace of the modules on the first, and the settings of the running model."""
    model = _hf_model(hf, torch.float32)
    epsilons = {module.variance_epsilon for module in model.modules() if hasattr(module, "variance_epsilon")}
    settings = {"frequencies": model.model.rotary_emb.inv_freq.float(), "epsilons": epsilons}
    return _logits_of(model, tokens), trace_hf(model, lambda: model(tokens[0][None])), settings


def _logits_of(model: Any, tokens: list[Tensor]) -> list[Tensor]:
    with progress_bar() as progress:
        return [model(ids[None]).logits[0] for ids in progress.track(tokens, description="Hugging Face")]


@torch.no_grad()
def _nemo_logits(model: Any, tokens: list[Tensor]) -> list[Tensor]:
    with progress_bar() as progress:
        return [_forward(model, ids).cpu() for ids in progress.track(tokens, description="NeMo")]


@torch.no_grad()
def _forward(model: Any, ids: Tensor) -> Tensor:
    """[tokens, padded vocabulary]."""
    row = ids[None].to(next(model.parameters()).device)
    positions = torch.arange(len(ids), device=row.device)[None]
    return model(input_ids=row, position_ids=positions, attention_mask=None)[0]
