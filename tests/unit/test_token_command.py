"""`deployment-pipeline token`, as a shell runs it."""

import os
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deployment_pipeline.cli import token
from deployment_pipeline.edge.identity.static_tokens import StaticTokens

TOKEN = re.compile(r"^ +(dpt_[\w-]{43,})$", re.MULTILINE)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployment_pipeline", "token", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
        text=True,
    )


def test_what_it_prints_can_be_appended_to_the_file(tmp_path: Path) -> None:
    """Even to one whose last line does not end, and whatever is wrong with the settings."""
    path = tmp_path / "tokens.toml"
    path.write_text("# tokens")
    first = run(
        "ci", "--group", "deployers", "--group", 'the "ü" \\ 🚀', "--expires-in", "30", DP_LISTEN="nowhere"
    )
    second = run("ops")
    with path.open("a") as file:
        file.write(first.stdout)
        file.write(second.stdout)
    tokens = StaticTokens(path)
    ci, ops = (tokens.principal(TOKEN.findall(made.stderr)[0]) for made in (first, second))
    assert (ci.id, ci.groups) == ("token:ci", ("deployers", 'the "ü" \\ 🚀'))
    assert (ops.id, ops.groups, ops.expires_at) == ("token:ops", (), float("inf"))
    expires_in = datetime.fromtimestamp(ci.expires_at, UTC) - datetime.now(UTC)
    assert timedelta(29) < expires_in <= timedelta(30)
    assert (first.returncode, second.returncode) == (0, 0)


def test_the_token_is_not_in_what_goes_to_the_file() -> None:
    made = token.make("ci", [], None)
    (secret,) = TOKEN.findall(made.for_person)
    assert secret not in made.entry
    assert set(tomllib.loads(made.entry)["token"][0]) == {"name", "sha256"}


def test_no_two_tokens_are_alike() -> None:
    assert token.make("ci", [], None) != token.make("ci", [], None)


@pytest.mark.parametrize(
    ("name", "groups", "days", "problem"),
    [
        ("a b", [], None, "NAME must be printable ASCII"),
        ("", [], None, "NAME must be printable ASCII"),
        ("ci", ["a\nb"], None, "--group must be"),
        ("ci", [""], None, "--group must be"),
        ("ci", [], 0, "--expires-in must be 1 to 3650 days"),
        ("ci", [], 3651, "--expires-in must be 1 to 3650 days"),
    ],
)
def test_what_makes_no_token_is_refused(name: str, groups: list[str], days: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        token.make(name, groups, days)


def test_a_refusal_prints_no_token() -> None:
    refused = run("a b")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "NAME must be printable ASCII" in refused.stderr
    assert "dpt_" not in refused.stderr
