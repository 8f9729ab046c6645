"""Ports for the rendezvous of ranks."""

import socket


def port_for_ranks() -> int:
    """Below the ephemeral ports, so that nobody else is given it or those that follow it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return 20000 + free.getsockname()[1] % 8000
