"""Errors that a user can put right, and the one that says an installed version is not known."""

import errno
from typing import Any

# What a machine refuses; EEXIST: a file where a folder is to be made. That one is missing may be a defect as well.
_OF_THE_MACHINE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC,
        errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip


class UserError(ValueError):
    """Wrong input, setting or file: says what, where and what to do.

    Commands print its message alone and exit with code 2. Every other exception is a defect of the program, and keeps
    its traceback, but for :func:`refused_by_machine`.
    """


def refused_by_machine(error: OSError) -> str:
    """`PATH: reason`, where a file or folder cannot be used as it is: permissions, a full disk, a folder for a file.

    Empty: something else.
    """
    if error.errno not in _OF_THE_MACHINE or error.filename is None:
        return ""
    paths = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    return f"{paths}: {error.strerror}"


def require_upstream(owner: Any, name: str) -> None:
    """Fail where a name of NeMo or Megatron-Core that is about to be replaced is not there any more.

    Args:
        owner: a module or class.
        name: of its attribute.

    Raises:
        ImportError: it has none.
    """
    if not hasattr(owner, name):
        raise ImportError(f"{owner.__name__}.{name} is gone: this project does not know the installed version")
