"""`minordpo evaluate`: a Hugging Face folder answers GSM8K-format questions."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from nemo_minordpo import file_names
from nemo_minordpo.core.chat_template import date_line
from nemo_minordpo.core.gsm8k import ANSWER_RULES, Problem
from nemo_minordpo.errors import UserError
from nemo_minordpo.evaluate.asking import Asking, Prompts
from nemo_minordpo.evaluate.engine import Engine, Limits, Request
from nemo_minordpo.evaluate.engines import load_engine
from nemo_minordpo.evaluate.partial import PartialPredictions, interrupted_date, is_interrupted
from nemo_minordpo.evaluate.sampling import Sampling, sampling_of
from nemo_minordpo.evaluate.score import is_strictly_right, judge, sampled_score, score
from nemo_minordpo.files import read_lines, refuse_existing, sha256_of_file, write_json, write_jsonl
from nemo_minordpo.hugging_face import model_files
from nemo_minordpo.provenance import code_version
from nemo_minordpo.records import Manifest, Score
from nemo_minordpo.terminal import progress_bar, say

_FAULTS_SHOWN = 5


def evaluate(
    model: Path,
    questions: Path,
    output: Path,
    *,
    template: Literal["auto", "plain", "chat"] = "auto",
    system: str | None = None,
    date: str | None = None,
    template_options: dict[str, Any] | None = None,
    prompts_of: Path | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int = 512,
    limit: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    engine: str = "auto",
    overwrite: bool = False,
) -> Score:
    """Answer questions, judge the answers, and write `predictions.jsonl`, `score.json` and `manifest.json`.

    Predictions are written as they arrive: an interrupted evaluation resumes when it is rerun with the same model,
    questions and settings (the batch size may differ).

    Args:
        model: Hugging Face folder, as `minordpo export-hf` writes it.
        questions: JSON lines with `question` and `answer` (gold number behind `####`).
        output: folder for the results.
        template: "plain" uses the paper's prompt as it is, "chat" wraps it in the tokenizer's chat template, "auto"
            means "chat" if there is one.
        system: system turn for "chat"; None = the template's default.
        date: ISO 8601 date for a template that shows one; None = today, or the day on which an interrupted evaluation
            began.
        template_options: named options of the chat template, for example enable_thinking.
        prompts_of: folder of prepared pairs, or of a model trained on such pairs, from which template, system turn,
            date and options are taken unless given here.
        samples: answers per question.
        temperature: divides the logits before an answer is drawn; 0 = greedy.
        top_p: draw from the likeliest tokens that have this probability together; None = all tokens.
        seed: of the random numbers; None = 0.
        batch_size: answers written at once; affects only speed and memory. None = as many as fit.
        max_new_tokens: longer answers are cut.
        limit: ask only the first `limit` questions; None = all.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored; float32 on a CPU.
        device: a torch device, or "auto": CUDA if there is a GPU, else the CPU.
        engine: "transformers", "vllm", or "auto": vLLM if it is installed and there is a GPU.
        overwrite: replace the content of `output`, finished or not.

    Raises:
        ValueError: an option is out of range, a question is bad (all are read before the model is loaded), the folder
            is not a model, a question does not fit the model's context, or the output exists.
    """
    for name, value in (
        ("samples", samples), ("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("limit", limit),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be 1 or more")
    limits = Limits(batch_size=batch_size, max_new_tokens=max_new_tokens)
    sampling = sampling_of(samples=samples, temperature=temperature, top_p=top_p, seed=seed)
    if not overwrite and not is_interrupted(output):
        refuse_existing(output, overwrite=False)  # before the model is loaded
    problems = read_problems(questions, limit=limit)
    loaded = load_engine(model, name=engine, dtype=dtype, device=device, limits=limits)
    prompts_as = _prompts(
        Asking(template=template, system=system, date=date, template_options=template_options or {}),
        loaded, prompts_of=prompts_of, model=model, interrupted_date=None if overwrite else interrupted_date(output),
    )  # fmt: skip
    settings = prompts_as.way | {
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "dtype": loaded.dtype,
        "device": loaded.device,
        "engine": loaded.name,
        "answer_rules": ANSWER_RULES,
    }
    if sampling.temperature:
        settings |= asdict(sampling) | {"samples": samples}
    rendered = [prompts_as.text(problem.question) for problem in problems]
    prompts = [loaded.text.encode(text) for text in rendered]
    _check_context(loaded, prompts, questions=questions, max_new_tokens=max_new_tokens)

    model_hashes = {path.name: sha256_of_file(path) for path in model_files(model)}
    questions_hash = sha256_of_file(questions)
    key = {
        "model": model_hashes, "questions": questions_hash, "settings": settings, "code": code_version("evaluate"),
    }  # fmt: skip
    partial = PartialPredictions(output, key=key, overwrite=overwrite)
    num_resumed = len(partial.found)
    _answer(loaded, problems, prompts, partial, limits=limits, sampling=sampling, num_samples=samples)

    predictions = [partial.found[place] for place in sorted(partial.found)]
    names = {"model": str(model), "questions": str(questions)}
    if sampling.temperature:
        result = sampled_score(predictions, sampling=sampling, num_samples=samples, **names)
    else:
        result = score(predictions, **names)
    write_jsonl(output / file_names.PREDICTIONS, predictions)
    write_json(output / file_names.SCORE, asdict(result))
    inputs = {str(model / name): digest for name, digest in model_hashes.items()} | {str(questions): questions_hash}
    counts = {"questions": len(problems), "taken from an interrupted run": num_resumed}
    Manifest(
        stage="evaluate",
        inputs=inputs,
        settings=settings | {"batch_size": batch_size, "first_prompt": rendered[0]},
        counts=counts | ({"answers": len(predictions)} if sampling.temperature else {}),
    ).write(output)
    partial.remove()
    return result


def read_problems(questions: Path, *, limit: int | None) -> list[Problem]:
    problems, faults = [], []
    for number, text in itertools.islice(read_lines(questions), limit):
        try:
            problems.append(Problem.from_json(text))
        except UserError as error:
            faults.append(f"{questions}:{number}: {error}")
    if faults:
        more = [f"... and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        raise UserError("\n".join(["some questions cannot be scored:", *faults[:_FAULTS_SHOWN], *more]))
    if not problems:
        raise UserError(f"{questions}: no questions; each line must be a JSON object with 'question' and 'answer'")
    return problems


def _prompts(
    asking: Asking, engine: Engine, *, prompts_of: Path | None, model: Path, interrupted_date: str | None
) -> Prompts:
    """The prompt format; prints the date it shows, and a warning if it differs from the training's."""
    if prompts_of is not None:
        asking = asking.as_in(prompts_of)
    prompts = asking.prompts(engine.text.tokenizer, interrupted_date=interrupted_date)
    if date := prompts.way["date"]:
        say(date_line(date))
    if line := prompts.not_as_trained(model):
        say(line)
    return prompts


def _check_context(engine: Engine, prompts: Sequence[list[int]], *, questions: Path, max_new_tokens: int) -> None:
    longest = max(len(prompt) for prompt in prompts)
    context = engine.context
    if context is not None and longest + max_new_tokens > context:
        room = context - longest
        raise UserError(
            f"{questions}: the longest prompt has {longest} tokens, and {max_new_tokens} new tokens exceed the model's "
            f"context of {context}: "
            + (f"set max_new_tokens to at most {room}" if room > 0 else "shorten the question")
        )
    largest, size = max(map(max, prompts)), engine.num_embeddings
    if largest >= size:
        raise UserError(
            f"the tokenizer produced token id {largest}, but the model has {size} embeddings: they do not match"
        )


def _answer(
    engine: Engine,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    partial: PartialPredictions,
    *,
    limits: Limits,
    sampling: Sampling,
    num_samples: int,
) -> None:
    """Write the missing answers, longest prompts first: prompts that are read together are then similar in length."""
    order = sorted(range(len(problems)), key=lambda index: len(prompts[index]), reverse=True)
    requests = [
        Request(index=index, sample=sample, prompt=prompts[index])
        for index in order
        for sample in range(num_samples)
        if (index, sample) not in partial.found
    ]
    if partial.found:
        say(f"resuming: {len(partial.found)} of {len(problems) * num_samples} answers are already there")
    if not requests:
        return
    total, started, num_tokens = len(problems) * num_samples, time.perf_counter(), 0
    num_right = sum(map(is_strictly_right, partial.found.values()))
    with progress_bar("{task.fields[state]}") as progress:
        task = progress.add_task("answering", total=total, completed=len(partial.found), state="none judged yet")

        def tick(count: int) -> None:
            nonlocal num_tokens
            num_tokens += count
            judged = f"{num_right / len(partial.found):.1%} correct" if partial.found else "none judged yet"
            speed = num_tokens / (time.perf_counter() - started)
            progress.update(task, completed=len(partial.found), state=f"{judged}, {speed:.0f} tokens/s")

        for request, one in engine.answers(requests, limits=limits, sampling=sampling, on_tokens=tick):
            prediction = judge(problems[request.index], request, one, sampled=sampling.temperature > 0)
            partial.add(prediction)
            num_right += is_strictly_right(prediction)
        tick(0)
