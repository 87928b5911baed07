"""The limit of Postgres: pgbench makes the very calls that the service makes, one by one."""

import re
import subprocess
from collections.abc import Mapping

from benchmarks.rig import Rig, pgbench
from deployment_pipeline.commands import AdvanceStage, Command, TriggerDeployment
from deployment_pipeline.postgres.changes import CHANGES

CLIENTS = 16
THREADS = 2
FRAME = {
    "request_id": "'auto-' || gen_random_uuid()",
    "digest": "NULL",
    "is_repeat": "false",
    "wait_ms": "10000",
}


def script(prefix: str, pipelines: int) -> str:
    each = pipelines // CLIENTS
    pipeline = f"'{prefix}-' || :n::integer"
    trigger = {
        "id": "gen_random_uuid()",
        "pipeline_name": pipeline,
        "version": "'1.0.0'",
        "on_busy": "'REJECT'",
        "labels": "'{}'",
    }
    advance = {"deployment_id": ":id::uuid"}
    # No two clients use a pipeline at the same time.
    lines = [
        f"\\set n :client_id * {each} + random(0, {each - 1})",
        f"{_filled(TriggerDeployment, trigger)} \\gset",
    ]
    lines += [f"{_filled(AdvanceStage, advance)};"] * 4
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


def _filled(command: type[Command], values: Mapping[str, str]) -> str:
    """The text of its statement; what has no value here is an empty text."""
    given = {**FRAME, **values}
    return " ".join(CHANGES[command].statement.of(lambda name: given.get(name, "''")).split())
