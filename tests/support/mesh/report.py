"""What the tests behind real proxies have found: the tables that `make mesh` prints, for docs/proof.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from support.mesh.changes import CHANGES, HARM, Change, Verdict
from support.mesh.traffic import Tally


@dataclass
class Stops:
    """What the callers of replicas that were stopped got, by status code."""

    stops: int
    calls: int
    cancelled: int
    unavailable: int


@dataclass
class Report:
    # By the route's name, and then by the change's.
    tallies: dict[str, dict[str, Tally]] = field(default_factory=dict)
    stops: dict[str, Stops] = field(default_factory=dict)
    # Why a route was not tried, by its name.
    not_run: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        found: list[str] = []
        for changes in ([c for c in CHANGES if not c.carries], [c for c in CHANGES if c.carries]):
            if self.tallies or self.not_run:
                found += self._tallied(changes)
        if self.stops:
            found += _table(
                ["12 busy connections", "stops", "calls", "CANCELLED", "UNAVAILABLE"],
                [
                    [n, str(s.stops), str(s.calls), str(s.cancelled), str(s.unavailable)]
                    for n, s in self.stops.items()
                ],
            )
        return found

    def _tallied(self, changes: Sequence[Change]) -> list[str]:
        rows = []
        for route, tallies in self.tallies.items():
            these = [tallies[change.name] for change in changes if change.name in tallies]
            lost = sum(tally.lost for tally in these)
            rows.append([route, *map(_cell, these), f"{lost} of {sum(tally.calls for tally in these)}"])
        rows += [[f"{route}: **NOT RUN**, {why}"] for route, why in self.not_run.items()]
        return _table(["who repeats", *(change.name for change in changes), "answers lost"], rows)


REPORT = Report()


def _cell(tally: Tally) -> str:
    """What was not right, or that all was."""
    said = [_count(tally, v) for v in Verdict if v is not Verdict.RIGHT and tally.verdicts[v]]
    return ", ".join(said) or "right"


def _count(tally: Tally, verdict: Verdict) -> str:
    text = f"{tally.verdicts[verdict]} {verdict}"
    return f"**{text}**" if verdict in HARM else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])]
