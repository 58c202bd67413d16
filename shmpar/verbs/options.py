"""The keywords that all verbs share.

Imports policy and progress.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from shmpar.runtime.execution import Policy
from shmpar.runtime.progress import Progress, observe

__all__ = ["Defaults", "Options", "parse_options", "refuse_unknown"]


class Options(TypedDict, total=False):
    """Keywords of every verb but ``apply_along_axis``.

    Attributes
    ----------
    kwargs : mapping
        Keyword arguments for the function.
    progress : bool, str or callable
        True: a tqdm bar; a str: its label; a callable gets ``(done, total)`` in chunks, about ten
        times a second and at the end.
    on_error : {"raise", "collect", "fill"}
        What becomes of a run in which a chunk fails.
    fill_value : object
        For ``on_error="fill"``; None is NaN or NaT.
    retries : int
        How often a chunk whose worker died is computed again.
    task_timeout : float or None
        Seconds that a chunk may take, on the processes engine.
    seed : int, sequence of int or None
        Entropy of the chunks' random streams.
    pass_out : bool
        The function is passed its window of the output as ``out=`` and writes there itself; what
        it returns is not looked at. Needs ``out=``, or in `map_blocks` and `map_overlap` (with
        ``trim=False``) ``dtype=``. NumPy's ufuncs write into their window without being told.
    ledger : path
        A file that keeps what is done, so that the same call in a later process computes only what
        is not; needs ``out=`` on disk (a ``.npy`` path or np.memmap), or a function that returns
        None. It stays when all is done, and then the call computes nothing.
    wait : bool
        False returns the :class:`shmpar.Run`.
    """

    kwargs: Mapping[str, Any]
    progress: Progress
    on_error: str
    fill_value: Any
    retries: int
    task_timeout: float | None
    seed: int | Sequence[int] | None
    pass_out: bool
    ledger: str | os.PathLike[str] | None
    wait: bool


class Defaults(TypedDict):
    """What a pool sets for its verbs."""

    progress: Progress
    on_error: str
    retries: int
    task_timeout: float | None
    check: bool


def refuse_unknown(verb: str, options: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` for a keyword that the verb does not have, with the remedy."""
    unknown = [name for name in options if name not in Options.__annotations__]
    if unknown:
        given = ", ".join(f"{name!r}: {options[name]!r}" for name in unknown)
        raise TypeError(
            f"{verb}() got an unexpected keyword argument {unknown[0]!r}; keyword arguments for "
            f"the function go into kwargs={{{given}}}"
        )


def parse_options(verb: str, options: Mapping[str, Any], defaults: Defaults) -> Policy:
    """Check the options of a call, and add the pool's defaults.

    Raises
    ------
    TypeError, ValueError
        For an option that there is not, or a value that it cannot have.
    """
    refuse_unknown(verb, options)
    chosen = {**defaults, **options}
    if chosen["on_error"] not in ("raise", "collect", "fill"):
        raise ValueError(f"on_error is 'raise', 'collect' or 'fill', not {chosen['on_error']!r}")
    if not isinstance(options.get("kwargs") or {}, Mapping):
        raise TypeError(f"kwargs is a dict of the function's keywords, not {options['kwargs']!r}")
    observe(chosen["progress"], verb)
    retries = _whole(chosen["retries"])
    timeout = chosen["task_timeout"]
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise ValueError(f"task_timeout is a number of seconds above 0, or None, not {timeout!r}")
    return Policy(
        on_error=chosen["on_error"],
        fill_value=chosen.get("fill_value"),
        retries=retries,
        task_timeout=timeout,
        check=chosen["check"],
    )


def _whole(retries: Any) -> int:
    if isinstance(retries, bool) or not hasattr(retries, "__index__") or retries < 0:
        raise ValueError(f"retries is a number of times, 0 or more, not {retries!r}")
    return operator.index(retries)
