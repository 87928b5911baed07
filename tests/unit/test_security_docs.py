"""The examples of docs/security.md can be used as they are."""

import re
from pathlib import Path

import pytest

from deployment_pipeline.edge import grants_file
from deployment_pipeline.edge.identity.static_tokens import StaticTokens
from deployment_pipeline.run.values import read_issuers

DOCS = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
TESTS = Path(__file__).parents[1]


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("text", [text for text in examples("toml") if "[[token]]" not in text])
def test_grants_can_be_used(text: str, tmp_path: Path) -> None:
    (tmp_path / "grants.toml").write_text(text)
    grants_file.read(tmp_path / "grants.toml", ["token", "github", "gitlab"])


@pytest.mark.parametrize("text", [text for text in examples("toml") if "[[token]]" in text])
def test_tokens_can_be_used(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(text)
    assert len(StaticTokens(tmp_path / "tokens.toml").file.value) == 1


@pytest.mark.parametrize("text", examples("json"))
def test_issuers_can_be_used(text: str) -> None:
    assert len(read_issuers(text)) == 1


def test_there_are_examples() -> None:
    assert (len(examples("toml")), len(examples("json"))) == (5, 2)


def test_every_test_that_is_named_exists() -> None:
    code = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    files = {f"{path.parent.name}/{path.stem}" for path in TESTS.rglob("test_*.py")}
    named = re.findall(r"`((?:\w+/)?test_\w+)`", DOCS)
    assert len(named) > 25
    for name in named:
        assert name in files if "/" in name else f"def {name}(" in code, name
