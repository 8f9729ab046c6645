"""Shared by all commands: option types, help layout, the last line of output, and error handling."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from nemo_minordpo.errors import UserError, refused_by_machine
from nemo_minordpo.records import Manifest

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Tokenizer = Annotated[Path | None, typer.Option(help="Folder of the model's tokenizer.", show_default=False)]
Date = Annotated[
    str | None,
    typer.Option(help="Date that the chat template shows, for example 2026-11-27; default: the day this started."),
]
TemplateOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="Option of the chat template, for example enable_thinking=false; repeatable."
    ),
]

Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored; float32 on a CPU.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ..., or auto: cuda if there is one.")]

# typer lists groups after commands
_ORDER = (
    "doctor", "prepare", "inspect", "preview", "gguf-to-hf", "import-hf", "verify", "reference", "plan", "train",
    "status", "export-hf", "evaluate", "score", "report", "sweep",
)  # fmt: skip
PLAIN: dict[str, Any] = {
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 120},
    "rich_markup_mode": None,
    "no_args_is_help": True,
}


def _as_written(command: Any, formatter: Any) -> None:
    """Print the docstring line by line, so that examples can be copied."""
    for line in ["", *command.help.splitlines()]:
        formatter.write(f"  {line}".rstrip() + "\n")


class Command(typer.core.TyperCommand):
    """Shows its help unwrapped."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _as_written(self, formatter)


class Commands(typer.core.TyperGroup):
    """Lists the commands in pipeline order, and prints errors that users can fix without a traceback."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _as_written(self, formatter)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), code=2)
        except OSError as error:
            if not (message := refused_by_machine(error)):
                raise
            _fail(message, code=2)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "nemo_minordpo":
                raise
            _fail(
                f"the package {error.name!r} is not installed; `minordpo doctor` shows what this machine lacks", code=2
            )
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def done(manifest: Manifest, output: Path) -> None:
    """The last line of a command that wrote `output`."""
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items())
    typer.echo(f"{counts} -> {output}")


def _fail(message: str, *, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
