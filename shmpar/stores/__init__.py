"""Arrays that lie outside memory: how to open them, and windows of them."""

from shmpar.stores.recognise import open, opened, wrap
from shmpar.stores.store import Part, Store

__all__ = ["Part", "Store", "open", "opened", "wrap"]
