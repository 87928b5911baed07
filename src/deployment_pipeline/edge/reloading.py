"""What files say, read again when they change: certificates, tokens, grants, keys."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

T = TypeVar("T")

# What is changed holds after two looks. What is taken back must be refused within five seconds, also where a
# busy machine looks late.
LOOK_SECONDS = 1.5

log = structlog.get_logger()


class Unreadable(Exception):
    """A file is missing or says nothing of use; the text names it, and every problem on a line of its own."""


class Reloading(Generic[T]):
    """The last good value of some files, which belong together."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """read: raises Unreadable. So does this."""
        self._paths = paths
        self._read = read
        self._looking = threading.Lock()
        self._glimpsed = self._seen = self._stamps()
        self.value = read()

    def look(self) -> None:
        """Read them again if one has changed. What cannot be read leaves the last good value as it is.
        If another thread is looking, this waits for what that one finds."""
        with self._looking:
            self._look()

    def look_when_settled(self) -> None:
        """As `look`, but leave files alone that have changed since the last time: somebody may be writing,
        and half a file of grants may be valid, too."""
        glimpsed = self._stamps()
        if glimpsed == self._glimpsed:
            self.look()
        self._glimpsed = glimpsed

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        names = ", ".join(map(str, self._paths))
        try:
            self.value = self._read()
        except Unreadable as error:
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
    return found.st_ino, found.st_mtime_ns, found.st_size


async def keep(files: Sequence[Reloading[Any]]) -> None:
    """Look at them every LOOK_SECONDS, until cancelled. In a thread: a file may be far away."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for file in files:
            try:
                await asyncio.to_thread(file.look_when_settled)
            except Exception:  # whatever it is, the other files are to be looked at
                log.exception("a file could not be looked at")
