"""Run one command; show its output and log it to a file."""

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

# After Ctrl-C or SIGTERM, a stage has this long to save and exit before it is killed.
_GRACE_S = 60


def run_and_log(command: list[str], log: Path) -> int:
    """Run `command`; its output goes to our standard output as it arrives, and to `log`.

    If we run on a terminal, so does the command, so that its progress bars work. Ctrl-C and SIGTERM are passed to it
    before they end us; its remaining output is still shown and logged.

    Returns:
        The command's exit code.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = _terminal() if sys.stdout.isatty() else os.pipe()
    # Without this, Python buffers its output to a pipe.
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
        except OSError:  # on Linux: the other end of the terminal is closed
            return
        if not piece:
            return
        yield piece


def _write(target: BinaryIO, piece: bytes) -> None:
    target.write(piece)
    target.flush()


@contextmanager
def _ends_before_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, let the command save and exit, then exit ourselves."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in before.items():  # a second signal ends us at once
            signal.signal(each, handler)
        if number == signal.SIGTERM:  # Ctrl-C reaches the command directly from the terminal
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
