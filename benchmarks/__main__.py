"""The interleaved run: every round measures everything once, and only ratios within the run count."""

import argparse
import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks import credentials, floor, growth, h2, load, report, steps
from benchmarks.rig import STAGES, WORKERS, Rig, rig
from dp.v1 import deployment_pipeline_pb2 as pb

RESULTS = Path(__file__).parent / "results"
PIPELINES = 2000
CALLERS = 128
CROWD = 512
HOT_PIPELINES = 4
LEASE_SECONDS = 2.0
HERD = 1000
PAGE = 50
READ_FROM = PIPELINES * PAGE  # deployments
CURVE = (1, 4, 16, 64, 128)
CURVE_SECONDS = 0.5  # some lives of the slowest


class Bench:
    """Servers, what is measured on them, and what was. One of them makes every call alone, without gathering;
    one has a database of its own, whose statements are counted."""

    def __init__(self, rig: Rig, stack: ExitStack, seconds: float) -> None:
        self.rig = rig
        self.seconds = seconds
        rig.create_pipelines("grown", growth.PIPELINES)
        self.ids = growth.fill(rig, "", READ_FROM)
        for prefix in ("sql", "service", "alone", "lone"):
            rig.create_pipelines(prefix, PIPELINES)
        rig.create_database("hot")
        rig.sql("ALTER DATABASE hot SET track_functions = 'pl'")
        rig.create_pipelines("hot", HOT_PIPELINES, database="hot")
        self.hot_stack = stack.enter_context(ExitStack())
        with ThreadPoolExecutor() as pool:  # all of them start at the same time
            self.credentials = credentials.make(rig.folder)
            self.echo, self.service, self.alone, self.secured, self.hot = pool.map(
                ExitStack.enter_context,
                (stack, stack, stack, stack, self.hot_stack),
                (
                    rig.echo(),
                    rig.service(),
                    rig.service(max_batch=1),
                    rig.service(**self.credentials.settings),
                    rig.service(database="hot"),
                ),
            )
        self.refused = 0
        for n in range(HOT_PIPELINES):  # what is in the way there
            rig.sql(
                "SELECT outcome FROM dp_trigger(p_id => gen_random_uuid(), p_pipeline_name => %s,"
                " p_version => '1', p_on_busy => 'REJECT', p_labels => '{}', p_reason => '',"
                " p_request_id => 'first', p_digest => NULL, p_wait_ms => 1000)",
                f"hot-{n}",
                database="hot",
            )
        self.judged_before = self.judged()
        self.found: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return median(self.found[name])

    async def round(self) -> None:
        await self.per_second("echo", self.echo.address, load.echoes)
        self.note(
            "sql", await asyncio.to_thread(floor.lives_per_second, self.rig, "sql", PIPELINES, self.seconds)
        )
        await self.per_second("service", self.service.address, load.Lives("service", PIPELINES))
        await self.per_second("alone", self.alone.address, load.Lives("alone", PIPELINES))
        status = [pb.GetDeploymentStatusRequest(deployment_id=id) for id in self.ids]
        await self.per_second("status", self.service.address, load.calls(load.STATUS, status))
        await self.per_second(
            "secured status", self.secured.address, load.calls(load.STATUS, status), self.token
        )
        pages = [pb.GetHistoryRequest(pipeline_name=f"grown-{n}", limit=PAGE) for n in range(PIPELINES)]
        await self.per_second("history", self.service.address, load.calls(load.HISTORY, pages))
        create = pb.CreatePipelineRequest(name="service-0", stages=STAGES, max_pending=100)
        beside = load.calls(load.STATUS, status)
        isolated = await load.lone_beside(
            self.service.address, load.CREATE, create, beside, CROWD, self.seconds
        )
        self.note("isolated create", isolated)
        await self.refusals()
        await self.lone()

    @property
    def token(self) -> h2.Metadata:
        return (("authorization", f"Bearer {self.credentials.token}"),)

    async def per_second(self, name: str, address: str, work: load.Work, metadata: h2.Metadata = ()) -> None:
        self.note(name, (await load.measure(address, work, CALLERS, self.seconds, metadata)).per_second)

    async def refusals(self) -> None:
        hot = [
            pb.TriggerDeploymentRequest(pipeline_name=f"hot-{n}", version="2") for n in range(HOT_PIPELINES)
        ]
        measured = await load.measure(
            self.hot.address,
            load.calls(load.TRIGGER, hot, load.FAILED_PRECONDITION),
            CALLERS,
            self.seconds,
        )
        self.note("refused", measured.per_second)
        self.refused += len(measured.latencies_ms)

    async def lone(self) -> None:
        """One caller on one connection, with the gathering and without it in turn."""
        for name, server in (("gathered", self.service), ("alone", self.alone)):
            lives = load.Lives("lone", PIPELINES)
            await load.measure(server.address, lives, 1, self.seconds / 2)
            for call, latencies in lives.latencies_ms.items():
                self.note(f"{call} {name}", median(latencies))

    def judged(self) -> int:
        """How many triggers Postgres judged on the hot pipelines, by connections that are closed."""
        [(count,)] = self.rig.sql(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = 'dp_trigger'",
            database="hot",
        )
        return int(str(count))

    def judged_for_refusals(self) -> tuple[float, float]:
        """For each refusal, and for each lease time, pipeline and worker. Ends the hot service, for its
        connections say how much they did when they are closed."""
        self.hot_stack.close()
        count = self.judged() - self.judged_before
        # A round begins without a lease: the one before ended longer ago than that.
        leases = len(self.found["refused"]) * ceil((self.seconds + load.WARM_UP_SECONDS) / LEASE_SECONDS)
        return count / self.refused, count / (leases * HOT_PIPELINES * WORKERS)


async def curve(bench: Bench, seconds: float) -> dict[str, list[load.Measured]]:
    """Lives of more and more callers, with the gathering and without it."""
    measured: dict[str, list[load.Measured]] = {"service": [], "alone": []}
    for callers in CURVE:
        for name, server in (("service", bench.service), ("alone", bench.alone)):
            lives = load.Lives(name, PIPELINES)
            measured[name].append(await load.measure(server.address, lives, callers, seconds))
    return measured


def stop_at_errors() -> None:
    """What fails in a callback ends the run; without this it would be a line in the log."""
    loop, run = asyncio.get_running_loop(), asyncio.current_task()

    def failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        if run:
            run.cancel()

    loop.set_exception_handler(failed)


async def run(rounds: int, seconds: float, deployments: int) -> dict[str, Any]:
    stop_at_errors()
    with rig() as stores, ExitStack() as stack:
        bench = Bench(stores, stack, seconds)
        await load.measure(bench.service.address, load.Lives("service", PIPELINES), CALLERS, 1)  # all is warm
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            await bench.round()
        herd_seconds, statuses = await load.herd(bench.service.address, "grown-0", HERD)
        curves = await curve(bench, max(CURVE_SECONDS, seconds / 2))
        with_token_us, without_us = await steps.entrance_us(stores.folder)
        rss_mib = bench.service.rss_mib()
        per_refusal, per_lease = bench.judged_for_refusals()
        stack.close()
        print(f"growing to {deployments:,} deployments", flush=True)
        grown = await growth.ratios(stores, deployments, rounds - 1)
    # A life is five calls and five changes, one after the other on the same cores.
    floors = [
        1 / (5 / echo + 1 / sql) for echo, sql in zip(bench.found["echo"], bench.found["sql"], strict=True)
    ]
    efficiencies = [service / limit for service, limit in zip(bench.found["service"], floors, strict=True)]
    result: dict[str, Any] = {
        "efficiency": median(efficiencies),
        "lives_per_second": bench.median("service"),
        "floor_lives_per_second": median(floors),
        "echo_calls_per_second": bench.median("echo"),
        "sql_lives_per_second": bench.median("sql"),
        "get_per_second": bench.median("status"),
        "get_with_identity_per_second": bench.median("secured status"),
        "get_with_identity_share": median(
            secured / status
            for secured, status in zip(bench.found["secured status"], bench.found["status"], strict=True)
        ),
        "identity_step_us": with_token_us,
        "identity_step_without_authentication_us": without_us,
        "history_per_second": bench.median("history"),
        "refused_per_second": bench.median("refused"),
        "refused_from_redis_share": 1 - per_refusal,
        "refused_statements_per_lease": per_lease,
        "without_gathering_lives_per_second": bench.median("alone"),
        "lone_trigger_ms": bench.median("trigger gathered"),
        "lone_trigger_without_gathering_ms": bench.median("trigger alone"),
        "lone_advance_ms": bench.median("advance gathered"),
        "lone_advance_without_gathering_ms": bench.median("advance alone"),
        "isolated_create_ms": bench.median("isolated create"),
        "herd_seconds": herd_seconds,
        "herd_started": statuses.get(load.OK, 0),
        "growth_ratio": max(grown.values()),
        "growth_ratios": grown,
        "grown_deployments": deployments,
        "rss_mib_per_worker": rss_mib,
        "workers": WORKERS,
        "callers": CALLERS,
        "rounds": rounds,
        "seconds": seconds,
        "callers_curve": list(CURVE),
    }
    for name, measured in curves.items():
        result[f"{name}_curve_lives_per_second"] = [m.per_second for m in measured]
        result[f"{name}_curve_p50_ms"] = [m.percentile(50) for m in measured]
        result[f"{name}_curve_p99_ms"] = [m.percentile(99) for m in measured]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="short rounds, and 50,000 deployments instead of 10 million"
    )
    quick = parser.parse_args().quick
    rounds, seconds, deployments = (3, 0.5, 50_000) if quick else (5, 5.0, 10_000_000)
    result = uvloop.run(run(rounds, seconds, deployments))
    print(report.table(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps({"quick": quick, **result}, indent=2) + "\n")
    report.draw(RESULTS / "latest.png", result)
    print(f"written to {RESULTS}/latest.json and latest.png")


if __name__ == "__main__":
    main()
