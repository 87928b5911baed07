from collections.abc import Callable

import pytest

from deployment_pipeline.fields import Rules
from deployment_pipeline.refusals import InvalidFields


def broken_fields(ask: Callable[[Rules], object]) -> list[str]:
    rules = Rules()
    ask(rules)
    try:
        rules.check()
    except InvalidFields as refusal:
        return [violation.field for violation in refusal.violations]
    return []


@pytest.mark.parametrize("name", ["a", "0", "web-shop", "a" * 63])
def test_names_that_are_accepted(name: str) -> None:
    assert not broken_fields(lambda rules: rules.name("name", name))


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a b", "a" * 64, "ä", "a\n", "a\x00", "a\u202eb"]
)
def test_names_that_are_refused(name: str) -> None:
    assert broken_fields(lambda rules: rules.name("name", name)) == ["name"]


@pytest.mark.parametrize("count", [0, 101, 100_000])
def test_a_pipeline_has_1_to_100_stages(count: int) -> None:
    stages = [f"s{i}" for i in range(count)]
    assert broken_fields(lambda rules: rules.stages("stages", stages)) == ["stages"]
    assert not broken_fields(lambda rules: rules.stages("stages", [f"s{i}" for i in range(100)]))


def test_a_stage_appears_once() -> None:
    assert broken_fields(lambda rules: rules.stages("stages", ["a", "b", "a"])) == ["stages[2]"]


@pytest.mark.parametrize("version", ["", "a\n", "\x00", "a\u200bb", "a\u202eb", "x" * 257])
def test_versions_that_are_refused(version: str) -> None:
    assert broken_fields(lambda rules: rules.version("version", version)) == ["version"]


@pytest.mark.parametrize("version", ["1.0", "v1 (büild)", "sha256:" + "f" * 64, "x" * 256])
def test_versions_that_are_accepted(version: str) -> None:
    assert not broken_fields(lambda rules: rules.version("version", version))


@pytest.mark.parametrize(
    "text",
    [
        *("\x00", "a\rb", "\x1b[31m", "\x7f", "\u2066", "\u2028", "\u200f", "\u200b", "\ue000"),
        *("x" * 4097, "ä" * 2049),
    ],
)
def test_texts_that_are_refused(text: str) -> None:
    assert broken_fields(lambda rules: rules.text("reason", text)) == ["reason"]


@pytest.mark.parametrize("text", ["", "two\nlines\tand a tab", "می‌خواهم", "👩‍💻", "\u00a0", "x" * 4096])
def test_texts_that_are_accepted(text: str) -> None:
    assert not broken_fields(lambda rules: rules.text("reason", text))


def test_labels_are_64_at_most_with_short_keys_and_values() -> None:
    assert not broken_fields(lambda rules: rules.labels("labels", {f"k{i}": "" for i in range(64)}))
    too_many = {f"k{i}": "" for i in range(65)}
    assert broken_fields(lambda rules: rules.labels("labels", too_many)) == ["labels"]
    assert broken_fields(lambda rules: rules.labels("labels", {"": "v"})) == ["labels"]
    assert broken_fields(lambda rules: rules.labels("labels", {"k": "v" * 257})) == ["labels[k]"]


def test_a_request_id_is_128_bytes_at_most() -> None:
    assert not broken_fields(lambda rules: rules.request_id("request_id", "ä" * 64))
    assert broken_fields(lambda rules: rules.request_id("request_id", "ä" * 65)) == ["request_id"]
    assert broken_fields(lambda rules: rules.request_id("request_id", "a\n")) == ["request_id"]


@pytest.mark.parametrize("id", ["", "1", "g" * 32, "0" * 32, "{0199f6a2-7f2c-7bd0-8a55-1c2d3e4f5a6b}"])
def test_ids_that_are_refused(id: str) -> None:
    assert broken_fields(lambda rules: rules.uuid("deployment_id", id)) == ["deployment_id"]


def test_a_page_size_of_0_is_the_default() -> None:
    assert Rules().page_size("limit", 0) == 50
    assert broken_fields(lambda rules: rules.page_size("limit", -1)) == ["limit"]
    assert broken_fields(lambda rules: rules.page_size("limit", 1001)) == ["limit"]


def test_all_broken_fields_are_reported_at_once() -> None:
    def ask(rules: Rules) -> None:
        rules.name("name", "")
        rules.stages("stages", ["A", "b", "b"])
        rules.version("version", "")

    assert broken_fields(ask) == ["name", "stages[0]", "stages[2]", "version"]
