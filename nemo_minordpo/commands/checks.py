"""Command lines of `minordpo`, checked without running them: what a sweep asks before its first stage."""

from pathlib import Path
from typing import Any

import typer

from nemo_minordpo.errors import UserError

# click's, or that of the copy of click inside newer versions of typer
_UsageError: Any = typer.BadParameter.__mro__[1]


def check_command(root: Any, words: list[str], *, model: Path | None) -> None:
    """Refuse what the command would refuse of its options and, of `train`, of its settings and their layout.

    Args:
        root: the group of all commands.
        words: behind `minordpo`.
        model: Hugging Face folder that `train` will start from, imported; None = not there yet.

    Raises:
        UserError: as the command itself would say it.
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
