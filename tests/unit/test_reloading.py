"""Files are read again when they have changed, and not while they are being written."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from deployment_pipeline.edge import reloading
from deployment_pipeline.edge.reloading import MAX_BYTES, Reloading, Unreadable, content, keep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


@pytest.fixture
def file(path: Path) -> Reloading[str]:
    return Reloading([path], lambda: read(path))


def read(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError:
        raise Unreadable(f"{path} is gone") from None
    if text == "bad":
        raise Unreadable(f"{path} is bad")
    return text


def test_a_file_that_cannot_be_used_at_first_is_said(path: Path) -> None:
    path.write_text("bad")
    with pytest.raises(Unreadable):
        Reloading([path], lambda: read(path))


def test_what_has_changed_is_read_at_the_second_look(path: Path, file: Reloading[str]) -> None:
    path.write_text("two, in full")
    file.look_when_settled()
    assert file.value == "one"
    file.look_when_settled()
    assert file.value == "two, in full"


def test_what_is_written_again_and_again_is_read_at_every_second_look(
    path: Path, file: Reloading[str]
) -> None:
    read = []
    for text in ("a", "bb", "ccc", "dddd"):
        path.write_text(text)
        file.look_when_settled()
        read.append(file.value)
    assert read == ["one", "bb", "bb", "dddd"]


@pytest.mark.parametrize("text", ["bad", None])
def test_the_last_good_value_holds_and_the_problem_is_said_once(
    path: Path, file: Reloading[str], text: str | None
) -> None:
    path.unlink() if text is None else path.write_text(text)
    with capture_logs() as said:
        for _ in range(5):
            file.look_when_settled()
    assert file.value == "one"
    assert [(line["log_level"], str(path) in line["error"]) for line in said] == [("error", True)]
    path.write_text("two")
    file.look_when_settled()
    file.look_when_settled()
    assert file.value == "two"


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    link.symlink_to("v1")
    file = Reloading([link], lambda: read(link))
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(link)
    file.look()
    assert file.value == "v2"


def test_who_looks_while_another_thread_reads_waits_for_what_it_finds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    reading, go_on = threading.Event(), threading.Event()
    file = Reloading([path], path.read_text)

    def slowly() -> str:
        reading.set()
        go_on.wait(20)
        return path.read_text()

    file._read = slowly
    path.write_text("newer")
    first = threading.Thread(target=file.look)
    first.start()
    assert reading.wait(20)
    seen: list[str] = []

    def second() -> None:
        file.look()
        seen.append(file.value)

    other = threading.Thread(target=second)
    other.start()
    # Without the lock it would be over by now: the file is the same as when the first one looked.
    other.join(0.1)
    go_on.set()
    first.join()
    other.join()
    assert seen == ["newer"]


@pytest.mark.parametrize("how", ["a pipe", "a folder", "too long"])
def test_what_is_no_file_of_a_usual_size_is_not_waited_for(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    match how:
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case _:
            path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(OSError, match=r"no regular file|longer than"):
        content(path)


def test_a_change_that_keeps_the_size_and_the_time_is_seen(path: Path, file: Reloading[str]) -> None:
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of files ticks now and then
        path.write_text("two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.look()
    assert file.value == "two"


async def test_a_file_that_does_not_come_holds_up_no_other(
    path: Path, file: Reloading[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.01)
    comes = threading.Event()
    far = Reloading([path], lambda: "far")
    far._read = lambda: str(comes.wait())
    keeping = asyncio.create_task(keep([far, file]))
    try:
        await asyncio.to_thread(path.write_text, "two")
        async with asyncio.timeout(20):
            while file.value != "two":  # noqa: ASYNC110  # files are looked at now and then
                await asyncio.sleep(0.01)
        assert far.value == "far"
    finally:
        comes.set()
        keeping.cancel()
