"""A worker has what a process of multiprocessing has: its key, and its resource tracker."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]


def check(done: CompletedProcess[str], output: str) -> None:
    """Check the output; a tracker that removes or misses a segment writes to standard error."""
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_a_manager_is_reached_from_workers(run_python: Run) -> None:
    """Proxies work in verbs, submit and initializers, whenever the manager was made."""
    check(
        run_python(
            """
            import multiprocessing, shmpar

            def put(key, shared):
                shared[int(key)] = 2 * int(key)
                return shared[int(key)]

            manager = multiprocessing.Manager()
            with shmpar.Pool(2, max_tasks_per_worker=3) as early, manager:
                shared = manager.dict()
                with shmpar.Pool(2, initializer=put, initargs=(100, shared)) as late:
                    for pool in (early, late):
                        print(pool.submit(put, 9, shared).result())
                        found = pool.parallel_map(put, range(8), kwargs={"shared": shared})
                        print(found)
                        queue = manager.Queue()
                        list(pool.map(queue.put, range(5)))
                        print(sorted(queue.get() for _ in range(5)))
                print(sorted(shared.items()))
            """
        ),
        "18\n[0, 2, 4, 6, 8, 10, 12, 14]\n[0, 1, 2, 3, 4]\n" * 2
        + str([*[(key, 2 * key) for key in range(8)], (9, 18), (100, 200)])
        + "\n",
    )


def test_the_key_is_in_no_argument_and_no_variable(run_python: Run) -> None:
    """Other users can read the arguments of a process."""
    check(
        run_python(
            """
            import multiprocessing, os, shmpar
            key = bytes(multiprocessing.current_process().authkey)

            def look():
                import multiprocessing, os
                own = f"/proc/{os.getpid()}"
                told = open(f"{own}/cmdline", "rb").read() + open(f"{own}/environ", "rb").read()
                return bytes(multiprocessing.current_process().authkey), told, dict(os.environb)

            with shmpar.Pool(1) as pool:
                found, told, variables = pool.submit(look).result()
            print(found == key, key in told, key in variables.values(), key.hex().encode() in told)
            """
        ),
        "True False False False\n",
    )


def test_a_worker_removes_no_segment_of_its_parent(run_python: Run) -> None:
    """Workers open it by name and as an object, in a verb, submit and the initializer, and exit."""
    check(
        run_python(
            """
            import numpy as np, shmpar
            from multiprocessing.shared_memory import ShareableList, SharedMemory

            def by_name(name):
                from multiprocessing.shared_memory import SharedMemory
                opened = SharedMemory(name)
                value = bytes(opened.buf[:3])
                opened.close()
                return value

            def as_object(opened):
                value = bytes(opened.buf[:3])
                opened.close()
                return value

            def of_list(held):
                value = held[1]
                held.shm.close()
                return value

            def in_chunk(row, name):
                return by_name(name)[0] + row

            segment = SharedMemory(create=True, size=10)
            segment.buf[:3] = b"abc"
            held = ShareableList([1, "two"])
            for options in ({}, {"initializer": by_name, "initargs": (segment.name,)}):
                with shmpar.Pool(2, max_tasks_per_worker=2, **options) as pool:
                    for _ in range(2):  # more calls than a worker makes
                        assert pool.submit(by_name, segment.name).result() == b"abc"
                        assert pool.submit(as_object, segment).result() == b"abc"
                        assert pool.submit(of_list, held).result() == "two"
                    keywords = {"name": segment.name}
                    rows = pool.parallel_map(in_chunk, np.arange(9), kwargs=keywords)
                    assert rows.tolist() == list(range(97, 106)), rows
            again = ShareableList(name=held.shm.name)
            print(by_name(segment.name), list(again))
            again.shm.close()
            for one in (segment, held.shm):
                one.close()
                one.unlink()
            """
        ),
        "b'abc' [1, 'two']\n",
    )


def test_a_segment_that_a_worker_made_outlives_it(run_python: Run) -> None:
    """The parent, which had no tracker before, takes over segments of workers that are gone."""
    check(
        run_python(
            """
            import shmpar

            def make(_=None):
                from multiprocessing.shared_memory import SharedMemory
                made = SharedMemory(create=True, size=100)
                made.buf[:3] = b"new"
                made.close()
                return made.name

            def begin():
                global first
                first = make()

            def take():
                return first

            with shmpar.Pool(1, max_tasks_per_worker=3) as pool:
                names = [pool.submit(make).result() for _ in range(4)]
                names += pool.parallel_map(make, range(5), dtype=object).tolist()
            with shmpar.Pool(1, initializer=begin) as pool:
                names.append(pool.submit(take).result())
            from multiprocessing.shared_memory import SharedMemory
            for name in names:
                one = SharedMemory(name)
                assert bytes(one.buf[:3]) == b"new"
                one.close()
                one.unlink()
            print(len(set(names)))
            """
        ),
        "10\n",
    )


def test_a_segment_that_nobody_removes_goes_with_the_parent(run_python: Run) -> None:
    """The tracker of the parent removes it, with the warning of the standard library."""
    done = run_python(
        """
        import shmpar

        def make():
            from multiprocessing.shared_memory import SharedMemory
            made = SharedMemory(create=True, size=100)
            made.close()
            return made.name

        with shmpar.Pool(1, max_tasks_per_worker=1) as pool:
            name = pool.submit(make).result()
            pool.submit(abs, 1).result()
        print(open("/dev/shm/" + name, "rb").read(3), name)
        """
    )
    assert done.returncode == 0
    assert done.stdout.startswith(repr(bytes(3)))
    assert "leaked shared_memory" in done.stderr


def test_a_process_that_a_worker_spawns_has_them_too(run_python: Run) -> None:
    """A grandchild of multiprocessing opens a segment and a manager of the first process."""
    check(
        run_python(
            """
            import multiprocessing, shmpar
            from multiprocessing.shared_memory import SharedMemory

            def grandchild(name, shared):
                from multiprocessing.shared_memory import SharedMemory
                opened = SharedMemory(name)
                shared.append(bytes(opened.buf[:1]))
                opened.close()

            def child(name, shared):
                import multiprocessing
                process = multiprocessing.get_context("fork").Process(
                    target=grandchild, args=(name, shared))
                process.start()
                process.join()
                return process.exitcode

            segment = SharedMemory(create=True, size=1)
            with multiprocessing.Manager() as manager:
                shared = manager.list()
                with shmpar.Pool(1, max_tasks_per_worker=1) as pool:
                    print([pool.submit(child, segment.name, shared).result() for _ in range(2)])
                print(list(shared))
            segment.close()
            segment.unlink()
            """
        ),
        "[0, 0]\n[b'\\x00', b'\\x00']\n",
    )


def test_no_tracker_runs_for_nothing(run_python: Run) -> None:
    """A pool whose functions do not use multiprocessing imports nothing of it."""
    check(
        run_python(
            """
            import sys, numpy as np, shmpar
            with shmpar.Pool(1) as pool:
                pool.map_blocks(np.negative, np.ones(3))
                found = pool.submit(lambda: [one for one in __import__("sys").modules
                                             if one.startswith("multiprocessing")]).result()
            print(found, [one for one in sys.modules if one.startswith("multiprocessing")])
            """
        ),
        "[] []\n",
    )


def test_a_tracker_runs_when_it_is_used(run_python: Run) -> None:
    """The import starts none; a segment of a worker or of its fork does, in the parent."""
    check(
        run_python(
            """
            import os, sys, shmpar

            def imported():
                import multiprocessing.resource_tracker as module
                return "_fd" in vars(module._resource_tracker)

            def in_fork():
                import multiprocessing.resource_tracker as module
                pid = os.fork()
                if not pid:
                    module.register("/none", "shared_memory")
                    module.unregister("/none", "shared_memory")
                    os._exit(module._resource_tracker._pid is not None)
                return os.waitpid(pid, 0)[1], module._resource_tracker._pid

            def running():
                return "multiprocessing.resource_tracker" in sys.modules

            with shmpar.Pool(1, initializer=imported) as pool:
                print(pool.submit(imported).result(), running())
            print(running())
            with shmpar.Pool(1) as pool:
                print(pool.submit(imported).result(), running())
                print(pool.submit(in_fork).result(), running())
            """
        ),
        "False False\nFalse\nFalse False\n(0, None) True\n",
    )
