"""`minordpo prepare gsm8k`: GSM8K rows in, preference pairs with one wrong calculation out."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.text import Text

from nemo_minordpo.core.gsm8k import Problem, chat_prompt, plain_prompt, response_from_answer
from nemo_minordpo.prepare.corruption import corrupt_calculation
from nemo_minordpo.records import Manifest, PreferencePair, read_lines, refuse_existing, sha256_of_file, write_jsonl

_REASONS_SHOWN = 3
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Pair:
    question: str
    pair: PreferencePair


def prepare_gsm8k(
    source: Path,
    output: Path,
    *,
    template: Literal["plain", "chat"] = "plain",
    tokenizer: Path | None = None,
    num_validation: int = 0,
    limit: int | None = None,
    seed: int = 1234,
    system: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write preference pairs made of GSM8K rows into the folder `output`.

    Files: `train.jsonl`, `validation.jsonl` when asked for, `rejected_rows.jsonl` (where, why), `manifest.json`.
    Every row that is read becomes a pair or a rejected row; a pair depends on its row, its line number and `seed`
    alone. Questions that occur more than once stay on one side of the split.

    Args:
        source: JSON lines with `question` and `answer`, as grade_school_math publishes GSM8K.
        output: folder, made when it is not there.
        template: "plain" puts the paper's prompt as it is, "chat" as the user turn of the tokenizer's template.
        tokenizer: Hugging Face folder with a chat template; for "chat", and only then.
        num_validation: pairs to hold out for validation; 0 writes no validation file.
        limit: read only the first rows, that many; None reads all.
        seed: of the corruption and of the split.
        system: system turn for "chat"; None leaves it to the template.
        overwrite: replace what an earlier run left in `output`.

    Raises:
        ValueError: an option that cannot be met, a source without a single usable row, or an output that exists.
    """
    _check_options(template=template, tokenizer=tokenizer, system=system, num_validation=num_validation, limit=limit)
    refuse_existing(output, overwrite=overwrite)
    chat_tokenizer = None if tokenizer is None else _load_tokenizer(tokenizer, system=system)
    pairs, rejected = _make_pairs(source, tokenizer=chat_tokenizer, system=system, limit=limit, seed=seed)
    if not pairs:
        raise ValueError(_nothing_usable(source, rejected))
    validation, train = _split(pairs, num_validation=num_validation, seed=seed)

    manifest = Manifest(
        stage="prepare gsm8k",
        inputs={str(path): sha256_of_file(path) for path in [source, *_tokenizer_files(tokenizer)]},
        settings={
            "template": template,
            "tokenizer": None if tokenizer is None else str(tokenizer),
            "system": system,
            "num_validation": num_validation,
            "limit": limit,
            "seed": seed,
        },
        counts={
            "rows": len(pairs) + len(rejected),
            "pairs": len(pairs),
            "rejected": len(rejected),
            "train": len(train),
            "validation": len(validation),
        },
    )
    write_jsonl(output / "train.jsonl", train)
    if validation:
        write_jsonl(output / "validation.jsonl", validation)
    else:
        (output / "validation.jsonl").unlink(missing_ok=True)  # of an earlier run, which --overwrite replaces whole
    write_jsonl(output / "rejected_rows.jsonl", rejected)
    manifest.write(output)
    _show(output, manifest, rejected, train[0])
    return manifest


def _check_options(
    *, template: str, tokenizer: Path | None, system: str | None, num_validation: int, limit: int | None
) -> None:
    if template not in ("plain", "chat"):
        raise ValueError(f"template is {template!r}: choose 'plain' or 'chat'")
    if template == "chat" and tokenizer is None:
        raise ValueError("template 'chat' needs a tokenizer folder: its chat template makes the prompts")
    if template == "plain" and (tokenizer is not None or system is not None):
        given = "tokenizer" if tokenizer is not None else "system"
        raise ValueError(f"template 'plain' has no use for {given}: leave it out, or choose template 'chat'")
    if num_validation < 0:
        raise ValueError(f"num_validation is {num_validation}: it must be 0 or more")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: it must be 1 or more (leave it out to read all rows)")


def _load_tokenizer(folder: Path, *, system: str | None) -> Any:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such tokenizer folder")
    # Loading transformers takes seconds, and plain prompts do without.
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no Hugging Face tokenizer can be loaded from it ({error})") from error
    if tokenizer.chat_template is None:
        raise ValueError(f"{folder}: the tokenizer has no chat template; choose template 'plain'")
    try:
        chat_prompt("What is 1 + 1?", tokenizer=tokenizer, system=system)
    except TemplateError as error:
        turns = "the paper's user turn" + ("" if system is None else " with a system turn before it")
        raise ValueError(f"{folder}: the chat template refuses {turns} ({error})") from error
    return tokenizer


def _tokenizer_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _make_pairs(
    source: Path, *, tokenizer: Any | None, system: str | None, limit: int | None, seed: int
) -> tuple[list[_Pair], list[dict[str, str]]]:
    """The pairs, and one {source, reason} for every row that gives none."""
    lines = [line for line, _ in zip(read_lines(source), range(limit), strict=False)] if limit else read_lines(source)
    pairs, rejected = [], []
    for number, text in track(list(lines), "Making pairs", console=Console(stderr=True), transient=True):
        try:
            problem = Problem.from_json(text)
            wrong = corrupt_calculation(problem.answer, seed=seed, row=number - 1).answer
        except ValueError as error:
            rejected.append({"source": f"{source}:{number}", "reason": str(error)})
            continue
        pair = PreferencePair(
            prompt=_prompt(problem.question, tokenizer=tokenizer, system=system),
            chosen_response=response_from_answer(problem.answer),
            rejected_response=response_from_answer(wrong),
        )
        pairs.append(_Pair(question=problem.question, pair=pair))
    return pairs, rejected


def _prompt(question: str, *, tokenizer: Any | None, system: str | None) -> str:
    if tokenizer is None:
        return plain_prompt(question)
    return chat_prompt(question, tokenizer=tokenizer, system=system)


def _split(pairs: list[_Pair], *, num_validation: int, seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Validation and training pairs, each in the order of the file.

    Questions are drawn in an order that depends on `seed` and on their text, and taken while they fit.

    Raises:
        ValueError: `num_validation` pairs cannot be held out with at least one left to train on.
    """
    places = defaultdict(list)
    for place, made in enumerate(pairs):
        places[" ".join(made.question.lower().split())].append(place)
    held_out: set[int] = set()
    for question in sorted(places, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest()):
        if len(held_out) + len(places[question]) <= num_validation:
            held_out.update(places[question])
    if len(held_out) < num_validation or len(held_out) == len(pairs):
        raise ValueError(
            f"num_validation is {num_validation}, but there are {len(pairs)} pairs of {len(places)} questions, and a "
            "question stays on one side: hold out fewer, or read more rows"
        )
    validation = [made.pair for place, made in enumerate(pairs) if place in held_out]
    return validation, [made.pair for place, made in enumerate(pairs) if place not in held_out]


def _nothing_usable(source: Path, rejected: list[dict[str, str]]) -> str:
    if not rejected:
        return f"{source}: no rows; GSM8K's files hold one JSON object with 'question' and 'answer' a line"
    reasons = "\n".join(f"  {row['source']}: {row['reason']}" for row in rejected[:_REASONS_SHOWN])
    return f"{source}: no pair can be made of any of its {len(rejected)} rows; the first reasons:\n{reasons}"


def _show(output: Path, manifest: Manifest, rejected: list[dict[str, str]], sample: PreferencePair) -> None:
    counts = manifest.counts
    lines = [
        f"{counts['rows']} rows: {counts['pairs']} pairs ({counts['train']} train, {counts['validation']} validation), "
        f"{counts['rejected']} rejected -> {output}"
    ]
    lines += [f"  rejected {row['source']}: {row['reason']}" for row in rejected[:_REASONS_SHOWN]]
    if len(rejected) > _REASONS_SHOWN:
        lines.append(f"  ... all of them in {output / 'rejected_rows.jsonl'}")
    lines += ["--- prompt of the first pair", sample.prompt.rstrip("\n")]
    lines += ["--- chosen", sample.chosen_response, "--- rejected", sample.rejected_response]
    # Text: brackets in paths and prompts are no markup. soft_wrap: a path stays whole for copying.
    Console().print(Text("\n".join(lines)), soft_wrap=True)
