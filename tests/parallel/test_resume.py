"""A run that dies at any step and is restarted ends bit for bit where an uninterrupted run ends."""

import json

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_minordpo.files import sha256_of_file
from nemo_minordpo.records import RunEvent
from tests.comparison import without_measured

RUNS_OF = ("whole", "resumed")


def checkpoint_tensors(folder):
    """All tensors in a distributed checkpoint: weights and optimizer moments."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    return tensors


@pytest.mark.parametrize("died_after", [1, 4, 7])
def test_resumed_equals_uninterrupted_to_the_bit(runs, died_after):
    whole, resumed = runs.path / "whole", runs.path / f"stopped_{died_after}"
    lines, expected = runs.metrics(resumed.name), runs.metrics("whole")
    assert [line.step for line in lines] == list(range(1, 9))
    assert list(map(without_measured, lines)) == list(map(without_measured, expected))
    assert list(map(without_measured, runs.metrics(resumed.name, "validation"))) == list(
        map(without_measured, runs.metrics("whole", "validation"))
    )
    ours, theirs = (checkpoint_tensors(folder / "checkpoints/step_000008") for folder in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert sum("exp_avg_sq" in key for key in ours) >= 9
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    common, expected_common = (
        torch.load(folder / "checkpoints/step_000008/common.pt", weights_only=False) for folder in (resumed, whole)
    )
    assert common["optimizer_steps"] == expected_common["optimizer_steps"] == 8
    assert common["progress"] == expected_common["progress"]
    assert {**common["progress"], "reference_noise": 0} == {"step": 8, "consumed_pairs": 60, "reference_noise": 0}


def test_dropout_was_on(runs):
    """The control: the comparison above includes random numbers that must be restored."""
    first = runs.metrics("whole")[0]
    assert first.values["rewards/margin"] != 0.0  # the policy has dropout, the reference has none


def test_checkpoint_of_another_layout(runs):
    """Written at TP=2 x PP=2, resumed on one rank."""
    lines, expected = runs.metrics("moved"), runs.metrics("moved_whole")
    assert [line.step for line in lines] == list(range(1, 9))
    assert list(map(without_measured, lines[:3])) == list(map(without_measured, expected[:3]))
    for name in ("logps/chosen", "logps/rejected", "loss"):  # the same weights and pairs
        assert lines[3].values[name] == pytest.approx(expected[3].values[name], rel=1e-6)
    # also the same moments and step count: Adam's next steps agree up to amplified rounding
    for line, other in zip(lines[4:], expected[4:], strict=True):
        assert line.values["logps/chosen"] == pytest.approx(other.values["logps/chosen"], rel=1e-4)
        assert line.values["lr"] == other.values["lr"]


@pytest.mark.parametrize("file", ["common.pt", ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_resumes_from_the_one_before(runs, file):
    run, whole = runs.path / f"damaged_{file}", runs.path / "whole"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "damaged_step_000008", "step_000006", "step_000008",
    ]  # fmt: skip
    events = [RunEvent.from_json(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (damaged,) = (event for event in events if event.event == "damaged")
    assert f"step_000008: {file} has " in damaged.detail
    assert "set aside as damaged_step_000008" in damaged.detail
    assert [event.step for event in events if event.event == "started"] == [0, 6]
    ours, theirs = (checkpoint_tensors(folder / "checkpoints/step_000008") for folder in (run, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_every_file_of_a_checkpoint_is_listed_with_its_digest(runs):
    checkpoint = runs.path / "whole/checkpoints/step_000008"
    files = json.loads((checkpoint / "files.json").read_text())
    assert files.keys() == {path.name for path in checkpoint.iterdir()} - {"files.json"}
    for name, (size, digest) in files.items():
        assert (size, digest) == ((checkpoint / name).stat().st_size, sha256_of_file(checkpoint / name))


def test_the_best_checkpoints_stay_beside_the_newest(runs):
    lines = {line.step: line.values["rewards/margin"] for line in runs.metrics("best", "validation")}
    kept = [int(path.name[-6:]) for path in sorted((runs.path / "best/checkpoints").iterdir())]
    assert set(lines) == set(range(1, 9))
    assert kept == sorted({8, *sorted(lines, key=lines.__getitem__)[:2]})


def test_old_checkpoints_go(runs):
    kept = sorted(path.name for path in (runs.path / "whole/checkpoints").iterdir())
    assert kept == ["step_000006", "step_000008"]


def test_time_limit_saves_and_stops(runs):
    assert [line.step for line in runs.metrics("time_limit")] == [1]
    progress = json.loads((runs.path / "time_limit/checkpoints/step_000001/progress.json").read_text())
    noise = runs.metrics("time_limit")[0].values["reference_noise"]
    assert progress == {"step": 1, "consumed_pairs": 8, "reference_noise": noise, "monitored": None}
    assert not (runs.path / "time_limit/model.nemo").exists()


def test_a_finished_run_has_its_model(runs):
    assert (runs.path / "whole/model.nemo").stat().st_size > 100_000
    leftovers = [path.name for path in (runs.path / "whole").iterdir() if path.name.startswith(".")]
    assert leftovers == []
