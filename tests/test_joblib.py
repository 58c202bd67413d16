"""The backend of joblib: the calls of ``Parallel``, and scikit-learn's estimators."""

from __future__ import annotations

import io
import itertools
import operator
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import run_python

joblib = pytest.importorskip("joblib")
from joblib import Parallel, delayed  # noqa: E402 - it is skipped without joblib

from shmpar.integrations.joblib import ShmparBackend, close  # noqa: E402
from tests.work.jobs import (  # noqa: E402
    fail,
    inner,
    look_ready,
    make_ready,
    nested,
    raise_interrupt,
    segment_of,
    square,
    wait_for,
    write,
)

LARGE = 100_000  # elements, so many that an array is shared


@pytest.fixture(scope="module")
def two() -> Iterator[shmpar.Pool]:
    """Two worker processes for the whole module."""
    with shmpar.Pool(2) as pool:
        pool.parallel_map(abs, range(2))
        yield pool


@pytest.fixture
def backend(two: shmpar.Pool) -> Iterator[None]:
    """All calls of ``Parallel`` run in the two workers."""
    with joblib.parallel_config(backend=ShmparBackend(pool=two)):
        yield


@pytest.fixture
def own_workers() -> Iterator[None]:
    """The backend makes its workers; they end with the test."""
    with joblib.parallel_config(backend="shmpar", n_jobs=2):
        yield
    close()


def test_import_of_the_package_registers_the_backend() -> None:
    """Joblib is not imported for it, and may be imported before or after."""
    body = """
        with joblib.parallel_config(backend="shmpar", n_jobs=2):
            print(joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(3)))
        parallel = joblib.Parallel(n_jobs=2, backend="shmpar")
        print(parallel(joblib.delayed(abs)(-i) for i in range(3)))
    """
    after = "import sys, shmpar\nassert 'joblib' not in sys.modules\nimport joblib\n"
    for begin in (after, "import joblib, shmpar\n"):
        lines = [line[8:] for line in body.splitlines()]
        done = run_python(begin + "\n".join(lines))
        assert (done.stdout, done.stderr, done.returncode) == ("[0, 1, 2]\n" * 2, "", 0)


def test_the_registration_leaves_imports_as_they_are() -> None:
    """Joblib keeps its loader, and a reload of either package registers the backend again."""
    done = run_python("""
        import importlib, sys, shmpar
        import joblib.parallel as module
        print(type(module.__loader__).__name__, module.__loader__ is module.__spec__.loader)
        print("shmpar" in module.BACKENDS, "def delayed" in module.__loader__.get_source(
            "joblib.parallel"))
        importlib.reload(shmpar)
        importlib.reload(module)
        print("shmpar" in module.BACKENDS, type(module.__loader__).__name__)
        print(sum(one.__module__.startswith("shmpar") for one in sys.meta_path
                  if isinstance(one, type)))
    """)
    due = "SourceFileLoader True\nTrue True\nTrue SourceFileLoader\n1\n"
    assert (done.stdout, done.stderr, done.returncode) == (due, "", 0)


def test_a_program_without_joblib_runs() -> None:
    """An import of joblib that fails raises its own error."""
    done = run_python("""
        import sys, shmpar
        sys.path[:] = [one for one in sys.path if "site-packages" not in one]
        try:
            import joblib
        except ModuleNotFoundError as error:
            print(error)
    """)
    assert (done.stdout, done.returncode) == ("No module named 'joblib'\n", 0)


@pytest.mark.parametrize(
    ("batch_size", "pre_dispatch"),
    [("auto", "all"), ("auto", 1), (1, "all"), (1, "2*n_jobs"), (7, "2*n_jobs"), (7, 1)],
)
def test_results_come_in_order(backend: None, batch_size: Any, pre_dispatch: Any) -> None:
    """Batches and their number ahead change no result."""
    parallel = Parallel(batch_size=batch_size, pre_dispatch=pre_dispatch)
    assert parallel(delayed(square)(i) for i in range(30)) == [i * i for i in range(30)]
    assert parallel(iter(())) == []


def test_tiny_calls_are_batched(backend: None) -> None:
    """Automatic batches grow, so that many calls need few messages."""
    parallel = Parallel()
    assert sum(parallel(delayed(square)(i) for i in range(3_000))) == sum(
        i * i for i in range(3_000)
    )


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_every_way_to_return(backend: None, return_as: str) -> None:
    """Generators give the results as they come."""
    found = Parallel(return_as=return_as)(delayed(square)(i) for i in range(20))
    assert sorted(found) == [i * i for i in range(20)]


def test_an_unordered_generator_gives_the_quick_result_first(backend: None, tmp_path: Path) -> None:
    """A result does not wait for an earlier, slow call."""
    go = tmp_path / "go"
    calls = [delayed(wait_for)(str(go), 0), *[delayed(square)(i) for i in range(1, 5)]]
    found = Parallel(return_as="generator_unordered", batch_size=1)(calls)
    assert sorted(itertools.islice(found, 4)) == [1, 4, 9, 16]
    go.touch()
    assert list(found) == [0]


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_exception_of_a_call_is_raised(backend: None, return_as: str) -> None:
    """The exception keeps its type and arguments, and the workers go on."""
    with pytest.raises(ZeroDivisionError) as caught:
        list(Parallel(return_as=return_as)(delayed(fail)(i) for i in range(8)))
    assert caught.value.args == (3,)
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_timeout_ends_the_calls_in_progress(own_workers: None) -> None:
    """The error is joblib's, and the next calls have workers."""
    began = time.monotonic()
    with pytest.raises(Exception) as caught:
        Parallel(timeout=0.2)(delayed(time.sleep)(60) for _ in range(3))
    assert type(caught.value).__name__ == "TimeoutError"
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]
    assert time.monotonic() - began < 30


def test_workers_are_kept_for_the_next_call(own_workers: None) -> None:
    """As with loky, the workers of one Parallel serve the next; a context keeps its own."""
    first = set(Parallel()(delayed(os.getpid)() for _ in range(8)))
    assert set(Parallel()(delayed(os.getpid)() for _ in range(8))) & first
    with Parallel(n_jobs=2) as parallel:
        assert parallel(delayed(square)(i) for i in range(3)) == [0, 1, 4]
        for _ in range(20):
            # Why often: joblib keeps batches of a failed call, and counts those of late callbacks.
            with pytest.raises(ZeroDivisionError):
                parallel(delayed(fail)(i) for i in range(8))
            assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_a_dead_worker_is_an_error(own_workers: None) -> None:
    """The error is WorkerDied, and the next calls succeed."""
    with pytest.raises(shmpar.WorkerDied, match="exit"):
        Parallel()(delayed(os._exit)(7) for _ in range(2))
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_call_may_write_to_its_arguments(backend: None, size: int) -> None:
    """No other call and not the caller sees the writes, at every size."""
    array = np.ones(size)
    assert Parallel()(delayed(write)(array, i) for i in range(6)) == [float(size)] * 6
    assert array.sum() == size


def test_an_argument_is_shared_once(backend: None, two: shmpar.Pool) -> None:
    """All calls of a Parallel map the same file; another Parallel copies the array again."""
    array, other = np.ones(LARGE), np.zeros(LARGE)
    files = Parallel(batch_size=1)(delayed(segment_of)(array) for _ in range(6))
    assert len(set(files)) == 1
    assert files[0] != (0, 0)
    array[0] = 5
    assert Parallel()([delayed(np.sum)(array), delayed(np.sum)(other)]) == [LARGE + 4, 0]


def test_arguments_that_are_gone_are_released(backend: None) -> None:
    """Arrays that the caller makes for each call are not kept until the end."""
    calls = (delayed(np.sum)(np.full(LARGE, float(i))) for i in range(40))
    assert Parallel()(calls) == [LARGE * float(i) for i in range(40)]


def test_a_large_argument_takes_the_place_of_freed_blocks() -> None:
    """What malloc keeps in the parent goes back to the system before the input is copied."""
    done = run_python("""
        import re, numpy as np, joblib, shmpar
        from joblib import Parallel, delayed

        def private():
            return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

        with joblib.parallel_config(backend="shmpar", n_jobs=2):
            Parallel()(delayed(abs)(i) for i in range(4))
            blocks = [np.ones(10_000) for _ in range(500)]  # small enough for the heap
            last = np.ones(10_000)
            del blocks
            before = private()
            found = Parallel()(delayed(len)(array) for array in 2 * [np.zeros(8 << 20)])
        print(found, before - private() > 30_000)
    """)
    assert (done.stdout, done.stderr) == ("[8388608, 8388608] True\n", "")


def test_large_results_return(backend: None) -> None:
    """Results are writable arrays of the caller's."""
    found = Parallel()(delayed(np.full)(LARGE, i) for i in range(5))
    assert [int(one[-1]) for one in found] == list(range(5))
    found[0][0] = 7


def test_nested_calls_run_in_their_worker(backend: None) -> None:
    """A Parallel in a worker uses threads, as with loky; this backend is sequential there."""
    for name, found, processes in Parallel()(delayed(nested)(i) for i in range(3)):
        assert name == "ThreadingBackend"
        assert found[0] in {0, 1, 4}
        assert processes == 1


def test_calls_in_a_process_of_multiprocessing_run_there() -> None:
    """Such a process is ended by a signal, so no workers are started below it, as with loky."""
    done = run_python("""
        import os, warnings, joblib, shmpar
        from joblib import Parallel, delayed

        def inner(_):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = Parallel(n_jobs=2, backend="shmpar")(delayed(os.getpid)() for _ in range(4))
            return set(found) == {os.getpid()}, [str(one.message) for one in caught]

        for found, texts in Parallel(n_jobs=2, backend="multiprocessing")(
            delayed(inner)(i) for i in range(2)
        ):
            print(found, *texts)
    """)
    text = "shmpar-backed parallel loops cannot be called in a multiprocessing, setting n_jobs=1"
    assert (done.stdout, done.returncode) == (f"True {text}\n" * 2, 0), done.stderr


def test_a_pool_as_the_backend_is_told_how_to_be_one(two: shmpar.Pool) -> None:
    """The error of joblib's missing attribute names the class to write."""
    with pytest.raises(AttributeError, match=r"joblib takes .*ShmparBackend\(pool=pool\)"):
        joblib.parallel_config(backend=two)


def test_an_argument_that_does_not_pickle_is_named(backend: None) -> None:
    """The class is that of other backends, the cause is our error, and the workers go on."""
    with pytest.raises(pickle.PicklingError, match=r"the task to send.*generator") as caught:
        Parallel()(delayed(len)(i for i in range(3)) for _ in range(2))
    assert isinstance(caught.value.__cause__, shmpar.PlanError)
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_the_number_of_jobs(two: shmpar.Pool) -> None:
    """n_jobs counts as in joblib, and has the pool's workers as its limit."""
    given, own = ShmparBackend(pool=two), ShmparBackend()
    assert [given.effective_n_jobs(n) for n in (1, 2, 9, -1, -2, None)] == [1, 2, 2, 2, 1, 1]
    assert own.effective_n_jobs(9) == 9
    assert own.effective_n_jobs(-1) == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="n_jobs == 0"):
        own.effective_n_jobs(0)
    with pytest.raises(TypeError, match=r"pool is a shmpar\.Pool, not int"):
        ShmparBackend(pool=3)


def test_the_threads_of_libraries_are_capped(own_workers: None) -> None:
    """inner_max_num_threads sets the variables that libraries read."""
    with joblib.parallel_config(backend="shmpar", n_jobs=2, inner_max_num_threads=1):
        found = Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))
    assert found == ["1", "1"]


class SlowTerminal(io.StringIO):
    """Writes slowly, as over a network."""

    def write(self, text: str) -> int:
        """Write a text."""
        time.sleep(0.02)
        return super().write(text)


def test_verbose_prints_as_with_other_backends(
    backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joblib writes the name of the backend, and the progress before the call returns."""
    terminal = SlowTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    Parallel(verbose=10)(delayed(square)(i) for i in range(3))
    text = terminal.getvalue()
    assert "Using backend ShmparBackend with 2 concurrent workers" in text
    assert "Done   3 out of   3" in text


@pytest.mark.parametrize("engine", ["threads", "serial"])
def test_a_pool_of_another_engine(engine: str) -> None:
    """The backend works with every engine; a serial pool has one worker."""
    with (
        shmpar.Pool(2, engine=engine) as pool,
        joblib.parallel_config(backend=ShmparBackend(pool=pool)),
    ):
        assert Parallel()(delayed(square)(i) for i in range(5)) == [i * i for i in range(5)]


@pytest.mark.stress
def test_scikit_learn_gives_the_same(backend: None) -> None:
    """Searches, forests and cross validation equal those in one process."""
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.model_selection import GridSearchCV, cross_val_score

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1_500, 12))
    target = inputs[:, 0] + rng.normal(size=1_500)
    labels = (target > 0).astype(int)

    def fit(n_jobs: int) -> list[Any]:
        search = GridSearchCV(linear.Ridge(), {"alpha": [0.1, 10.0]}, cv=3, n_jobs=n_jobs)
        forest = RandomForestClassifier(8, random_state=0, n_jobs=n_jobs, max_depth=6)
        other = RandomForestRegressor(6, random_state=0, n_jobs=n_jobs, max_depth=4)
        return [
            search.fit(inputs, target).cv_results_["mean_test_score"],
            forest.fit(inputs, labels).predict_proba(inputs),
            other.fit(inputs, target).predict(inputs),
            cross_val_score(linear.Ridge(), inputs, target, cv=4, n_jobs=n_jobs),
        ]

    for ours, due in zip(fit(2), fit(1), strict=True):
        # Why not equal: a forest adds the votes of its trees in the order in which threads come.
        np.testing.assert_allclose(ours, due, rtol=1e-12)


def test_an_initializer_runs_in_each_worker(own_workers: None) -> None:
    """As with loky: workers with the same initializer and arguments are kept, no others."""
    names, found = ("model", "weights"), []
    for _ in range(2):
        parallel = Parallel(initializer=make_ready, initargs=names, batch_size=1)
        found.append(dict(parallel(delayed(look_ready)(i) for i in range(8))))
    with joblib.parallel_config("shmpar", n_jobs=2, initializer=make_ready, initargs=("other",)):
        found.append(dict(Parallel()(delayed(look_ready)(i) for i in range(8))))
    dues = [["model", "weights"], ["model", "weights"], ["other"]]
    for workers, due in zip(found, dues, strict=True):
        assert list(workers.values()) == [due] * len(workers)
    assert set(found[0]) & set(found[1])
    assert not set(found[1]) & set(found[2])


def test_unknown_options_are_refused(two: shmpar.Pool) -> None:
    """The error lists those that there are; joblib's own options are ignored."""
    with pytest.raises(TypeError, match=r"no option 'idle_worker_timeout'; it takes initializer"):
        Parallel(n_jobs=2, backend="shmpar", idle_worker_timeout=3)([])
    with pytest.raises(TypeError, match=r"write shmpar\.Pool\(initializer=\.\.\.\)"):
        Parallel(backend=ShmparBackend(pool=two), n_jobs=2, initializer=abs)([])
    options = {"max_nbytes": 10, "mmap_mode": "w+", "temp_folder": "/nowhere", "prefer": "threads"}
    parallel = Parallel(backend=ShmparBackend(pool=two), n_jobs=2, **options)
    assert parallel(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_generators_in_the_arguments_cause_no_warning(backend: None) -> None:
    """Estimators of scikit-learn hold them, and joblib's own workers do not warn either."""
    states = [np.random.RandomState(i) for i in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Parallel(batch_size=2)(delayed(np.random.RandomState.rand)(one) for one in states)
    assert found == [np.random.RandomState(i).rand() for i in range(3)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (delayed(os._exit)(3), "_?exit"),
        (delayed(operator.methodcaller("_exit", 3))(os), "methodcaller"),
    ],
)
def test_the_error_of_a_dead_worker_names_the_function(
    own_workers: None, call: Any, name: str
) -> None:
    """An object without a name has that of its class."""
    with pytest.raises(shmpar.WorkerDied, match=f"^submit, {name}: the worker"):
        Parallel()([call] * 2)


def test_threads_of_joblib_start_no_workers() -> None:
    """A call below them is sequential, with the warning of joblib's own workers."""
    ((found, texts),) = Parallel(n_jobs=2, backend="threading")([delayed(inner)(3)])
    assert found == [9, 16]
    assert texts == [
        "shmpar-backed parallel loops cannot be nested below threads, setting n_jobs=1"
    ]


def test_threads_of_joblib_may_share_a_pool(two: shmpar.Pool) -> None:
    """Then there are no more workers than those of the pool."""

    def pids(_: int) -> set[int]:
        calls = (delayed(os.getpid)() for _ in range(6))
        return set(Parallel(n_jobs=2, backend=ShmparBackend(pool=two))(calls))

    found = Parallel(n_jobs=3, backend="threading")(delayed(pids)(i) for i in range(3))
    assert len(set().union(*found)) <= 2


def test_an_interrupt_in_a_call_ends_it_alone(own_workers: None) -> None:
    """The error is raised, and the same Parallel goes on."""
    with Parallel(n_jobs=2) as parallel:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                parallel(delayed(raise_interrupt)(i) for i in (1, 0))
            assert parallel(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_an_error_of_the_iterator_of_calls_is_raised(backend: None) -> None:
    """At once or after some calls, and the next call succeeds."""

    def calls(stop: int) -> Iterator[Any]:
        for i in range(stop):
            yield delayed(square)(i)
        raise ValueError(f"no call {stop}")

    for stop in (0, 1, 40):
        with pytest.raises(ValueError, match=f"no call {stop}"):
            Parallel(batch_size=1)(calls(stop))
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_calls_are_taken_from_the_iterator_as_results_come(backend: None, tmp_path: Path) -> None:
    """At most pre_dispatch calls are ahead of those that are done."""
    taken, go = list[int](), tmp_path / "go"

    def calls() -> Iterator[Any]:
        for i in range(30):
            taken.append(i)
            yield delayed(wait_for)(str(go), i)

    found = Parallel(return_as="generator", pre_dispatch=4, batch_size=1)(calls())
    assert taken == [0, 1, 2, 3]
    go.touch()
    assert list(found) == taken == list(range(30))


def test_functions_without_a_name_are_arguments_too(backend: None) -> None:
    """Lambdas and inner functions travel as functions, as arguments and as keywords."""

    def apply(func: Any, *, other: Any) -> int:
        return int(func(3) + other(4))

    calls = [delayed(apply)(lambda x, n=n: x + n, other=lambda x: -x) for n in range(4)]
    assert Parallel()(calls) == [-1, 0, 1, 2]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_that_is_dropped_ends_its_calls(own_workers: None, return_as: str) -> None:
    """The next calls have workers at once, and the program ends."""
    began = time.monotonic()
    slow = [delayed(square)(1), *[delayed(time.sleep)(60)] * 2]
    found = [Parallel(return_as=return_as, batch_size=1)(slow)]
    assert next(found[0]) == 1
    with pytest.warns(UserWarning, match="cancelled"):
        found.clear()
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]
    assert time.monotonic() - began < 30


def test_hints_and_needs_of_a_library(backend: None) -> None:
    """A forest hints at threads for `fit` and gets processes; it needs threads for `predict`."""
    hinted = Parallel(prefer="threads", batch_size=1)(delayed(os.getpid)() for _ in range(4))
    assert os.getpid() not in hinted
    needed = Parallel(require="sharedmem", n_jobs=2)(delayed(os.getpid)() for _ in range(4))
    assert set(needed) == {os.getpid()}


def test_short_batches_grow_quickly_and_long_ones_do_not(two: shmpar.Pool) -> None:
    """Very short batches grow fourfold, others as with joblib's own workers."""
    backend, joblibs = ShmparBackend(pool=two), joblib.parallel.BACKENDS["loky"]()
    for one in (backend, joblibs):
        one.parallel = Parallel(n_jobs=2)
        assert one.compute_batch_size() == 1
    for size, seconds, ours, theirs in [(1, 0.001, 4, 2), (4, 0.05, 8, 8), (8, 0.3, 8, 8)]:
        for one, due in ((backend, ours), (joblibs, theirs)):
            one._effective_batch_size = size
            one.batch_completed(size, seconds)
            assert one.compute_batch_size() == due
    assert backend.compute_batch_size() == 8
