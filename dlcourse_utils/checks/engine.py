"""The check engine: hold a student's object beside the reference and say what is wrong with it.

A check is data (`Spec`): cases made from a seed, the labels of the results, tolerances, and the
wrong answers that people really give (`Suspect`), each with its sentence. The reference is never
written here: it is the solved cell of the lesson itself.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import linecache
import signal
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import lessons

TIME_LIMIT = 20.0  # seconds for all that a check runs of the student's code
NOT_STARTED, ERROR, WRONG, RIGHT = "not started", "error", "wrong", "right"


class Suspect(NamedTuple):
    """A wrong answer: the code of somebody with this misconception, and what to tell them."""

    name: str
    wrong: Callable[..., Any]
    says: str  # what is off
    why: str  # why it matters
    next: str  # one step to take


@dataclass(frozen=True)
class Spec:
    """How one exercise is checked.

    ``cases(rng)`` gives named argument tuples; ``evaluate(function, arguments)`` what is compared:
    one array, or as many as there are ``labels``. ``atol`` is one number or one for each label.
    ``gradient`` asks that the result can be differentiated by the first argument.
    """

    id: str
    name: str
    cases: Callable[[np.random.Generator], dict[str, tuple]]
    suspects: tuple[Suspect, ...]
    insight: str
    labels: tuple[str, ...] = ("value",)
    evaluate: Callable[[Callable, tuple], Any] = lambda function, arguments: function(*arguments)
    atol: float | Mapping[str, float] = 1e-4
    rtol: float = 1e-4
    gradient: bool = False


class Report(NamedTuple):
    """What a check found: an outcome and its sentences; ``diagnosis`` is a word for the record."""

    outcome: str
    says: str
    why: str = ""
    next: str = ""
    detail: str = ""
    diagnosis: str = ""


class Misfit(Exception):
    """Raised by an ``evaluate`` for a result of the wrong kind; its text says so."""


class _OutOfTime(BaseException):
    """Past the time limit. Not an Exception, so that a student's `except Exception` lets it by."""


class _Results(NamedTuple):
    values: dict[str, dict[str, np.ndarray]]  # case -> label -> array


@functools.cache
def specs(number: str) -> dict[str, Spec]:
    """The checks of a lesson, by exercise id: the module of the lesson's stem in this package."""
    stem = lessons.find(number).stem
    module = importlib.import_module(f"dlcourse_utils.checks.{stem}")
    return {spec.id: spec for spec in module.SPECS}


@functools.cache
def namespace(number: str) -> dict[str, Any]:
    """The reference namespace of a lesson: its context cells and its solved exercises."""
    return lessons.reference(lessons.load(number))


def find(id: str) -> Spec:
    """The check of an exercise. Raises CourseError where there is none."""
    lesson = lessons.load(str(id))
    lessons.exercise(lesson, id)
    return specs(lesson.number)[id]


@functools.cache
def stub(id: str) -> Any:
    """The object that the untouched cell of an exercise defines."""
    spec, lesson = find(id), lessons.load(id)
    return lessons.stub_namespace(lesson, id, namespace(lesson.number))[spec.name]


def judge(spec: Spec, answer: Any, *, seed: int = 0) -> Report:
    """Compare ``answer`` with the reference on the cases of ``seed``; its faults never raise."""
    reference = namespace(spec.id.split(".")[0])[spec.name]
    if not callable(answer):
        return Report(
            WRONG,
            f"`{spec.name}` is {_describe(answer)}, not a function.",
            "The rest of the notebook calls it.",
            "Run the cell that defines it again; do not give its name to anything else.",
            diagnosis="not_callable",
        )
    if _instructions(answer) is not None and _instructions(answer) == _instructions(stub(spec.id)):
        return Report(
            NOT_STARTED,
            f"`{spec.name}` is still empty.",
            "The notebook goes on with the reference, so that you can look ahead.",
            f'Replace the `...` and run the cell again; hint("{spec.id}") helps.',
        )
    cases = spec.cases(np.random.default_rng(seed))
    if misfit := _arity(spec, answer, next(iter(cases.values()))):
        return misfit
    expected = _run(spec, reference, cases)
    try:
        with _time_limit(TIME_LIMIT):
            got = _run(spec, answer, cases)
            again = _run(spec, answer, dict([next(iter(cases.items()))]))
    except _OutOfTime:
        return Report(
            ERROR,
            f"`{spec.name}` did not finish within {TIME_LIMIT:.0f} seconds and was stopped.",
            "On these inputs the reference needs a few milliseconds.",
            "Look for a loop that never ends, or a Python loop over every element.",
            diagnosis="out_of_time",
        )
    except Misfit as misfit:
        return Report(
            WRONG,
            str(misfit),
            "The next cells use what it returns.",
            "Look at the docstring: it says what to return.",
            diagnosis="wrong_kind",
        )
    except Exception as error:  # whatever the student's code raises is reported, not raised
        return _raised(spec, error, cases)
    if problem := _mismatch(spec, got, expected, cases):
        return problem
    first = next(iter(cases))
    if _different(spec, again, _Results({first: got.values[first]})):
        return Report(
            WRONG,
            f"`{spec.name}` gives two different results for the same input.",
            "A function that draws its own random numbers or changes a global cannot be trained.",
            "Use nothing but the arguments.",
            diagnosis="impure",
        )
    if spec.gradient and (problem := _gradient(spec, answer, reference, cases)):
        return problem
    return Report(RIGHT, f"`{spec.name}` is right.", spec.insight)


# --- running ---------------------------------------------------------------------------------


def _run(spec: Spec, function: Callable, cases: dict[str, tuple]) -> _Results:
    return _Results(
        {name: _labelled(spec, spec.evaluate(function, args)) for name, args in cases.items()}
    )


def _labelled(spec: Spec, result: Any) -> dict[str, np.ndarray]:
    """The result as {label: array}; a tuple, list, mapping or stacked array has one a label."""
    count = len(spec.labels)
    if result is None:
        raise Misfit(f"`{spec.name}` returns None: is there a `return`?")
    if isinstance(result, Mapping):
        if missing := [label for label in spec.labels if label not in result]:
            raise Misfit(f"The result of `{spec.name}` has no entry {missing[0]!r}.")
        parts = [result[label] for label in spec.labels]
    elif count == 1:
        parts = [result]
    else:
        try:
            parts = list(result)
        except TypeError:
            parts = []
        if len(parts) != count:
            wanted = ", ".join(spec.labels)
            raise Misfit(f"`{spec.name}` returns {_describe(result)}; expected {wanted}.")
    arrays = {}
    for label, part in zip(spec.labels, parts, strict=True):
        if part is None:
            raise Misfit(f"`{spec.name}` returns None as its {label}.")
        try:
            array = np.asarray(part)
        except Exception as error:
            raise Misfit(f"The {label} is {_describe(part)}, not an array.") from error
        if array.dtype == bool or not np.issubdtype(array.dtype, np.number):
            raise Misfit(f"The {label} has dtype {array.dtype}; expected numbers.")
        arrays[label] = array
    return arrays


def _arity(spec: Spec, answer: Callable, arguments: tuple) -> Report | None:
    try:
        signature = inspect.signature(answer)
        signature.bind(*arguments)
    except TypeError:
        original = inspect.signature(stub(spec.id))
        return Report(
            WRONG,
            f"`{spec.name}` cannot be called as {spec.name}{original}.",
            "The rest of the notebook calls it with these arguments.",
            "Keep the first line of the cell as it was.",
            diagnosis="wrong_arguments",
        )
    except ValueError:
        pass  # built-in functions may have no signature
    return None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` in the body after ``seconds``, where the platform has interval timers.

    Only the main thread of a Unix process can be interrupted this way; elsewhere there is no limit,
    since a thread that cannot be stopped would go on burning the machine.
    """
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_):
        raise _OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def _instructions(function: Any) -> list[tuple[str, Any]] | None:
    """What a function does: its instructions, without line numbers and docstring."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or function.func
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return [
        (step.opname, step.argval if not isinstance(step.argval, types.CodeType) else "code")
        for step in dis.get_instructions(code)
        if step.opname not in {"RESUME", "NOP"}
    ]


# --- comparing -------------------------------------------------------------------------------


def _tolerance(spec: Spec, label: str) -> float:
    return spec.atol[label] if isinstance(spec.atol, Mapping) else spec.atol


def _same(spec: Spec, label: str, one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and np.allclose(
        one, two, rtol=spec.rtol, atol=_tolerance(spec, label), equal_nan=True
    )


def _different(spec: Spec, one: _Results, two: _Results) -> list[tuple[str, str]]:
    """Cases and labels in which two results differ."""
    return [
        (case, label)
        for case, labels in two.values.items()
        for label in spec.labels
        if not _same(spec, label, one.values[case][label], labels[label])
    ]


def suspects_of(spec: Spec, got: _Results, expected: _Results, cases: dict) -> list[Suspect]:
    """The suspects whose results are those of the answer in every case, and not the right ones."""
    found = []
    for suspect in spec.suspects:
        theirs = _run(spec, suspect.wrong, cases)
        if not _different(spec, got, theirs) and _different(spec, theirs, expected):
            found.append(suspect)
    return found


def _mismatch(spec: Spec, got: _Results, expected: _Results, cases: dict) -> Report | None:
    differing = _different(spec, got, expected)
    if not differing:
        return None
    case, label = differing[0]
    mine, right = got.values[case][label], expected.values[case][label]
    what = "" if len(spec.labels) == 1 else f"{label}: "
    held = len(cases) - len({name for name, _ in differing})
    count = f" (right in {held} of {len(cases)} cases)" if held else ""
    if mine.shape == right.shape:
        index = _worst(mine, right)
        detail = f"{what}expected {right[index]:.3g}, got {mine[index]:.3g}{count}"
    else:
        detail = f"{what}expected shape {right.shape}, got {mine.shape}{count}"
    found = suspects_of(spec, got, expected, cases)
    if len(found) == 1:
        suspect = found[0]
        return Report(
            WRONG, suspect.says, suspect.why, suspect.next, detail, diagnosis=suspect.name
        )
    if mine.shape != right.shape:
        return Report(
            WRONG,
            f"The {label} of `{spec.name}` has shape {mine.shape}; expected {right.shape}.",
            "A shape that is off by an axis broadcasts silently in the next formula.",
            "Print the shapes of the arguments and follow them line by line.",
            detail,
            diagnosis="shape",
        )
    if not np.isfinite(mine).all() and np.isfinite(right).all():
        return Report(
            WRONG,
            f"The {label} of `{spec.name}` is not finite.",
            "One NaN or infinity in a batch spoils the whole gradient.",
            "Look for a logarithm or a square root of something that is not positive, or a 0/0.",
            detail,
            diagnosis="not_finite",
        )
    says, diagnosis = _signature(spec, got, expected)
    return Report(
        WRONG,
        says,
        "The shapes are right, the values are not.",
        "Try it on two or three numbers that you can work out by hand.",
        detail,
        diagnosis=diagnosis,
    )


def _worst(mine: np.ndarray, right: np.ndarray) -> tuple:
    gap = np.abs(np.nan_to_num(mine.astype(float), nan=np.inf) - right)
    return np.unravel_index(int(np.argmax(np.nan_to_num(gap, nan=np.inf))), gap.shape)


def _signature(spec: Spec, got: _Results, expected: _Results) -> tuple[str, str]:
    """A sentence for a mistake that no suspect explains: a factor, an offset, or a value."""
    wrong = sorted({label for _, label in _different(spec, got, expected)})
    label = wrong[0]
    mine, right = (
        np.concatenate([np.ravel(labels[label]) for labels in results.values.values()])
        for results in (got, expected)
    )
    name = f"`{spec.name}`" if len(spec.labels) == 1 else f"the {label} of `{spec.name}`"
    name = name[0].upper() + name[1:]
    usable = np.isfinite(mine) & np.isfinite(right) & (np.abs(right) > 1e-6)
    if usable.sum() > 1:
        ratio = mine[usable] / right[usable]
        if np.allclose(ratio, -1.0, rtol=1e-3):
            return f"{name} has the wrong sign.", "sign"
        if np.allclose(ratio, ratio[0], rtol=1e-3):
            return f"{name} is {ratio[0]:.3g} times the right value, always.", "factor"
        offset = (mine - right)[usable]
        if np.allclose(offset, offset[0], rtol=1e-3, atol=1e-4):
            return f"{name} is off by {offset[0]:.3g}, always.", "offset"
    return f"{name} has the wrong value.", "value"


def _gradient(spec: Spec, answer: Callable, reference: Callable, cases: dict) -> Report | None:
    name, arguments = next(iter(cases.items()))

    def slope(function: Callable) -> np.ndarray:
        def total(first):
            result = spec.evaluate(function, (first, *arguments[1:]))
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result))

        return np.asarray(jax.grad(total)(arguments[0]))

    try:
        with _time_limit(TIME_LIMIT):
            mine = slope(answer)
    except (_OutOfTime, Exception) as error:
        return Report(
            WRONG,
            f"The value of `{spec.name}` is right, but JAX cannot differentiate it.",
            "Training follows the gradient of this function.",
            "Use jnp instead of np, and no float() or Python loop on the values.",
            f"{type(error).__name__}",
            diagnosis="no_gradient",
        )
    right = slope(reference)
    if mine.shape == right.shape and np.allclose(mine, right, rtol=1e-3, atol=1e-5):
        return None
    index = _worst(mine, right) if mine.shape == right.shape else ...
    return Report(
        WRONG,
        f"The value of `{spec.name}` is right, but its gradient is not.",
        "Training follows the gradient of this function.",
        "Look for stop_gradient, rounding, or a constant where the argument should be.",
        f"case {name}: expected {right[index]:.3g}, got {mine[index]:.3g}"
        if index is not ...
        else "",
        diagnosis="gradient",
    )


# --- words -----------------------------------------------------------------------------------


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _raised(spec: Spec, error: Exception, cases: dict[str, tuple]) -> Report:
    # The last line of the student's own code, not of a library or of this one.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and frame.filename != __file__
    ]
    where = ""
    if frames:
        number = frames[-1].lineno or 0
        line = linecache.getline(frames[-1].filename, number).strip()
        where = f"line {number}: {line}"
    arguments = next(iter(cases.values()))
    given = ", ".join(_describe(argument) for argument in arguments)
    text = str(error).strip().split("\n")[0]
    return Report(
        ERROR,
        f"Your code raised {type(error).__name__}: {text[:200]}",
        f"It was called with {given}.",
        "Run it yourself on such arguments and follow the traceback.",
        where,
        diagnosis=f"raised_{type(error).__name__}",
    )
