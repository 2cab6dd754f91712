"""Structured logs on standard error: one line an event, readable on a terminal or JSON for machines.

Code of ours logs through structlog; what libraries say through the standard logging module takes the same form.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(level: str, style: Literal["console", "json"]) -> None:
    """Set up logging for the whole process; `level` is a lower-case name such as `info`."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    render = renderers(style)
    structlog.configure(
        processors=[*SHARED, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def renderers(style: Literal["console", "json"]) -> list[Processor]:
    if style == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Plain, because a traceback that shows variables shows what callers sent.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
