"""What the faults' tests have found: the table that `make proof` prints."""

import os
from dataclasses import dataclass

SEEDS = int(os.environ.get("DP_TEST_SEEDS", "1"))


@dataclass
class Line:
    seeds: int = 0
    calls: int = 0
    reached: int = 0
    violations: int = 0


TABLE: dict[str, Line] = {}

# What else was measured.
NOTES: list[str] = []
