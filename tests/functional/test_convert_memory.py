"""Conversion loads only part of the model at a time: peak memory in both directions, in separate processes."""

import pytest

from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from tests.benchmarks.conversion import CONFIG, generate, in_process, require_same_bits

MB = 10**6
# 24 layers of 14 MB, 342 MB in all
SMALL = {
    **CONFIG, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 8,
    "vocab_size": 4096, "tie_word_embeddings": False,
}  # fmt: skip
# two layers, a table of the vocabulary, and the libraries' own memory
LIMIT = 2 * 14 * MB + 4 * MB + 80 * MB


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    hf, nemo, back = folder / "hf", folder / "base.nemo", folder / "back"
    generate(hf, SMALL)
    costs = {"import": in_process(import_hf, hf, nemo), "export": in_process(export_hf, nemo, back)}
    require_same_bits(hf, back)
    assert (hf / "model.safetensors").stat().st_size > 3 * LIMIT
    return costs


@pytest.mark.parametrize("direction", ["import", "export"])
def test_the_whole_model_is_never_in_memory(costs, direction):
    cost = costs[direction]
    print(f"{direction}: {cost.resident / MB:.0f} MB resident, {cost.own / MB:.0f} MB its own, {cost.seconds:.1f} s")
    assert MB < cost.own < LIMIT
    assert MB < cost.resident < LIMIT
