"""What a tokenizer does: whether it can be read and fits a model, and whether two of them do the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import load_tokenizer
from nemo_minordpo.sidecars import TOKENIZER_FILES, has_tokenizer


def check_tokenizer(folder: Path, *, vocab_size: int) -> list[str]:
    """What people should know of the tokenizer that goes with a model.

    It is loaded in a process of its own, where transformers is not in memory yet: there it takes a second and 85 MB,
    here twice that for as long as the conversion runs.

    Args:
        folder: Hugging Face folder.
        vocab_size: tokens that the model knows.

    Returns:
        One line each.

    Raises:
        UserError: it cannot be loaded.
    """
    if "transformers.models.auto.tokenization_auto" in sys.modules:
        return tokenizer_notes(folder, vocab_size)
    # not of multiprocessing, which would run the caller's own script again
    done = subprocess.run(
        [sys.executable, "-m", "nemo_minordpo.convert.tokenizers", str(folder), str(vocab_size)],
        env={**os.environ, "USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    if said["error"]:
        raise UserError(said["error"])
    return said["notes"]


def _main(folder: str, vocab_size: str) -> None:
    """What the process of :func:`check_tokenizer` does: one line of JSON."""
    said: dict[str, Any] = {"notes": [], "error": ""}
    try:
        said["notes"] = tokenizer_notes(Path(folder), int(vocab_size))
    except UserError as error:
        said["error"] = str(error)
    sys.stdout.write(json.dumps(said) + "\n")


def tokenizer_notes(folder: Path, vocab_size: int) -> list[str]:
    """As `check_tokenizer`, in this process."""
    tokenizer = load_tokenizer(folder)
    notes = []
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= vocab_size)
    if beyond:
        first, token = beyond[0]
        notes.append(
            f"{folder}: tokens that the tokenizer has and the model, with {vocab_size}, has not: {len(beyond)}, "
            f"{token!r} (id {first}) first; pairs that hold one are refused in training"
        )
    in_config = _config(folder).get("chat_template")
    if in_config and (folder / "chat_template.jinja").is_file() and in_config != tokenizer.chat_template:
        notes.append(f"{folder}: the chat template is chat_template.jinja; tokenizer_config.json has another, not used")
    return notes


def tokenizer_problems(folders: list[Path], hf: Path, texts: list[str]) -> list[str] | None:
    """What the checkpoint's own tokenizer does otherwise than that of the Hugging Face folder.

    Args:
        folders: where the checkpoint's own may be, best first.
        hf: Hugging Face folder.
        texts: what to compare on.

    Returns:
        One line a difference; None when the checkpoint's own is not there.
    """
    for folder in folders:
        if has_tokenizer(folder):
            if all(_content(folder / name) == _content(hf / name) for name in TOKENIZER_FILES):
                return []
            return [f"tokenizer in {folder}: {problem}" for problem in compare_tokenizers(hf, folder, texts)]
    return None


def compare_tokenizers(hf: Path, other: Path, texts: list[str]) -> list[str]:
    """Where the tokenizer in another folder does not do what the one in `hf` does: ids, special tokens, template."""
    ours, theirs = load_tokenizer(hf), load_tokenizer(other)
    problems = []
    for text in texts:
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            problems.append(f"tokens of {text[:40]!r} differ")
            break
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a != b:
        apart = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
        problems.append(f"{len(apart)} tokens have other ids, {apart[0]!r} for one")
    for name in ("bos_token", "eos_token"):
        if getattr(ours, name) != getattr(theirs, name):
            problems.append(f"{name} is {getattr(theirs, name)!r} instead of {getattr(ours, name)!r}")
    if ours.chat_template != theirs.chat_template:
        problems.append(f"the chat template differs{_template_difference(ours, theirs)}")
    return problems


def _template_difference(ours: Any, theirs: Any) -> str:
    """Shown with a conversation of two turns."""
    if not (isinstance(ours.chat_template, str) and isinstance(theirs.chat_template, str)):
        return "" if None not in (ours.chat_template, theirs.chat_template) else ": one side has none"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        shown = [tokenizer.apply_chat_template(turns, tokenize=False) for tokenizer in (ours, theirs)]
    except Exception as error:  # whatever a template raises
        return f" (rendering fails: {error})"
    if shown[0] == shown[1]:
        return ", though a plain conversation of two turns comes out alike"
    start = next(i for i in range(len(max(shown, key=len))) if shown[0][i : i + 1] != shown[1][i : i + 1])
    around = [repr(text[max(0, start - 10) : start + 30]) for text in shown]
    return f": {around[1]} instead of {around[0]}"


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _config(folder: Path) -> dict[str, Any]:
    return json.loads(_content(folder / "tokenizer_config.json") or b"{}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
