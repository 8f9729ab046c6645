"""`minordpo doctor`: report what this machine has and lacks, and the consequences."""

import importlib.util
import os
import platform

from rich.console import Console
from rich.table import Table

from nemo_minordpo import host
from nemo_minordpo.host import processor
from nemo_minordpo.provenance import installed_versions

# Versions of NeMo and Megatron-Core that were released together and that this project is tested with.
_TESTED_PAIRS = (("2.1.0", "0.10.0"), ("2.2.1", "0.11.0"))
# By the value of `host`: the packages that `minordpo train` needs.
_NEEDED = {
    "aligner": ("nemo_toolkit", "megatron-core", "nemo-aligner"),
    "bridge": ("megatron-core", "megatron-bridge"),
}


def report() -> bool:
    """Print the findings; return whether training can run here at all."""
    console = Console()
    versions = installed_versions()
    table = Table("what", "found", "what it means", title="this machine", title_justify="left")
    for row in (*_machine_rows(), *_package_rows(versions)):
        table.add_row(*row)
    console.print(table)
    missing = {name: [package for package in needed if package not in versions] for name, needed in _NEEDED.items()}
    usable = [name for name, packages in missing.items() if not packages]
    if not usable:
        lost = ", ".join(missing["aligner"])
        console.print(f"train and verify cannot run: {lost} missing; run `pip install '.[cpu]'`", markup=False)
        console.print("prepare, import-hf, export-hf and report work without them")
        return False
    console.print(f"minordpo train can run with host={' or host='.join(usable)}")
    stand_ins = Table("missing", "replaced by", title="active stand-ins", title_justify="left")
    for item in host.prepare(usable[0]):
        stand_ins.add_row(item.lacks, item.instead)
    console.print(stand_ins if stand_ins.row_count else "no stand-in is needed")
    if not host.has_cuda():
        speed = f"matrix products in bfloat16 run {processor.bfloat16_speed():.1f} times as fast as in float32"
        console.print(f"{processor.bfloat16_in_words()}; measured just now, {speed}")
    return True


def _machine_rows() -> list[tuple[str, str, str]]:
    rows = [
        ("Python", platform.python_version(), "3.10 to 3.12 are supported"),
        ("cores", str(len(os.sched_getaffinity(0))), "shared by the ranks of a CPU run"),
    ]
    if host.has_cuda():
        import torch

        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        rows.append(("CUDA", f"{torch.cuda.device_count()} x {', '.join(names)}", "bf16 and tensor-parallel training"))
    else:
        rows.append(("CUDA", "none", "training on the CPU over gloo: fine for experiments, not for 7B models"))
    found = ", ".join(processor.bfloat16_instructions()) or "none"
    rows.append(("bfloat16 instructions", found, "of the processor; precision=bf16 is faster than float32 with them"))
    return rows


def _package_rows(versions: dict[str, str]) -> list[tuple[str, str, str]]:
    pair = (versions.get("nemo_toolkit", "none"), versions.get("megatron-core", "none"))
    rows = [
        (
            "NeMo with Megatron-Core",
            " with ".join(pair),
            "a tested pair" if pair in _TESTED_PAIRS else f"not tested together; tested: {_TESTED_PAIRS}",
        ),
        ("NeMo-Aligner", versions.get("nemo-aligner", "none"), "0.7.0 is the last release and the one used here"),
        ("Megatron-Bridge", versions.get("megatron-bridge", "none"), "host=bridge needs it, with Megatron-Core 0.19"),
        ("torch", versions.get("torch", "none"), "this project is tested with 2.13"),
    ]
    apex = "with its CUDA extensions" if host.has_apex() else "none"
    rows.append(("Apex", apex, "distributed_fused_adam needs it; mcore_distributed_optim does not"))
    engine = versions.get("transformer_engine", "none")
    if importlib.util.find_spec("transformer_engine") is not None and engine == "none":
        engine = "found, version unknown"
    rows.append(("Transformer Engine", engine, "FP8, sequence parallelism and fused attention need it"))
    return rows
