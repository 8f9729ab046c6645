"""Commands that convert models between Hugging Face and NeMo."""

from pathlib import Path
from typing import Annotated

import typer

from nemo_minordpo.commands.line import Overwrite, Tokenizer, done


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
    source: Annotated[Path, typer.Argument(help="Hugging Face folder: config.json, safetensors, tokenizer.")],
    output: Annotated[Path, typer.Argument(help="The .nemo to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Hugging Face model to .nemo.

    Llama (SmolLM2 too), Mistral, Qwen1.5 to Qwen2.5, dense Qwen3; training can load the result at any TP and PP.

    Example:
      minordpo import-hf hf/base base.nemo
    """
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    done(import_hf(source, output, dtype=dtype, overwrite=overwrite), output)


def verify(
    hf: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    nemo: Annotated[Path, typer.Argument(help=".nemo that was made from it, or a run folder.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare on; may be repeated.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of a logit, float32.")] = 1e-4,
) -> None:
    """Compare the logits of a model and of its .nemo.

    One runs in transformers, the other in NeMo, both in float32.

    Example:
      minordpo verify hf/base base.nemo --text "Tom has 3 boxes of 12 apples."
    """
    from nemo_minordpo.convert.verify import verify

    typer.echo(str(verify(hf, nemo, texts=text, tolerance=tolerance)))


def export_hf(
    source: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder or .nemo.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    tokenizer: Tokenizer = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert what training wrote to a Hugging Face folder.

    Run folders of any TP and PP; the tokenizer is the base model's unless another one is named.

    Example:
      minordpo export-hf runs/minordpo hf/minordpo
    """
    from nemo_minordpo.convert.nemo_to_hf import export_hf

    done(export_hf(source, output, tokenizer=tokenizer, dtype=dtype, overwrite=overwrite), output)
