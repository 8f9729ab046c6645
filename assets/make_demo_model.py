"""Make the demo's model: a tokenizer and a Qwen2 of a million parameters that solves generated word problems.

    python assets/make_demo_model.py --output assets/demo-model --overwrite     half an hour on one CPU thread
    python assets/make_demo_model.py --output assets/demo-model --only-evaluate

It is trained in the format that the demo uses: `plain_prompt(question)` -> `response_from_answer(answer)` + EOS, with
the loss on the response. The problems of `write_arithmetic`'s default seed are held out.
"""

import argparse
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from rich import print as show
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nemo_minordpo.core.gsm8k import PAPER_INSTRUCTION, plain_prompt, response_from_answer, same_number, strict_answer
from nemo_minordpo.files import refuse_existing
from nemo_minordpo.prepare.arithmetic import Problem, arithmetic_problems

HELD_OUT_SEED = 1234  # write_arithmetic's default, on which the demo trains and evaluates
NUM_HELD_OUT = 10_000
END = "<|endoftext|>"
IGNORED = -100
MAX_NEW_TOKENS = 128
_CALCULATION = re.compile(r"[0-9]+ [-+*/] [0-9]+ = \$?[0-9]+")
# A line end is a separate token, so that a prompt, which ends with one, never shares a token with its response; so is
# every digit, so that a number of n digits is n tokens.
_PIECES = Regex(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s")

Row = tuple[list[int], int]  # token ids, and the number of leading tokens without loss


def make_tokenizer(problems: list[Problem]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the words of the problems and of the paper's prompt; all other text becomes bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,  # not reached: by then all words are single tokens
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (plain_prompt(problem.question) + response_from_answer(problem.answer) for problem in problems)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int, end: int) -> Qwen2ForCausalLM:
    """Numbers of heads, key-value heads and layers are even: the demo trains at TP=2 or PP=2."""
    config = Qwen2Config(
        vocab_size=math.ceil(vocabulary / 128) * 128,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Qwen2ForCausalLM(config)


def training_problems(seed: int) -> Iterator[Problem]:
    """Problems from another seed, without those on which the demo may evaluate."""
    held_out = {problem.question for problem in islice(arithmetic_problems(HELD_OUT_SEED), NUM_HELD_OUT)}
    return (problem for problem in arithmetic_problems(seed + 1) if problem.question not in held_out)


def story_row(problem: Problem, tokenizer: PreTrainedTokenizerFast, *, instruction: bool) -> Row:
    """One problem; without the instruction, it is a third shorter and teaches nearly as much."""
    prompt = plain_prompt(problem.question)
    prompt_ids = tokenizer.encode(prompt if instruction else prompt.removeprefix(PAPER_INSTRUCTION))
    response_ids = tokenizer.encode(response_from_answer(problem.answer))
    return prompt_ids + response_ids + [tokenizer.eos_token_id], len(prompt_ids)


def drill_row(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> Row:
    """Only the calculations of some problems: the same arithmetic in a third of the tokens."""
    found = [line for problem in problems for line in _CALCULATION.findall(response_from_answer(problem.answer))]
    return tokenizer.encode(" " + "\n ".join(found) + "\n"), 0


def batches(
    tokenizer: PreTrainedTokenizerFast, *, batch_tokens: int, num_steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) [B, S] of rows of similar length: at first a mix with drills, at the end whole prompts."""
    problems = training_problems(seed)
    rng = random.Random(seed)
    waiting: list[tuple[Tensor, Tensor]] = []
    for step in range(num_steps):
        done = step / num_steps
        if not waiting:
            rows = [_draw(problems, tokenizer, rng, done=done) for _ in range(1024)]
            waiting = _batched(rows, batch_tokens=batch_tokens if done < 0.7 else 2 * batch_tokens)
            rng.shuffle(waiting)
        yield waiting.pop()


def _draw(problems: Iterator[Problem], tokenizer: PreTrainedTokenizerFast, rng: random.Random, *, done: float) -> Row:
    if rng.random() < 0.5 * (1 - done / 0.7):
        return drill_row(list(islice(problems, 3)), tokenizer)
    return story_row(next(problems), tokenizer, instruction=rng.random() < 0.1 or done > 0.88)


def _batched(rows: list[Row], *, batch_tokens: int) -> list[tuple[Tensor, Tensor]]:
    result, batch = [], []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if len(row[0]) * (len(batch) + 1) > batch_tokens:
            result.append(_padded(batch))
            batch = []
        batch.append(row)
    return [*result, _padded(batch)]


def _padded(rows: list[Row]) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(ids) for ids, _ in rows]
    labels = [torch.tensor([IGNORED] * start + ids[start:]) for ids, start in rows]
    # Right padding: a causal model needs no mask for it.
    return pad_sequence(ids, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def make_optimizers(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices: in a trial of 400 steps, it reached a loss of 0.39, AdamW alone 0.51."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: argparse.Namespace) -> None:
    """Linear warm-up and linear decay towards zero, stopped early, in float32.

    After the whole schedule, the model would be nearly always right and certain, which leaves preference training
    nothing to improve.
    """
    steps = arguments.steps
    optimizers = make_optimizers(model, arguments.learning_rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, (steps - step) / steps))
        for optimizer in optimizers
    ]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=arguments.stop_after)
        source = batches(tokenizer, batch_tokens=arguments.batch_tokens, num_steps=steps, seed=arguments.seed)
        for step, (ids, labels) in enumerate(islice(source, arguments.stop_after), start=1):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in (*optimizers, *schedules):
                each.step()
            model.zero_grad()
            progress.update(bar, advance=1, description=f"training, loss {loss.item():.3f}")
            if step % 100 == 0:
                progress.console.print(f"step {step}: loss {loss.item():.4f}")


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Save the weights in bfloat16, at half the size; the evaluation reads them back."""
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


@torch.no_grad()
def evaluate(folder: Path, *, num_problems: int) -> None:
    """Answer held-out problems greedily; print accuracy by number of steps, and by line of the answer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    problems = list(islice(arithmetic_problems(HELD_OUT_SEED), num_problems))
    right, asked, lines_right, lines = Counter(), Counter(), Counter(), Counter()
    for start in track(range(0, num_problems, 100), "evaluating"):
        batch = problems[start : start + 100]
        for problem, output in zip(batch, _answers(model, tokenizer, batch), strict=True):
            gold = response_from_answer(problem.answer)
            steps = gold.count("\n")
            asked[steps] += 1
            right[steps] += same_number(strict_answer(output), strict_answer(gold))
            written = output.split("\n")
            for place, line in enumerate(gold.split("\n")[:-1], start=1):
                lines[place] += 1
                lines_right[place] += place <= len(written) and written[place - 1] == line
    show(f"correct final answers: {right.total()} of {num_problems} = {right.total() / num_problems:.1%}")
    for steps in sorted(asked):
        show(f"  problems of {steps} steps: {right[steps]} of {asked[steps]} = {right[steps] / asked[steps]:.1%}")
    for place in sorted(lines):
        show(f"  line {place} as expected: {lines_right[place] / lines[place]:.1%} of {lines[place]}")


def _answers(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> list[str]:
    inputs = tokenizer([plain_prompt(problem.question) for problem in problems], return_tensors="pt", padding=True)
    outputs = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=MAX_NEW_TOKENS
    )
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    parser.add_argument("--only-evaluate", action="store_true", help="evaluate the existing model")
    parser.add_argument("--num-problems", type=int, default=500, help="held-out problems to evaluate on")
    parser.add_argument("--steps", type=int, default=3600, help="length of the schedule")
    parser.add_argument("--stop-after", type=int, default=3000, help="number of steps to train")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens per step at first; doubled at the end")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.only_evaluate:
        refuse_existing(arguments.output, overwrite=arguments.overwrite)
        torch.manual_seed(arguments.seed)
        tokenizer = make_tokenizer(list(islice(training_problems(arguments.seed), 20_000)))
        model = make_model(len(tokenizer), tokenizer.eos_token_id)
        train(model, tokenizer, arguments)
        save(model, tokenizer, arguments.output)
    evaluate(arguments.output, num_problems=arguments.num_problems)


if __name__ == "__main__":
    main()
