"""Run one command, show what it says and log it in a file."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

# How long a stage may take to save and to end after Ctrl-C or SIGTERM before it is killed.
_GRACE_S = 60


def run_and_log(command: list[str], log: Path) -> int:
    """Run `command`; its output goes to our standard output, as it comes, and to `log`.

    On a terminal the command sees a terminal as well, so that its progress bars move. Ctrl-C and SIGTERM reach it
    before they end us, and what it then says is still shown and logged.

    Returns:
        The exit code of the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = _terminal() if sys.stdout.isatty() else os.pipe()
    # Without this a Python that writes into a pipe keeps its lines back.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    with _ends_before_us(process), log.open("wb") as logged:
        for piece in _pieces(ours):
            _write(sys.stdout.buffer, piece)
            _write(logged, piece)
        os.close(ours)
        return process.wait()


def _terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    return ours, theirs


def _pieces(source: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(source, 65536)
        except OSError:  # how Linux says that nobody holds the other end of a terminal any more
            return
        if not piece:
            return
        yield piece


def _write(target: BinaryIO, piece: bytes) -> None:
    target.write(piece)
    target.flush()


@contextmanager
def _ends_before_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the command save and end when we are asked to; end ourselves after it."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in before.items():  # the second time we end at once
            signal.signal(each, handler)
        if number == signal.SIGTERM:  # Ctrl-C reaches it from the terminal, as it reaches us
            process.terminate()
        killer = threading.Timer(_GRACE_S, process.kill)
        killer.daemon = True
        killer.start()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
