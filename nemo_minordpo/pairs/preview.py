"""`minordpo preview`: the first pairs as training will see them."""

import itertools
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from nemo_minordpo.config import DataSection
from nemo_minordpo.core.boundaries import end_ids
from nemo_minordpo.hugging_face import load_tokenizer
from nemo_minordpo.pairs.tokens import TokenArrays, expand_files, first_pairs

_AT_BOUNDARY = 4  # tokens shown on each side of the boundary
_SPECIAL, _PROMPT, _CHOSEN, _REJECTED = "reverse", "dim", "bold green", "bold red"


def preview(pairs: list[str], *, tokenizer: Path, number: int, seq_length: int, append_eos: bool) -> None:
    """Print the first pairs of the files `pairs`, tokenised as for training.

    Args:
        pairs: jsonl files of pairs, or globs.
        tokenizer: Hugging Face folder.
        number: number of pairs.
        seq_length: `model.data.seq_length`; longer pairs are reported as left out.
        append_eos: `model.data.append_eos`.

    Raises:
        UserError: a file does not exist, or the folder has no tokenizer.
    """
    files = expand_files(pairs, named="pairs")
    loaded = load_tokenizer(tokenizer, needs_eos=True)
    data = DataSection(seq_length=seq_length, append_eos=append_eos)
    console = Console()
    for place, pair in itertools.islice(first_pairs(files, tokenizer=loaded, data=data), number):
        console.print(_shown(place, pair, loaded), soft_wrap=True)


def _shown(place: str, pair: TokenArrays | str, tokenizer: Any) -> Text:
    if isinstance(pair, str):
        return Text.assemble((f"== {place}: training leaves it out: {pair}\n", "bold red"))
    prompt_length, shared = int(pair.prompt_lengths[0]), int(pair.shared_lengths[0])
    sequences = [pair.sequence(0, rejected=rejected).tolist() for rejected in (False, True)]
    text = Text()
    text.append(
        f"== {place}: {prompt_length} prompt tokens; the responses share their first {shared - prompt_length}\n", "bold"
    )
    text.append("-- prompt, which is given\n")
    text.append_text(_decoded(sequences[0][:prompt_length], tokenizer, style=_PROMPT))
    for name, ids, style in zip(("chosen", "rejected"), sequences, (_CHOSEN, _REJECTED), strict=True):
        response = ids[prompt_length:]
        end = _end(response[-1], tokenizer)
        text.append(f"\n-- {name} response, which is learnt: {len(response)} tokens, {end}\n")
        text.append_text(_decoded(response[: shared - prompt_length], tokenizer, style=""))
        text.append_text(_decoded(ids[shared:], tokenizer, style=style))
    text.append("\n-- around the boundary: ")
    text.append_text(_tokens(sequences[0][:prompt_length][-_AT_BOUNDARY:], tokenizer, style=_PROMPT))
    text.append(" | ")
    text.append_text(_tokens(sequences[0][prompt_length:][:_AT_BOUNDARY], tokenizer, style=_CHOSEN))
    return text.append("\n")


def _end(token: int, tokenizer: Any) -> str:
    if token == tokenizer.eos_token_id:
        return f"ends with EOS {tokenizer.eos_token!r}"
    if token in end_ids(tokenizer):
        return f"ends with {_text([token], tokenizer)!r}"
    return "ends without EOS"


def _decoded(ids: list[int], tokenizer: Any, *, style: str) -> Text:
    """The text of tokens, with special tokens highlighted."""
    special = set(tokenizer.all_special_ids)
    text = Text()
    for is_special, run in itertools.groupby(ids, key=special.__contains__):
        text.append(_text(list(run), tokenizer), _SPECIAL if is_special else style)
    return text


def _tokens(ids: list[int], tokenizer: Any, *, style: str) -> Text:
    """Tokens one by one; a token that is only part of a character is shown by the tokenizer's name for it."""
    pieces = [_text([token], tokenizer) for token in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    shown = [name if "\ufffd" in piece else repr(piece) for piece, name in zip(pieces, names, strict=True)]
    return Text(" ".join(shown), style)


def _text(ids: list[int], tokenizer: Any) -> str:
    """The text of tokens in the middle of a sequence; some tokenizers drop a leading space at the start of a text."""
    before = [tokenizer.eos_token_id]
    whole, beginning = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (before + ids, before))
    return whole.removeprefix(beginning)
