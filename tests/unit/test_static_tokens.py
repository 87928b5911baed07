import time
from hashlib import sha256
from pathlib import Path

import pytest

from deployment_pipeline.edge.identity.proof import NotProven
from deployment_pipeline.edge.identity.static_tokens import StaticTokens
from deployment_pipeline.edge.reloading import Unreadable
from deployment_pipeline.principal import Principal

CI, OPS = "dpt_of-ci", "dpt_of-ops"


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


GOOD = f"""
[[token]]
name = "ci"
sha256 = "{digest(CI)}"
groups = ["deployers", "builders"]
expires_at = 2099-01-01T00:00:00Z

[[token]]
name = "ops"
sha256 = "{digest(OPS).upper()}"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(GOOD)
    return path


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(Unreadable) as error:
        StaticTokens(path)
    assert str(path) in str(error.value)
    return [line.strip() for line in str(error.value).splitlines()]


def is_accepted(tokens: StaticTokens, token: str) -> Principal | None:
    try:
        return tokens.principal(token)
    except NotProven:
        return None


def test_a_token_names_its_owner(path: Path) -> None:
    found = StaticTokens(path).principal(CI)
    assert (found.id, found.issuer, found.groups) == ("token:ci", "token", ("deployers", "builders"))
    assert found.expires_at == 4070908800
    assert StaticTokens(path).principal(OPS).id == "token:ops"


@pytest.mark.parametrize("token", ["", "dpt_", CI[:-1], f"{CI} ", CI.upper(), digest(CI), "ci", "dpt_ü"])
def test_what_is_not_in_the_file_is_refused(token: str, path: Path) -> None:
    tokens = StaticTokens(path)
    with pytest.raises(NotProven):
        tokens.principal(token)


def test_a_token_is_refused_from_the_instant_it_expires(path: Path) -> None:
    now = 0.0
    tokens = StaticTokens(path, clock=lambda: now)
    now = 4070908800 - 0.001
    assert tokens.principal(CI)
    now = 4070908800
    with pytest.raises(NotProven, match="expired"):
        tokens.principal(CI)
    assert tokens.principal(OPS)


def test_the_clock_is_that_of_the_machine(path: Path) -> None:
    expired = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 2))
    path.write_text(f'[[token]]\nname = "ci"\nsha256 = "{digest(CI)}"\nexpires_at = {expired}\n')
    assert not is_accepted(StaticTokens(path), CI)


def test_a_token_that_was_removed_is_refused_once_the_file_was_looked_at(path: Path) -> None:
    tokens = StaticTokens(path)
    path.write_text(GOOD.replace(digest(CI), digest("dpt_new")))
    tokens.file.look()
    assert not is_accepted(tokens, CI)
    assert tokens.principal("dpt_new").id == "token:ci"
    path.write_text("# nobody any more\n")
    tokens.file.look()
    assert not is_accepted(tokens, OPS)


def test_a_file_that_breaks_leaves_the_tokens_as_they_were(path: Path) -> None:
    tokens = StaticTokens(path)
    path.write_text(GOOD + "[[token]]\n")
    tokens.file.look()
    assert tokens.principal(CI)
    path.unlink()
    tokens.file.look()
    assert tokens.principal(CI)


def test_every_problem_is_listed_with_its_place(path: Path) -> None:
    found = problems(
        path,
        f"""
        tokens = 1
        [[token]]
        name = "ci"
        sha256 = "{digest(CI)}"
        group = ["deployers"]
        [[token]]
        name = "ci"
        sha256 = "{digest(CI).upper()}"
        groups = "deployers"
        [[token]]
        name = "a b"
        sha256 = "dpt_secret"
        expires_at = 2027-01-01T00:00:00
        [[token]]
        sha256 = "{"0" * 63}g"
        expires_at = 2027-01-01
        groups = ["", 7]
        [[token]]
        name = ""
        """,
    )
    assert found[1:] == [
        "tokens: there is nothing of that name; there is [[token]]",
        '[[token]] 1 ("ci"): group: there is no such key; there are name, sha256, groups, expires_at',
        '[[token]] 2 ("ci"): groups: must be a valid list',
        '[[token]] 3 ("a b"): name: must be printable ASCII without blanks, and not too long for an id',
        '[[token]] 3 ("a b"): sha256: must be the token\'s SHA-256, as 64 hex digits',
        '[[token]] 3 ("a b"): expires_at: must have an offset from UTC, such as Z at its end',
        "[[token]] 4: name: is missing",
        "[[token]] 4: sha256: must be the token's SHA-256, as 64 hex digits",
        "[[token]] 4: groups.0: must not be empty",
        "[[token]] 4: groups.1: must be a valid string",
        "[[token]] 4: expires_at: must be a valid datetime",
        '[[token]] 5 (""): name: must be printable ASCII without blanks, and not too long for an id',
        '[[token]] 5 (""): sha256: is missing',
        'name "ci": two tokens must not share it',
        '[[token]] 1 ("ci") and [[token]] 2 ("ci"): two entries must not have the same sha256',
    ]
    assert "dpt_secret" not in "".join(found)


@pytest.mark.parametrize("name", ["x" * 507, "ü", "a\\u0000b", "a\\tb"])
def test_a_name_must_make_an_id(name: str, path: Path) -> None:
    assert "name" in problems(path, f'[[token]]\nname = "{name}"\nsha256 = "{digest(CI)}"')[1]


@pytest.mark.parametrize(
    "text", ["[[token]", "token = 1", "token = [1]", "[token]\nname = 'ci'", f"x = {'[' * 3000}{']' * 3000}"]
)
def test_what_is_no_list_of_tokens_is_refused(text: str, path: Path) -> None:
    assert problems(path, text)


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(Unreadable, match=r"tokens\.toml"):
        StaticTokens(path)
    path.unlink()
    with pytest.raises(Unreadable, match=r"tokens\.toml cannot be read: No such file"):
        StaticTokens(path)
