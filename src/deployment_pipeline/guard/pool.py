"""Connections to the Redis that a URL leads to."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import ConnectionPool, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CONNECTIONS = 32

# A URL says where Redis is and who we are there. How answers are read and how often we ask is ours, though
# other programs that share the URL may need these options.
_OURS: dict[str, Any] = {
    "max_connections": CONNECTIONS,
    # A batch has one time limit (`Scripts`); a timer for every write and read costs more than those.
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "retry": Retry(NoBackoff(), 0),
    "retry_on_timeout": False,
    "health_check_interval": 0,
    "decode_responses": False,
    "encoding": "utf-8",
    "encoding_errors": "strict",
    "protocol": None,
}
_THEIRS = {"db", "username", "password", "client_name", "socket_keepalive"}


def connections_to(url: str) -> ConnectionPool:
    """Opens none yet. Raises ValueError, without a secret, if there is an option that cannot be used."""
    parts = urlsplit(url)
    for name in parse_qs(parts.query):
        if name.startswith("ssl_"):
            if parts.scheme != "rediss":
                raise ValueError(f"must begin with rediss:// for the option {name}")
        elif name not in _OURS.keys() | _THEIRS:
            raise ValueError(f"must not have the option {name}, which is unknown")
    try:
        pool = ConnectionPool(**{**parse_url(url), **_OURS})
        connection = pool.make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()
    except TypeError as error:  # one that only looks like an option of TLS
        raise ValueError(f"must not have an option that is unknown: {error}") from error
    except (OSError, RedisError) as error:
        raise ValueError(f"must have options that can be used: {error}") from error
    return pool
