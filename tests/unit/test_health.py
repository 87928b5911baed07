from grpc_health.v1 import health_pb2

from deployment_pipeline.edge.health import LIVENESS, NOT_SERVING, READINESS, SERVICE, SERVING, Health


async def statuses(health: Health) -> dict[str, int]:
    listed = await health.List(health_pb2.HealthListRequest(), None)  # type: ignore[arg-type]  # it is not used
    return {name: answer.status for name, answer in listed.statuses.items()}


async def test_a_process_that_drains_is_alive_and_serves_nobody_new() -> None:
    health = Health()
    await health.start()
    assert set((await statuses(health)).values()) == {SERVING}
    await health.enter_graceful_shutdown()
    await health.set(READINESS, SERVING)  # as a probe that ends late would
    assert await statuses(health) == {
        "": NOT_SERVING,
        SERVICE: NOT_SERVING,
        READINESS: NOT_SERVING,
        LIVENESS: SERVING,
    }
