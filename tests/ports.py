"""Ports on which ranks meet."""

import socket


def port_for_ranks() -> int:
    """A port below the ephemeral range, so that neither it nor the next ones are given to other processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return 20000 + free.getsockname()[1] % 8000
