"""What is listened on, and how callers speak there."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Mode(StrEnum):
    PLAIN = "plain"
    TLS = "tls"
    MTLS = "mtls"


class Listener(NamedTuple):
    """address: HOST:PORT."""

    mode: Mode
    address: str

    def __str__(self) -> str:
        return f"{self.mode}://{self.address}"

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def on(self, port: int) -> "Listener":
        """The same with another port: the one that was taken for 0."""
        return self._replace(address=f"{self.host}:{port}")


def shown(listeners: Sequence[Listener]) -> str:
    """As people read it: HOST:PORT of a plain one, if it is the only one; else MODE://HOST:PORT of each."""
    match listeners:
        case [Listener(Mode.PLAIN, address)]:
            return address
    return ",".join(map(str, listeners))
