"""Identify the code behind a result: package versions, and the commit and a digest of our own code."""

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

# Packages with versions that can change a result; a manifest lists those that are installed.
_RESULT_PACKAGES = (
    "torch", "nemo-aligner", "nemo_toolkit", "megatron-core", "megatron-bridge", "transformer_engine", "apex",
    "lightning", "transformers", "tokenizers", "numpy",
)  # fmt: skip
# Stages, which never import one another, and the code that starts them.
_STAGES = ("prepare", "convert", "train", "evaluate", "report")
_ABOVE_STAGES = ("sweep", "inspect", "nemo_rl", "commands", "__main__.py")


def code_version(stage: str) -> str:
    """Identifies everything that a stored result depends on: the stage's code and all packages."""
    return ", ".join([code_digest(stage), *(f"{name} {value}" for name, value in installed_versions().items())])


def code_digest(stage: str) -> str:
    """Digest of all modules that a stage can import: its own, and those that belong to no stage.

    Installations of the same version have the same digest. Even changes to comments change it.

    Args:
        stage: name of a package in `nemo_minordpo`.
    """
    assert stage in _STAGES, stage
    root, others = Path(__file__).resolve().parent, {*_STAGES, *_ABOVE_STAGES} - {stage}
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        if name.split("/")[0] not in others:
            content = (root / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:24]


def installed_versions() -> dict[str, str]:
    found = {}
    for name in _RESULT_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """The commit of the checkout that this code runs from, with `+changes` if modified; None if installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return None


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()
