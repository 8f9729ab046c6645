"""Packed pairs against the same pairs as separate, unpadded sequences, in slow and explicit code, at any layout."""

import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from megatron.core import parallel_state, tensor_parallel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from nemo_minordpo.core.losses import Pairs, objective
from nemo_minordpo.pairs.tokens import TokenArrays
from nemo_minordpo.train.data.dataset import PairBatches
from tests.comparison import largest

VOCAB = 403
words = st.integers(0, VOCAB - 1)


def texts(low, high):
    return st.lists(words, min_size=low, max_size=high)


@st.composite
def pairs(draw):
    """(prompt, chosen, rejected); the responses share a prefix of any length, from none to nearly all."""
    shared, chosen, rejected = draw(texts(0, 12)), draw(texts(0, 10)), draw(texts(0, 10))
    responses = shared + chosen or [1], shared + rejected or [1]
    if responses[0] == responses[1]:
        responses = responses[0], [*responses[1], draw(words)]
    return draw(texts(1, 8)), *responses


SPECIAL = {
    "no shared response token": ([5, 6], [7, 8, 9], [10, 11]),
    "all but the last token": ([5, 6], [7, 8, 9, 10], [7, 8, 9, 11]),
    "chosen a prefix of rejected": ([5], [7, 8], [7, 8, 9, 10]),
    "rejected a prefix of chosen": ([5], [7, 8, 9, 10], [7, 8]),
    "one-token responses": ([5, 6, 7], [8], [9]),
    "one-token response, one-token prompt": ([5], [8], [8, 9]),
}


def compare(trainer, path: Path, *, num_examples: int) -> None:
    """Write the worst relative errors of loss, metrics and gradients, in float32 and, on CPUs, float64."""
    model = trainer.model
    worst = {}
    # FlexAttention has never been shown to work with float64 on CUDA
    for dtype in (torch.float32,) if torch.cuda.is_available() else (torch.float32, torch.float64):
        model.to(dtype)
        model.transformer_config.pipeline_dtype = model.model_parallel_config.pipeline_dtype = dtype
        for module in model.get_model_module_list():
            module.config.pipeline_dtype = dtype
        worst[str(dtype)] = _worst_errors(model, num_examples)
    if torch.distributed.get_rank() == 0:
        path.write_text(json.dumps(worst))


def _worst_errors(model, num_examples):
    errors = {"loss": 0.0, "metrics": 0.0, "gradients": 0.0, "alone": 0.0, "examples": 0, "control": 0.0}

    # Every rank generates the same examples, since nothing here depends on a rank's results.
    @settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
    )
    @given(st.lists(pairs(), min_size=1, max_size=5), st.integers(0, 60))
    @example(list(SPECIAL.values()), 0)
    @example(list(SPECIAL.values()), 200)
    def check(some, more_room):
        rows = _arrays(some)
        # references that put log-ratios on both sides of the kinks, never exactly on them
        reference = np.asarray([[-6.1 * len(chosen), -5.9 * len(rejected)] for _, chosen, rejected in some])
        longest = max(len(prompt + chosen + rejected) for prompt, chosen, rejected in some)
        batch = _batch(rows, reference, capacity=longest + more_room)
        metrics, gradients = _packed(model, batch)
        by_hand, gradients_by_hand = _separate(model, some, reference)
        names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
        errors["loss"] = largest([errors["loss"], _relative(metrics["loss"], by_hand["loss"])])
        errors["metrics"] = largest([errors["metrics"], *(_relative(metrics[name], by_hand[name]) for name in names)])
        errors["gradients"] = largest([errors["gradients"], _gradient_error(gradients, gradients_by_hand)])
        errors["control"] = max(errors["control"], abs(by_hand["logps/chosen"] - by_hand["logps/rejected"]))
        together = _log_probs(model, batch, len(some))
        for number in range(len(some)):
            alone = _batch(_arrays(some[number : number + 1]), reference[number : number + 1], capacity=longest)
            difference = (_log_probs(model, alone, 1)[0] - together[number]).abs() / together[number].abs().clamp(min=1)
            errors["alone"] = largest([errors["alone"], difference.max().item()])
        errors["examples"] += 1

    check()
    return errors


def _arrays(some) -> TokenArrays:
    sequences = [np.asarray(prompt + side, dtype=np.int32) for prompt, *sides in some for side in sides]
    shared = [
        next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        for one, two in zip(sequences[0::2], sequences[1::2], strict=True)
    ]
    return TokenArrays(
        tokens=np.concatenate(sequences),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_lengths=np.asarray([len(prompt) for prompt, *_ in some], dtype=np.int32),
        shared_lengths=np.asarray(shared, dtype=np.int32),
        reward_margins=np.ones(len(some), dtype=np.float32),
    )


def _batch(arrays, reference, *, capacity):
    (batch,) = PairBatches(
        arrays, global_batch_size=len(arrays), row_capacity=capacity, row_multiple=8,
        data_parallel_rank=0, data_parallel_size=1, pad_id=0, reference_log_probs=reference,
    ).in_file_order()  # fmt: skip
    return batch


def _packed(model, batch):
    _zero_gradients(model)
    model.prepare_for_training_step()
    _, metrics = model.get_loss_and_metrics(batch, forward_only=False)
    model.finish_training_step()
    return metrics, _gradients(model)


def _log_probs(model, batch, num_pairs):
    """[N, 2], as packed."""
    values = torch.zeros(num_pairs, 2, dtype=torch.float64, device=torch.cuda.current_device())
    for part, found in zip(batch.micro_batches, model.get_logprob_batch(batch), strict=True):
        if found is not None:
            values[part.pairs] = found.reshape(2, -1).T
    return model.gathered(values)


def _separate(model, some, reference):
    """Loss and metrics by definition; the gradient by the chain rule: dL/d(logp), then d(logp)/d(weights)."""
    _zero_gradients(model)
    model.prepare_for_training_step()
    sequences = [(prompt, side) for prompt, *sides in some for side in sides]
    values = torch.zeros(len(sequences), dtype=torch.float64, device=torch.cuda.current_device())
    with torch.no_grad():
        for number, (prompt, response) in enumerate(sequences):
            for value in _run(model, prompt, response, weight=None):
                values[number] = value
    log_probs = model.gathered(values).requires_grad_()
    ratios = log_probs.reshape(-1, 2) - torch.from_numpy(reference).to(log_probs.device)
    by_side = log_probs.reshape(-1, 2)
    counts = torch.tensor([len(response) for _, response in sequences], device=log_probs.device).reshape(-1, 2)
    pairs = Pairs(
        chosen_log_ratio=ratios[:, 0], rejected_log_ratio=ratios[:, 1],
        chosen_log_probs=by_side[:, 0], rejected_log_probs=by_side[:, 1],
        shared_log_probs=torch.zeros_like(by_side[:, 0]),
        chosen_num_tokens=counts[:, 0], rejected_num_tokens=counts[:, 1],
        reward_margin=torch.ones(len(some), device=log_probs.device),
    )  # fmt: skip
    losses = objective(model.losses, pairs, model.options)
    losses.mean().backward()
    for (prompt, response), weight in zip(sequences, log_probs.grad, strict=True):
        _run(model, prompt, response, weight=weight.item())
    model.finish_training_step()
    means = torch.cat([ratios, log_probs.reshape(-1, 2)], dim=1).mean(dim=0).tolist()
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    return {"loss": losses.mean().item(), **dict(zip(names, means, strict=True))}, _gradients(model)


def _run(model, prompt, response, *, weight):
    """Run one unpadded sequence through the pipeline and differentiate `weight` times its log-probability."""
    ids = torch.tensor(prompt + response, device=torch.cuda.current_device())
    inputs, targets = ids[:-1], ids[len(prompt) :]

    def forward_step(_, module):
        hidden = module(inputs[None], torch.arange(len(inputs), device=ids.device)[None], None)

        def log_prob(hidden, non_loss_data=True):
            at_response = tensor_parallel.copy_to_tensor_model_parallel_region(hidden[len(prompt) - 1 :, 0])
            logits = tensor_parallel.gather_from_tensor_model_parallel_region(at_response @ model._head_weight().T)
            return logits[:, :VOCAB].log_softmax(-1).gather(-1, targets[:, None]).double().sum()

        def loss(hidden):
            return log_prob(hidden) * weight, torch.zeros((), device=ids.device)

        return hidden, log_prob if weight is None else loss

    return get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=None, model=model.model, num_microbatches=1,
        forward_only=weight is None, seq_length=len(inputs), micro_batch_size=1, collect_non_loss_data=weight is None,
    )  # fmt: skip


def _zero_gradients(model):
    for parameter in model.parameters():
        parameter.grad = None


def _gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _gradient_error(ours, by_hand):
    """Relative error of the whole gradient over all ranks: norm of the difference over the norm."""
    assert ours.keys() == by_hand.keys()
    squares = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
    for name, gradient in ours.items():
        squares[0] += (gradient - by_hand[name]).double().square().sum()
        squares[1] += by_hand[name].double().square().sum()
    torch.distributed.all_reduce(squares)
    assert parallel_state.get_data_parallel_world_size() == 1
    return (squares[0] / squares[1]).sqrt().item()


def _relative(one, other):
    return abs(one - other) / max(abs(other), 1.0)
