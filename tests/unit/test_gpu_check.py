"""`make gpu-check`: the results of checks that pass, fail, crash, hang or cannot run; and their schedule."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer

import pytest
from rich.console import Console

from nemo_minordpo.files import write_json
from tests.gpu import NotRun, bounded, schedule
from tests.gpu.kernel_times import OTHER, Kernel, in_words, kernels_of_trace, kind_of, summary
from tests.gpu.results import exit_code, last_lines, table, write_results
from tests.gpu.runner import ROOT, Row, Session, log_of
from tests.gpu.schedule import PHASES, Check, Phase, checks_of, end_of, lanes_at_a_time, selected, threads_of_check

HERE = "tests.unit.test_gpu_check"


def passes(folder, *arguments):
    (folder / "passes.json").write_text("its own")
    return f"with {' and '.join(arguments)}"


def fails(folder):
    raise AssertionError("off by [2]\nand more")


def lacks(folder):
    raise NotRun("no such device")


def crashes(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def ends(folder):
    os._exit(3)


def hangs(folder):
    """Starts a child process, which must not outlive the check."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(600)


def meets(folder, own, other):
    """Passes if the other check runs at the same time."""
    (folder / own).touch()
    while not (folder / other).exists():
        time.sleep(0.05)
    return "met"


def is_after(folder, before, own):
    if before and not (folder / before).exists():
        raise AssertionError(f"{before} has not ended")
    (folder / own).touch()
    return os.environ["OMP_NUM_THREADS"]


def check(name, *arguments, limit_s=60.0):
    return Check(name, f"{HERE}:{name}", arguments, limit_s)


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(schedule, "_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu-check")
    checks = (check("passes", "one", "two"), *map(check, ("fails", "lacks", "crashes", "ends")))
    checks = (*checks, check("hangs", limit_s=4.0))
    streamed = []
    rows = Session(folder, 600, on_row=streamed.append).run([Phase("all", (checks,))])
    assert streamed == rows
    assert (folder / "passes.json").read_text() == "its own"
    assert "AssertionError: off by [2]" in log_of(checks[1], folder).read_text()
    child = (folder / "child").read_text()
    deadline = time.monotonic() + 60
    while not (killed := _is_dead(child)) and time.monotonic() < deadline:  # the kernel may take a while
        time.sleep(0.05)
    assert killed
    write_results(folder / "new/check.json", rows[::-1], [*checks, check("later")], folder)
    return {row.name: row for row in rows}, json.loads((folder / "new/check.json").read_text())


def _is_dead(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("name", "result", "reason", "figure"),
    [
        ("passes", "passed", "", "with one and two"),
        ("fails", "FAILED", "AssertionError: off by [2]", ""),
        ("lacks", "not run", "no such device", ""),
        ("crashes", "FAILED", "killed by SIGSEGV", ""),
        ("ends", "FAILED", "ended with exit code 3", ""),
        ("hangs", "FAILED", "not finished after 4 s", ""),
    ],
)
def test_each_outcome_becomes_a_row(rows, name, result, reason, figure):
    row = rows[0][name]
    assert (row.result, row.reason, row.figure) == (result, reason, figure)


def test_failures_decide_the_exit_code(rows):
    by_name, _ = rows
    assert exit_code([by_name["passes"], by_name["lacks"]]) == 0
    for name in ("fails", "crashes", "ends", "hangs"):
        assert exit_code([by_name["passes"], by_name[name]]) == 1


def test_the_table_and_the_file_have_every_row(rows):
    by_name, written = rows
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(table(list(by_name.values()), title="a machine"))
    text = console.export_text()
    for words in ("a machine", "with one and two", "FAILED: AssertionError: off by [2]", "not run: no such device"):
        assert words in text
    assert [row["name"] for row in written["rows"]] == list(by_name)
    assert written["to_come"] == ["later"]
    failed = written["rows"][1]
    assert any("raise AssertionError" in line for line in failed["log"])
    assert failed["started_s"] >= written["rows"][0]["ended_s"] > written["rows"][0]["started_s"]


def test_the_file_has_stack_measurements_and_metrics(tmp_path):
    write_json(tmp_path / "stack.json", {"device": None})
    write_json(tmp_path / "measured/bf16.json", {"rows": {}})
    for run, size in (("run", 20), ("too_long", 4_000_000)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text(f'{{"loss": "{"x" * size}"}}\n' * 2)
    write_results(tmp_path / "out.json", [], [], tmp_path)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["stack"] == {"device": None}
    assert written["measurements"] == {"bf16": {"rows": {}}}
    assert list(written["metrics"]) == ["run"]
    assert len(written["metrics"]["run"]) == 2


def test_the_end_of_a_log_is_shown(tmp_path):
    log = tmp_path / "log"
    assert last_lines(log, lines=2, size=100) == []
    log.write_text("first\n" + "x" * 50 + "\n10 %\r50 %\r100 %\nlast")
    assert last_lines(log, lines=2, size=1000) == ["100 %", "last"]
    assert last_lines(log, lines=9, size=8) == ["0 %", "last"]


@pytest.mark.parametrize(("end_s", "reason"), [(0.0, "no time left"), (2.0, "no time left to finish")])
def test_without_time_a_check_is_not_run(tmp_path, end_s, reason):
    row = Session(tmp_path, 600).run_check(check("hangs"), end_s=end_s, threads=1)
    assert (row.result, row.reason) == ("not run", reason)


def test_an_interruption_ends_running_checks_and_starts_no_others(tmp_path):
    stop = Event()
    Timer(2.0, stop.set).start()
    started = time.monotonic()
    rows = Session(tmp_path, 600, stop).run([Phase("all", ((check("passes", "one"), check("hangs"), check("fails")),))])
    assert [(row.result, row.reason) for row in rows[1:]] == [("not run", "interrupted")] * 2
    assert time.monotonic() - started < 60


def test_an_interrupted_program_writes_its_results(tmp_path):
    """SIGTERM while the first check runs, as at the end of a job."""
    output = tmp_path / "out.json"
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu", "--only", "log-probabilities", "--output", str(output)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("gpu-check-*/*.log")) and time.monotonic() < deadline:
        time.sleep(0.02)
    program.terminate()
    said, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    written = json.loads(output.read_text())
    assert [(row["result"], row["reason"]) for row in written["rows"]] == [("not run", "interrupted")] * 2
    assert "not run: interrupted" in " ".join(said.split())


def test_lanes_run_side_by_side_and_phases_one_after_another(tmp_path, many_cores):
    lanes = ((check("meets", "a", "b"),), (check("meets", "b", "a"), check("is_after", "b", "c")))
    phases = [Phase("first", lanes), Phase("second", ((check("is_after", "c", "d"),),), alone=True)]
    rows = Session(tmp_path, 600).run(phases)
    assert [(row.name, row.result) for row in rows] == [
        (name, "passed") for name in ("meets", "meets", "is_after", "is_after")
    ]
    # two lanes share the cores; the last has them to itself
    assert [row.figure for row in rows[2:]] == ["8", "16"]


def test_a_lane_continues_after_a_failure(tmp_path, many_cores):
    rows = Session(tmp_path, 600).run([Phase("all", ((check("fails"), check("passes", "one")), (check("lacks"),)))])
    assert [row.result for row in rows] == ["FAILED", "passed", "not run"]


@pytest.mark.parametrize(("cores", "at_a_time", "threads"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (16, 7, 2), (64, 7, 9)])
def test_as_many_lanes_as_there_are_cores_for(monkeypatch, cores, at_a_time, threads):
    monkeypatch.setattr(schedule, "_cores", lambda: cores)
    phase = Phase("p", tuple((check("passes"),) for _ in range(7)))
    assert (lanes_at_a_time(phase), threads_of_check(phase)) == (at_a_time, threads)
    alone = Phase("p", phase.lanes, alone=True)
    assert (lanes_at_a_time(alone), threads_of_check(alone)) == (1, cores)


@pytest.mark.parametrize(("gpu", "ends_s"), [("/bin/nvidia-smi", [50.0, 100.0]), (None, [100.0, 100.0])])
def test_measurements_have_reserved_time_on_a_gpu(monkeypatch, gpu, ends_s):
    monkeypatch.setattr(schedule.shutil, "which", lambda name: gpu)
    phases = [Phase("a", (), until=0.5), Phase("b", (), until=0.5)]
    assert [end_of(phase, phases, limit_s=100) for phase in phases] == ends_s


def test_a_selection_leaves_no_empty_lane():
    phases = selected(PHASES, lambda check: "FP8" in check.name)
    checks = checks_of(phases)
    assert 4 < len(checks) < len(checks_of(PHASES))
    assert all("FP8" in check.name for check in checks)
    assert all(lane for phase in phases for lane in phase.lanes)
    assert selected(PHASES, lambda check: False) == []


def test_bounds_and_nan_exceeds_every_bound():
    assert bounded("error", 1e-3, 1e-3) == "error 1.0e-03 (bound 1.0e-03)"
    for error in (2e-3, float("nan")):
        with pytest.raises(AssertionError, match="bound"):
            bounded("error", error, 1e-3)
    with pytest.raises(AssertionError, match="bound"):
        bounded("error", 1e-3, float("nan"), ceiling=1.0)


def test_a_ceiling_catches_a_bound_that_is_as_wrong_as_the_error():
    assert bounded("error", 1e-3, 2e-3, ceiling=1.0) == "error 1.0e-03 (bound 2.0e-03)"
    with pytest.raises(AssertionError, match=r"5.0e-01 \(bound 1.0e-02"):
        bounded("error", 0.5, 2 * 0.5, ceiling=1e-2)


def test_a_control_must_be_above_the_bound():
    controls = {"zeros": 1.0, "shuffled": 0.5}
    assert bounded("error", 1e-3, 2e-3, controls=controls) == "error 1.0e-03 (bound 2.0e-03; control: shuffled 5.0e-01)"
    for passing in (2e-3, 0.0, float("nan")):
        with pytest.raises(AssertionError, match="lets a control pass: shuffled"):
            bounded("error", 1e-3, 2e-3, controls={**controls, "shuffled": passing})
    # the check's own error is reported first
    with pytest.raises(AssertionError, match=r"^error 3.0e-03"):
        bounded("error", 3e-3, 2e-3, controls={"zeros": 0.0})


def test_every_listed_check_exists():
    checks = checks_of(PHASES)
    assert len({log_of(check, ROOT) for check in checks}) == len(checks) >= 20
    for item in checks:
        module, _, name = item.target.partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f"\ndef {name}(folder: Path" in source, item.target


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matrix products"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128", "matrix products"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "attention"),
        ("triton_tem_fused_flex_attention_backward_zeros_1", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention"),
        ("void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctorMaster<...>>", "optimizer"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "communication"),
        ("transformer_engine::cast_transpose_fused_kernel_notaligned<...>", "casts to FP8"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", OTHER),
        ("triton_poi_fused_mul_silu_0", OTHER),
    ],
)
def test_kernels_have_a_kind(name, kind):
    assert kind_of(name) == kind


def test_time_without_a_kernel_is_idle():
    """0-2 gemm, 1-4 nccl in parallel, idle until 6, 6-7 gemm with 6.5-6.7 elementwise inside, idle until 10."""
    spans = [("nvjet_a", 6, 7), ("ncclDevKernel", 1, 4), ("nvjet_a", 0, 2), ("vectorized_add", 6.5, 6.7)]
    found = summary([Kernel(*span) for span in spans], wall_s=10.0)
    assert found["busy_s"] == pytest.approx(5.0)
    assert found["idle_s"] == pytest.approx(5.0)
    kinds = found["kinds"]
    assert [kinds[name] for name in ("matrix products", "communication", OTHER)] == pytest.approx([3.0, 3.0, 0.2])
    assert kinds["attention"] == kinds["optimizer"] == 0.0
    assert [(top["name"], top["calls"]) for top in found["top"]] == [
        ("nvjet_a", 2), ("ncclDevKernel", 1), ("vectorized_add", 1),
    ]  # fmt: skip
    assert in_words(found) == "idle 50%, communication 30%, matrix products 30%, elementwise and other 2%"


def test_nothing_measured_is_all_idle():
    found = summary([], wall_s=2.0)
    assert (found["idle_s"], found["num_kernels"], found["top"]) == (2.0, 0, [])


def test_only_gpu_activity_is_read_from_a_trace():
    events = [
        {"ph": "X", "cat": "kernel", "name": "nvjet", "ts": 2_000_000, "dur": 500_000},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1_000_000, "dur": 9},
        {"ph": "X", "cat": "gpu_memset", "name": "Memset (Device)", "ts": 0, "dur": 1},
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 1},
        {"ph": "M", "name": "process_name"},
    ]
    kernels = kernels_of_trace({"traceEvents": events})
    assert kernels == [Kernel("nvjet", 2.0, 2.5), Kernel("Memset (Device)", 0.0, 1e-6)]


def test_a_row_records_its_seconds():
    assert Row("a", "passed", "", "", 2.0, 5.5).seconds == 3.5
