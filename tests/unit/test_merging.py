"""Several workers' metrics as one text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployment_pipeline.run.merging import merged

# All that str.splitlines() splits at, and what the format escapes or gives a meaning to.
AWKWARD = 'a"b\\c\nd\x0be\x85f\u2028g{h="i"} j, # HELP'


def one(calls: int) -> str:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["what"], registry=registry).labels(AWKWARD).inc(calls)
    Gauge("up", "No labels.\nTwo lines.", registry=registry).set(calls)
    Histogram("seconds", "Time.", ["what"], registry=registry, buckets=(1, 2)).labels("x").observe(calls)
    return generate_latest(registry).decode()


def test_each_series_gets_its_workers_label_and_keeps_its_own() -> None:
    text = merged({1: one(1), 3: one(2)})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [(s.labels, s.value) for s in families["calls"].samples if s.name == "calls_total"] == [
        ({"worker": "1", "what": AWKWARD}, 1.0),
        ({"worker": "3", "what": AWKWARD}, 2.0),
    ]
    assert [(s.labels, s.value) for s in families["up"].samples] == [
        ({"worker": "1"}, 1.0),
        ({"worker": "3"}, 2.0),
    ]
    counts = [s.labels["worker"] for s in families["seconds"].samples if s.name == "seconds_count"]
    assert counts == ["1", "3"]


def test_a_family_has_its_help_and_type_once_in_front_of_all_its_series() -> None:
    lines = merged({1: one(1), 2: one(2)}).rstrip("\n").split("\n")
    families = [line.split(" ")[2] for line in lines if line.startswith("# TYPE ")]
    assert families == ["calls_total", "up", "seconds"]
    assert [line.split(" ")[2] for line in lines if line.startswith("# HELP ")] == families
    begins = [lines.index(line) for line in lines if line.startswith("# HELP ")]
    for begin, end, family in zip(begins, [*begins[1:], len(lines)], families, strict=True):
        assert all(line.startswith(family) for line in lines[begin + 2 : end])


def test_a_family_that_only_one_worker_has_is_there() -> None:
    assert merged({1: "", 2: "# HELP a A.\n# TYPE a gauge\na 1.0\n"}) == (
        '# HELP a A.\n# TYPE a gauge\na{worker="2"} 1.0\n'
    )


def test_no_workers_have_no_metrics() -> None:
    assert merged({}) == ""
