"""Adapting Megatron-Core to newer versions of torch and NumPy."""

import dataclasses

import numpy as np
import pytest
import torch.distributed.checkpoint.filesystem as torch_writer
from torch.distributed.checkpoint.metadata import Metadata

from nemo_minordpo.host import newer


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(torch_writer, "dataclasses", dataclasses)


def finish_of_torch_2_11(self, metadata, results):
    return dataclasses.replace(metadata, version="1.0.0")


def test_metadata_include_what_megatron_adds(monkeypatch):
    monkeypatch.setattr(torch_writer.FileSystemWriter, "finish", finish_of_torch_2_11)
    metadata = Metadata({})
    metadata.mcore_data = {"weight": {"shape": (2, 3)}}
    # the control: torch's own copy loses it
    assert not hasattr(torch_writer.dataclasses.replace(metadata), "mcore_data")
    assert newer._metadata_of_newer_torch()
    copied = torch_writer.dataclasses.replace(metadata, planner_data="other")
    assert copied.mcore_data == metadata.mcore_data
    assert copied.planner_data == "other"
    assert not hasattr(torch_writer.dataclasses.replace(Metadata({})), "mcore_data")


def test_a_torch_that_copies_nothing_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch_writer.FileSystemWriter, "finish", lambda self, metadata, results: None)
    assert newer._metadata_of_newer_torch() == []
    assert torch_writer.dataclasses is dataclasses


def test_product_of_numpy_2(monkeypatch):
    monkeypatch.delattr(np, "product", raising=False)
    assert newer._product_of_newer_numpy()
    assert np.product((2, 3, 4)) == 24
    assert newer._product_of_newer_numpy() == []
