"""Which release this is."""

VERSION = "0.0.1"
# Raised by every change that stores what the code before cannot read, or would not refuse.
LEVEL = 1
