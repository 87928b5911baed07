"""Answers that wait for their readers.

gRPC takes an answer of any size, and keeps it until the client lets it be sent: one that reads nothing would
fill the memory. Nothing ends such a call but its deadline, if the client set one, or the end of the
connection. So there is only so much room for long answers, half of it for any one connection, and a read that
finds none is refused. A change never is: it has been made.
"""

from deployment_pipeline.edge.answers import Context
from deployment_pipeline.refusals import Overloaded

LONG_BYTES = 16 * 1024
# Each byte is there twice, in Python and in the core. A page has up to 3 MiB.
ROOM_BYTES = 24 * 1024 * 1024
CONNECTION_BYTES = ROOM_BYTES // 2


class Unsent:
    def __init__(self) -> None:
        self._bytes = 0
        self._by_connection: dict[str, int] = {}

    def add(self, size: int, context: Context) -> None:
        """Take up room for a long answer until its call has ended. Raises Overloaded."""
        connection = context.peer()
        held = self._by_connection.get(connection, 0) + size
        if held > CONNECTION_BYTES or self._bytes + size > ROOM_BYTES:
            raise Overloaded
        self._bytes += size
        self._by_connection[connection] = held

        def sent(_: object) -> None:
            self._bytes -= size
            self._by_connection[connection] -= size
            if not self._by_connection[connection]:
                del self._by_connection[connection]

        context.add_done_callback(sent)  # type: ignore[arg-type]  # it gets the context
