"""What `make run` and `make run-secure` print works as it is printed."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TextIO

import pytest

from support.servers import FREE_PORTS, Server
from support.stores import ROOT


class FirstTry(Server):
    """With stores of its own, in a folder that is there before and after it."""

    def __init__(self, log: TextIO, folder: Path, *more: str) -> None:
        self.arguments = ("serve", "--embedded", *more)
        super().__init__({**FREE_PORTS, "DP_DATA_DIR": str(folder / "data")}, log)
        self.printed = _whole(log.name)

    def commands(self) -> list[str]:
        """The indented lines."""
        text = "\n".join(line for line in self.printed.splitlines() if line.startswith("  "))
        return re.sub(r" \\\n\s+", " ", text).splitlines()


def _whole(path: str) -> str:
    """The greeting, once all of it is there."""
    while "Ctrl-C stops it." not in (text := Path(path).read_text()):
        pass
    return text


def run(command: str, setup: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", f"{setup}\n{command}"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(commands: list[str]) -> list[str]:
    """Of those that buf makes, one after the other."""
    setup = "\n".join(line for line in commands if "TOKEN=" in line)
    results = [run(command, setup) for command in commands if " buf curl " in f" {command.strip()} "]
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    return [result.stdout for result in results]


def test_the_first_try_asks_nobody_and_says_so(folder: Path, log: TextIO) -> None:
    server = FirstTry(log, folder)
    try:
        assert "NOBODY IS ASKED WHO THEY ARE" in server.printed
        assert "make run-secure" in server.printed
        [warning] = [line for line in server.printed.splitlines() if "there is no authentication" in line]
        assert json.loads(warning)["everybody_is"] == "admin"
        created, triggered, history = answers(server.commands())
        assert '"name": "shop"' in created
        assert '"status": "IN_PROGRESS"' in triggered
        assert '"version": "1.0.0"' in history
        assert "triggeredBy" not in history
    finally:
        assert server.stop() == 0


def test_the_secure_one_asks_for_a_token_and_is_the_same_after_a_restart(folder: Path, log: TextIO) -> None:
    secret = folder / "data" / "secure"
    server = FirstTry(log, folder, "--secure")
    try:
        assert "NOBODY IS ASKED" not in server.printed
        assert "there is no authentication" not in server.printed
        _, _, history = answers(server.commands())
        assert '"triggeredBy": "token:me"' in history
        files = {path.name: path.read_bytes() for path in secret.iterdir()}
        assert set(files) == {
            *("ca.pem", "server.pem", "server.key", "token", "tokens.toml", "grants.toml"),
        }
        assert {path.stat().st_mode & 0o077 for path in [secret, *secret.iterdir()]} == {0}
        assert files["token"].decode().strip() not in server.printed

        [create, *_] = [line for line in server.commands() if "CreatePipeline" in line]
        refused = run(create, "TOKEN=dpt_guess")
        assert "unauthenticated" in refused.stdout + refused.stderr
        assert run(create.replace(f"--cacert {secret}/ca.pem", "")).returncode != 0
    finally:
        assert server.stop() == 0
    server.start()
    try:
        assert {path.name: path.read_bytes() for path in secret.iterdir()} == files
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "problem"),
    [
        (("--secure",), {}, "--secure belongs to --embedded"),
        (
            ("--embedded", "--secure"),
            {"DP_TLS": "mtls", "DP_TOKENS_FILE": "/nowhere"},
            "unset DP_TLS, DP_TOKENS_FILE",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    folder: Path, arguments: tuple[str, ...], settings: dict[str, str], problem: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DP_")}
    ran = subprocess.run(
        [f"{ROOT}/.venv/bin/python", "-m", "deployment_pipeline", "serve", *arguments],
        env={**environment, **settings, "DP_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert problem in ran.stderr
    assert not (folder / "data").exists()
