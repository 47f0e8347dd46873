"""One line per log record, with its facts as key=value or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset({"message", "asctime", "taskName"})


class LineFormatter(logging.Formatter):
    """Formats a record, and whatever was given as `extra`, on one line."""

    def __init__(self, service: str, as_json: bool) -> None:
        """Take the name that tells processes apart."""
        super().__init__()
        self._service = service
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        # Libraries put fields of their own into every record; only what this one was given counts.
        common = _STANDARD | vars(logging.makeLogRecord({})).keys()
        fields = {name: value for name, value in vars(record).items() if name not in common}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            base = {"time": time, "level": record.levelname, "service": self._service, "logger": record.name}
            return json.dumps({**base, "message": record.getMessage(), **fields}, default=str)
        facts = "".join(f" {name}={_word(value)}" for name, value in fields.items())
        message = record.getMessage().replace("\n", "\\n")
        return f"{time} {record.levelname} {self._service} {record.name}: {message}{facts}"


def setup(service: str, level: str = "INFO", as_json: bool = False) -> None:
    """Send every record of this process to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service, as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(letter in text for letter in ' \n\t"=') else text
