"""Check that a tokenizer loads and fits a model, and that two tokenizers behave the same."""

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
    """Notes for the user about a model's tokenizer.

    Unless transformers is imported already, the tokenizer is loaded in a separate process: it takes a second and 85 MB
    there; here it would occupy twice that for the whole conversion.

    Args:
        folder: Hugging Face folder.
        vocab_size: tokens in the model's vocabulary.

    Returns:
        The notes, one line each.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    if "transformers.models.auto.tokenization_auto" in sys.modules:
        return tokenizer_notes(folder, vocab_size)
    # not multiprocessing, which would run the caller's script again
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
    """The process of :func:`check_tokenizer`; prints one line of JSON."""
    said: dict[str, Any] = {"notes": [], "error": ""}
    try:
        said["notes"] = tokenizer_notes(Path(folder), int(vocab_size))
    except UserError as error:
        said["error"] = str(error)
    sys.stdout.write(json.dumps(said) + "\n")


def tokenizer_notes(folder: Path, vocab_size: int) -> list[str]:
    """Like `check_tokenizer`, but in this process."""
    tokenizer = load_tokenizer(folder)
    notes = []
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= vocab_size)
    if beyond:
        first, token = beyond[0]
        notes.append(
            f"{folder}: the tokenizer has {len(beyond)} tokens beyond the model's {vocab_size}, "
            f"first {token!r} (id {first}); training rejects pairs that contain one"
        )
    in_config = _config(folder).get("chat_template")
    if in_config and (folder / "chat_template.jinja").is_file() and in_config != tokenizer.chat_template:
        notes.append(f"{folder}: using chat_template.jinja; tokenizer_config.json has a different chat template")
    return notes


def tokenizer_problems(folders: list[Path], hf: Path, texts: list[str]) -> list[str] | None:
    """Differences between the checkpoint's own tokenizer and that of the Hugging Face folder.

    Args:
        folders: candidates for the checkpoint's own tokenizer, best first.
        hf: Hugging Face folder.
        texts: texts to compare on.

    Returns:
        One line per difference; None if the checkpoint's own tokenizer is missing.
    """
    for folder in folders:
        if has_tokenizer(folder):
            if all(_content(folder / name) == _content(hf / name) for name in TOKENIZER_FILES):
                return []
            return [f"tokenizer in {folder}: {problem}" for problem in compare_tokenizers(hf, folder, texts)]
    return None


def compare_tokenizers(hf: Path, other: Path, texts: list[str]) -> list[str]:
    """Differences of the tokenizer in another folder from the one in `hf`: ids, special tokens, chat template."""
    ours, theirs = load_tokenizer(hf), load_tokenizer(other)
    problems = []
    for text in texts:
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            problems.append(f"different tokens for {text[:40]!r}")
            break
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a != b:
        apart = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
        problems.append(f"{len(apart)} tokens have different ids, e.g. {apart[0]!r}")
    for name in ("bos_token", "eos_token"):
        if getattr(ours, name) != getattr(theirs, name):
            problems.append(f"{name} is {getattr(theirs, name)!r} instead of {getattr(ours, name)!r}")
    if ours.chat_template != theirs.chat_template:
        problems.append(f"the chat template differs{_template_difference(ours, theirs)}")
    return problems


def _template_difference(ours: Any, theirs: Any) -> str:
    """Show the difference on a conversation of two turns."""
    if not (isinstance(ours.chat_template, str) and isinstance(theirs.chat_template, str)):
        return "" if None not in (ours.chat_template, theirs.chat_template) else ": one side has none"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        shown = [tokenizer.apply_chat_template(turns, tokenize=False) for tokenizer in (ours, theirs)]
    except Exception as error:  # whatever a template raises
        return f" (rendering fails: {error})"
    if shown[0] == shown[1]:
        return ", but a plain conversation of two turns renders the same"
    start = next(i for i in range(len(max(shown, key=len))) if shown[0][i : i + 1] != shown[1][i : i + 1])
    around = [repr(text[max(0, start - 10) : start + 30]) for text in shown]
    return f": {around[1]} instead of {around[0]}"


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _config(folder: Path) -> dict[str, Any]:
    return json.loads(_content(folder / "tokenizer_config.json") or b"{}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
