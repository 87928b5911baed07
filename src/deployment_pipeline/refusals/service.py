"""What the service, or its database, cannot do now."""

from dataclasses import dataclass

from deployment_pipeline.refusals.base import Refusal


@dataclass(eq=False)
class Overloaded(Refusal):
    """More calls wait for a database connection, or for the pipeline's row, than can be served in time."""

    reason = "OVERLOADED"

    def __str__(self) -> str:
        return (
            "too many calls wait for the database or for this pipeline; nothing was changed,"
            " try again in a moment"
        )


@dataclass(eq=False)
class StoreUnavailable(Refusal):
    """Postgres is away, or did not answer in time, and nothing was changed."""

    reason = "STORE_UNAVAILABLE"

    def __str__(self) -> str:
        return "the database cannot serve this call now; nothing was changed, try again in a moment"


@dataclass(eq=False)
class ShuttingDown(Refusal):
    """This server is ending; another replica, or this one restarted, will serve the call."""

    reason = "SHUTTING_DOWN"

    def __str__(self) -> str:
        return "this server is shutting down; nothing was changed, try again"


@dataclass(eq=False)
class OutcomeUnknown(Refusal):
    """The connection broke around the commit: the change may or may not have been made."""

    reason = "OUTCOME_UNKNOWN"
    subject: str  # "deployment ID" or "pipeline NAME"
    request_id: str  # empty: the caller sent none

    def __str__(self) -> str:
        again = "look before you send it again, and give a request_id next time"
        if self.request_id:
            again = f'send the same call again with request_id "{self.request_id}"'
        return f"the change of {self.subject} may or may not have been made; {again}"


@dataclass(eq=False)
class UpgradeNotFinished(Refusal):
    """Replicas of the release before may still run. They could not read this, or would not refuse it."""

    reason = "UPGRADE_NOT_FINISHED"
    level: int
    finished_level: int

    def __str__(self) -> str:
        return (
            f"this needs level {self.level}, and replicas of level {self.finished_level} may still run;"
            " nothing was changed; `deployment-pipeline migrate --finish` ends the upgrade when they are gone"
        )
