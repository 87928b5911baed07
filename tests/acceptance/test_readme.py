"""The README's commands do what it says they do."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from support.servers import server
from support.stores import ROOT, Stores, scratch_folder

README = (ROOT / "README.md").read_text()
# Prints the shell's variables and functions after a command, so that the next one can have them.
SEPARATOR = "--- the shell ---"


@dataclass
class Command:
    text: str
    output: list[str]


def commands() -> Iterator[Command]:
    """What stands behind a `$`, and the lines below it."""
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        command = None
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command
                command = Command(line[2:], [])
            elif command:
                command.output.append(line)
        if command:
            yield command


def appears(line: str, printed: str) -> bool:
    """Whether a line was printed; an ellipsis in it stands for anything."""
    pattern = ".*".join(map(re.escape, line.rstrip().split("…")))
    return re.search(f"^{pattern}", printed, re.MULTILINE) is not None


def test_the_commands_do_what_is_written(stores: Stores) -> None:
    with server(stores) as running, scratch_folder() as folder:
        state = ""
        for command in commands():
            text = command.text.replace("127.0.0.1:50051", running.address)
            text = text.replace("$PWD/.venv", str(ROOT / ".venv"))
            text = text.replace("--schema protos", f"--schema '{ROOT}/protos'")
            # A pipeline of its own for each run of the tests.
            text = text.replace('"shop"', f'"shop-{running.process.pid}"')
            result = subprocess.run(
                [
                    "bash",
                    "-c",
                    f"{state}\n{text}\necho '{SEPARATOR}'; declare -p ID 2>/dev/null; declare -f",
                ],
                cwd=folder,
                env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=30,
                check=False,
            )
            printed, _, state = result.stdout.partition(SEPARATOR)
            printed = printed.replace(f"shop-{running.process.pid}", "shop")
            for line in command.output:
                assert appears(line, printed), f"{command.text}\nprinted\n{printed}\nwithout\n{line}"
        assert running.stop() == 0
        assert not list(folder.iterdir()), "the README cleans up"


def test_a_server_that_is_not_up_is_said_to_be_so() -> None:
    [dp] = [command.text for command in commands() if command.text.startswith("dp() ")]
    result = subprocess.run(
        ["bash", "-c", f'{dp}\ndp GetPipeline \'{{"name": "shop"}}\''],
        cwd=ROOT,
        # Nobody listens there.
        env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "DP_LISTEN": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "connection refused" in result.stdout + result.stderr


def test_there_are_commands() -> None:
    found = list(commands())
    assert len(found) > 10
    assert sum(bool(command.output) for command in found) > 10
