"""What files say, read again when they change: certificates, tokens, grants, keys."""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from deployment_pipeline import metrics

T = TypeVar("T")

# What is changed holds after two looks. What is taken back must be refused within five seconds, also where a
# busy machine looks late.
LOOK_SECONDS = 1.5

# Of a file: room for 20,000 tokens or grants. A longer one was not meant, and could take all memory.
MAX_BYTES = 4 * 1024 * 1024

log = structlog.get_logger()


class Unreadable(Exception):
    """A file is missing or says nothing of use; the text names it, and every problem on a line of its own."""


def content(path: Path) -> bytes:
    """Of a regular file: to open anything else may wait for ever, and so would the end of this process.
    Raises OSError, with a text for people."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(file, "rb", closefd=False) as opened:
            data = opened.read(MAX_BYTES + 1)
    finally:
        os.close(file)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is longer than {MAX_BYTES} bytes")
    return data


class Reloading(Generic[T]):
    """The last good value of some files, which belong together."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """read: raises Unreadable. So does this."""
        self._paths = paths
        self._read = read
        self._looking = threading.Lock()
        self._was_put_off = False
        self._glimpsed = self._seen = self._stamps()
        self.value = read()

    def look(self) -> None:
        """Read them again if one has changed. What cannot be read leaves the last good value as it is.
        If another thread is looking, this waits for what that one finds."""
        with self._looking:
            self._look()

    def look_when_settled(self) -> None:
        """As `look`, but put off once what has changed since the last time: somebody may be writing, and half
        a file of grants may be valid, too."""
        glimpsed = self._stamps()
        self._was_put_off = glimpsed != self._glimpsed and not self._was_put_off
        self._glimpsed = glimpsed
        if not self._was_put_off:
            self.look()

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        names = ", ".join(map(str, self._paths))
        try:
            self.value = self._read()
        except Unreadable as error:
            metrics.FILE_FAILURES.inc()
            problem = str(error)  # of people's making: a traceback would tell them nothing
            log.error("files cannot be used; what they said before holds", files=names, error=problem)  # noqa: TRY400
        else:
            log.info("files were read again", files=names)

    def _stamps(self) -> list[object]:
        """What changes with a file, or with what a link to it points at."""
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    # What was copied over it may have its size and time; nobody can set when that was (ctime).
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


async def keep(files: Sequence[Reloading[Any]]) -> None:
    """Look at them every LOOK_SECONDS, until cancelled. In threads: one may be far away, and others not."""
    await asyncio.gather(*map(_keep, files))


async def _keep(file: Reloading[Any]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await asyncio.to_thread(file.look_when_settled)
        except Exception:  # whatever it is, it may be another thing the next time
            log.exception("a file could not be looked at")
