"""A server that must know who calls: static tokens, and grants."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from deployment_pipeline.run.server import running
from deployment_pipeline.run.settings import Settings
from support.clients import TIMEOUT_SECONDS, Answer, TypedClient


def token(name: str) -> str:
    return f"dpt_{name}-secret"


@dataclass
class Files:
    """The files that say who there is and may do what, in a folder of the test."""

    folder: Path
    names: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.toml"

    @property
    def grants(self) -> Path:
        return self.folder / "grants.toml"

    def write_tokens(self, groups: Mapping[str, Sequence[str]]) -> None:
        """groups: of each name that there is."""
        self.tokens.write_text(
            "".join(
                f'[[token]]\nname = "{name}"\ngroups = {list(of)}\n'
                f'sha256 = "{hashlib.sha256(token(name).encode()).hexdigest()}"\n'
                for name, of in groups.items()
            ).replace("'", '"')
        )

    def write_grants(self, text: str) -> None:
        self.grants.write_text(text)


def grant(match: str, role: str, *pipelines: str, more: str = "") -> str:
    named = f"pipelines = {list(pipelines)}\n".replace("'", '"') if pipelines else ""
    return f'[[grant]]\nmatch = {{ {match} }}\nrole = "{role}"\n{named}{more}\n'


class As(TypedClient):
    """A client with somebody's token."""

    def __init__(self, channel: grpc.aio.Channel, name: str, *more: tuple[str, str]) -> None:
        super().__init__(channel)
        self.name = name
        self.id = f"token:{name}"
        self._metadata = (("authorization", f"Bearer {token(name)}"), *more)

    async def send(
        self,
        method: str,
        data: bytes,
        read: Any = bytes,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = TIMEOUT_SECONDS,
    ) -> Answer:
        return await super().send(method, data, read, (*self._metadata, *metadata), timeout)


@contextlib.asynccontextmanager
async def secured(settings: Settings, files: Files, **more: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Serve with these files, in this process."""
    own = {"tokens_file": files.tokens, "grants_file": files.grants, **more}
    async with (
        running(settings.model_copy(update=own)) as [listener],
        grpc.aio.insecure_channel(listener.address) as channel,
    ):
        yield channel
