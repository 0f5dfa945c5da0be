"""The last routes on disk, so that a restarted router serves before the operator speaks.

Written whole and renamed into place; what cannot be read is reported and left out, as the operator sends it all again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hotstart.exchange.messages import RouterRequest
from hotstart.router.routes import RouteTable, make_table
from pydantic import ValidationError

log = logging.getLogger(__name__)


def load_routes(path: Path) -> RouteTable | None:
    """The table that was saved last, or None where there is none or it cannot be read."""
    try:
        return make_table(RouterRequest.model_validate_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("saved routes unreadable, waiting for the operator path=%s error=%s", path, error)
        return None


def save_routes(path: Path, table: RouteTable) -> None:
    """Replaces the saved table.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    message = RouterRequest(generation=table.generation, routes=tuple(table.routes.values()))
    partial = path.with_name(path.name + ".partial")
    partial.write_text(message.model_dump_json())
    partial.replace(path)
