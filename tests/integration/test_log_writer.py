"""Lines on their way to a pipe or file that is full, gone, or back again."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deployment_pipeline.logs import Writer
from support.pipes import fill

LIMITS = {"others": 2, "calls": 3}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def drained(reader: int, writer: int, lines: Writer, skip: int = 0) -> str:
    """What comes out until the end, without so many bytes that were there before."""
    while skip:
        skip -= len(os.read(reader, skip))
    lines.close()
    os.close(writer)
    with open(os.dup(reader), "rb") as rest:
        return rest.read().decode()


def until(condition: Callable[[], Any]) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError


def test_lines_come_out_in_order_and_others_before_calls(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    full = fill(writer)
    lines = Writer(writer)
    lines.put("0", "calls")
    until(lambda: not lines._waiting["calls"])  # the thread has it, and cannot write it
    for number in range(1, 300):
        lines.put(str(number), "calls")
    lines.put("a warning")
    lines.put("an error")
    expected = ["0", "a warning", "an error", *map(str, range(1, 300))]
    assert drained(reader, writer, lines, full).splitlines() == expected


def test_what_does_not_fit_is_dropped_by_kind_and_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    full = fill(writer)
    lines = Writer(writer, LIMITS)
    lines.put("0", "calls")
    until(lambda: not lines._waiting["calls"])
    for number in range(1, 11):
        lines.put(str(number), "calls")
    for text in ("a", "b", "c"):
        lines.put(text)
    first, loss, *rest = drained(reader, writer, lines, full).splitlines()
    assert (first, rest) == ("0", ["a", "b", "1", "2", "3"])
    said = json.loads(loss)
    assert (said["event"], said["level"]) == ("log lines were lost", "warning")
    assert (said["calls"], said["others"]) == (7, 1)


def test_the_loss_is_said_when_writing_works_again(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    broken = os.open("/dev/full", os.O_WRONLY)
    lines = Writer(broken)
    lines.put("lost", "calls")
    until(lambda: lines._lost)
    os.dup2(writer, broken)
    lines.put("written")
    os.close(writer)
    loss, written = drained(reader, broken, lines).splitlines()
    assert (json.loads(loss)["calls"], written) == (1, "written")


def test_the_last_line_counts_what_was_lost_after_all_others(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    broken = os.open("/dev/full", os.O_WRONLY)
    lines = Writer(broken)
    lines.put("lost")
    until(lambda: lines._lost)
    os.dup2(writer, broken)
    os.close(writer)
    assert json.loads(drained(reader, broken, lines))["others"] == 1


def test_half_a_line_is_ended_before_the_next(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    first_reader, first_writer = os.pipe()
    lines = Writer(first_writer)
    lines.put("x" * 1_000_000)  # more than a pipe holds
    os.read(first_reader, 1)
    os.close(first_reader)
    until(lambda: lines._lost)
    os.dup2(writer, first_writer)
    os.close(writer)
    lines.put("whole")
    end, loss, whole = drained(reader, first_writer, lines).split("\n")[:3]
    assert (end, json.loads(loss)["others"], whole) == ("", 1, "whole")


def test_a_file_that_somebody_made_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    full = fill(writer)
    os.set_blocking(writer, False)
    lines = Writer(writer)
    lines.put("0", "calls")
    until(lambda: not lines._waiting["calls"])
    assert drained(reader, writer, lines, full) == "0\n"


UNHANDLED = """
import threading, warnings
from deployment_pipeline import logs

class Finalized:
    def __del__(self):
        raise ValueError("in a finalizer")

def fail(where):
    raise ValueError(where)

logs.configure("error")
Finalized()
thread = threading.Thread(target=fail, args=["in a thread"])
thread.start()
thread.join()
fail("everywhere")
"""


def test_an_exception_that_nobody_handles_is_a_line_too() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UNHANDLED], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 1
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["exception"][0]["exc_value"] for line in lines] == [
        "in a finalizer",
        "in a thread",
        "everywhere",
    ]
