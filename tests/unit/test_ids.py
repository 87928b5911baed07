from deployment_pipeline.ids import deployment_id


def test_a_request_id_names_the_same_deployment_every_time() -> None:
    assert deployment_id("shop", "r1") == deployment_id("shop", "r1")
    ids = {deployment_id(p, r) for p in ("shop", "shop2") for r in ("r1", "r2")}
    assert len(ids) == 4
    assert {id.version for id in ids} == {5}


def test_without_a_request_id_ids_are_new_and_ordered_by_time() -> None:
    first, second = deployment_id("shop", ""), deployment_id("shop", "")
    assert first != second
    assert (first.version, first.variant) == (7, second.variant)
    assert first.int >> 80 <= second.int >> 80


def test_no_two_pairs_of_pipeline_and_request_id_join_to_the_same_text() -> None:
    assert deployment_id("a", "b/c") != deployment_id("a/b", "c")
    assert deployment_id("a/b", "c") == deployment_id("a/b", "c")
