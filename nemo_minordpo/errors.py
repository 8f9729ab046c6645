"""Errors that a user can fix, and the check for unknown upstream versions."""

import errno
from typing import Any

# Refused by the machine (EEXIST: a file is in the way of a folder). ENOENT is not listed: it may as well be a bug.
_OF_THE_MACHINE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC,
        errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip


class UserError(ValueError):
    """Wrong input, setting or file; the message says what, where and what to do.

    Commands print only the message and exit with code 2. Any other exception is a bug and keeps its traceback, except
    for :func:`refused_by_machine`.
    """


def refused_by_machine(error: OSError) -> str:
    """`PATH: reason` if the machine refused access: permissions, a full disk, a folder in place of a file.

    "" for any other error.
    """
    if error.errno not in _OF_THE_MACHINE or error.filename is None:
        return ""
    paths = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    return f"{paths}: {error.strerror}"


def one_line(error: Exception) -> str:
    """`Type: message` of another package's error, which may have several lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def require_upstream(owner: Any, name: str) -> None:
    """Fail if an attribute of NeMo or Megatron-Core that is about to be replaced no longer exists.

    Args:
        owner: a module or class.
        name: the attribute's name.

    Raises:
        ImportError: `owner` has no such attribute.
    """
    if not hasattr(owner, name):
        raise ImportError(f"{owner.__name__}.{name} is gone: this project does not support the installed version")
