"""Commands that convert models between Hugging Face and NeMo."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nemo_minordpo.commands.cli import Overwrite, Tokenizer, done
from nemo_minordpo.errors import UserError

Base = Annotated[
    Path | None,
    typer.Option(help="Of adapters: the .nemo they were trained on; not given = as the run says.", show_default=False),
]


class AdapterForm(str, Enum):
    """What becomes of LoRA adapters."""

    merged = "merged"
    peft = "peft"


def gguf_to_hf(
    source: Annotated[Path, typer.Argument(help="The .gguf file of a Llama model with SmolLM's tokenizer.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a GGUF file to a Hugging Face folder.

    import-hf reads the result.

    Example:
      minordpo gguf-to-hf SmolLM2-135M-Instruct.Q4_1.gguf hf/smollm2
    """
    from nemo_minordpo.convert.gguf_to_hf import gguf_to_hf

    done(gguf_to_hf(source, output, overwrite=overwrite), output)


def import_hf(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face folder: config.json, safetensors, tokenizer; or PEFT's.")
    ],
    output: Annotated[Path, typer.Argument(help="The .nemo to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Of a PEFT folder: the model under it, Hugging Face folder or .nemo; not given = as it says.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Hugging Face model to .nemo.

    Llama (SmolLM2 too), Mistral, Qwen1.5 to Qwen2.5, dense Qwen3; training can load the result at any TP and PP. A PEFT
    folder that export-hf wrote becomes a .nemo of adapters, for model.peft.restore_from_path.

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
        raise UserError(f"--base={base} is for PEFT folders, and {source} has no adapter_config.json")
    done(import_hf(source, output, dtype=dtype, overwrite=overwrite), output)


def verify(
    hf: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    nemo: Annotated[Path, typer.Argument(help=".nemo that was made from it, run folder, or what export-hf takes.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare on; may be repeated.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs (jsonl) to draw further texts from.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many pairs are drawn.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the draw, and of a row of random tokens.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, in which NeMo runs.")] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest difference of a logit; not given = 1e-4, in bfloat16 twice that of transformers' rounding.",
        ),
    ] = None,
    base: Base = None,
) -> None:
    """Compare the logits of a model and of its .nemo.

    One runs in transformers, the other in NeMo, both in float32. When they differ, so do the weights, settings or
    tokenizers that are named, and the kinds of modules.

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
    source: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, .nemo, or NeMo-Aligner's results.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    tokenizer: Tokenizer = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    adapters: Annotated[
        AdapterForm, typer.Option(help="LoRA: merged into the weights, or a PEFT folder of adapters alone.")
    ] = AdapterForm.merged,
    base: Base = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert what training wrote to a Hugging Face folder.

    Run folders of any TP and PP; the tokenizer is the base model's unless another one is named. LoRA adapters are
    merged into the model that they were trained on.

    Example:
      minordpo export-hf runs/minordpo hf/minordpo
    """
    from nemo_minordpo.convert.nemo_to_hf import export_hf
    from nemo_minordpo.convert.peft_folder import export_peft

    export = export_peft if adapters is AdapterForm.peft else export_hf
    done(export(source, output, tokenizer=tokenizer, dtype=dtype, base_nemo=base, overwrite=overwrite), output)
