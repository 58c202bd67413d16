"""Forced interleavings: interrupts, ends and errors at the worst moment of a call."""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

import shmpar
from tests.interpreters import run_python
from tests.pools import ENGINES

BOUND = 60.0  # seconds after which a script counts as a hang

# A hang ends the script and shows where each thread is.
PREAMBLE = f"""
BOUND = {BOUND}
import contextlib, faulthandler, gc, os, signal, sys, threading, time, warnings
import numpy as np
import shmpar
from shmpar.engines import local, processes
from shmpar.runtime import futures, loop

# Python 3.12 and later warn of each fork beside threads.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
# The function that starts a thread, by the version of Python
START = "_start_joinable_thread"
START = START if hasattr(threading, START) else "_start_new_thread"

array = np.arange(40.0)
ENGINES = {{
    "processes": processes.ProcessesEngine,
    "threads": local.ThreadsEngine,
    "serial": local.SerialEngine,
}}

def interrupt():
    signal.raise_signal(signal.SIGINT)

def once(owner, name, action, after=False):
    \"\"\"Call an action once, right before or after the next call of a method.\"\"\"
    method = getattr(owner, name)
    def patched(*args, **kwargs):
        setattr(owner, name, method)
        if not after:
            action()
        result = method(*args, **kwargs)
        if after:
            action()
        return result
    setattr(owner, name, patched)

def expect(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind:
        return
    raise AssertionError(f"no {{kind.__name__}}")

def workers():
    listed = [f"/proc/self/task/{{task}}/children" for task in os.listdir("/proc/self/task")]
    found = []
    for path in listed:
        with contextlib.suppress(OSError), open(path) as file:
            found += file.read().split()
    return found

def wait_until(condition, seconds=30.0):
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        pause.wait(0.01)
"""


# Why: one interpreter for all cases of a test, since its start takes longer than a case.
CASES = """
source, cases = eval(sys.argv[1])
code = compile(source, "<source>", "exec")
for engine, place in cases:
    faulthandler.dump_traceback_later(BOUND, exit=True)
    try:
        exec(code)
    except (Exception, KeyboardInterrupt):
        print("in the case", engine, place, file=sys.stderr)
        raise
"""


def run_script(source: str, *engines: str, places: Sequence[str] = ("",)) -> None:
    """Run a script after the preamble for each engine and place; it succeeds in silence."""
    cases = [(engine, place) for engine in engines for place in places]
    given = repr((textwrap.dedent(source), cases))
    done = run_python(PREAMBLE + CASES, given, timeout=(1 + len(cases)) * BOUND)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_an_interrupt_before_the_wake_up_loses_no_request() -> None:
    """A signal between the note that the pool thread is woken and its wake-up does no harm."""
    source = """
        with shmpar.Pool(1, engine=engine) as pool:
            assert pool.submit(abs, -1).result() == 1
            wait_until(lambda: not pool._loop._signalled)
            once(ENGINES[engine], "wake", interrupt)
            if engine == "serial":
                expect(KeyboardInterrupt, pool.submit, abs, -1)
            else:
                expect(KeyboardInterrupt, pool.map_blocks, np.negative, array, chunks=10)
            assert pool.map_blocks(np.negative, array, chunks=10)[-1] == -39
            wait_until(lambda: not pool._loop._signalled)
            once(ENGINES[engine], "wake", interrupt)
            expect(KeyboardInterrupt, pool.submit, abs, -1)
            assert pool.submit(abs, -2).result(30) == 2
    """
    run_script(source, *ENGINES)


def test_an_interrupt_while_the_pool_thread_is_started() -> None:
    """A signal while the system starts the pool thread leaves a pool that works."""
    source = """
        with shmpar.Pool(1, engine=engine) as pool:
            start = getattr(threading, START)
            def interrupted(*args, **keywords):
                setattr(threading, START, start)
                if place == "before":
                    interrupt()
                found = start(*args, **keywords)
                interrupt()
                return found
            setattr(threading, START, interrupted)
            hook, threading.excepthook = threading.excepthook, lambda *args: None
            expect(KeyboardInterrupt, pool.submit, abs, -1)
            assert pool.submit(abs, -2).result(30) == 2
            assert pool.map_blocks(np.negative, array, chunks=10)[-1] == -39
    """
    run_script(source, *ENGINES, places=["before", "after"])


def test_an_interrupted_pool_leaves_no_worker() -> None:
    """A signal at any step of Pool() leaves no process and no thread."""
    source = """
        if place == "begun":
            start = getattr(threading, START)
            def interrupted(*args, **keywords):
                setattr(threading, START, start)
                found = start(*args, **keywords)
                interrupt()
                return found
            setattr(threading, START, interrupted)
        elif place == "started":
            once(threading.Thread, "start", interrupt, after=True)
        elif place == "joined":
            once(threading.Thread, "join", interrupt, after=True)
        else:
            name = "cap_threads" if engine == "threads" else "remove_stale"
            once(shmpar.pool, name, interrupt, after=True)
        threading.excepthook = lambda *args: None
        before = threading.active_count()
        try:
            expect(KeyboardInterrupt, shmpar.Pool, 2, engine=engine)
        except AssertionError:  # this step is no longer part of it
            pass
        gc.collect()
        wait_until(lambda: not workers())
        wait_until(lambda: threading.active_count() == before)
        with shmpar.Pool(1, engine=engine) as pool:
            assert pool.submit(abs, -2).result(30) == 2
    """
    run_script(
        "import shmpar.pool" + textwrap.dedent(source),
        *ENGINES,
        places=["begun", "started", "joined", "capped"],
    )


def test_an_interrupt_of_the_end_of_a_block() -> None:
    """A signal at the end of a with block: the workers end, and so does the interpreter."""
    source = """
        import shmpar.pool
        def block():
            with shmpar.Pool(1, engine=engine) as pool:
                assert pool.submit(abs, -2).result() == 2
                if place == "_closing.add":
                    once(type(shmpar.pool._closing), "add", interrupt, after=True)
                elif place == "_post":
                    once(loop.Loop, "_post", interrupt)
                else:
                    wait_until(lambda: not pool._loop._signalled)
                    once(ENGINES[engine], "wake", interrupt)
        expect(KeyboardInterrupt, block)
        wait_until(lambda: not workers())
    """
    run_script(source, *ENGINES, places=["_closing.add", "_post", "wake"])


def test_a_call_that_meets_the_end_of_its_pool_starts_no_worker() -> None:
    """A call that was checked before its pool was closed ends with an error, and starts nothing."""
    source = """
        pool = shmpar.Pool(1, engine=engine)
        before = threading.active_count()
        assert pool.submit(abs, -2).result() == 2
        check = pool._checked
        def closed_meanwhile():
            found = check()
            pool.shutdown()
            return found
        for call in (lambda: pool.submit(abs, -1).result(30),
                     lambda: pool.map_blocks(np.negative, array, wait=False).result(30)):
            pool._checked = closed_meanwhile
            expect(RuntimeError, call)
            assert not workers()
        wait_until(lambda: not [one for one in threading.enumerate() if "shmpar" in one.name])
    """
    run_script(source, *ENGINES)


def test_a_pool_whose_engine_cannot_be_made_again_can_be_closed() -> None:
    """After an error has ended the engine, and no new one can be made, close() still ends."""
    source = """
        pool = shmpar.Pool(1, engine=engine)
        assert pool.submit(abs, -2).result() == 2
        made = pool._loop.engine
        def fail(*args):
            raise RuntimeError("broken")
        made.free_worker = fail
        expect(RuntimeError, pool.submit(abs, -1).result, 30)
        pool._loop._make_engine = fail
        expect(RuntimeError, pool.submit, abs, -1)
        pool.shutdown()
        assert not workers()
    """
    run_script(source, *ENGINES)


def test_a_request_that_comes_while_the_pool_thread_ends_is_served() -> None:
    """A request that is posted while the pool thread ends after an error is not lost."""
    source = """
        pool = shmpar.Pool(1, engine=engine)
        assert pool.submit(abs, -2).result() == 2
        here, looked, served = threading.current_thread(), threading.Event(), threading.Event()
        # the poster sees the thread, which then goes on to its end
        class Loop(loop.Loop):
            @property
            def _thread(self):
                found = self.__dict__.get("_thread")
                if threading.current_thread() is here and asks:
                    looked.set()
                return found
            @_thread.setter
            def _thread(self, value):
                if value is None:
                    assert looked.wait(30)
                self.__dict__["_thread"] = value
        def fail(*args):
            raise RuntimeError("broken")
        asks = False
        main = pool._loop
        main.__class__ = Loop
        main.engine.free_worker = fail
        expect(RuntimeError, pool.submit(abs, -1).result, 30)
        asks = True
        main._post(served.set)
        assert served.wait(30)
        assert pool.submit(abs, -3).result(30) == 3
        pool.shutdown()
    """
    run_script(source, "threads")


def test_a_call_fails_if_a_worker_cannot_be_started() -> None:
    """A call whose worker cannot be started fails with the reason, whatever it is."""
    source = """
        from shmpar.engines import launch
        with shmpar.Pool(1) as pool:
            assert pool.submit(abs, -2).result() == 2
            expect(shmpar.WorkerDied, pool.submit(os._exit, 3).result, 30)
            wait_until(lambda: not pool._loop.engine._handles)
            start = launch.Launcher.start
            for error in (OSError("none"), ValueError("none"), RuntimeError("none")):
                def fail(*args):
                    raise error
                launch.Launcher.start = fail
                expect(type(error), pool.submit(abs, -1).result, 30)
                launch.Launcher.start = start
            assert pool.submit(abs, -2).result(30) == 2
    """
    run_script(source, "processes")


def test_a_worker_without_its_initializer_serves_nobody() -> None:
    """A worker that could not be sent the initializer calls no function."""
    source = """
        import shmpar.pickling.pack
        held = shmpar.array(np.arange(100_000.0))
        def initialize():
            global ready
            ready = held[-1]
        def ready_value(_):
            return globals().get("ready", "no initializer")
        with shmpar.Pool(1, initializer=initialize, retries=0) as pool:
            assert pool.submit(ready_value, 0).result() == 99_999
            held.close()
            expect(shmpar.WorkerDied, pool.submit(os._exit, 3).result, 30)
            for _ in range(2):
                expect(shmpar.SegmentGone, pool.submit(ready_value, 0).result, 30)
    """
    run_script(source, "processes")


def test_a_worker_that_is_half_started_is_ended() -> None:
    """A worker whose start fails after its process was started is replaced by the next call."""
    source = """
        import selectors
        with shmpar.Pool(1, max_tasks_per_worker=1000) as pool:
            assert pool.submit(abs, -2).result() == 2
            expect(shmpar.WorkerDied, pool.submit(os._exit, 3).result, 30)
            wait_until(lambda: not pool._loop.engine._handles)
            def fail():
                raise OSError("no room")
            if place == "register":
                once(type(pool._loop.engine._selector), "register", fail)
            else:
                once(processes.WorkerHandle, "notify", fail)
            expect(OSError, pool.submit(abs, -2).result, 30)
            assert pool.submit(abs, -2).result(30) == 2
    """
    run_script(source, "processes", places=["register", "notify"])


def test_a_run_that_cannot_begin_leaves_nothing_in_its_engine() -> None:
    """A run for which no counter can be made fails alone, and its memory is released."""
    source = """
        with shmpar.Pool(1, engine=engine) as pool:
            assert pool.submit(abs, -2).result() == 2
            shared = pool.array(np.arange(1000.0))
            def fail():
                raise OSError(24, "too many")
            once(ENGINES[engine], "tickets", fail)
            run = None
            try:
                run = pool.map_blocks(np.negative, shared, chunks=10, wait=False)
                run.result(30)
            except OSError:
                pass
            else:
                raise AssertionError
            engine_ = pool._loop.engine
            assert not getattr(engine_, "_runs", None) and not getattr(engine_, "_plans", None)
            run = None
            assert pool.map_blocks(np.negative, array, chunks=10)[-1] == -39
    """
    run_script(source, *ENGINES)


def test_an_interrupted_iteration_does_not_stop_the_pool() -> None:
    """A signal in the lock of completed() leaves no lock behind."""
    source = """
        def block(delay):
            release.wait()
            return delay
        release = futures.Latch()
        with shmpar.Pool(1, engine="threads") as pool:
            run = pool.map_blocks(block, array, chunks=10, wait=False)
            def follow():
                for _ in run.completed():
                    release.set()
            threading.Timer(0.3, release.set).start()
            here, enter = threading.get_ident(), threading.Condition.__enter__
            def interrupted(self):
                found = enter(self)
                if threading.get_ident() == here:
                    threading.Condition.__enter__ = enter
                    interrupt()
                return found
            threading.Condition.__enter__ = interrupted
            with contextlib.suppress(KeyboardInterrupt):
                follow()
            release.set()
            assert run.result(30)[-1] == 39
    """
    run_script(source, "threads")


def test_interrupts_while_a_program_polls_stop_nothing() -> None:
    """Signals at any instruction of done(), in a busy loop, leave a pool that works."""
    source = """
        main = threading.get_ident()
        def poll(future, polls):
            polls.set()
            while not future.done():
                pass
        with shmpar.Pool(1, engine="threads") as pool:
            for number in range(60):
                go, polls = threading.Event(), threading.Event()
                future = pool.submit(lambda go=go: go.wait(30) and 3)
                def press(number=number):
                    polls.wait()
                    time.sleep(0.0002 * (number % 7))
                    signal.pthread_kill(main, signal.SIGINT)
                other = threading.Thread(target=press)
                other.start()
                try:
                    poll(future, polls)
                except KeyboardInterrupt:
                    pass
                with contextlib.suppress(KeyboardInterrupt):
                    other.join()
                other.join()
                go.set()
                future.resolved.wait(30)
                assert future.resolved.is_set, number
    """
    run_script(source, "threads")


def test_serial_calls_its_initializer_once() -> None:
    """The caller's thread and the pool thread call the initializer of a serial pool once."""
    source = """
        begun, go, count = threading.Event(), threading.Event(), []
        def initialize():
            count.append(threading.get_ident())
            begun.set()
            go.wait(1)
        with shmpar.Pool(engine="serial", initializer=initialize) as pool:
            future = pool.submit(abs, -1)
            assert begun.wait(30)
            assert pool.map_blocks(np.negative, array, chunks=10)[-1] == -39
            go.set()
            assert future.result(30) == 1
        assert len(count) == 1, count
    """
    run_script(source, "serial")


def test_an_initializer_may_use_its_pool() -> None:
    """A call from inside an initializer runs serially there, as inside a function."""
    source = """
        made, used = threading.Event(), []
        def initialize():
            assert made.wait(30)
            used.append(pool.submit(abs, -1).result(30))
            used.append(pool.map_blocks(np.negative, array, chunks=10)[-1])
        pool = shmpar.Pool(1, engine=engine, initializer=initialize)
        with pool:
            made.set()
            assert pool.submit(abs, -4).result(30) == 4
        assert used == [1, -39], used
    """
    run_script(source, "serial", "threads")


def test_a_result_may_use_its_pool_when_it_is_unpickled() -> None:
    """A result whose unpickling calls the pool, in the pool thread, does not wait for itself."""
    source = """
        def back():
            return shmpar_pool[0].submit(abs, -5).result(30)
        class Result:
            def __reduce__(self):
                return eval, ("__import__('__main__').back()",)
        shmpar_pool = []
        with shmpar.Pool(1) as pool:
            shmpar_pool.append(pool)
            assert pool.submit(lambda: Result()).result(30) == 5
    """
    run_script(source, "processes")


def test_a_forked_child_ends_though_a_pool_was_closing() -> None:
    """A child that was forked while a pool closed does not wait for that pool at its exit."""
    source = """
        go = threading.Event()
        pool = shmpar.Pool(1, engine="threads")
        future = pool.submit(go.wait, 30)
        wait_until(future.running)
        pool.shutdown(wait=False)
        faulthandler.cancel_dump_traceback_later()  # its thread is not in the child
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            sys.exit(3)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        go.set()
        assert status == 3, status
    """
    run_script(source, "threads")


def test_a_forked_child_cannot_cancel_a_run_of_its_parent() -> None:
    """run.cancel() in a forked child starts no thread there, and does not disturb the parent."""
    source = """
        with shmpar.Pool(1) as pool:
            assert pool.submit(abs, -2).result() == 2
            run = pool.map_blocks(lambda b: time.sleep(0.05) or b, array, chunks=1, wait=False)
            faulthandler.cancel_dump_traceback_later()  # its thread is not in the child
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                with contextlib.suppress(RuntimeError):
                    run.cancel()
                threads = [one.name for one in threading.enumerate()]
                os._exit("shmpar-pool" in threads)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, status
            assert run.result(30)[-1] == 39
    """
    run_script(source, "processes")


def test_a_forgotten_pool_may_be_collected_under_a_lock_of_this_library() -> None:
    """The garbage collector may end a pool in a thread that holds a lock of the memory package."""
    source = """
        import warnings
        from shmpar.memory import segment
        warnings.simplefilter("ignore")
        go = threading.Event()
        def work(block):
            assert go.wait(30)
            shmpar.array(np.arange(100_000.0)) + 1  # maps a segment
            return block
        pool = shmpar.Pool(1, engine="threads")
        future = pool.submit(work, 0)
        wait_until(future.running)
        pool.me = pool
        del pool
        with segment._mappings_lock:
            go.set()
            gc.collect()
        assert future.result(30) == 0
    """
    run_script(source, "threads")


def test_a_signal_handler_may_use_the_pool_that_starts() -> None:
    """A handler may call the pool while its thread starts the pool thread."""
    source = """
        found = []
        with shmpar.Pool(1) as pool:
            signal.signal(signal.SIGUSR1, lambda *_: found.append(pool.submit(abs, -6)))
            start = getattr(threading, START)
            def interrupted(*args, **keywords):
                setattr(threading, START, start)
                got = start(*args, **keywords)
                signal.raise_signal(signal.SIGUSR1)
                return got
            setattr(threading, START, interrupted)
            assert pool.submit(abs, -2).result(30) == 2
            assert found[0].result(30) == 6
    """
    run_script(source, "processes")


def test_a_signal_handler_may_use_the_default_pool_that_starts() -> None:
    """A handler that calls a verb of the module while the default pool is made does not hang."""
    source = """
        import warnings
        warnings.simplefilter("ignore", ResourceWarning)
        found = []
        def handle(*_):
            found.append(shmpar.map_blocks(np.negative, array)[-1])
        signal.signal(signal.SIGUSR1, handle)
        once(shmpar.pool, "remove_stale", lambda: signal.raise_signal(signal.SIGUSR1))
        assert shmpar.map_blocks(np.negative, array)[-1] == -39
        assert found == [-39]
        assert len(workers()) == shmpar.default_pool().n_workers
    """
    run_script("import shmpar.pool" + textwrap.dedent(source), "processes")


def test_a_cancel_that_is_interrupted_lets_others_go_on() -> None:
    """A thread that waits for a call goes on although cancel() was interrupted."""
    source = """
        go = threading.Event()
        with shmpar.Pool(1, engine="threads") as pool:
            first, second = pool.submit(go.wait, 30), pool.submit(abs, -1)
            wait_until(first.running)
            outcome = []
            def wait():
                try:
                    second.result()
                except BaseException as error:
                    outcome.append(type(error).__name__)
            other = threading.Thread(target=wait, daemon=True)
            other.start()
            once(futures.Latch, "set", interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                second.cancel()
            go.set()
            other.join(30)
            assert outcome == ["CancelledError"], outcome
    """
    run_script(source, "threads")


def test_a_run_is_finished_once() -> None:
    """A run that cannot be prepared, and is cancelled at that moment, fails alone."""
    source = """
        from shmpar.runtime.run import Run
        with shmpar.Pool(1, engine=engine) as pool:
            assert pool.submit(abs, -2).result() == 2
            held, go = pool.submit(time.sleep, 0.3), None
            def fail(*args, **options):
                raise ValueError("refused")
            pool._loop.engine.prepare = fail
            finish = Run.finish
            def finish_twice(self, callbacks):
                Run.finish = finish
                self.cancel_by(self)  # as another thread might
                wait_until(lambda: self.resolved.is_set)
                finish(self, callbacks)
            Run.finish = finish_twice
            expect(ValueError, pool.map_blocks, np.negative, array)
            del pool._loop.engine.prepare
            assert held.result(30) is None
            assert pool.map_blocks(np.negative, array)[-1] == -39
    """
    run_script(source, "processes", "threads")


def test_a_shutdown_that_may_not_kill_ends_all_workers() -> None:
    """Where a worker cannot be killed by signal, as after setuid, closing the pool ends it."""
    source = """
        import subprocess
        pool = shmpar.Pool(2)
        kill = subprocess.Popen.send_signal
        def refuse(*args):
            raise PermissionError(1, "not permitted")
        subprocess.Popen.send_signal = refuse
        pool.shutdown()  # while they start
        wait_until(lambda: not workers())
    """
    run_script(source, "processes")


def test_threads_compute_no_further_claim_after_an_error_of_the_pool_thread(monkeypatch) -> None:
    """The run gets the error as soon as the chunks in progress are done, not after all chunks."""
    computed = []
    begun = threading.Event()

    def work(item: int) -> int:
        computed.append(item)
        begun.set()
        time.sleep(0.01)
        return item

    with shmpar.Pool(2, engine="threads") as pool:
        run = pool.parallel_map(work, range(2000), wait=False)
        begun.wait(30)
        monkeypatch.setattr(pool._loop, "_handle", fail_with(ValueError("lost")))
        monkeypatch.setattr(pool._loop, "_running", fail_with(ValueError("lost")))
        pool._loop.engine.wake()
        with pytest.raises(ValueError, match="lost"):
            run.result(30)
        monkeypatch.undo()
        assert len(computed) < 1000
        assert pool.parallel_map(abs, [-1]) == [1]


def fail_with(error: Exception) -> Any:
    """Return a function that raises an error."""

    def fail(*_: Any) -> Any:
        raise error

    return fail
