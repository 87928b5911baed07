"""What a request's fields must look like. All broken fields of a request are reported at once.

Usage: ask one `Rules` about every field, then `check()`, which raises if anything was wrong. A command names
the rule of each of its fields in its annotation (`commands`).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from unicodedata import category
from uuid import UUID

from deployment_pipeline.ids import OWN_REQUEST_ID
from deployment_pipeline.model import OnBusy
from deployment_pipeline.refusals import InvalidFields, Violation

UPDATABLE = ("stages", "description", "labels", "max_pending")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_STAGES = 100
MAX_VERSION_CHARS = 256
MAX_TEXT_BYTES = 4096
MAX_OWNER_CHARS = 256
MAX_LABELS = 64
MAX_LABEL_KEY_CHARS = 63
MAX_LABEL_VALUE_CHARS = 256
MAX_REQUEST_ID_BYTES = 128
MAX_LISTED = 16
MAX_PAGE = 1000
DEFAULT_PAGE = 50
DEFAULT_QUEUE = 100
# Clients refuse messages beyond 4 MiB unless told otherwise; one more item must fit, too.
MAX_PAGE_BYTES = 3 * 1024 * 1024
MAX_PENDING = 1000
DEFAULT_MAX_PENDING = 100
MAX_NUMBER = 2**63 - 1

_NAME_RULE = "must be 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or digit (like 'web-shop')"
# What free text must not hold, by Unicode category: control, invisible and line-separating characters, and
# those that mean nothing. Newline and tab are text; so are the joiners of Persian and of emoji.
_NOT_TEXT = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_TEXT = "\n\t\u200c\u200d"
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _printable(text: str) -> bool:
    # False for controls, invisible separators and formatting characters: they would let two different
    # identifiers look the same.
    return text.isprintable()


class Rules:
    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def check(self) -> None:
        """Raise InvalidFields with everything that was found."""
        if self._violations:
            raise InvalidFields(self._violations)

    def broken(self, field: str, problem: str) -> None:
        self._violations.append(Violation(field, problem))

    def name(self, field: str, value: str) -> None:
        if not NAME.fullmatch(value):
            self.broken(field, _NAME_RULE if value else f"is required; it {_NAME_RULE}")

    def stages(self, field: str, stages: Sequence[str]) -> None:
        if not 1 <= len(stages) <= MAX_STAGES:
            self.broken(field, f"must list 1 to {MAX_STAGES} stages, not {len(stages)}")
            return
        for i, stage in enumerate(stages):
            self.name(f"{field}[{i}]", stage)
            if stage in stages[:i]:
                self.broken(f"{field}[{i}]", "is a stage that is listed before; each may appear once")

    def version(self, field: str, value: str) -> None:
        if not 1 <= len(value) <= MAX_VERSION_CHARS or not _printable(value):
            rule = f"must be 1 to {MAX_VERSION_CHARS} printable characters"
            self.broken(field, rule if value else f"is required; it {rule}")

    def text(self, field: str, value: str) -> None:
        if not value.isprintable() and any(category(c) in _NOT_TEXT and c not in _TEXT for c in value):
            self.broken(field, "must hold no control or invisible characters other than newline and tab")
        elif len(value.encode()) > MAX_TEXT_BYTES:
            self.broken(field, f"must be at most {MAX_TEXT_BYTES} bytes")

    def required_reason(self, field: str, value: str) -> None:
        if not value:
            self.broken(field, "is required: it is what people who meet the lock will read")
        self.text(field, value)

    def owner(self, field: str, value: str) -> None:
        if len(value) > MAX_OWNER_CHARS or not _printable(value):
            self.broken(field, f"must be at most {MAX_OWNER_CHARS} printable characters")

    def labels(self, field: str, labels: Mapping[str, str]) -> None:
        if len(labels) > MAX_LABELS:
            self.broken(field, f"must be at most {MAX_LABELS} labels, not {len(labels)}")
            return
        for key, value in labels.items():
            if not 1 <= len(key) <= MAX_LABEL_KEY_CHARS or not _printable(key):
                self.broken(field, f"must have keys of 1 to {MAX_LABEL_KEY_CHARS} printable characters")
            elif len(value) > MAX_LABEL_VALUE_CHARS or not _printable(value):
                self.broken(
                    f"{field}[{key}]", f"must be at most {MAX_LABEL_VALUE_CHARS} printable characters"
                )

    def request_id(self, field: str, value: str) -> None:
        if value.startswith(OWN_REQUEST_ID):
            self.broken(field, f"must not begin with {OWN_REQUEST_ID!r}: the service's own do")
        if not _printable(value) or len(value.encode()) > MAX_REQUEST_ID_BYTES:
            self.broken(field, f"must be at most {MAX_REQUEST_ID_BYTES} bytes, all printable")

    def whole(self, field: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            self.broken(field, f"must be {low} to {high}, not {value}")

    def max_pending(self, field: str, value: int) -> None:
        self.whole(field, value, 0, MAX_PENDING)

    def number(self, field: str, value: int) -> None:
        self.whole(field, value, 0, MAX_NUMBER)

    def true(self, field: str, value: bool) -> None:
        if not value:
            self.broken(field, "must be true, or left out")

    def time(self, field: str, value: object) -> None:
        """value: what cannot be a datetime is left as it came."""
        if not isinstance(value, datetime):
            self.broken(field, "must be a time between the years 1 and 9999")

    def on_busy(self, field: str, value: object) -> None:
        """value: a number that names no OnBusy is left as it came."""
        self.one_of(field, value, list(OnBusy))

    def update_mask(self, field: str, value: Sequence[str]) -> None:
        unknown = [path for path in value if path not in UPDATABLE]
        if unknown:
            self.broken(field, f"may name {', '.join(UPDATABLE)} or *; not {unknown[0]!r}")
        elif not value:
            self.broken(field, "names no field to change, and none is given")

    def one_of(self, field: str, value: object, allowed: Collection[object]) -> None:
        if value not in allowed:
            self.broken(field, f"must be one of {', '.join(map(str, allowed))}, not {value}")

    def listed(self, field: str, values: Sequence[str], allowed: Collection[str]) -> None:
        """A list of some of these."""
        if len(values) > MAX_LISTED:
            self.broken(field, f"must list at most {MAX_LISTED}, not {len(values)}")
            return
        for i, value in enumerate(values):
            self.one_of(f"{field}[{i}]", value, allowed)

    def page_size(self, field: str, value: int, default: int = DEFAULT_PAGE) -> int:
        """The size to use: the default for 0."""
        self.whole(field, value, 0, MAX_PAGE)
        return value or default

    def uuid(self, field: str, value: UUID | str) -> UUID:
        """The parsed id; the nil UUID (never used, for `check` raises) if it is broken."""
        if isinstance(value, UUID):
            return value
        if UUID_TEXT.fullmatch(value):
            return UUID(value)
        rule = "must be a deployment's id, like '0199f6a2-7f2c-7bd0-8a55-1c2d3e4f5a6b'"
        self.broken(field, rule if value else f"is required; it {rule}")
        return UUID(int=0)
