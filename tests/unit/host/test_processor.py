"""Bfloat16 instructions as Linux lists them."""

import os

import pytest
import torch

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


def test_name(monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_DESCRIPTION", path)
    assert processor.processor_name().startswith("unknown, ")
    path.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9R14\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 9R14\n")
    cores = len(os.sched_getaffinity(0))
    assert processor.processor_name() == f"AMD EPYC 9R14, {cores} cores"
    path.write_text(f"model name\t: Intel(R) Xeon(R) Processor\n{INTEL}\n")
    named = f"Intel(R) Xeon(R) Processor with avx512_bf16 and amx_bf16, {cores} cores"
    assert processor.processor_name() == named


def test_the_best_of_a_few_on_one_core(monkeypatch):
    seconds = iter([3.0, 0.5, 2.0, 4.0, 9.0, 0.7])
    threads = []

    def measured(call):
        threads.append(torch.get_num_threads())
        return next(seconds)

    monkeypatch.setattr(processor, "_REPEATS", 3)
    monkeypatch.setattr(processor, "_seconds", measured)
    before = torch.get_num_threads()
    assert processor.core_seconds(list, list) == [2.0, 0.5]
    assert threads == [1] * 6
    assert torch.get_num_threads() == before


def test_speed_is_a_ratio_of_times(monkeypatch):
    monkeypatch.setattr(processor, "core_seconds", lambda *calls: [call() is not None and 2.0 for call in calls])
    assert processor.bfloat16_speed() == 1.0
    monkeypatch.setattr(processor, "core_seconds", lambda *calls: [2.0, 0.5])
    assert processor.bfloat16_speed() == 4.0
