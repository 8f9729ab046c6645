"""A model that several tests convert; modules that need a different one override the fixture."""

from pathlib import Path

import pytest
from tiny_hf import write_hf

from nemo_minordpo.convert.hf_to_nemo import import_hf


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", "qwen2")


@pytest.fixture
def base(hf: Path, tmp_path: Path) -> Path:
    import_hf(hf, tmp_path / "base.nemo")
    return tmp_path / "base.nemo"
