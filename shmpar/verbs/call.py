"""The record of a call of a verb, which becomes a plan and a run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np

from shmpar.grid import HALO_BLOCK_BYTES, Grid, Halo
from shmpar.plan import Function, InBlocks, Items, PerItem, Placement, Plan, Whole
from shmpar.runtime.error_texts import warn_user
from shmpar.runtime.execution import Execution, Policy
from shmpar.runtime.items import RunItems
from shmpar.runtime.outputs import Outputs, fill_value_for
from shmpar.runtime.progress import observe
from shmpar.runtime.run import Run
from shmpar.stores.store import Store
from shmpar.stores.targets import ZarrPath
from shmpar.verbs.arguments import Inputs, check_windows
from shmpar.verbs.functions import (
    check_callable,
    check_signature,
    held_by,
    parameters_of,
    special_parameters,
    warn_of_random,
)
from shmpar.verbs.options import Defaults, Options, parse_options
from shmpar.verbs.outputs import (
    OutputSpec,
    check_apart,
    check_stores,
    known_outputs,
    parse_output,
    ufunc_dtypes,
)

_MANY_CHUNKS: Final = 100_000


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """A call of a verb: first its options, then the meaning that the verb gives to its arguments.

    Attributes
    ----------
    verb : str
        Name of the verb.
    func : callable
        The function of the user.
    options : Options
        Options of the user.
    policy : Policy
        Handling of failures.
    keywords : mapping
        Keyword arguments for the function.
    pass_out : bool
        The function gets its window of the output as ``out``.
    inputs : Inputs
        Inputs of the function.
    grid, placement, halo, trim
        As in :class:`shmpar.plan.Plan`.
    output : OutputSpec
        Declared outputs.
    remedy : str
        Advice if the function does not take the arguments.
    over_items : bool
        The verb maps over the items of an iterable.
    """

    verb: str
    func: Callable[..., Any]
    options: Options
    policy: Policy
    keywords: Mapping[str, Any]
    pass_out: bool
    inputs: Inputs = field(init=False)
    grid: Grid = field(init=False)
    placement: Placement = field(init=False)
    output: OutputSpec = field(default_factory=OutputSpec)
    remedy: str = ""
    halo: Halo | None = None
    trim: bool = True
    over_items: bool = False

    def cut_with_halo(
        self, chunks: Any, depth: Any, boundary: Any, whole: tuple[int, ...] = ()
    ) -> None:
        """Set the grid, and the halos that have any depth."""
        if depth is None:
            self._explain_no_depth()
        # Why the types: an array compares by element, and True is not a depth.
        if not (type(depth) is int and type(boundary) is str and (depth, boundary) == (0, "none")):
            self.halo = self.inputs.add_halos(self.verb, depth, boundary)
        if self.halo is None:
            self.grid = self.inputs.cut(chunks, whole=whole)
            return
        reach = self.inputs.reach()
        self.grid = self.inputs.cut(chunks, whole=whole, depth=reach, most=HALO_BLOCK_BYTES)
        check_windows(self.verb, self.grid, self.inputs)

    def _explain_no_depth(self) -> NoReturn:
        """Raise ``TypeError``; it names the arguments that look like ``depth=``, ``boundary=``."""
        values = self.inputs.values
        more = [values[one.value] for one in self.inputs.arguments if isinstance(one, Whole)]
        number = next((one for one in more if isinstance(one, int | np.integer | dict)), None)
        side = next((one for one in more if isinstance(one, str)), None)
        text = f"{self.verb}() needs depth=, the elements of the halo"
        if number is not None:
            shown = ", ".join(map(str, more)) if side is None else f"{number}, {side!r}"
            boundary = "" if side is None else f", boundary={side!r}"
            text += f"; for {self.verb}(f, x, {shown}) write depth={number}{boundary}"
        raise TypeError(text)

    def declare_output(self, out: Any = None, dtype: Any = None, **allowed: bool) -> None:
        """Read ``out=`` and ``dtype=``; `objects` and `in_place` may be allowed."""
        if out is not None or dtype is not None:
            self.output = parse_output(self.verb, out, dtype, self.inputs.arrays, **allowed)

    def run(self, in_workers: Callable[..., Any]) -> Run:
        """Make the run, after all checks that need no call of the function.

        Parameters
        ----------
        in_workers : callable
            Calls a function for each number in a sequence, in workers.
        """
        inputs, spec, policy = self.inputs, self.output, self.policy
        if (again := self.options.get("io_retries")) is not None:
            inputs.arrays = [_with_retries(one, again) for one in inputs.arrays]
            if spec.given is not None:
                given = tuple([_with_retries(one, again) for one in spec.given])
                self.output = spec = spec._replace(given=given)
        plan = self._plan()
        if spec.given is not None:
            check_stores(plan, spec.given)
        fills = policy.on_error == "fill"
        fill = functools.partial(fill_value_for, policy.fill_value) if fills else None
        values = [None] * plan.chunks if spec.as_list else None
        objects = spec.returns_objects
        outputs = Outputs(
            spec.given, users=spec.users, returns_objects=objects, fill=fill, values=values
        )
        outputs.check_fill(spec.dtypes or ())
        results = None
        if not self.keywords and (spec.dtypes is not None or plan.chunks == 0):
            results = ufunc_dtypes(self.verb, self.func, inputs, spec.dtypes or ())
        known = known_outputs(plan, inputs, spec, results)
        if self.pass_out and (known is None or spec.returns_objects):
            remedy = "out=, or dtype=" if isinstance(self.placement, InBlocks) else "out="
            raise ValueError(
                f"{self.verb}: pass_out=True needs to know the output before the function is "
                f"called: pass {remedy}"
            )
        self._check_held(plan)
        function = Function(self.func, dict(self.keywords), tuple(inputs.values))
        ledger, todo = self.options.get("ledger"), None
        if ledger is not None:
            # Why here: most calls have no ledger, and need not load this module.
            from shmpar.runtime.checkpoint import resume, resume_items

            seeded, in_place = self.options.get("seed") is not None, spec.in_place
            call = ledger, plan, function, inputs.arrays, outputs
            if spec.as_list:
                plan, todo = resume_items(*call, seeded=seeded)
            else:
                named = spec.named if spec.given else spec.dtypes
                how: dict[str, Any] = {"in_workers": in_workers, "named": named}
                plan, todo = resume(*call, seeded=seeded, in_place=in_place, **how)
        outputs.expected = known
        if spec.in_place:
            # Why: a pattern in the output would overwrite the input.
            policy, plan = policy._replace(in_place=True), plan._replace(check=False)
        items = RunItems.of(plan, function) if self.over_items else None
        run = Run(Execution(plan, function, inputs.arrays, outputs, policy, todo, items=items))
        if inputs.labels is not None and spec.given is None:
            run.label = functools.partial(inputs.labels.attach, plan)
        return run

    def _check_held(self, plan: Plan) -> None:
        """Check the objects that the function holds.

        Raises
        ------
        ValueError
            If an array among them is an output, or shares memory with an output.
        """
        values = self.inputs.values
        constants = [values[one.value] for one in plan.arguments if isinstance(one, Whole)]
        held = held_by(self.func, [*self.keywords.values(), *constants])
        outputs = [one for one in self.output.given or () if isinstance(one, np.ndarray | Store)]
        if outputs:
            items = [values[one.value] for one in plan.arguments if isinstance(one, Items)]
            check_apart(self.verb, outputs, itertools.chain(held, *items))
        default = None
        if "rng" in plan.special_parameters:
            default = getattr(parameters_of(self.func).get("rng"), "default", None)
        remedy = "name a parameter of the function rng: each chunk gets a random stream of its own"
        warn_of_random(self.verb, (one for one in held if one is not default), remedy)

    def _advise(self) -> str:
        """Return the remedy, or advice if the last argument looks like ``chunks=``."""
        last = () if self.remedy else self.inputs.arguments[-1:]
        for one in last:
            number = self.inputs.values[one.value] if isinstance(one, Whole) else None
            if type(number) is int:
                return f"; for {self.verb}(f, x, {number}) write chunks={number}"
        return self.remedy

    def _warn_of_elements(self) -> None:
        """Warn of very many chunks of one element: in Dask the chunks are those of the results."""
        grid = self.grid
        if all(axis.step == 1 for axis in grid.axes):
            warn_user(
                f"{self.verb}: chunks of one element make {grid.size:,} calls; chunks= is the size "
                "of the blocks that the function gets. For a value per block write "
                "block_reduce(f, x, chunks=512); for results of another size pass out_chunks=",
            )

    def _plan(self) -> Plan:
        spec, policy, keywords = self.output, self.policy, self.keywords
        special = special_parameters(self.func, keywords)
        if self.pass_out and "out" in keywords:
            raise TypeError(f"{self.verb}: pass_out=True passes out, which is in kwargs= too")
        passed = special | {"out"} if self.pass_out else special
        count = len(self.inputs.arguments)
        check_signature(self.verb, self.func, count, keywords, passed, self._advise)
        seed = self.options.get("seed")
        if "rng" in special:
            seed = np.random.SeedSequence(seed).entropy
        elif seed is not None:
            raise TypeError(
                f"{self.verb}: seed= is for the random generator that a parameter named rng gets, "
                "and the call passes none; name a parameter of the function rng, or leave seed= out"
            )
        if self.grid.size >= _MANY_CHUNKS and not isinstance(self.placement, PerItem):
            self._warn_of_elements()
        return Plan(
            verb=self.verb,
            grid=self.grid,
            arguments=tuple(self.inputs.arguments),
            placement=self.placement,
            halo=self.halo,
            trim=self.trim,
            dtypes=spec.dtypes,
            is_tuple=spec.is_tuple,
            returns_objects=spec.returns_objects,
            special_parameters=special,
            pass_out=self.pass_out,
            seed=seed,
            fail_fast=policy.on_error == "raise",
            timed=policy.task_timeout is not None,
            check=policy.check and not spec.returns_objects,
        )


def _with_retries(array: Any, times: int) -> Any:
    return array.with_retries(times) if isinstance(array, Store | ZarrPath) else array


class Caller:
    """Base of the classes that give a pool its verbs."""

    _verb_defaults: Defaults
    _usual: Policy  # of a call without options
    _execute: Callable[..., Any]  # the result of a run, or the run itself with wait=False

    def _call(self, verb: str, func: Callable[..., Any], options: Options) -> Call:
        policy = self._usual
        if options:
            policy = parse_options(verb, options, self._verb_defaults, self, func)
        check_callable(verb, func)
        keywords, pass_out = options.get("kwargs") or {}, bool(options.get("pass_out"))
        return Call(verb, func, options, policy, keywords, pass_out)

    def _run(self, call: Call) -> Any:
        run = call.run(self._in_workers)
        progress = call.options.get("progress", self._verb_defaults["progress"])
        execution = run.execution
        run.observer = observe(progress, call.verb, execution.noun, execution.initial)
        return self._execute(run, wait=call.options.get("wait", True))

    def _in_workers(self, func: Callable[[int], int], numbers: list[int]) -> Any:
        """Return the numbers that a function gives for numbers, called in workers."""
        verb: Callable[..., Any] = self.parallel_map  # type: ignore[attr-defined]
        options: Options = {"progress": False, "on_error": "raise", "task_timeout": None}
        return verb(func, numbers, dtype="u4", **options)
