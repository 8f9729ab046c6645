"""`--push`: huggingface_hub's own client against a small hub on this machine, one that is not there, and offline."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.convert.hub import push, require_repo_name
from nemo_minordpo.errors import UserError


class Hub(ThreadingHTTPServer):
    """A hub with the repository me/model, as far as `push` needs one; `files` is None until it is created."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] | None = None
        self.private = False
        self.refusal: int | None = None  # status of the answer to creating the repository
        self.accepts_cards = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            errors = [] if self.server.accepts_cards else [{"message": "license is not allowed"}]
            self._answer({"errors": errors, "warnings": []}, status=400 if errors else 200)
        elif self.path == "/api/models/me/model/preupload/main":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif self.path == "/api/models/me/model/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": self.path}, status=404)

    def do_GET(self) -> None:
        names = self.server.files
        if names is None:
            self._answer({"error": "Repository not found"}, status=404)
        elif self.path.startswith("/api/models/me/model/tree/main"):
            self._answer([{"type": "file", "path": name, "size": 1, "oid": "1"} for name in names])
        else:
            files = [{"rfilename": name} for name in names]
            self._answer({"id": "me/model", "private": self.server.private, "siblings": files})

    def _create(self, wanted: dict[str, Any]) -> None:
        if self.server.refusal is not None:
            self._answer({"error": "Invalid\nname or password."}, status=self.server.refusal)
            return
        status = 200 if self.server.files is None else 409
        if self.server.files is None:
            self.server.files, self.server.private = {".gitattributes": b""}, wanted.get("private", False)
        self._answer({"url": f"{self.server.url}/me/model", "name": "me/model"}, status=status)

    def _commit(self, steps: list[dict[str, Any]]) -> None:
        assert self.server.files is not None
        for step in steps:
            value = step["value"]
            if step["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            if step["key"] == "deletedFile":
                del self.server.files[value["path"]]
        self._answer({"commitUrl": f"{self.server.url}/me/model/commit/1", "commitOid": "1"})

    def _answer(self, content: Any, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    reset_sessions()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    reset_sessions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("---\nlibrary_name: transformers\n---\n# mine\n")
    (tmp_path / "out/model.safetensors").write_bytes(b"new")
    (tmp_path / "out/manifest.json").write_text('{"inputs": {"/home/me/base.nemo": "..."}}')
    return tmp_path / "out"


PUSHED = [".gitattributes", "README.md", "model.safetensors"]


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository(hub: Hub, folder: Path, private: bool) -> None:
    assert push(folder, "me/model", private=private) == f"{hub.url}/me/model"
    assert hub.files is not None
    assert sorted(hub.files) == PUSHED
    assert hub.files["model.safetensors"] == b"new"
    assert hub.private is private


def test_an_empty_repository(hub: Hub, folder: Path) -> None:
    hub.files = {".gitattributes": b"theirs"}
    push(folder, "me/model")
    assert sorted(hub.files) == PUSHED
    assert hub.files[".gitattributes"] == b"theirs"


def test_files_of_others_are_replaced_only_on_request(hub: Hub, folder: Path) -> None:
    theirs = {".gitattributes": b"", "model-00001-of-00002.safetensors": b"old", "README.md": b"old"}
    hub.files = dict(theirs)
    with pytest.raises(UserError, match=r"holds 2 files already \(README.md, model-00001.*--overwrite"):
        push(folder, "me/model")
    assert hub.files == theirs
    push(folder, "me/model", overwrite=True)
    # nothing stays that could be read in place of the new weights
    assert sorted(hub.files) == PUSHED
    assert b"# mine" in hub.files["README.md"]


def test_nothing_private_goes_to_a_public_repository(hub: Hub, folder: Path) -> None:
    hub.files = {".gitattributes": b""}
    with pytest.raises(UserError, match="it exists and is public"):
        push(folder, "me/model", private=True, overwrite=True)
    assert hub.files == {".gitattributes": b""}


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_of_the_hub_is_one_line(hub: Hub, folder: Path, status: int) -> None:
    hub.refusal = status
    with pytest.raises(UserError, match=f"not pushed to me/model: .*{status}.*upload me/model") as error:
        push(folder, "me/model")
    assert "\n" not in str(error.value)


def test_a_card_that_the_hub_refuses(hub: Hub, folder: Path) -> None:
    hub.accepts_cards = False
    with pytest.raises(UserError, match=r"not pushed to me/model: ValueError: Invalid metadata.*license is not"):
        push(folder, "me/model")
    assert hub.files == {".gitattributes": b""}


def test_no_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"not pushed to me/model: no connection to http://127.0.0.1:9; ") as error:
        push(folder, "me/model")
    assert "\n" not in str(error.value)


def test_offline(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
    with pytest.raises(UserError, match="not pushed to me/model: OfflineModeIsEnabled"):
        push(folder, "me/model")
    assert hub.files is None


def test_the_advice_keeps_a_private_folder_private(hub: Hub, folder: Path) -> None:
    hub.refusal = 500
    with pytest.raises(
        UserError, match=f"`huggingface-cli upload --private me/model {folder} --exclude manifest.json`"
    ):
        push(folder, "me/model", private=True)


def test_no_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="no token: set HF_TOKEN"):
        push(folder, "me/model")
    assert hub.files is None


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("CAS service error"), UserError), (KeyError("x"), KeyError)]
)
def test_a_transfer_that_breaks_and_a_bug(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    with pytest.raises(raised):
        push(folder, "me/model")


@pytest.mark.parametrize("name", ["model", "me/model/x", "me/mo del", "-me/model", "hf/my..model", ""])
def test_names_that_the_hub_does_not_allow(name: str) -> None:
    with pytest.raises(UserError, match=f"^--push={name}: "):
        require_repo_name(name, option="--push")


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["export-hf", *map(str, arguments)])


def test_the_command_exports_and_pushes(hub: Hub, base: Path, tmp_path: Path) -> None:
    result = command(base, tmp_path / "out", "--push", "me/model")
    assert result.exit_code == 0, result.output
    assert f"pushed to {hub.url}/me/model" in result.output
    assert hub.files is not None
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(hub.files) == {".gitattributes", *(written - {"manifest.json"})}
    assert "manifest.json" in written


def test_the_export_stays_if_it_cannot_be_pushed(hub: Hub, base: Path, tmp_path: Path) -> None:
    hub.refusal = 401
    result = command(base, tmp_path / "out", "--push", "me/model")
    assert result.exit_code == 2
    assert "is exported, but not pushed to me/model" in result.output
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "model"], "--push=model: OWNER/NAME is needed"),
        (["--private"], "--private is for --push"),
        (["--base-model", "hf/my/base"], "--base-model=hf/my/base: "),
    ],
)
def test_refused_before_anything_is_exported(base: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = command(base, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
