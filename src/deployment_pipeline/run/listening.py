"""The addresses to serve on. gRPC's are checked before gRPC takes them, which would not say why it cannot."""

import contextlib
import socket
from collections.abc import Iterator, Sequence

from deployment_pipeline.edge.listeners import Listener


class CannotListen(Exception):
    """The address cannot be bound; the text says why."""


def check(listeners: Sequence[Listener]) -> None:
    """Raises CannotListen if an address is taken or is none of this machine's."""
    for listener in listeners:
        _bind(listener.address, socket.SO_REUSEADDR).close()


@contextlib.contextmanager
def held(listeners: Sequence[Listener]) -> Iterator[Sequence[Listener]]:
    """Keep the addresses for the workers that will share them. Yields the listeners with their ports. Raises
    CannotListen."""
    check(listeners)
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(_shared(listener.address)) for listener in listeners]
        ports = [holder.getsockname()[1] for holder in holders]
        yield [listener.on(port) for listener, port in zip(listeners, ports, strict=True)]


def _shared(address: str) -> socket.socket:
    try:
        return _bind(address, socket.SO_REUSEPORT)
    except CannotListen:
        # Connections of a server that has just ended linger there; that server shared its port with nobody.
        return _bind(address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def alone(listen: str, variable: str) -> socket.socket:
    """What listens there, and shares the port with nobody. variable: what set it. Raises CannotListen."""
    listener = _bind(listen, socket.SO_REUSEADDR, variable=variable)
    try:
        listener.listen()  # or somebody else could bind it, too
    except OSError as error:
        listener.close()
        raise _cannot_listen(listen, variable, error) from error
    return listener


def _bind(listen: str, *options: int, variable: str = "DP_LISTEN") -> socket.socket:
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
        raise _cannot_listen(listen, variable, error) from error
    return bound


def _cannot_listen(listen: str, variable: str, error: OSError) -> CannotListen:
    return CannotListen(f"cannot listen on {listen} ({variable}): {error.strerror}")
