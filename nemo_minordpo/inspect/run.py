"""`minordpo inspect`: measure pairs, write the report, and leave pairs out by rules."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import parse_json
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import publish, read_lines, refuse_existing, sha256_of_file, staging_folder, write_text
from nemo_minordpo.hugging_face import model_files
from nemo_minordpo.inspect.filtering import check_names, counts_of, write_filtered
from nemo_minordpo.inspect.lines import parts_of
from nemo_minordpo.inspect.page import as_html
from nemo_minordpo.inspect.rules import parse_rule, reasons
from nemo_minordpo.inspect.spreadsheet import write_spreadsheet
from nemo_minordpo.inspect.summary import on_terminal
from nemo_minordpo.inspect.table import PairTable, known_names, table_of
from nemo_minordpo.inspect.test_set import TestSet
from nemo_minordpo.inspect.workers import common_shingles, measured
from nemo_minordpo.pairs.tokens import expand_files
from nemo_minordpo.prepare.data_set import REJECTED_FILE
from nemo_minordpo.prompts import ways_of_pairs
from nemo_minordpo.records import Manifest
from nemo_minordpo.terminal import progress_bar

PAGE, SPREADSHEET = "inspect.html", "pairs.csv"
_STAGE = "inspect"


def inspect_pairs(
    pairs: Sequence[str],
    *,
    output: Path | None = None,
    tokenizer: Path | None = None,
    model: Path | None = None,
    test: Sequence[str] = (),
    seq_length: int = 1024,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    workers: int | None = None,
    overwrite: bool = False,
) -> tuple[str, Manifest]:
    """Inspect pairs; returns the summary for the terminal, and the manifest.

    With `output`, writes `inspect.html`, `pairs.csv` and `manifest.json` there; with rules, also the pairs that stay,
    in files of the same names, and `rejected_rows.jsonl`.

    Args:
        pairs: jsonl files of pairs, or globs.
        output: folder for the report; None = only the summary.
        tokenizer: Hugging Face folder, to count tokens.
        model: Hugging Face folder, for log-probabilities and CHES; also its tokenizer.
        test: jsonl files of questions that no prompt should contain, or globs.
        seq_length: tokens, as `model.data.seq_length`.
        keep, drop: rules, see rules.py.
        workers: processes; None = one per core.
        overwrite: replace the output of an earlier inspection.

    Raises:
        UserError: there are no pairs, a rule or option is wrong, or the output exists.
    """
    if (keep or drop) and output is None:
        raise UserError("--keep and --drop write pairs: name their folder with --output")
    known = known_names(tests=bool(test), tokenizer=tokenizer is not None, model=model is not None)
    rules = {
        "keep": [parse_rule(one, known=known) for one in keep],
        "drop": [parse_rule(one, known=known) for one in drop],
    }
    files = expand_files(pairs, named="pairs")
    test_files = expand_files(test, named="--test") if test else []
    if output is not None:
        _check_output(output, files, overwrite=overwrite)
    if keep or drop:
        check_names(files, reserved=(PAGE, SPREADSHEET, REJECTED_FILE, file_names.MANIFEST))
    table = _inspected(
        files, tests=TestSet(test_files) if test_files else None, tokenizer=tokenizer or model, model=model,
        seq_length=seq_length, workers=workers,
    )  # fmt: skip
    why = reasons(table, **rules) if keep or drop else None
    removed = None if why is None else counts_of(why)
    inputs = [*files, *test_files, *(model_files(model) if model else [])]
    manifest = Manifest(
        stage=_STAGE,
        inputs={str(file): sha256_of_file(file) for file in inputs},
        settings={
            "tokenizer": str(tokenizer) if tokenizer else None, "model": str(model) if model else None,
            "seq_length": seq_length, "keep": [str(one) for one in rules["keep"]],
            "drop": [str(one) for one in rules["drop"]],
        },
        counts={"pairs": len(table), "invalid_lines": len(table.invalid)},
        prompts=ways_of_pairs(files),
    )  # fmt: skip
    if removed is not None:
        manifest.counts |= {"kept": len(table) - sum(removed.values()), "dropped": sum(removed.values())}
        manifest.rejected = removed | ({"not a pair": len(table.invalid)} if table.invalid else {})
    if output is not None:
        place = Path(os.path.realpath(output))
        with staging_folder(place) as scratch:
            staged = scratch / "staged"
            if why is not None:
                write_filtered(table, why, staged)
            write_text(staged / PAGE, as_html(table, removed=removed))
            write_spreadsheet(table, staged / SPREADSHEET)
            manifest.write(staged)
            refuse_existing(output, overwrite=overwrite)
            publish(staged, place)
    return on_terminal(table), manifest


def _check_output(output: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    """The output is replaced as a whole, so refuse a folder that holds anything but an earlier inspection."""
    refuse_existing(output, overwrite=overwrite)
    place = Path(os.path.realpath(output))
    if any(place in file.parents for file in files):
        raise UserError(f"{output}: contains pairs to inspect, and would be replaced: choose another folder")
    if output.is_dir() and any(output.iterdir()):
        if not (output / file_names.MANIFEST).is_file() or Manifest.read(output).stage != _STAGE:
            raise UserError(
                f"{output}: not written by `minordpo inspect`, and would be replaced: choose another folder"
            )
    elif output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a folder")


def _inspected(
    files: list[Path],
    *,
    tests: TestSet | None,
    tokenizer: Path | None,
    model: Path | None,
    seq_length: int,
    workers: int | None,
) -> PairTable:
    """Measure all pairs of the files.

    Raises:
        UserError: there are none.
    """
    parts = parts_of(files)
    if not parts:
        raise UserError(f"no pairs: {', '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} empty")
    options = {"common": common_shingles(parts), "tests": tests, "tokenizer": tokenizer}
    results = []
    with progress_bar(counted=False, transient=True) as progress:
        task = progress.add_task("inspecting pairs", total=sum(part.size for part in parts))
        for one in measured(parts, workers=workers, **options):
            results.append(one)
            progress.advance(task, one.part.size)
    if not any(len(one.pairs) for one in results):
        invalid = [f"  {one.part.path}:{line}: {reason}" for one in results for line, reason in one.invalid]
        raise UserError(
            "\n".join(["none of the lines is a pair:", *invalid[:5], *(["  ..."] if len(invalid) > 5 else [])])
        )
    scores = None if model is None else _scores(model, files, seq_length=seq_length)
    return table_of(files, results, tests=tests, seq_length=None if tokenizer is None else seq_length, scores=scores)


def _scores(model: Path, files: Sequence[Path], *, seq_length: int) -> dict[str, dict[str, float]]:
    """Place of a pair -> its metrics, by `minordpo score`."""
    from nemo_minordpo.evaluate.pair_scores import score_pairs  # imports torch

    with TemporaryDirectory() as folder:
        output = Path(folder) / "scores"
        names = [glob.escape(str(file)) for file in files]
        score_pairs(model, names, output, seq_length=seq_length, invalid_pairs="drop")
        rows = (parse_json(line) for _, line in read_lines(output / file_names.PAIR_SCORES))
        return {row.pop("pair"): row for row in rows}
