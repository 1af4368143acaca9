"""Ports for servers that tests start."""

import contextlib
import socket


def find_free_ports(count: int) -> list[int]:
    """Find as many ports, all different, that nobody listens on."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def find_free_port() -> int:
    """Find a port that nobody listens on."""
    return find_free_ports(1)[0]
