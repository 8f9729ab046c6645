"""Check `minordpo` command lines without running them; a sweep does so before its first stage."""

from pathlib import Path
from typing import Any

import typer

from nemo_minordpo.errors import UserError

# click's own, or from the copy of click inside newer versions of typer
_UsageError: Any = typer.BadParameter.__mro__[1]


def check_command(root: Any, words: list[str], *, model: Path | None) -> None:
    """Raise what the command itself would raise about its options and, for `train`, its settings and layout.

    Args:
        root: the group of all commands.
        words: the arguments of `minordpo`.
        model: Hugging Face folder from which `train` will start once imported; None = it does not exist yet.

    Raises:
        UserError: with the command's own message.
    """
    command, rest = root, words
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        context = command.make_context(command.name, list(rest))
    except _UsageError as error:
        raise UserError(error.format_message()) from error
    if words[0] == "train":
        from nemo_minordpo.train.plan import check_settings

        check_settings(context.args, checkpoint=None if model is None else _imported(model))


def _imported(model: Path) -> Any:
    """The configuration of the .nemo that `import-hf` will make."""
    import torch
    from omegaconf import OmegaConf

    from nemo_minordpo.convert.facts import facts_from_config, read_config
    from nemo_minordpo.convert.nemo_config import model_config

    facts = facts_from_config(read_config(model), where=str(model / "config.json"))
    return OmegaConf.create(model_config(facts, tokenizer=model, dtype=torch.float32))
