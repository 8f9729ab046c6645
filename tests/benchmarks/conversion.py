"""Time and memory to import and export a generated bfloat16 model of 1.5 billion parameters.

    python -m tests.benchmarks.conversion               # writes docs/results/conversion.json; needs 14 GB of disk
    python -m tests.benchmarks.conversion --verify      # also verifies, with a float32 model in memory

The sizes are Qwen2.5-1.5B's; the weights are random, in shards of 1 GB. Each stage runs in its own process. Memory is
the peak minus the memory after importing the modules, in units of the model's parts: `resident` includes file pages
that the kernel maps for the process and drops when memory is needed, `own` does not.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_minordpo.convert.facts import ModelFacts, facts_from_config
from nemo_minordpo.convert.hf_folder import write_weights
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.mapping import mapping_table
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.terminal import progress_bar
from tests.benchmarks.tables import fill_pages

MIB = 2**20
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Cost of a stage; memory in bytes."""

    seconds: float
    resident: int
    own: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="parent of the temporary folder; default: the system's")
    parser.add_argument("--output", type=Path, default=Path("docs/results/conversion.json"), help="results file")
    parser.add_argument("--verify", action="store_true")
    given = parser.parse_args()
    facts = facts_from_config(CONFIG, where="the benchmark's config")
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        hf, nemo, back = (Path(folder) / name for name in ("hf", "base.nemo", "back"))
        generate(hf, CONFIG)
        costs = {"import-hf": in_process(import_hf, hf, nemo)}
        if given.verify:
            costs["verify"] = in_process(_verify, hf, nemo)
        costs["export-hf"] = in_process(export_hf, nemo, back)
        require_same_bits(hf, back)
    stages = {name: asdict(cost) for name, cost in costs.items()}
    given.output.write_text(json.dumps({"bytes": sizes(facts), "stages": stages}, indent=1) + "\n")
    fill_pages()


def generate(folder: Path, config: dict[str, Any]) -> None:
    """A Hugging Face folder of random weights in shards of 1 GB."""
    from tests.tiny import write_tokenizer  # imports transformers, which the stages' processes do not need

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    facts = facts_from_config(config, where=str(folder))
    tensors = [(row, layer) for row in mapping_table(facts) for layer in row.layers(facts)]
    described = {
        name.format(layer): torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for row, layer in sorted(tensors, key=lambda tensor: tensor[0].turn(tensor[1], facts))
        for name, shape in row.hf.items()
    }
    torch.manual_seed(0)

    def random() -> Iterator[tuple[str, Tensor]]:
        with progress_bar() as progress:
            for name, tensor in progress.track(described.items(), description="generating tensors"):
                yield name, torch.randn(tensor.shape).mul_(0.02).bfloat16()

    write_weights(folder, described, random(), max_shard_bytes=10**9)


def in_process(stage: Callable[..., object], *paths: Path) -> Cost:
    """Cost of a stage in a new process, whose memory no other stage has touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, stage, *paths).result()


def measure(stage: Callable[..., object], *paths: Path) -> Cost:
    """Peak resident memory is recorded by the kernel; the process's own share is sampled every 5 ms."""
    before, own = _status(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            own.append(_status()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        stage(*paths)
    finally:
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    return Cost(seconds, _status()["VmHWM"] - before["VmRSS"], max(own) - before["RssAnon"])


def _status() -> dict[str, int]:
    """Bytes by the kernel's names."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) * 1024 for name, *rest in lines if rest[1:] == ["kB"]}


def sizes(facts: ModelFacts) -> dict[str, int]:
    """Bytes of the weights in bfloat16, and of the parts that serve as units."""
    tensors = [(2 * math.prod(row.shape(facts)), row) for row in mapping_table(facts)]
    layer = sum(size for size, row in tensors if row.per_layer)
    embedding = next(size for size, row in tensors if row.megatron == "embedding.word_embeddings.weight")
    return {"weights": embedding + layer * facts.num_layers, "embedding": embedding, "layer": layer}


def _verify(hf: Path, nemo: Path) -> None:
    from nemo_minordpo.convert.verify import verify

    verify(hf, nemo)


def require_same_bits(one: Path, other: Path) -> None:
    places = [
        {name: path for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
        for folder in (one, other)
    ]
    if places[0].keys() != places[1].keys():
        raise AssertionError("export and import have different tensors")
    for name in places[0]:
        first, second = (safe_open(place[name], "pt").get_tensor(name) for place in places)
        if first.dtype != second.dtype or not torch.equal(first, second):
            raise AssertionError(f"{name} differs")
    print(f"{len(places[0])} tensors, bit-identical", file=sys.stderr)


if __name__ == "__main__":
    main()
