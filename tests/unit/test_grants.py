"""Whom a grant is for, and what it lets them do."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment_pipeline.call import EVERYTHING
from deployment_pipeline.edge import grants_file
from deployment_pipeline.edge.grants import Access, Grant, Grants, Match, Role, fits
from deployment_pipeline.edge.reloading import Unreadable
from deployment_pipeline.principal import Principal

CI = Principal(
    "forge#repo:acme/shop:ref:refs/heads/main",
    "forge",
    groups=("deployers", "team-a/leads"),
    claims={
        "repository_id": "42",
        "run": 7,
        "protected": True,
        "roles": ["x", "y"],
        "odd": {"a": 1},
        "nan": math.nan,
    },
)
MACHINE = Principal("spiffe://corp/ci/runner-1")


def read(tmp_path: Path, text: str) -> Grants:
    path = tmp_path / "grants.toml"
    path.write_text(text)
    return grants_file.read(path, ["forge", "corp", "token"])


def grant(match: str, rest: str = 'role = "viewer"') -> str:
    return f"[[grant]]\nmatch = {{ {match} }}\n{rest}\n"


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ('id = "forge#repo:acme/shop:ref:refs/heads/main"', True),
        ('id = "forge#repo:acme/shop:*"', True),
        ('id = "forge#repo:acme/shop"', False),
        ('id = "forge#repo:acme/sho"', False),
        ('id = "*"', True),
        ('issuer = "forge"', True),
        ('issuer = "corp"', False),
        ('issuer = "forge", group = "deployers"', True),
        ('issuer = "forge", group = "Deployers"', False),
        ('issuer = "forge", group = "team-a/*"', True),
        ('issuer = "corp", group = "deployers"', False),
        ('issuer = "forge", claim = { repository_id = "42" }', True),
        ('issuer = "forge", claim = { repository_id = "421" }', False),
        ('issuer = "forge", claim = { repository_id = "4" }', False),
        ('issuer = "forge", claim = { run = "7", protected = "true", roles = "y" }', True),
        ('issuer = "forge", claim = { run = "7", roles = "z" }', False),
        ('issuer = "forge", claim = { absent = "*" }', False),
        ('issuer = "forge", claim = { odd = "*" }', False),
        ('issuer = "corp", claim = { repository_id = "42" }', False),
        ('id = "forge#*", issuer = "forge", group = "nobody"', False),
    ],
)
def test_all_that_a_match_names_must_fit(tmp_path: Path, match: str, fits: bool) -> None:
    found = read(tmp_path, grant(match)).access(CI)
    assert found.everywhere == (Role.VIEWER if fits else Role.NONE)


def test_an_anonymous_caller_matches_nothing_but_is_not_asked_for(tmp_path: Path) -> None:
    assert not Grants((), [Match(id="?")]).denies(Principal(""))


def test_a_certificate_has_no_groups_and_claims_of_an_issuer(tmp_path: Path) -> None:
    for match in ('issuer = "corp", group = "*"', 'issuer = "forge", claim = { repository_id = "*" }'):
        assert read(tmp_path, grant(match)).access(MACHINE).anywhere is Role.NONE


def test_a_principal_has_all_roles_of_all_grants_that_match(tmp_path: Path) -> None:
    text = (
        grant('id = "*"', 'role = "viewer"')
        + grant('id = "spiffe://corp/*"', 'role = "deployer"\npipelines = ["shop", "team-a/*"]')
        + grant('id = "spiffe://corp/ci/*"', 'role = "operator"\npipelines = ["team-a/web"]')
        + grant('id = "spiffe://other/*"', 'role = "admin"\nimpersonate = true')
    )
    access = read(tmp_path, text).access(MACHINE)
    assert access.role("other") is Role.VIEWER
    assert access.role("shop") is access.role("team-a/api/x") is Role.DEPLOYER
    assert access.role("shop2") is access.role("team-b/x") is access.role("team-a") is Role.VIEWER
    assert access.role("team-a/web") is Role.OPERATOR
    assert (access.everywhere, access.anywhere) == (Role.VIEWER, Role.OPERATOR)
    assert not access.impersonates("shop")


NAME = st.text("ab", max_size=2)


@given(
    name=NAME,
    grants=st.lists(st.tuples(st.sampled_from(Role), NAME.filter(bool), st.sampled_from(["", "*"]))),
)
def test_the_role_on_a_pipeline_is_the_highest_of_all_patterns_that_fit(
    name: str, grants: list[tuple[Role, str, str]]
) -> None:
    access = Access(
        MACHINE, [Grant(match=Match(), role=role, pipelines=[text + end]) for role, text, end in grants]
    )
    there = [role for role, text, end in grants if fits(text + end, name)]
    assert access.role(name) == max(there, default=Role.NONE)


def test_names_of_pipelines_match_without_regard_to_case(tmp_path: Path) -> None:
    access = read(tmp_path, grant('id = "*"', 'role = "viewer"\npipelines = ["Shop", "TEAM/*"]')).access(
        MACHINE
    )
    assert access.role("sHOP") is access.role("team/X") is Role.VIEWER


def test_a_deny_comes_before_every_grant(tmp_path: Path) -> None:
    text = '[[deny]]\nmatch = { id = "spiffe://corp/ci/*" }\n' + grant('id = "*"', 'role = "admin"')
    grants = read(tmp_path, text)
    access = grants.access(MACHINE)
    assert (access.is_denied, access.everywhere, access.anywhere) == (True, Role.NONE, Role.NONE)
    assert not grants.access(CI).is_denied


@pytest.mark.parametrize(
    ("pipelines", "ranges"),
    [
        ("", list(EVERYTHING)),
        ('pipelines = ["*"]', list(EVERYTHING)),
        ('pipelines = ["shop"]', [("shop", "shop\x01")]),
        ('pipelines = ["team-a/*", "shop", "team-a/x", "team*"]', [("shop", "shop\x01"), ("team", "tean")]),
        ('pipelines = ["b*", "a*"]', [("a", "b"), ("b", "c")]),
    ],
)
def test_what_a_principal_sees_are_ranges_of_names_without_an_overlap(
    tmp_path: Path, pipelines: str, ranges: list[tuple[str, str]]
) -> None:
    access = read(tmp_path, grant('id = "*"', f'role = "viewer"\n{pipelines}')).access(MACHINE)
    assert list(access.caller.sees) == ranges


def test_whoever_has_no_grant_sees_nothing(tmp_path: Path) -> None:
    assert list(read(tmp_path, "").access(MACHINE).caller.sees) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[grant]", "is not TOML"),
        ("[grant]", "grant must be written as [[grant]]"),
        ("[[grants]]", "there is no 'grants'"),
        (grant('id = "*"', ""), "grant 1: role must be viewer, deployer, operator, admin"),
        (grant('id = "*"', 'role = "none"'), "grant 1: role must be"),
        (grant('id = "*"', 'role = "root"'), "grant 1: role must be"),
        (grant('id = "*"', "role = 3"), "grant 1: role must be"),
        ('[[grant]]\nrole = "admin"', "grant 1: match must say whom it is for"),
        (grant(""), "grant 1: match must say whom it is for"),
        (grant('name = "x"'), "grant 1: match: there is no 'name'"),
        (grant('group = "deployers"'), "group and claim need issuer"),
        (grant('id = "*", claim = { a = "1" }'), "group and claim need issuer"),
        (grant('issuer = "corq"'), "there is no issuer 'corq'; there are: forge, corp, token"),
        (grant('issuer = ""'), "there is no issuer ''"),
        (grant('issuer = "", id = "token:ci"'), "there is no issuer ''"),
        ("[[deny]]\nmatch = { issuer = false }", "deny 1: match: there is no issuer False"),
        (grant('issuer = "corp", claim = "x"'), "claim must be a table"),
        (grant('issuer = "corp", claim = {}'), "claim must be a table"),
        (grant('issuer = "corp", claim = { a = 1 }'), "claim a: must be a text, not 1"),
        (grant('id = "a*b"'), "may have one *, at its end"),
        (grant('id = "**"'), "may have one *, at its end"),
        (grant('id = ""'), "match: id: must be a text, not ''"),
        (
            grant('id = "*"', 'role = "viewer"\npipelines = []'),
            "pipelines must be a list of names, or absent",
        ),
        (grant('id = "*"', 'role = "viewer"\npipelines = "shop"'), "pipelines must be a list"),
        (grant('id = "*"', 'role = "viewer"\npipelines = ["*-prod"]'), "may have one *, at its end"),
        (grant('id = "*"', 'role = "viewer"\npipeline = ["shop"]'), "there is no 'pipeline'"),
        (grant('id = "*"', 'role = "viewer"\nimpersonate = "no"'), "impersonate must be true or false"),
        ('[[deny]]\nmatch = { id = "a" }\nrole = "viewer"', "deny 1: there is no 'role'"),
        ("[[deny]]", "deny 1: match must say whom it is for"),
        (
            grant('id = "*"', 'role = "viewer"\npipelines = ["team_a*"]'),
            "'team_a*' can be no pipeline's name",
        ),
        (grant('id = "*"', 'role = "viewer"\npipelines = ["\\U0010FFFF*"]'), "can be no pipeline's name"),
        (grant('id = "*"', 'role = "viewer"\npipelines = ["\\u0000"]'), "can be no pipeline's name"),
        (f"x = {'[' * 3000}{']' * 3000}", "is not TOML"),
        (f"x = {'1' * 5000}", "is not TOML"),
    ],
)
def test_a_file_with_a_mistake_is_not_used(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(Unreadable) as error:
        read(tmp_path, text)
    assert problem in str(error.value)
    assert str(tmp_path / "grants.toml") in str(error.value)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    text = grant('group = "x"', 'role = "root"\npipelines = [1]') + "[[deny]]\n"
    with pytest.raises(Unreadable) as error:
        read(tmp_path, text)
    assert len(str(error.value).splitlines()) == 4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"nowhere\.toml cannot be read: No such file"):
        grants_file.read(tmp_path / "nowhere.toml", [])
