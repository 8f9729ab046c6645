"""Pairs as text -> token arrays on disk, once, before training. Reports every fault, with file and line."""

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_minordpo.config import DataSection
from nemo_minordpo.core.pair_packing import num_shared_tokens
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines, to_json_line, write_json, write_text
from nemo_minordpo.pairs.encoding import OVERLONG, encode
from nemo_minordpo.records import PreferencePair
from nemo_minordpo.terminal import progress_bar, say

_CHUNK = 512  # pairs that the tokenizer encodes per call, on all cores


@dataclass(frozen=True)
class LeftOut:
    """A pair that training leaves out, and why; a line of `left_out_pairs.jsonl`."""

    place: str  # file:line
    reason: str


@dataclass(frozen=True)
class TokenArrays:
    """N tokenised pairs; the arrays may be memory-mapped.

    tokens: [total], int32: for each pair, prompt + chosen response, then prompt + rejected response.
    starts: [2 N + 1], int64: where each of these sequences starts in `tokens`.
    prompt_lengths: [N], int32, tokens.
    shared_lengths: [N], int32: number of tokens before the first difference between the two sequences.
    reward_margins: [N], float32: ground-truth reward of chosen minus rejected, unscaled.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray
    shared_lengths: np.ndarray
    reward_margins: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def sequence(self, pair: int, *, rejected: bool) -> np.ndarray:
        row = 2 * pair + rejected
        return self.tokens[self.starts[row] : self.starts[row + 1]]

    @property
    def sequence_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): lengths of the chosen and the rejected sequences, in tokens, including the prompt."""
        lengths = np.diff(self.starts)
        return lengths[0::2], lengths[1::2]


def expand_files(patterns: Sequence[str], *, named: str = "model.data.data_prefix") -> list[Path]:
    """The files that match some names and glob patterns, in order, each once.

    Args:
        patterns: names and glob patterns.
        named: what they are, for messages.

    Raises:
        UserError: a pattern matches nothing.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"{named}: {pattern!r} matches no file")
        files.update(dict.fromkeys(Path(match).resolve() for match in matches))
    return list(files)


def tokenize_files(files: list[Path], folder: Path, *, tokenizer: Any, data: DataSection, split: str) -> None:
    """Tokenise every pair of ``files`` into ``folder``: arrays, `left_out_pairs.jsonl`, and last `counts.json`.

    Does nothing if the folder has a `counts.json`, since it is then complete.

    Args:
        files: jsonl files of pairs.
        folder: made if missing.
        tokenizer: a fast Hugging Face tokenizer.
        data: length limit, EOS, default rewards, what to do with invalid pairs.
        split: train or validation, for messages.

    Raises:
        UserError: there are invalid pairs and `model.data.invalid_pairs=refuse`; or no pairs are left.
    """
    if (folder / "counts.json").exists():
        return
    writer = ArrayWriter()
    left_out: list[LeftOut] = []
    num_cut = 0
    with progress_bar(counted=False, transient=True) as progress:
        task = progress.add_task(f"tokenising {split} pairs", total=sum(file.stat().st_size for file in files))
        for chunk in _chunks(files, left_out, advance=lambda size: progress.advance(task, size)):
            num_cut += _encode(chunk, tokenizer=tokenizer, data=data, writer=writer, left_out=left_out)
    invalid = [item for item in left_out if item.reason != OVERLONG]
    if invalid and data.invalid_pairs == "refuse":
        shown = "\n".join(f"  {item.place}: {item.reason}" for item in invalid[:20])
        more = f"\n  ... and {len(invalid) - 20} more" if len(invalid) > 20 else ""
        raise UserError(
            f"{len(invalid)} of {len(invalid) + writer.count} {split} pairs cannot be used:\n{shown}{more}\n"
            "Fix them, or leave them out with model.data.invalid_pairs=drop"
        )
    if not writer.count:
        reasons = Counter(item.reason for item in left_out)
        raise UserError(f"no {split} pairs can be used; left out: {dict(reasons) or 'none'} in {files}")
    counts = Counter({"used": writer.count}) + Counter(item.reason for item in left_out)
    folder.mkdir(parents=True, exist_ok=True)
    writer.save(folder)
    write_text(folder / "left_out_pairs.jsonl", "".join(to_json_line(asdict(item)) for item in left_out))
    write_json(folder / "counts.json", dict(counts))
    _say_counts(split, counts, folder, num_cut=num_cut)


def sample_pairs(files: list[Path], *, tokenizer: Any, data: DataSection) -> tuple[TokenArrays, int]:
    """The usable pairs of the first chunk, tokenised, and the number of lines in all files; for estimates.

    Raises:
        UserError: none of the first pairs can be used.
    """
    writer = ArrayWriter()
    for chunk in _chunks(files, [], advance=lambda size: None):
        _encode(chunk, tokenizer=tokenizer, data=data, writer=writer, left_out=[])
        break
    if not writer.count:
        raise UserError(f"none of the first {_CHUNK} pairs of {files[0]} can be used: `minordpo train` says why")
    return writer.arrays(), sum(1 for file in files for _ in read_lines(file))


def first_pairs(files: list[Path], *, tokenizer: Any, data: DataSection) -> Iterator[tuple[str, TokenArrays | str]]:
    """(file:line, the arrays of this one pair, or why training would leave it out), for a preview."""
    for file in files:
        for number, line in read_lines(file):
            writer, left_out = ArrayWriter(), []
            place = f"{file}:{number}"
            try:
                pair = PreferencePair.from_json(line)
            except UserError as error:
                yield place, str(error)
                continue
            _encode([(place, pair)], tokenizer=tokenizer, data=data, writer=writer, left_out=left_out)
            yield place, writer.arrays() if writer.count else left_out[0].reason


def _say_counts(split: str, counts: Counter[str], folder: Path, *, num_cut: int) -> None:
    text = f"{split}: {counts['used']} pairs"
    if left_out := [f"{number} {reason}" for reason, number in counts.items() if reason != "used"]:
        text += f"; left out: {', '.join(left_out)} (file and line of each: {folder / 'left_out_pairs.jsonl'})"
    if num_cut:
        text += f"\n{split}: {num_cut} responses cut at their end, which white space or a second end followed"
    say(text)


def load_arrays(folder: Path) -> TokenArrays:
    """The arrays of :func:`tokenize_files`, memory-mapped."""
    names = TokenArrays.__dataclass_fields__
    return TokenArrays(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})


def places_of(pairs: Sequence[int], *, files: list[Path], folder: Path) -> list[str]:
    """file:line of pairs tokenised by :func:`tokenize_files`.

    Args:
        pairs: numbers of tokenised pairs, which do not count those left out.
        files, folder: as given to :func:`tokenize_files`.

    Raises:
        UserError: the files have changed since then.
        OSError: they cannot be read.
    """
    left_out = {json.loads(line)["place"] for _, line in read_lines(folder / "left_out_pairs.jsonl")}
    lines = (f"{file}:{number}" for file in files for number, _ in read_lines(file))
    used = [place for place in lines if place not in left_out]
    if len(used) != json.loads((folder / "counts.json").read_text())["used"]:
        raise UserError(f"{folder} holds other pairs than {files}")
    return [used[number] for number in pairs]


def _chunks(files: list[Path], left_out: list[LeftOut], advance: Any) -> Iterator[list[tuple[str, PreferencePair]]]:
    chunk: list[tuple[str, PreferencePair]] = []
    for file in files:
        for number, line in read_lines(file):
            advance(len(line.encode()))
            try:
                chunk.append((f"{file}:{number}", PreferencePair.from_json(line)))
            except UserError as error:
                left_out.append(LeftOut(f"{file}:{number}", str(error)))
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _encode(
    chunk: list[tuple[str, PreferencePair]],
    *,
    tokenizer: Any,
    data: DataSection,
    writer: "ArrayWriter",
    left_out: list[LeftOut],
) -> int:
    """Tokenise a chunk; returns how many responses were cut at their end."""
    num_cut = 0
    encoded = encode([pair for _, pair in chunk], tokenizer=tokenizer, data=data)
    for (place, _), found in zip(chunk, encoded, strict=True):
        if isinstance(found, str):
            left_out.append(LeftOut(place, found))
            continue
        num_cut += found.num_cut
        writer.add(found.chosen, found.rejected, prompt_length=found.prompt_length, reward_margin=found.reward_margin)
    return num_cut


class ArrayWriter:
    """Collects tokenised pairs into :class:`TokenArrays`."""

    def __init__(self) -> None:
        self.count = 0
        self._tokens: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._prompt_lengths: list[int] = []
        self._shared_lengths: list[int] = []
        self._reward_margins: list[float] = []

    def add(self, chosen: list[int], rejected: list[int], *, prompt_length: int, reward_margin: float) -> None:
        """Add a pair: two sequences that begin with the same prompt, and their ground-truth reward margin."""
        self.count += 1
        for sequence in (chosen, rejected):
            self._tokens.append(np.asarray(sequence, dtype=np.int32))
            self._lengths.append(len(sequence))
        self._prompt_lengths.append(prompt_length)
        self._shared_lengths.append(num_shared_tokens(*self._tokens[-2:]))
        self._reward_margins.append(reward_margin)

    def arrays(self) -> TokenArrays:
        return TokenArrays(**self._arrays())

    def save(self, folder: Path) -> None:
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "tokens": np.concatenate(self._tokens),
            "starts": np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]),
            "prompt_lengths": np.asarray(self._prompt_lengths, dtype=np.int32),
            "shared_lengths": np.asarray(self._shared_lengths, dtype=np.int32),
            "reward_margins": np.asarray(self._reward_margins, dtype=np.float32),
        }
