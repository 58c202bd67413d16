"""How the user's function, and what it holds, travels to a worker, and results travel back.

Imports plan, segment and arrays.  :func:`packing.pack` makes a :class:`parcel.Parcel`, bytes and
the segments that they speak of; :func:`unpacking.unpack` opens it in the worker.
:func:`packing.pack_result` makes one there for the way home.

This package imports none of its modules: most workers never pack anything.

Guarantees
----------
- A shared array in a closure, a global or an argument arrives as the same memory, writable as
  it was, and gets no name for it.
- A large plain array arrives as the function's own: its values lie in shared memory once, and
  each worker maps them privately (copy on write), as if they had been pickled.
- Functions of one module that travel by value share one globals dict in a worker, so what an
  ``initializer`` sets, later functions see; and every call brings today's values of the globals
  that its function names.
- A large array in a result lies in a segment of its own, which becomes the parent's.
- What cannot travel is named: the parameter, closure variable or global that holds it.
"""
