"""Files and folders exist whole or not at all."""

import pytest

from nemo_minordpo.files import publish, staging_folder, whole_file


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as out:
        out.write("größe")
        assert not path.exists()
    assert path.read_bytes() == "größe".encode()
    with whole_file(path, "wb") as out:
        out.write(b"\x00")
        assert path.read_text(encoding="utf-8") == "größe"
    assert path.read_bytes() == b"\x00"
    assert names_in(path.parent) == ["file.txt"]


def test_an_error_while_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def write_half():
        with whole_file(path) as out:
            out.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["file.txt"]


def test_simultaneous_writers_of_one_file_do_not_collide(tmp_path):
    path = tmp_path / "file.txt"
    with whole_file(path) as first:
        first.write("first")
        with whole_file(path) as second:
            second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_publishing_replaces_what_exists(tmp_path, before, kind):
    output = tmp_path / "output"
    if before == "file":
        output.write_text("old")
    if before == "folder":
        output.mkdir()
        (output / "old").touch()
    with staging_folder(output) as staging:
        staged = staging / "new"
        if kind == "folder":
            staged.mkdir()
        (staged / "content" if kind == "folder" else staged).write_text("new")
        publish(staged, output)
    assert (output / "content" if kind == "folder" else output).read_text() == "new"
    assert kind == "file" or names_in(output) == ["content"]
    assert names_in(tmp_path) == ["output"]
