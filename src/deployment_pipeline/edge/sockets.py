"""The TCP connections of a port of this process, hung up."""

import contextlib
import os
import socket
import stat


def hang_up(port: int) -> None:
    """Close the port to new connections, and close those that there are. gRPC is not told: it finds the end
    of each, and nothing that it writes from now on reaches anybody."""
    _shut_down(port)  # what listens, too
    _shut_down(port)  # what was accepted meanwhile


def _shut_down(port: int) -> None:
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            descriptor = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                continue
            with socket.socket(fileno=descriptor) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                    one.shutdown(socket.SHUT_RDWR)
