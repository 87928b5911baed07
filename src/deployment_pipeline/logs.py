"""Log lines: one JSON object each, on standard error."""

import logging
import sys

import structlog


def configure(level: str, **everywhere: object) -> None:
    """everywhere: what every line says."""
    structlog.contextvars.bind_contextvars(**everywhere)
    threshold = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without local variables: what is in a request is nobody's business.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries say through the standard library: warnings matter. The pool's do not, which come for
    # every attempt at every connection; readiness says once that Postgres is away.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_JsonHandler()])


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
