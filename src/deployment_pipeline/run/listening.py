"""The address to serve on, checked before gRPC takes it: gRPC would not say why it cannot."""

import contextlib
import socket
from collections.abc import Iterator


class CannotListen(Exception):
    """The address cannot be bound; the text says why."""


def check(listen: str) -> None:
    """Raises CannotListen if the address is taken or is none of this machine's."""
    _bind(listen, socket.SO_REUSEADDR).close()


@contextlib.contextmanager
def held(listen: str) -> Iterator[int]:
    """Keep the address for the workers that will share it. Yields the port. Raises CannotListen."""
    check(listen)
    try:
        holder = _bind(listen, socket.SO_REUSEPORT)
    except CannotListen:
        # Connections of a server that has just ended linger there; that server shared its port with nobody.
        holder = _bind(listen, socket.SO_REUSEPORT, socket.SO_REUSEADDR)
    with holder:
        yield holder.getsockname()[1]


def _bind(listen: str, *options: int) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            for option in options:
                bound.setsockopt(socket.SOL_SOCKET, option, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise CannotListen(f"cannot listen on {listen} (DP_LISTEN): {error.strerror}") from error
    return bound
