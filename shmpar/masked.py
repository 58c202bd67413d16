"""Whether a value is a masked array, without loading what knows them.

Imports nothing of the package.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_masked"]


def is_masked(value: Any) -> bool:
    """Whether it is a masked array.

    Where nobody has loaded ``numpy.ma`` there is none, and it stays so: loading it costs a tenth
    of the start of a worker.

    Examples
    --------
    >>> import numpy as np
    >>> is_masked(np.ma.masked_equal([1, 2], 2)), is_masked(np.array([1, 2]))
    (True, False)
    """
    module = sys.modules.get("numpy.ma.core")
    kind = getattr(module, "MaskedArray", None)
    return kind is not None and isinstance(value, kind)
