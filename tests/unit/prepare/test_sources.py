import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from nemo_minordpo.prepare import rows as rows_module
from nemo_minordpo.prepare.sources import HubSet, find_sources

ROWS = [{"prompt": f"Frage {number}: \u00fc \u4e2d", "n": number, "nested": [{"a": None}]} for number in range(5)]


def _read(*names, **options):
    """(place, fields or the reason why there are none) per row."""
    found = []
    for source in find_sources(names, **options):
        for row in source.rows():
            try:
                found.append((row.place, row.fields()))
            except ValueError as error:
                found.append((row.place, str(error)))
    return found


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("rows.jsonl", _jsonl),
        ("rows.ndjson", _jsonl),
        ("rows.json", _jsonl),
        ("rows.jsonl.gz", lambda rows: gzip.compress(_jsonl(rows))),
        ("rows.json", lambda rows: json.dumps(rows, indent=2).encode()),
        ("rows.json", lambda rows: b" \n" + json.dumps(rows, ensure_ascii=False).encode() + b"\r\n"),
        ("rows.json.gz", lambda rows: gzip.compress(json.dumps(rows).encode())),
        ("bom.jsonl", lambda rows: b"\xef\xbb\xbf" + _jsonl(rows)),
        ("bom.json", lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode()),
        ("no_end.jsonl", lambda rows: _jsonl(rows).rstrip(b"\n")),
        ("windows.jsonl", lambda rows: _jsonl(rows).replace(b"\n", b"\r\n")),
    ],
)
def test_every_kind_of_file_gives_its_rows_and_their_places(tmp_path, name, encode):
    path = _write(tmp_path / name, encode(ROWS))
    assert _read(path) == [(f"{path}:{number}", row) for number, row in enumerate(ROWS, start=1)]


def test_parquet_rows_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BATCH_ROWS", 2)
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)
    assert _read(path) == [(f"{path}:{number}", row) for number, row in enumerate(ROWS, start=1)]


def test_blank_lines_are_skipped_but_counted_in_line_numbers(tmp_path):
    path = _write(tmp_path / "rows.jsonl", b'\n{"a": 1}\n  \r\n\t\n{"a": 2}')
    assert _read(path) == [(f"{path}:2", {"a": 1}), (f"{path}:5", {"a": 2})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "invalid JSON"),
        (b'{"a": "\x00"}', "invalid JSON"),
        (b'{"a": "\xe9"}', "not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), "invalid JSON"),
        (b"[1, 2]", "a JSON object was expected: found list"),
        (b"null", "found NoneType"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid JSON"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "line too long"),
    ],
)
def test_a_damaged_line_is_a_row_with_a_reason_and_its_neighbours_are_intact(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 1000 if b"xxx" in line else 1 << 20)
    path = _write(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    before, (place, found), after = _read(path)
    assert (before, after) == ((f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 3}))
    assert place == f"{path}:2"
    assert reason in found


def test_elements_that_are_not_objects_are_rows_with_a_reason(tmp_path):
    path = _write(tmp_path / "rows.json", '[{"a": 1}, 12, "b", null, [3], {"a": 2}]')
    rows = _read(path)
    assert [place for place, _ in rows] == [f"{path}:{number}" for number in range(1, 7)]
    assert [row for _, row in rows if isinstance(row, dict)] == [{"a": 1}, {"a": 2}]
    assert sum("an object" in row or "object was expected" in row for _, row in rows if isinstance(row, str)) == 4


def test_an_array_is_read_piece_by_piece(tmp_path, monkeypatch):
    from nemo_minordpo.prepare import json_text

    monkeypatch.setattr(json_text, "_BLOCK", 7)  # so that values, numbers and commas are split everywhere
    rows = [{"a": number * 1234567, "b": ["x" * number]} for number in range(40)]
    path = _write(tmp_path / "rows.json", json.dumps(rows, indent=1))
    assert [row for _, row in _read(path)] == rows


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.json", json.dumps(ROWS).encode()[:-30], "damaged at row 5"),
        ("cut.json", b'[{"a": 1}, {"a": 2}', "damaged at row 2"),
        ("open.json", b'[{"a": 1}', "damaged at row 1"),
        ("comma.json", b'[{"a": 1} {"a": 2}]', "damaged after row 1"),
        ("more.json", b'[{"a": 1}] {"a": 2}', "more text after the array of 1 rows"),
        ("latin.json", b'[{"a": "\xe9"}]', "not UTF-8 text"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("object.json", json.dumps({"data": ROWS}, indent=2).encode(), "a JSON object over several lines"),
        ("wide.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16 text"),
        ("cut.jsonl.gz", gzip.compress(_jsonl(ROWS * 100))[:-40], "damaged after row"),
        ("no.jsonl.gz", _jsonl(ROWS), "damaged after row 0"),
        ("empty.parquet", b"", "damaged parquet after row 0"),
        ("no.parquet", _jsonl(ROWS), "damaged parquet after row 0"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_named_in_the_error(tmp_path, name, data, reason):
    path = _write(tmp_path / name, data)
    with pytest.raises(ValueError, match=reason) as refusal:
        _read(path)
    assert str(path) in str(refusal.value)


def test_a_damaged_parquet_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS * 1000), path)
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:100] + bytes(50) + whole[150:], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows\.parquet"):
            assert len(_read(path)) != 5000


def test_parquet_text_that_is_not_utf8_rejects_only_its_row(tmp_path):
    texts = pyarrow.array([b"good", b"\xff\xfe", b"fine"], type=pyarrow.binary()).view(pyarrow.utf8())
    parquet.write_table(pyarrow.table({"a": texts}), tmp_path / "rows.parquet")
    first, (_, reason), last = _read(tmp_path / "rows.parquet")
    assert (first[1], last[1]) == ({"a": "good"}, {"a": "fine"})
    assert "cannot be decoded" in reason


def test_globs_and_folders_give_their_files_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl.gz", "data/.cache/d.jsonl", "data/README.md"):
        line = (json.dumps({"name": name}) + "\n").encode()
        _write(tmp_path / name, gzip.compress(line) if name.endswith(".gz") else line)
    _write(tmp_path / "data/dataset_infos.json", '{"about": 1}')
    assert [row["name"] for _, row in _read("data")] == ["data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl.gz"]
    assert [place for place, _ in _read("data/b.jsonl", "data/?.jsonl")] == ["data/b.jsonl:1", "data/a.jsonl:1"]
    assert len(_read("data/**/*.jsonl")) == 2


def test_a_folder_gives_the_files_of_one_split(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "eval-00000-of-00001.jsonl"):
        _write(tmp_path / "data" / name, json.dumps({"name": name}))
    assert [row["name"][:5] for _, row in _read(tmp_path)] == ["train", "train"]
    assert [row["name"][:5] for _, row in _read(tmp_path, split="eval")] == ["eval-"]
    with pytest.raises(ValueError, match="no file for the split 'test'"):
        _read(tmp_path, split="test")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jsonl", "none.jsonl: no such file"),
        ("none*.jsonl", "no such file"),
        ("notes.txt", "not a file of rows"),
        ("empty", "no file of rows in this folder"),
    ],
)
def test_names_without_rows_are_refused(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=reason):
        find_sources([name])


def test_a_hub_name_is_streamed_through_datasets(tmp_path, monkeypatch):
    # A folder laid out like a data set on the hub; the library reads both in the same way.
    for split in ("train", "test"):
        _write(tmp_path / "owner/name/data" / f"{split}.jsonl", _jsonl([{"split": split, **row} for row in ROWS]))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    source = HubSet(str(tmp_path / "owner/name"), None, "test")
    rows = list(source.rows())
    assert [row.fields() for row in rows] == [{"split": "test", **row} for row in ROWS]
    assert rows[2].place.endswith("owner/name:test:3")
    assert source.identity() == HubSet(str(tmp_path / "owner/name"), None, "test").identity()
    assert source.identity() != HubSet(str(tmp_path / "owner/name"), None, "train").identity()
    with pytest.raises(ValueError, match="no_split: cannot be read after row 0"):
        list(HubSet(str(tmp_path / "owner/name"), None, "no_split").rows())


def test_a_name_that_is_neither_local_nor_on_the_hub(monkeypatch):
    import datasets

    def refuse(*_arguments):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    (source,) = find_sources(["owner/name"])
    assert source == HubSet("owner/name", None, "train")
    with pytest.raises(ValueError, match=r"owner/name: no such file or folder here, .* ConnectionError: no network"):
        list(source.rows())
