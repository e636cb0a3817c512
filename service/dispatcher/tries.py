"""How the threads beside the rounds do work that may fail: it is logged, and done again later."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.errors import ServiceError
from training.protocol import Superseded

log = logging.getLogger(__name__)


def succeeds(what: str, act: Callable[[], None]) -> bool:
    """Calls `act`; returns whether it succeeded. Logs its error with `what` in front. Raises Superseded."""
    try:
        act()
    except Superseded:
        raise
    except (ServiceError, OSError) as error:
        log.warning("%s: %s", what, error)
    except Exception:  # a bug that one job triggers must not block the others
        log.exception("%s", what)
    else:
        return True
    return False
