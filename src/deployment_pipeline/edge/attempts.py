"""What the metadata of a call says of its attempts."""

from collections.abc import Iterable, Sequence

from deployment_pipeline.call import UNMARKED, Attempt

# An identity is long enough to be one, and no longer than fits beside what it is stored with.
MIN_ID_CHARS = 16
MAX_ID_CHARS = 128
_TRACE_ID_CHARS = 32


def attempt(metadata: Iterable[tuple[str, str | bytes]], id_headers: Sequence[str]) -> Attempt:
    """id_headers: in which proxies send the same value with every attempt; the first that came counts."""
    is_repeat, trace_id = False, ""
    ids: dict[str, str] = {}
    for key, value in metadata:
        if key in id_headers and MIN_ID_CHARS <= len(value) <= MAX_ID_CHARS and str(value).isprintable():
            ids[key] = str(value)
        elif key == "traceparent":
            trace_id = _trace_id(str(value))
        elif key == "grpc-previous-rpc-attempts" or (key == "x-envoy-attempt-count" and value != "1"):
            is_repeat = True
    if not (is_repeat or ids or trace_id):
        return UNMARKED
    return Attempt(is_repeat, next((ids[key] for key in id_headers if key in ids), ""), trace_id)


def _trace_id(traceparent: str) -> str:
    """Of W3C Trace Context: VERSION-TRACE_ID-PARENT_ID-FLAGS."""
    _, _, rest = traceparent.partition("-")
    trace_id, _, _ = rest.partition("-")
    return trace_id if len(trace_id) == _TRACE_ID_CHARS else ""
