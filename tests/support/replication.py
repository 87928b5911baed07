"""Stores that can be copied: a Postgres with a standby, and a Redis that replicas can reach."""

import os
from pathlib import Path

import redis as redis_client

from deployment_pipeline.run import embedded


class Postgres(embedded.Postgres):
    def copy_to(self, folder: Path) -> None:
        """Make `folder` the data of a standby of this one."""
        folder.mkdir(mode=0o700)
        if self._identity:
            os.chown(folder, self._identity["user"], self._identity["group"])
        copied = self._run(
            *("pg_basebackup", "-h", str(self.sockets), "-U", "postgres", "-D", str(folder)),
            *("-R", "-X", "stream", "--checkpoint=fast"),
        )
        assert copied.returncode == 0, copied.stderr
        for left in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (folder / left).unlink(missing_ok=True)

    def promote(self) -> None:
        promoted = self._run("pg_ctl", "promote", "-w", "-D", str(self.data))
        assert promoted.returncode == 0, promoted.stderr


class TCPRedis(embedded.Redis):
    """Listens on loopback, too."""

    def __init__(self, data: Path, port: int) -> None:
        self._port = port
        super().__init__(data)
        with redis_client.Redis.from_url(self.url) as client:
            client.ping()

    def launch(self, command: list[str], *arguments: object, **named: object) -> None:
        command[command.index("--port") + 1] = str(self._port)
        super().launch([*command, "--bind", "127.0.0.1"], *arguments, **named)  # type: ignore[arg-type]
