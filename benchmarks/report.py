"""What was measured, as a table and as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(path: Path, result: dict[str, Any]) -> None:
    callers = result["callers_curve"]
    figure, (throughput, latency) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, label, colour in (("service", "gathered", "tab:blue"), ("alone", "one by one", "tab:orange")):
        throughput.plot(callers, result[f"{name}_curve_lives_per_second"], "o-", color=colour, label=label)
        latency.plot(callers, result[f"{name}_curve_p50_ms"], "o-", color=colour, label=f"{label}, median")
        latency.plot(callers, result[f"{name}_curve_p99_ms"], "o:", color=colour, label=f"{label}, 99 %")
    throughput.axhline(result["floor_lives_per_second"], color="grey", linestyle="--", label="floor")
    throughput.set(xlabel="callers", ylabel="deployments' lives per second", xscale="log", ylim=0)
    latency.set(xlabel="callers", ylabel="ms for a life of five calls", xscale="log", yscale="log")
    for axes in (throughput, latency):
        axes.set_xticks(callers, callers)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def table(result: dict[str, Any]) -> str:
    echo, gathered = result["echo_calls_per_second"], result["lives_per_second"]
    alone = result["without_gathering_lives_per_second"]
    refused, by_redis = result["refused_per_second"], result["refused_from_redis_share"]
    status = result["get_per_second"]
    alone_trigger = result["lone_trigger_without_gathering_ms"]
    alone_advance = result["lone_advance_without_gathering_ms"]
    growth = ", ".join(f"{call} {ratio:.2f}" for call, ratio in result["growth_ratios"].items())
    lines = [
        ("echo, calls/s", echo, ""),
        ("pgbench, lives/s", result["sql_lives_per_second"], ""),
        ("floor, lives/s", result["floor_lives_per_second"], ""),
        ("service, lives/s", gathered, f"{result['efficiency']:.2f} of the floor"),
        ("  without gathering, lives/s", alone, f"gathering: {gathered / alone:.2f} times"),
        ("GetDeploymentStatus, calls/s", status, f"{status / echo:.2f} of echo"),
        (
            "  with a JWT, and rights, calls/s",
            result["get_with_identity_per_second"],
            f"{result['get_with_identity_share']:.2f} of without",
        ),
        (
            "  that step alone, us of CPU",
            result["identity_step_us"],
            f"{result['identity_step_without_authentication_us']:.2f} without authentication",
        ),
        ("GetHistory of 50, calls/s", result["history_per_second"], ""),
        ("refused triggers, calls/s", refused, f"{refused / echo:.2f} of echo; {by_redis:.2%} by Redis"),
        ("  statements a T_c, pipeline, worker", result["refused_statements_per_lease"], ""),
        ("a lone CreatePipeline beside 512 status calls, ms", result["isolated_create_ms"], ""),
        (
            "a lone trigger, ms",
            result["lone_trigger_ms"],
            f"{alone_trigger:.2f} without gathering",
        ),
        (
            "a lone advance, ms",
            result["lone_advance_ms"],
            f"{alone_advance:.2f} without gathering",
        ),
        ("a herd of 1,000, s", result["herd_seconds"], f"{result['herd_started']} started"),
        (f"growth to {result['grown_deployments']:,}", result["growth_ratio"], growth),
        ("memory of a worker, MiB", result["rss_mib_per_worker"], ""),
    ]
    return "\n".join(f"{name:38}{value:>12,.2f}  {note}" for name, value, note in lines)
