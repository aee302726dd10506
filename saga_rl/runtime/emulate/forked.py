"""What a forked engine must not keep of the server that it was forked from: its listening sockets.

vLLM's server asks at its end which process uses its port. An engine that had inherited the socket would be that
process; one that is just ending, which nobody can ask for its command line, would end the server with an error.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def close_listeners_in_children() -> None:
    """From now on close listening TCP sockets in every process that this one forks."""
    os.register_at_fork(after_in_child=_close_listeners)


def _close_listeners() -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            number = int(entry.name)
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(number)) as copy:
                listens = copy.family in (socket.AF_INET, socket.AF_INET6) and bool(
                    copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            if listens:
                os.close(number)
        except OSError:  # closed in the meantime: that of the listing itself
            continue
