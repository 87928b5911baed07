"""Which release this is."""

VERSION = "0.1.0"
# Raised by every change that lets callers store what the code before cannot read, or would not refuse. Such a
# command names its level (`Command.level`), and is refused until `migrate --finish`.
LEVEL = 1
