"""Logging records of worker processes, on their way to the handlers of the parent.

A worker sends a record that none of its own handlers takes. The levels of its loggers are those of
the parent, so that a record for which the parent has no use is not made.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

from shmpar.errors import shortened
from shmpar.ipc.protocol import Logged, LogLevels

_MOST_CHARACTERS: Final = 64 * 1024
# Why: a logger keeps its answer for this level until the level of any logger changes.
_PROBE: Final = -73_021
_found: list[LogLevels] = []


def current_levels() -> LogLevels:
    """Return the levels of the loggers in this process; read them again if one has changed."""
    logging = sys.modules.get("logging")
    if logging is None:
        return LogLevels()
    root = logging.root
    # Why private: a look at all loggers would cost a program that has many as much as a call.
    if not _found or _PROBE not in root._cache:  # noqa: SLF001
        # Invariant: asked before the look, so that a level that is set meanwhile is seen later.
        root.isEnabledFor(_PROBE)
        named = list(root.manager.loggerDict.items())
        levels = {name: one.level for name, one in named if getattr(one, "level", 0)}
        _found[:] = [LogLevels(root.manager.disable, root.level, levels)]
    return _found[0]


class _Forwarding:
    """The state of a worker process: the way to the parent, and the parent's levels."""

    send: Callable[[Logged], object] | None = None
    wanted: LogLevels | None = None
    applied = LogLevels()


def begin(send: Callable[[Logged], object]) -> None:
    """Send records by this function, which any thread may call."""
    _Forwarding.send = send


def end() -> None:
    """Send nothing more, in a child that the user's code has forked."""
    _Forwarding.send = None


def apply_levels(levels: LogLevels | None) -> None:
    """Apply the parent's levels; None leaves all records to the handlers of this process."""
    _Forwarding.wanted = levels
    if (logging := sys.modules.get("logging")) is not None:
        _apply(logging)


def prepare(logging: Any) -> None:
    """Take the records that no handler of this process takes; called once, after the import."""
    otherwise = logging.Logger.callHandlers

    def call_handlers(self: Any, record: Any) -> None:
        send = _Forwarding.send
        if send is None or _Forwarding.wanted is None or _has_handlers(logging, self):
            otherwise(self, record)
            return
        try:
            message = _packed(logging, record)
        except Exception:  # noqa: BLE001 - logging itself reports a wrong format
            otherwise(self, record)
        else:
            send(message)

    configure = logging.basicConfig

    def basic_config(**kwargs: Any) -> None:
        # Why: `logging.warning` and the like call it, and their handler would take all records.
        if kwargs or _Forwarding.send is None or _Forwarding.wanted is None:
            configure(**kwargs)

    logging.Logger.callHandlers = call_handlers
    logging.basicConfig = basic_config
    _apply(logging)


def _apply(logging: Any) -> None:
    """Set the levels that have changed: the user's code may have set others here."""
    wanted, applied = _Forwarding.wanted, _Forwarding.applied
    if wanted is None or wanted == applied:
        return
    if wanted.disabled != applied.disabled:
        logging.disable(wanted.disabled)
    if wanted.root != applied.root:
        logging.root.setLevel(wanted.root)
    for name in wanted.levels.keys() | applied.levels.keys():
        level = wanted.levels.get(name, 0)
        if level != applied.levels.get(name, 0):
            logging.getLogger(name).setLevel(level)
    _Forwarding.applied = wanted


def _has_handlers(logging: Any, logger: Any) -> bool:
    """Return whether a handler of this process takes the records of a logger."""
    while logger is not None:
        if any(not isinstance(one, logging.NullHandler) for one in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _packed(logging: Any, record: Any) -> Logged:
    """Return a record for the wire: its text is made here, where its arguments are."""
    usual = vars(logging.makeLogRecord({})).keys()
    fields = {name: value for name, value in vars(record).items() if name in usual}
    fields |= {"msg": shortened(record.getMessage(), _MOST_CHARACTERS), "args": None}
    if record.exc_info and not record.exc_text:
        text = logging.Formatter().formatException(record.exc_info)
        fields["exc_text"] = shortened(text, _MOST_CHARACTERS)
    fields["exc_info"] = None
    more: dict[str, bytes] = {}
    for name in vars(record).keys() - usual:
        value = vars(record)[name]
        try:
            more[name] = pickle.dumps(value)
        except Exception:  # noqa: BLE001 - an attribute of the user's
            more[name] = pickle.dumps(shortened(repr(value)))
    return Logged(fields, more)


def handle(message: Logged) -> None:
    """Give a record to the handlers of this process, if its logger is enabled for the level."""
    import logging  # Why here: a worker imports this module, and may need no logging.

    fields = dict(message.fields)
    for name, body in message.more.items():
        try:
            fields[name] = pickle.loads(body)
        except Exception:  # noqa: BLE001 - a class that is missing here
            fields[name] = None
    record = logging.makeLogRecord(fields)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
