"""How a port's connections are hung up."""

import contextlib
import socket

from deployment_pipeline.edge import sockets

SECONDS = 5


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def test_the_connections_of_all_given_ports_end_and_no_others() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in listeners]
        clients = [stack.enter_context(connected(port)) for port in ports]
        served = [stack.enter_context(listener.accept()[0]) for listener in listeners]
        sockets.hang_up(frozenset(ports[:2]))
        assert [client.recv(1) for client in clients[:2]] == [b"", b""]
        served[2].send(b"x")
        assert clients[2].recv(1) == b"x"
        for port in ports[:2]:
            with contextlib.suppress(ConnectionRefusedError), connected(port):
                raise AssertionError("somebody listens there")
        stack.enter_context(connected(ports[2]))
