"""The limit of Postgres: pgbench makes the very calls that the service makes, one by one."""

import re
import subprocess

from benchmarks.rig import Rig, pgbench
from deployment_pipeline.postgres import store
from deployment_pipeline.postgres.statements import Statement

CLIENTS = 16
THREADS = 2
NO_REQUEST = "'auto-' || gen_random_uuid()", "NULL", "10000"


def script(prefix: str, pipelines: int) -> str:
    each = pipelines // CLIENTS
    pipeline = f"'{prefix}-' || :n::integer"
    trigger = ("gen_random_uuid()", pipeline, "'1.0.0'", "'REJECT'", "'{}'", "''", *NO_REQUEST)
    advance = (":id::uuid", "NULL", "''", *NO_REQUEST)
    # No two clients use a pipeline at the same time.
    lines = [
        f"\\set n :client_id * {each} + random(0, {each - 1})",
        f"{_filled(store.TRIGGER, trigger)} \\gset",
    ]
    lines += [f"{_filled(store.ADVANCE, advance)};"] * 4
    return "\n".join(lines) + "\n"


def lives_per_second(rig: Rig, prefix: str, pipelines: int, seconds: float) -> float:
    path = rig.folder / "life.sql"
    path.write_text(script(prefix, pipelines))
    said = subprocess.run(
        [
            *(pgbench(), "--no-vacuum", "--protocol=prepared", f"--file={path}"),
            *(f"--client={CLIENTS}", f"--jobs={THREADS}", f"--time={max(1, round(seconds))}"),
            rig.database_url,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"tps = ([\d.]+)", said.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", said.stdout)
    if said.returncode or not found or (failed and int(failed[1])):
        raise SystemExit(f"pgbench failed: {said.stdout}{said.stderr}")
    return float(found[1])


def _filled(statement: Statement, values: tuple[str, ...]) -> str:
    return statement.one.decode().replace("%s", "{}").format(*values)
