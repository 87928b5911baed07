import pytest

from deployment_pipeline.engine.page_token import PageTokens
from deployment_pipeline.fields import Rules
from deployment_pipeline.refusals import InvalidFields

KEY = bytes(16)


def refused(page: PageTokens, token: str) -> bool:
    rules = Rules()
    page.load(rules, token)
    try:
        rules.check()
    except InvalidFields as refusal:
        return [v.field for v in refusal.violations] == ["page_token"]
    return False


@pytest.mark.parametrize("position", ["", "a", "17", "p-äöü"])
def test_a_token_leads_back_to_its_position(position: str) -> None:
    page = PageTokens(KEY, "history", pipeline="shop")
    rules = Rules()
    assert page.load(rules, page.dump(position)) == position
    rules.check()


def test_no_token_is_the_first_page() -> None:
    assert PageTokens(KEY, "history").load(Rules(), "") is None


def test_a_token_of_another_list_filter_or_installation_is_refused() -> None:
    token = PageTokens(KEY, "history", pipeline="shop").dump("17")
    assert refused(PageTokens(KEY, "history", pipeline="shop2"), token)
    assert refused(PageTokens(KEY, "pipelines"), token)
    assert refused(PageTokens(bytes(15) + b"1", "history", pipeline="shop"), token)


def test_a_token_means_the_same_to_a_release_with_one_more_filter() -> None:
    token = PageTokens(KEY, "history", pipeline="shop").dump("17")
    assert not refused(PageTokens(KEY, "history", pipeline="shop", statuses=[], stage=""), token)
    assert refused(PageTokens(KEY, "history", pipeline="shop", statuses=["PENDING"]), token)


def test_every_changed_character_is_noticed() -> None:
    page = PageTokens(KEY, "history", pipeline="shop")
    token = page.dump("17")
    for i, old in enumerate(token):
        for new in "Aa0-_=\x00é":
            if new != old:
                assert refused(page, token[:i] + new + token[i + 1 :])
    assert refused(page, token + "A")
    assert refused(page, token[:-1])
