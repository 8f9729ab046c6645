"""Commands that convert models between Hugging Face and NeMo."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nemo_minordpo.commands.cli import Overwrite, Tokenizer, done
from nemo_minordpo.errors import UserError

Base = Annotated[
    Path | None,
    typer.Option(help="For adapters: the .nemo they were trained on; default: the run's.", show_default=False),
]


class AdapterForm(str, Enum):
    """How LoRA adapters are exported."""

    merged = "merged"
    peft = "peft"


def gguf_to_hf(
    source: Annotated[Path, typer.Argument(help="The .gguf file of a Llama model with SmolLM's tokenizer.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a GGUF file to a Hugging Face folder, as input for import-hf.

    Example:
      minordpo gguf-to-hf SmolLM2-135M-Instruct.Q4_1.gguf hf/smollm2
    """
    from nemo_minordpo.convert.gguf_to_hf import gguf_to_hf

    done(gguf_to_hf(source, output, overwrite=overwrite), output)


def import_hf(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face folder (config.json, safetensors, tokenizer), or a PEFT folder.")
    ],
    output: Annotated[Path, typer.Argument(help="The .nemo to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="For a PEFT folder: its base model, a Hugging Face folder or .nemo; default: the one it names.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Hugging Face model to .nemo.

    Supports Llama (including SmolLM2), Mistral, Qwen1.5 to Qwen2.5 and dense Qwen3; training can load the result at any
    TP and PP. A PEFT folder that export-hf wrote becomes a .nemo of adapters, for model.peft.restore_from_path.

    Example:
      minordpo import-hf hf/base base.nemo
      minordpo import-hf peft adapters.nemo --base base.nemo
    """
    from nemo_minordpo.convert.hf_to_nemo import import_hf
    from nemo_minordpo.convert.peft_to_nemo import import_peft, is_peft_folder

    if is_peft_folder(source):
        done(import_peft(source, output, base=base, dtype=dtype, overwrite=overwrite), output)
        return
    if base is not None:
        raise UserError(f"--base={base} is for PEFT folders, but {source} has no adapter_config.json")
    done(import_hf(source, output, dtype=dtype, overwrite=overwrite), output)


def verify(
    hf: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    nemo: Annotated[Path, typer.Argument(help="The .nemo made from it, or whatever export-hf accepts.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare on; repeatable.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs (jsonl) to draw further texts from.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of pairs to draw.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of a row of random tokens.")] = 0,
    dtype: Annotated[str, typer.Option(help="Precision in which NeMo runs: float32 or bfloat16.")] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest allowed difference of a logit; default: 1e-4, for bfloat16 twice transformers' own rounding.",
        ),
    ] = None,
    base: Base = None,
) -> None:
    """Compare the logits of a model and its .nemo.

    One runs in transformers, the other in NeMo, both in float32 by default. If they differ, the weights, settings,
    tokenizers and kinds of modules that differ are listed.

    Example:
      minordpo verify hf/base base.nemo --pairs pairs/validation.jsonl
    """
    from nemo_minordpo.convert.verify import verify

    found = verify(
        hf,
        nemo,
        texts=text,
        pairs=pairs,
        num_samples=samples,
        seed=seed,
        dtype=dtype,
        tolerance=tolerance,
        base_nemo=base,
    )
    typer.echo(str(found))


def export_hf(
    source: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, .nemo, or results of NeMo-Aligner.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    tokenizer: Tokenizer = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")] = None,
    adapters: Annotated[
        AdapterForm, typer.Option(help="LoRA: merged into the weights, or a PEFT folder with only the adapters.")
    ] = AdapterForm.merged,
    base: Base = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="The base model's name on the hub, for the model card; default: known if it was imported from the "
            "hub's cache.",
            show_default=False,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload the folder to the Hugging Face hub.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: in a private repository.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a trained model to a Hugging Face folder, with a model card.

    Accepts run folders of any TP and PP. The tokenizer is the base model's unless --tokenizer names another. By
    default, LoRA adapters are merged into the model that they were trained on. With --push, --overwrite also replaces
    the files in the repository.

    Example:
      minordpo export-hf runs/minordpo hf/minordpo
      minordpo export-hf runs/minordpo hf/minordpo --push me/minordpo --private
    """
    from nemo_minordpo.convert import hub
    from nemo_minordpo.convert.nemo_to_hf import export_hf
    from nemo_minordpo.convert.peft_folder import export_peft

    export = export_peft if adapters is AdapterForm.peft else export_hf
    for option, name in (("--push", push), ("--base-model", base_model)):
        if name is not None:
            hub.require_repo_name(name, option=option)
    if private and push is None:
        raise UserError("--private is for --push, which names the repository")
    manifest = export(
        source,
        output,
        tokenizer=tokenizer,
        dtype=dtype,
        base_nemo=base,
        base_name=base_model,
        overwrite=overwrite,
    )
    done(manifest, output)
    if push is not None:
        typer.echo(f"pushed to {hub.push(output, push, private=private, overwrite=overwrite)}")
