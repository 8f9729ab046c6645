"""Bfloat16 instructions as Linux lists them."""

import pytest

from nemo_minordpo.host import processor

INTEL = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile"
ARM = "Features\t: fp asimd i8mm bf16"
OLD = "flags\t\t: fpu avx512f avx512_vnni"


@pytest.mark.parametrize(
    ("description", "found"), [(INTEL, ["avx512_bf16", "amx_bf16"]), (ARM, ["bf16"]), (OLD, []), (None, [])]
)
def test_instructions(monkeypatch, tmp_path, description, found):
    path = tmp_path / "cpuinfo"
    if description is not None:
        path.write_text(f"processor\t: 0\n{description}\nbogomips\t: 4600\n")
    monkeypatch.setattr(processor, "_DESCRIPTION", path)
    assert processor.bfloat16_instructions() == found
    words = processor.bfloat16_in_words()
    assert (", ".join(found) if found else "no faster than fp32") in words


def test_speed_is_a_ratio_of_times(monkeypatch):
    seconds = {"torch.float32": iter([3.0, 2.0, 9.0]), "torch.bfloat16": iter([0.5, 4.0, 0.7])}
    monkeypatch.setattr(processor, "_REPEATS", 3)
    monkeypatch.setattr(processor, "_seconds", lambda factors: next(seconds[str(factors.dtype)]))
    assert processor.bfloat16_speed() == 4.0
