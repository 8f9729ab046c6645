"""All ranks and attempts of a run multiply matrices in the same way."""

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_minordpo.host import matmul
from nemo_minordpo.train import products
from nemo_minordpo.train.folder.run_folder import RunFolder


def _rank(rank: int, folder: str, choices: list[list[str]]) -> None:
    os.environ["RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    matmul.use(choices[rank])
    products.agree_on_products(RunFolder(Path(folder)))
    (Path(folder) / f"used_{rank}").write_text(json.dumps(matmul.replaced()))
    dist.destroy_process_group()


@pytest.mark.parametrize("choices", [[["float32"], []], [[], ["float32", "bfloat16"]]])
def test_ranks_follow_the_first(tmp_path, choices):
    mp.spawn(_rank, (str(tmp_path), choices), nprocs=2)
    assert [json.loads((tmp_path / f"used_{rank}").read_text()) for rank in (0, 1)] == [choices[0]] * 2
    assert json.loads((tmp_path / "products.json").read_text())["replaced"] == choices[0]


def test_a_resumed_run_repeats_the_recorded_choice(monkeypatch, tmp_path):
    path, here = tmp_path / "products.json", "AMD EPYC, 2 cores"
    monkeypatch.setattr(products, "processor_name", lambda: here)
    monkeypatch.setattr(matmul, "replaced", lambda: ["float32"])
    assert products._of_run(path) == ["float32"]
    monkeypatch.setattr(matmul, "replaced", list)  # measured differently the next time
    assert products._of_run(path) == ["float32"]
    here = "Intel Xeon, 2 cores"
    assert products._of_run(path) == []
    assert json.loads(path.read_text()) == {"processor": here, "replaced": []}
