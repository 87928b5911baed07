"""The metrics of several workers as those of one service, in Prometheus's text format."""

import re
from collections.abc import Mapping

# How a series begins: its name, and maybe labels.
_BEGIN = re.compile(r"([^{ ]+)(\{?)")


def merged(texts: Mapping[int, str]) -> str:
    """texts: by the worker's number, which every series gets as a label. Nothing is summed: a worker that was
    replaced is a counter that was reset, and `rate` understands that. A family's HELP and TYPE stand once, in
    front of all of its series, as the format demands."""
    families: dict[str, tuple[dict[str, None], list[str]]] = {}
    for worker, text in texts.items():
        headers, series = dict[str, None](), list[str]()
        # Only \n ends a line: a label's value may hold others that splitlines() takes for ends.
        for line in text.split("\n"):
            if line.startswith("# "):  # HELP or TYPE, and the family's name
                headers, series = families.setdefault(line.split(" ")[2], ({}, []))
                headers[line] = None
            elif line:
                series.append(_labelled(line, worker))
    return "".join(f"{line}\n" for family in families.values() for lines in family for line in lines)


def _labelled(line: str, worker: int) -> str:
    label = f'{{worker="{worker}"'
    return _BEGIN.sub(lambda begin: begin[1] + label + ("," if begin[2] else "}"), line, count=1)
