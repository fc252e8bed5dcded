"""TCP ports for servers that tests start, and for addresses at which nothing answers."""

import os
import socket
from itertools import count

_FIRST, _COUNT = 20_000, 12_000
"""Below the ports that Linux, macOS and Windows give to connections and to servers that ask for any."""
_offsets = count(os.getpid() * 97)


def free_port() -> int:
    """A port of this machine that nothing listens on and that no other test is given soon.

    A port of the system's own choice can be given to another process as soon as it is closed here.
    """
    while True:
        port = _FIRST + next(_offsets) % _COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
