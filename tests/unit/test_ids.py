from deployment_pipeline.ids import deployment_id_for, request_key


def test_a_request_id_names_the_same_deployment_every_time() -> None:
    assert deployment_id_for("shop", "r1") == deployment_id_for("shop", "r1")
    ids = {deployment_id_for(p, r) for p in ("shop", "shop2") for r in ("r1", "r2")}
    assert len(ids) == 4
    assert {id.version for id in ids} == {5}


def test_without_a_request_id_ids_are_new_and_ordered_by_time() -> None:
    first, second = deployment_id_for("shop", ""), deployment_id_for("shop", "")
    assert first != second
    assert (first.version, first.variant) == (7, second.variant)
    assert first.int >> 80 <= second.int >> 80


def test_a_request_is_recognised_by_all_that_it_asks() -> None:
    key = request_key("r1", "trigger", "shop", "1", {"a": "1", "b": "2"})
    assert key == request_key("r1", "trigger", "shop", "1", {"b": "2", "a": "1"})
    assert key != request_key("r1", "trigger", "shop", "2", {"a": "1", "b": "2"})
    assert request_key("", "trigger", "shop").digest is None
