"""What a result was computed by: versions of packages, and the commit of our own code."""

import subprocess
from importlib import metadata
from pathlib import Path

# The packages whose version can change a result; a manifest names those that are installed.
_RESULT_PACKAGES = (
    "torch", "nemo-aligner", "nemo_toolkit", "megatron-core", "transformer_engine", "apex", "lightning",
    "transformers", "tokenizers", "numpy",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    found = {}
    for name in _RESULT_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source_commit() -> str | None:
    """The commit of the checkout that this code runs from, with `+changes` if it differs; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # git is not there, or the checkout has no commit yet
        return None


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()
