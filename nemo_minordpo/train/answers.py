"""Degeneration watch: the model's answers to a few prompts during training.

watch/step_*.jsonl     the greedy answers of each sample (records.WatchedAnswer); step 0 has the reference's answers
watch/reference.npz    two answers to each prompt, sampled from the reference before the first step, with their
                       log-probabilities, for estimating the divergence
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_minordpo.core.boundaries import end_ids
from nemo_minordpo.core.repetition import degenerate_reason, repeated_4grams
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import step_name
from nemo_minordpo.files import read_lines, whole_file, write_jsonl
from nemo_minordpo.pairs.tokens import ArrayWriter, TokenArrays
from nemo_minordpo.records import WatchedAnswer
from nemo_minordpo.train.data.dataset import PairBatches
from nemo_minordpo.train.folder.attempt import Attempt
from nemo_minordpo.train.model.generation import GenerationLimits, generate, gumbel_noise
from nemo_minordpo.train.reference import log_probs_of

# Increase, since before training, in the fraction of answers that repeat themselves that raises an alarm if
# rewards/chosen has fallen.
ALARM_ABOVE = 0.1


@dataclass
class AnswerWatch:
    """Greedy answers with measures of their repetition, and the policy's divergence from the reference.

    The divergence is ``KL(reference || policy)``, estimated without bias as the mean of ``log pi_ref(y) - log pi(y)``
    over answers ``y`` sampled from the reference, in nats per answer (of at most `max_new_tokens`). The estimate takes
    one forward pass, and needs neither the reference weights nor new answers.

    Attributes:
        folder: `watch` in the run folder.
        model: PairModel after set-up.
        tokenizer: transformers'.
        prompts: token ids of each prompt.
        limits: limits on the answers.
        batches_of: makes the batches of this data-parallel rank from pairs.
        data_parallel: (rank, size); each replica answers its share of the prompts.
        vocab_size: number of rows of the embedding.
        seed: seed for sampling.
    """

    folder: Path
    model: Any
    tokenizer: Any
    prompts: list[list[int]]
    limits: GenerationLimits
    batches_of: Callable[[TokenArrays], PairBatches]
    data_parallel: tuple[int, int]
    vocab_size: int
    seed: int

    def begin(self, attempt: Attempt) -> None:
        """Sample and save the reference's answers, before the first step, when it is the policy; collective."""
        twice = [prompt for prompt in self.prompts for _ in range(2)]
        with self.model.evaluating():
            samples = self._answers(twice, noise=gumbel_noise(self.seed, vocab_size=self.vocab_size))
            writer = ArrayWriter()
            for number, prompt in enumerate(self.prompts):
                first, second = samples[2 * number : 2 * number + 2]
                writer.add([*prompt, *first], [*prompt, *second], prompt_length=len(prompt), reward_margin=0.0)
            arrays = writer.arrays()
            self._samples = self.batches_of(arrays)
            self._reference = log_probs_of(self.model, self._samples)
        if _is_first_rank():
            with whole_file(self._reference_file, "wb") as out:
                np.savez(out, log_probs=self._reference, **vars(arrays))
                attempt.check()

    def resume(self) -> None:
        """Load what :meth:`begin` saved.

        Raises:
            UserError: it is missing.
        """
        first = self._answers_file(0)
        if not (self._reference_file.is_file() and first.is_file()):
            raise UserError(
                f"{self.folder} has no answers of the reference, from before the first step: the run began without "
                "the watch, or they were removed; trainer.dpo.watch.interval=0 resumes the run without the watch"
            )
        arrays, self._reference = read_samples(self._reference_file)
        self._samples = self.batches_of(arrays)
        self._usual = _degenerate_rate([WatchedAnswer.from_json(line) for _, line in read_lines(first)])

    def sample(self, step: int, attempt: Attempt, *, chosen: float) -> tuple[dict[str, float], str]:
        """Answer the prompts; collective.

        Args:
            step: optimizer steps done.
            attempt: the attempt that writes the answers.
            chosen: `rewards/chosen` of this step, nats.

        Returns:
            The metrics, on every rank, and the reason for an alarm, or an empty string.

            - `degenerate_rate`: fraction of answers that repeat themselves, as core/repetition.py defines it;
            - `repeated_4grams`: fraction of 4-grams that occurred earlier in the same answer, averaged over answers;
            - `unfinished_rate`, `mean_tokens`: fraction of answers that were cut, and tokens per answer;
            - `kl_reference`: nats per answer, see the class.
        """
        started = time.perf_counter()
        with self.model.evaluating():
            token_ids = self._answers(self.prompts, noise=None)
            divergence = float((self._reference - log_probs_of(self.model, self._samples)).mean())
        # without the token that ends the answer
        ended = [bool(ids) and ids[-1] in self.limits.stop_ids for ids in token_ids]
        texts = [ids[:-1] if end else ids for ids, end in zip(token_ids, ended, strict=True)]
        answers = [self._judged(*answer) for answer in zip(self.prompts, texts, ended, strict=True)]
        if _is_first_rank():
            attempt.check()
            write_jsonl(self._answers_file(step), answers)
        rate = _degenerate_rate(answers)
        if step == 0:
            self._usual = rate
        values = {
            "degenerate_rate": rate,
            "repeated_4grams": float(np.mean([repeated_4grams(ids) for ids in texts])),
            "unfinished_rate": float(np.mean([not answer.finished for answer in answers])),
            "mean_tokens": float(np.mean([answer.num_tokens for answer in answers])),
            "kl_reference": divergence,
            "step_s": time.perf_counter() - started,
        }
        return values, self._alarm(rate, chosen)

    def _alarm(self, rate: float, chosen: float) -> str:
        if chosen >= 0 or rate - self._usual < ALARM_ABOVE - 1e-9:  # differences of rates are rounded
            return ""
        return (
            f"rewards/chosen has fallen to {chosen:+.3g} nats and {100 * rate:.0f} % of {len(self.prompts)} answers "
            f"repeat themselves, {100 * self._usual:.0f} % before training ({self.folder})"
        )

    def _answers(self, prompts: list[list[int]], *, noise: Any) -> list[list[int]]:
        """The answers to all prompts, on every rank; this replica generates its share."""
        rank, size = self.data_parallel
        own = range(rank, len(prompts), size)
        of_own = None if noise is None else lambda number, place: noise(own[number], place)
        written = generate(self.model, [prompts[number] for number in own], limits=self.limits, noise=of_own)
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, dict(zip(own, written, strict=True)))
        answers = {number: answer for part in parts for number, answer in part.items()}
        return [answers[number] for number in range(len(prompts))]

    def _judged(self, prompt: list[int], token_ids: list[int], finished: bool) -> WatchedAnswer:
        output = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return WatchedAnswer(
            prompt=self.tokenizer.decode(prompt, clean_up_tokenization_spaces=False),
            output=output,
            num_tokens=len(token_ids),
            finished=finished,
            degenerate=degenerate_reason(output, token_ids),
        )

    def _answers_file(self, step: int) -> Path:
        return self.folder / f"{step_name(step)}.jsonl"

    @property
    def _reference_file(self) -> Path:
        return self.folder / "reference.npz"


def read_samples(file: Path) -> tuple[TokenArrays, np.ndarray]:
    """The reference's answers, one pair per prompt, and their log-probabilities [N, 2], nats."""
    with np.load(file) as saved:
        arrays = dict(saved)
    log_probs = arrays.pop("log_probs")
    return TokenArrays(**arrays), log_probs


def watched_prompts(arrays: TokenArrays, *, count: int, max_length: int) -> list[list[int]]:
    """The first distinct prompts that leave room for an answer."""
    prompts: dict[tuple[int, ...], None] = {}
    for pair in range(len(arrays)):
        length = int(arrays.prompt_lengths[pair])
        if length < max_length:
            prompts.setdefault(tuple(arrays.sequence(pair, rejected=False)[:length].tolist()))
        if len(prompts) == count:
            break
    return [list(prompt) for prompt in prompts]


def stop_ids_of(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, from transformers' tokenizer."""
    return frozenset(end_ids(tokenizer))


def _degenerate_rate(answers: list[WatchedAnswer]) -> float:
    return sum(answer.degenerate is not None for answer in answers) / len(answers)


def _is_first_rank() -> bool:
    return torch.distributed.get_rank() == 0
