"""What a forked engine must not keep of the server that it was forked from: the sockets that clients come to.

vLLM's server asks at its end which process uses its port. An engine that had inherited the socket would be that
process; one that is just ending, which nobody can ask for its command line, would end the server with an error.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def close_servers_in_children() -> None:
    """From now on close, in every process that this one forks, TCP sockets that listen or will (vLLM binds its own
    before it starts engines, and listens when they are up), and the connections of their clients."""
    os.register_at_fork(after_in_child=_close)


def _close() -> None:
    local = dict(_tcp_sockets())
    ports = {port for port, connected in local.values() if not connected}
    for number, (port, _) in local.items():
        if port in ports:
            os.close(number)


def _tcp_sockets() -> list[tuple[int, tuple[int, bool]]]:
    """(descriptor, (its own port, whether it is connected)) of this process's TCP sockets that have a port."""
    out = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            number = int(entry.name)
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(number)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM and (
                        port := copy.getsockname()[1]):
                    out.append((number, (port, _connected(copy))))
        except OSError:  # closed in the meantime: that of the listing itself
            continue
    return out


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
