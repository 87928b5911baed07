"""Pipes that nobody reads."""

import os


def fill(writer: int) -> int:
    """Until nothing more fits. Returns how many bytes."""
    os.set_blocking(writer, False)
    size = 0
    try:
        while True:
            size += os.write(writer, b"x")
    except BlockingIOError:
        os.set_blocking(writer, True)
        return size
