"""What keeps a command from doing its work."""


class Unusable(Exception):
    """The text is for the person at the terminal; exit code 2."""
