"""What is wrong with a credential."""


class NotProven(Exception):
    """A credential that proves nothing. The text says why, for the log: its sender is not told."""
