"""Calls that report their progress: find the functions that want a task, and read its reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from shmpar.runtime.futures import PoolFuture
from shmpar.worker.task import NBYTES, Progress, Task

PARAMETER = "task"
_DEEPEST = 20  # decorators and partials that are looked through
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class TaskFuture(PoolFuture):
    """A future of a function that may report its progress.

    Attributes
    ----------
    task : Task or None
        The argument ``task`` of the function, if it gets one.
    """

    task: Task | None = None

    @property
    def progress(self) -> Progress:
        """The latest report of the function: a tuple ``(current, total, message)``.

        It is ``(0, None, "")`` before the first report, and if the function has no task.
        """
        return Progress() if self.task is None else self.task.read()

    def cancel(self) -> bool:
        """Cancel the call unless a worker has begun it; then ask the function to stop.

        Returns
        -------
        bool
            Whether the call is cancelled. It is not if it has begun: its function sees
            ``task.cancelled``, and decides on the outcome.
        """
        cancelled = super().cancel()
        if not cancelled and self.task is not None:
            self.task.cancel()
        return cancelled


def task_for(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    zeros: Callable[..., Any],
) -> Task | None:
    """Return the task of a call; None if its function has no parameter for it.

    A function has if its arguments leave a parameter named ``task`` free.

    Parameters
    ----------
    zeros : callable
        Makes the memory of the task, as :func:`numpy.zeros`.

    Examples
    --------
    >>> def segment(image, task): ...
    >>> [task_for(segment, args, {}, np.zeros) is None for args in [(1,), (1, 2)]]
    [False, True]
    """
    if PARAMETER in keywords or not _names_task(call):
        return None
    try:
        signature = inspect.signature(call)
        bound = signature.bind_partial(*args, **keywords).arguments
    except (TypeError, ValueError):
        return None  # Why: the call itself raises the error, with the names of its function.
    parameter = signature.parameters.get(PARAMETER)
    if parameter is None or parameter.kind not in _BY_KEYWORD or PARAMETER in bound:
        return None
    return Task(zeros(NBYTES, np.uint8))


def _names_task(call: Any) -> bool:
    """Return whether a function may have the parameter; much quicker than its signature."""
    for _ in range(_DEEPEST):
        if isinstance(call, partial):
            if PARAMETER in call.keywords:
                return False
            call = call.func
            continue
        code = getattr(call, "__code__", None)
        if code is None:
            if (signature := getattr(call, "__signature__", None)) is not None:
                return PARAMETER in getattr(signature, "parameters", ())
            kind, name = (call, "__init__") if isinstance(call, type) else (type(call), "__call__")
            code = getattr(getattr(kind, name, None), "__code__", None)
        if code is not None:
            named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if PARAMETER in named:
                return True
        call = getattr(call, "__wrapped__", None)
        if call is None:
            return False
    return False
