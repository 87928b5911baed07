"""The limit that the benchmark compares with makes the very calls that the service makes."""

import psycopg
from benchmarks import floor


def test_postgres_takes_what_the_floor_sends(sql: psycopg.Connection) -> None:
    statements = [
        line.removesuffix(";").removesuffix(" \\gset") for line in floor.script("p", 16).splitlines()
    ]
    calls = [line for line in statements if not line.startswith("\\set")]
    assert ("dp_trigger" in calls[0], "dp_advance" in calls[1], len(calls)) == (True, True, 5)
    for call in calls[:2]:
        text = call.replace(":n::integer", "1").replace(":id::uuid", "gen_random_uuid()")
        outcome = sql.execute(text.encode()).fetchone()
        assert outcome
        assert outcome[0] in ("PIPELINE_NOT_FOUND", "DEPLOYMENT_NOT_FOUND")
