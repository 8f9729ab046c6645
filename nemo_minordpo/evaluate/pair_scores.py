"""`minordpo score`: whether a model prefers the chosen responses of pairs, by its log-probabilities."""

import inspect
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from nemo_minordpo import file_names
from nemo_minordpo.config import DataSection
from nemo_minordpo.core.ches import ches
from nemo_minordpo.core.intervals import mean_interval, wilson_interval
from nemo_minordpo.core.losses import Pairs
from nemo_minordpo.core.metrics import PAIR_METRICS, preferred
from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.generate import load_transformers
from nemo_minordpo.files import refuse_existing, sha256_of_file, write_json, write_jsonl
from nemo_minordpo.hugging_face import load_tokenizer, model_files
from nemo_minordpo.pairs.tokens import TokenArrays, expand_files, load_arrays, places_of, tokenize_files
from nemo_minordpo.records import Manifest, PairScore
from nemo_minordpo.terminal import progress_bar

_OF_THE_MODEL = ("logps/chosen", "logps/rejected", "logps/shared", "logps/accuracy")
_AGAINST_THE_REFERENCE = (
    "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "deviation/chosen",
    "deviation/rejected",
)  # fmt: skip
_NO_LIMIT = 1 << 20  # tokens, for models that state no context


def score_pairs(
    model: Path,
    pairs: Sequence[str],
    output: Path,
    *,
    reference: Path | None = None,
    seq_length: int | None = None,
    append_eos: bool = True,
    invalid_pairs: Literal["refuse", "drop"] = "refuse",
    limit: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> PairScore:
    """Evaluate the log-probabilities of both responses of each pair; write `pair_scores.jsonl` and `pair_score.json`.

    The tokenised pairs, and those left out, are in `data`, as in a run folder.

    The metrics are those of training's validation (docs/metrics.md), equal on the same pairs and weights, and some that
    training does not log: `logps/margin`, chosen - rejected, in nats; `logps/average_accuracy`, the accuracy of
    log-probabilities per token, in which short responses have no advantage; `ches/total` and `ches/per_token`, see
    core/ches.py, under the reference if there is one: what its pairs risk, before training; and `pairs/edit_distance`,
    the fewest insertions, deletions and replacements of tokens, as a share of the longer response.

    Args:
        model: Hugging Face folder.
        pairs: jsonl files of pairs, or globs.
        output: folder for the results.
        reference: Hugging Face folder, of a model with the same tokenizer, for `rewards/*` and `deviation/*`.
        seq_length: longer pairs are left out, and counted; None = the model's context.
        append_eos: as `model.data.append_eos`.
        invalid_pairs: as `model.data.invalid_pairs`.
        limit: score only the first `limit` pairs; None = all.
        dtype, device: as for `evaluate`.
        overwrite: replace the output.

    Raises:
        UserError: there are invalid pairs, or none; a folder is not a model; the tokenizers differ; a log-probability
            is not finite; or the output exists.
    """
    refuse_existing(output, overwrite=overwrite)
    files = expand_files(pairs, named="pairs")
    engine = load_transformers(model, dtype=dtype, device=device)
    settings = {"append_eos": append_eos, "limit": limit, "dtype": engine.dtype, "device": engine.device}
    data = DataSection(
        seq_length=seq_length or engine.context or _NO_LIMIT, append_eos=append_eos, invalid_pairs=invalid_pairs
    )
    tokenizer = engine.text.tokenizer
    if reference is not None and load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{model} and {reference} have different tokenizers: log-ratios would mean nothing")
    folder = output / file_names.DATA
    shutil.rmtree(folder, ignore_errors=True)  # of the output to replace
    tokenize_files(files, folder, tokenizer=tokenizer, data=data, split="scored")
    arrays = load_arrays(folder)
    places = places_of(range(min(limit or len(arrays), len(arrays))), files=files, folder=folder)
    found = _read_pairs(engine.model, arrays, places, name=str(model))
    del engine  # before the reference is loaded
    known = None
    if reference is not None:
        known = _read_pairs(
            load_transformers(reference, dtype=dtype, device=device).model, arrays, places, name=str(reference)
        )
    lengths = _response_lengths(arrays, len(places))
    values = _metrics(found, known, lengths) | {"pairs/edit_distance": _edit_distances(arrays, len(places))}
    rows = [
        {"pair": place} | {name: column[number].item() for name, column in values.items()}
        for number, place in enumerate(places)
    ]
    result = PairScore(
        model=str(model),
        reference=None if reference is None else str(reference),
        num_pairs=len(places),
        metrics={name: column.mean().item() for name, column in values.items()},
        intervals_95={name: _interval(name, column) for name, column in values.items()} if len(places) > 1 else {},
    )
    write_jsonl(output / file_names.PAIR_SCORES, rows)
    write_json(output / file_names.PAIR_SCORE, asdict(result))
    inputs = {str(file): sha256_of_file(file) for file in files}
    for folder in filter(None, (model, reference)):
        inputs |= {str(file): sha256_of_file(file) for file in model_files(folder)}
    Manifest(
        stage="score", inputs=inputs, settings=settings | {"seq_length": data.seq_length}, counts={"pairs": len(places)}
    ).write(output)
    return result


class _OfPairs(NamedTuple):
    """What a model says of N pairs."""

    log_probs: Tensor  # [N, 3], nats: the chosen response, the rejected one, the tokens before their first difference
    ches: Tensor  # [N, 2]: total, per token


def _read_pairs(model: Any, arrays: TokenArrays, places: list[str], *, name: str) -> _OfPairs:
    table, scores = torch.empty(len(places), 3, dtype=torch.float64), torch.empty(len(places), 2, dtype=torch.float64)
    with progress_bar() as progress:
        for pair in progress.track(range(len(places)), description=f"scoring with {Path(name).name}"):
            prompt, shared = int(arrays.prompt_lengths[pair]), int(arrays.shared_lengths[pair])
            sequences = [arrays.sequence(pair, rejected=rejected) for rejected in (False, True)]
            responses = read_responses(model, sequences, prompt_length=prompt)
            tokens = [one.log_probs for one in responses]
            table[pair] = torch.stack([*(part.sum() for part in tokens), tokens[0][: shared - prompt].sum()])
            if not table[pair].isfinite().all():
                raise UserError(f"{places[pair]}: its log-probability under {name} is not finite")
            scores[pair] = torch.tensor(ches(*(one.states for one in responses)), dtype=torch.float64)
    return _OfPairs(table, scores)


class Response(NamedTuple):
    """What a model says of the T tokens of a response, on the CPU."""

    log_probs: Tensor  # [T], float64, nats
    states: Tensor  # [T, H]: what the output layer reads where it predicts each token


@torch.inference_mode()
def read_responses(model: Any, sequences: Sequence[np.ndarray], *, prompt_length: int) -> list[Response]:
    """Evaluate responses to one prompt, in one forward pass.

    Args:
        model: of transformers, in eval mode.
        sequences: token ids of a prompt, the same for all, and a response.
        prompt_length: tokens of the prompt, at least 1.
    """
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    kept = width - prompt_length + 1  # the last prompt token predicts the first of the response
    accepted = inspect.signature(model.forward).parameters
    options = {name: kept for name in ("logits_to_keep", "num_logits_to_keep") if name in accepted}
    with _inputs_of_the_output_layer(model) as inputs:
        read = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options)
    logits, states = read.logits[:, -kept:], inputs[0][:, -kept:]
    found = []
    for row, sequence in enumerate(sequences):
        targets = ids[row, prompt_length : len(sequence), None].to(logits.device)
        of_tokens = logits[row, : len(targets)].float().log_softmax(dim=-1).gather(1, targets)
        found.append(Response(of_tokens[:, 0].double().cpu(), states[row, : len(targets)].cpu()))
    return found


@contextmanager
def _inputs_of_the_output_layer(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the output layer reads in each forward pass."""
    inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def _response_lengths(arrays: TokenArrays, count: int) -> list[Tensor]:
    """Tokens of the chosen and of the rejected responses, [N] each."""
    return [
        torch.from_numpy((whole - arrays.prompt_lengths)[:count].astype(np.int64)) for whole in arrays.sequence_lengths
    ]


def _edit_distances(arrays: TokenArrays, count: int) -> Tensor:
    """[N]: 0 = equal responses, 1 = nothing in common."""
    found = []
    for pair in range(count):
        prompt = int(arrays.prompt_lengths[pair])
        chosen, rejected = (arrays.sequence(pair, rejected=rejected)[prompt:].tolist() for rejected in (False, True))
        found.append(Levenshtein.normalized_distance(chosen, rejected))
    return torch.tensor(found, dtype=torch.float64)


def _metrics(found: _OfPairs, known: _OfPairs | None, lengths: list[Tensor]) -> dict[str, Tensor]:
    """The value of each pair, [N]; see :func:`score_pairs`."""
    chosen, rejected, shared = found.log_probs.unbind(dim=1)
    ratios = torch.zeros_like(found.log_probs) if known is None else found.log_probs - known.log_probs
    pairs = Pairs(
        chosen_log_ratio=ratios[:, 0], rejected_log_ratio=ratios[:, 1], chosen_log_probs=chosen,
        rejected_log_probs=rejected, shared_log_probs=shared, chosen_num_tokens=lengths[0],
        rejected_num_tokens=lengths[1], reward_margin=torch.zeros_like(chosen),
    )  # fmt: skip
    names = _OF_THE_MODEL + (() if known is None else _AGAINST_THE_REFERENCE)
    # these metrics depend neither on options nor on a loss
    values = {name: PAIR_METRICS[name].of(pairs, cast(Any, None), chosen) for name in names}
    per_token = chosen / lengths[0] - rejected / lengths[1]
    total, average = (known or found).ches.unbind(dim=1)
    return values | {
        "logps/margin": chosen - rejected,
        "logps/average_accuracy": preferred(per_token),
        "ches/total": total,
        "ches/per_token": average,
    }


def _interval(name: str, values: Tensor) -> tuple[float, float]:
    if name.endswith("accuracy"):
        return wilson_interval(values.sum().item(), len(values))
    return mean_interval(values.tolist())
