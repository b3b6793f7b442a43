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
import re
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from dlcourse_utils import lessons

TIME_LIMIT = 20.0  # seconds for all that a check runs of the student's code
NOT_STARTED, ERROR, WRONG, RIGHT = "not started", "error", "wrong", "right"
REFERENCE = "reference"  # the diagnosis of an answer that is the course's own


class Suspect(NamedTuple):
    """A wrong answer: the code of somebody with this misconception, and what to tell them.

    ``usable`` is False where a later cell does not get to its end with it, such as a training that
    diverges or a chain that leaves the finite numbers.
    """

    name: str
    wrong: Callable[..., Any]
    says: str  # what is off
    why: str  # why it matters
    next: str  # one step to take
    usable: bool = True


@dataclass(frozen=True, eq=False)
class Spec:
    """How one exercise is checked.

    ``cases(rng)`` gives named argument tuples; ``evaluate(function, arguments)`` what is compared:
    one array, or one for each of the ``labels``, in a tuple or, with ``mapping``, in a dict.
    ``atol`` is one number or one for each label. ``gradient(function, arguments)`` is what training
    differentiates, as an array, where there is such a thing. ``late`` are cases that are compared
    only once the others are right, so that they hide no mistake of another kind; each with the name
    of the suspect who explains whatever fails there alone. ``example`` is what to try where the
    values are wrong and no suspect explains them. ``affordable(function, arguments)`` says whether
    the next cells have the memory for a wrong answer.
    """

    id: str
    name: str
    cases: Callable[[np.random.Generator], dict[str, tuple]]
    suspects: tuple[Suspect, ...]
    insight: str
    labels: tuple[str, ...] = ("value",)
    mapping: bool = False
    evaluate: Callable[[Callable, tuple], Any] = lambda function, arguments: function(*arguments)
    atol: float | Mapping[str, float] = 1e-4
    rtol: float = 1e-4
    gradient: Callable[[Callable, tuple], jax.Array] | None = None
    late: Mapping[str, str] = field(default_factory=dict)
    example: str = "Try it on two or three numbers that you can work out by hand."
    affordable: Callable[[Callable, tuple], bool] = lambda function, arguments: True


class Report(NamedTuple):
    """What a check found: an outcome and its sentences; ``diagnosis`` is a word for the record.

    ``usable`` says whether the next cells can go on with the answer: not with one that raises, nor
    with one whose results are of the wrong kind or shape, or not finite, nor with a mistake that is
    known to stop them.
    """

    outcome: str
    says: str
    why: str = ""
    next: str = ""
    detail: str = ""
    diagnosis: str = ""
    usable: bool = True


class Misfit(Exception):
    """Raised by an ``evaluate`` for a result of the wrong kind; its text says so."""


class _OutOfTime(BaseException):
    """Past the time limit. Not an Exception, so that a student's `except Exception` lets it by."""


class _Raised(Exception):
    """The student's code raised ``error`` when it was called with ``arguments``."""

    def __init__(self, error: BaseException, arguments: tuple):
        super().__init__(str(error))
        self.error, self.arguments = error, arguments


# What a function returned: case -> label -> array.
Results = dict[str, dict[str, np.ndarray]]


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
    return specs(lesson.number)[lessons.exercise(lesson, id).id]


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
            f"`{spec.name}` is {describe(answer)}, not a function.",
            "The rest of the notebook calls it.",
            "Run the cell that defines it again; do not give its name to anything else.",
            diagnosis="not_callable",
            usable=False,
        )
    if answer is reference:
        return Report(
            NOT_STARTED,
            f"`{spec.name}` is the reference, which the last run of this cell handed out.",
            "The notebook goes on with it.",
            "Write or mend your version in the cell above, run that cell, then this one.",
            diagnosis=REFERENCE,
        )
    mine = _instructions(answer)
    if mine is not None and mine == _instructions(stub(spec.id)):
        return Report(
            NOT_STARTED,
            f"`{spec.name}` is still empty.",
            "The notebook goes on with the reference, so that you can look ahead.",
            f'Replace the `...` and run the cell again; hint("{spec.id}") helps.',
        )
    trial = _trial(spec, seed)
    cases = spec.cases(np.random.default_rng(seed))  # its own: an answer may change them in place
    if misfit := _arity(spec, answer, next(iter(cases.values()))):
        return misfit
    try:
        # Full precision: a GPU may otherwise multiply matrices with ten bits.
        with jax.default_matmul_precision("highest"):
            return _compare(trial, answer, cases)
    except _OutOfTime:
        return Report(
            ERROR,
            f"`{spec.name}` did not finish within {TIME_LIMIT:.0f} seconds and was stopped.",
            "On these inputs the reference needs a few milliseconds.",
            "Look for a loop that never ends, or a Python loop over every element.",
            diagnosis="out_of_time",
            usable=False,
        )
    except Misfit as misfit:
        if isinstance(misfit.__cause__, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            line = _own_line(answer, misfit.__cause__)
            return Report(WRONG, str(misfit), detail=line, diagnosis="untraceable", usable=False)
        return Report(
            WRONG,
            str(misfit),
            "The next cells use what it returns.",
            "Look at the docstring: it says what to return.",
            diagnosis="wrong_kind",
            usable=False,
        )
    except _Raised as raised:
        return _report_error(answer, raised)


class _Trial:
    """What the reference and the suspects return on the cases of a seed, each worked out once."""

    def __init__(self, spec: Spec, seed: int):
        self.spec = spec
        self.reference = namespace(spec.id.split(".")[0])[spec.name]
        self._cases = spec.cases(np.random.default_rng(seed))
        self._known: dict[tuple[Callable, str], dict[str, np.ndarray]] = {}

    def result(self, function: Callable, case: str) -> dict[str, np.ndarray]:
        """Label -> array of the reference, or of a suspect's wrong answer, on one case."""
        if (function, case) not in self._known:
            # What a student sets to find a NaN of their own must not stop a suspect's.
            with jax.debug_nans(False), jax.debug_infs(False), np.errstate(all="ignore"):
                found = _labelled(self.spec, self.spec.evaluate(function, self._cases[case]))
            self._known[function, case] = found
        return self._known[function, case]

    def expected(self, cases: Iterable[str]) -> Results:
        return {case: self.result(self.reference, case) for case in cases}


@functools.lru_cache(maxsize=8)  # a student checks the same exercise again and again
def _trial(spec: Spec, seed: int) -> _Trial:
    return _Trial(spec, seed)


def _compare(trial: _Trial, answer: Callable, cases: dict) -> Report:
    spec, got = trial.spec, {}
    # Of the answer: working out what the suspects return does not count.
    limited = _Stopwatch(TIME_LIMIT).running
    for late in (False, True):
        some = {name: case for name, case in cases.items() if (name in spec.late) == late}
        with limited():
            got |= _run(spec, answer, some)
        if problem := _mismatch(trial, got, trial.expected(got)):
            with limited():
                affordable = spec.affordable(answer, next(iter(cases.values())))
            return problem._replace(usable=problem.usable and affordable)
    first = dict([next(iter(cases.items()))])
    with limited():
        again = _run(spec, answer, first)
    if _different(spec, again, {name: got[name] for name in first}):
        return Report(
            WRONG,
            f"`{spec.name}` gives two different results for the same input.",
            "A function that draws its own random numbers or changes a global cannot be trained.",
            "Use nothing but the arguments.",
            diagnosis="impure",
        )
    with limited():
        problem = _gradient(spec, answer, trial.reference, cases) if spec.gradient else None
    return problem or Report(RIGHT, f"`{spec.name}` is right.", spec.insight)


# --- running ---------------------------------------------------------------------------------


def _run(spec: Spec, function: Callable, cases: dict[str, tuple]) -> Results:
    results = {}
    for name, arguments in cases.items():
        try:
            result = spec.evaluate(function, arguments)
        except Misfit:
            raise
        except (Exception, SystemExit) as error:  # whatever it raises is reported, not raised
            raise _Raised(error, arguments) from error
        results[name] = _labelled(spec, result)
    return results


def _labelled(spec: Spec, result: Any) -> dict[str, np.ndarray]:
    """The result as {label: array}, if it is of the kind that the next cells expect."""
    wanted = ", ".join(spec.labels)
    if result is None:
        raise Misfit(f"`{spec.name}` returns None: is there a `return`?")
    if result is ...:
        raise Misfit(f"`{spec.name}` returns `...`: its last line is still to be written.")
    if len(spec.labels) == 1:
        parts = [result]
    elif spec.mapping:
        if not isinstance(result, Mapping):
            raise Misfit(
                f"`{spec.name}` returns {describe(result)}; expected a dict with {wanted}."
            )
        if missing := [label for label in spec.labels if label not in result]:
            raise Misfit(f"The result of `{spec.name}` has no entry {missing[0]!r}.")
        parts = [result[label] for label in spec.labels]
    else:
        # No np.ndim: it raises for a tuple of arrays of several shapes.
        sized = isinstance(result, (tuple, list)) or getattr(result, "ndim", 0) > 0
        if not sized or len(result) != len(spec.labels):
            raise Misfit(f"`{spec.name}` returns {describe(result)}; expected ({wanted}).")
        parts = list(result)
    arrays = {}
    for label, part in zip(spec.labels, parts, strict=True):
        if part is None or part is ...:
            raise Misfit(f"`{spec.name}` returns {describe(part)} as its {label}.")
        try:
            array = np.asarray(part)
        except Exception as error:
            raise Misfit(f"The {label} {_is(label)} {describe(part)}, not an array.") from error
        if array.dtype == bool:
            raise Misfit(
                f"The {label} {_is(label)} true or false, not a number: is a mean missing?"
            )
        if not np.issubdtype(array.dtype, np.number):
            raise Misfit(f"The {label} {_has(label)} dtype {array.dtype}; expected numbers.")
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
            usable=False,
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

    handler = signal.signal(signal.SIGALRM, stop)
    # It rings again every second, for code that swallows the first exception.
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


class _Stopwatch:
    """A time limit for several bodies together."""

    def __init__(self, seconds: float):
        self._left = seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.monotonic()
        with _time_limit(max(self._left, 0.001)):  # zero would be no limit
            yield
        self._left -= time.monotonic() - start


def _unwrapped(function: Any) -> Any:
    """The function inside jit, partial and other wrappers."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or function.func
    return function


def _instructions(function: Any) -> list[tuple[str, Any]] | None:
    """What a function does: its instructions, without line numbers and docstring."""
    code = getattr(_unwrapped(function), "__code__", None)
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


def _different(spec: Spec, one: Results, two: Results) -> list[tuple[str, str]]:
    """Cases and labels in which two results differ."""
    return [
        (case, label)
        for case, labels in two.items()
        for label in spec.labels
        if not _same(spec, label, one[case][label], labels[label])
    ]


def _suspect(trial: _Trial, got: Results, expected: Results) -> tuple[Suspect, set[str]] | None:
    """The suspect who explains most of the wrong labels, in every case, and these labels."""
    explained = {}
    for suspect in trial.spec.suspects:
        labels, unlike = set(), set()
        for case in got:
            try:
                theirs = {case: trial.result(suspect.wrong, case)}
            except Exception:  # on this version of a library, or with these settings of it
                break
            labels |= {label for _, label in _different(trial.spec, theirs, {case: expected[case]})}
            unlike |= {label for _, label in _different(trial.spec, got, theirs)}
            if labels & unlike:  # most are ruled out by the first case
                break
        else:
            if labels:  # who is wrong in late cases only has nothing to explain before
                explained[suspect] = labels
    if not explained:
        return None
    most = max(explained, key=lambda suspect: len(explained[suspect]))
    return most, explained[most]


def _late_suspect(spec: Spec, differing: list[tuple[str, str]]) -> tuple[Suspect, set[str]] | None:
    """Who is named for whatever value where nothing but late cases is wrong."""
    named = {spec.late.get(case) for case, _ in differing}
    suspect = next((s for s in spec.suspects if named == {s.name}), None)
    return suspect and (suspect, {label for _, label in differing})


def _usable(got: Results, expected: Results) -> bool:
    """Whether cells that can work with what was expected can work with what was returned.

    A label with the word "finite" is a share of what the results are made of.
    """

    def fits(label, mine, right):
        if mine.shape != right.shape:
            return False
        if "finite" in label.split():
            return bool(np.all(mine >= right))
        return bool(np.isfinite(mine).all() or not np.isfinite(right).all())

    return all(
        fits(label, got[case][label], right)
        for case, labels in expected.items()
        for label, right in labels.items()
    )


def _mismatch(trial: _Trial, got: Results, expected: Results) -> Report | None:
    spec = trial.spec
    differing = _different(spec, got, expected)
    if not differing:
        return None
    shaped = all(got[case][label].shape == expected[case][label].shape for case, label in differing)
    named = _suspect(trial, got, expected) or (shaped and _late_suspect(spec, differing)) or None
    # The number that is shown belongs to what the sentence speaks of.
    case, label = next(where for where in differing if named is None or where[1] in named[1])
    mine, right = got[case][label], expected[case][label]
    what = "" if len(spec.labels) == 1 else f"{label}: "
    held = len(got) - len({name for name, _ in differing})
    count = f" (right in {held} of {len(got)} cases)" if held else ""
    if mine.shape == right.shape:
        index = _worst(mine, right)
        detail = f"{what}{_expected_got(right[index], mine[index])}{count}"
    else:
        detail = f"{what}expected shape {right.shape}, got {mine.shape}{count}"
    if named is not None:
        says, why, todo, diagnosis = named[0].says, named[0].why, named[0].next, named[0].name
    elif mine.shape != right.shape:
        says = (
            f"The {label} of `{spec.name}` {_has(label)} shape {mine.shape}; expected "
            f"{right.shape}."
        )
        why = "A shape that is off by an axis broadcasts silently in the next formula."
        todo = "Print the shapes of the arguments and follow them line by line."
        diagnosis = "shape"
    elif not np.isfinite(mine).all() and np.isfinite(right).all():
        says = f"The {label} of `{spec.name}` {_is(label)} not finite."
        why = "One NaN or infinity in a batch spoils the whole gradient."
        todo = "Look for a logarithm or a square root of something that is not positive, or a 0/0."
        diagnosis = "not_finite"
    else:
        says, diagnosis = _signature(spec, label, got, expected)
        why, todo = "The shapes are right, the values are not.", spec.example
    usable = _usable(got, expected) and (named is None or named[0].usable)
    return Report(WRONG, says, why, todo, detail, diagnosis, usable)


def _worst(mine: np.ndarray, right: np.ndarray) -> tuple:
    gap = np.abs(np.nan_to_num(mine.astype(float), nan=np.inf) - right)
    return np.unravel_index(int(np.argmax(np.nan_to_num(gap, nan=np.inf))), gap.shape)


def _signature(spec: Spec, label: str, got: Results, expected: Results) -> tuple[str, str]:
    """A sentence for a mistake that no suspect explains: a factor, an offset, or a value."""
    mine, right = (
        np.concatenate([np.ravel(labels[label]) for labels in results.values()])
        for results in (got, expected)
    )
    name, noun = f"`{spec.name}`", ""
    if len(spec.labels) > 1:
        name, noun = f"The {label} of `{spec.name}`", label
    values = "values" if _plural(noun) else "value"
    finite = np.isfinite(mine) & np.isfinite(right)
    mine, right = mine[finite], right[finite]
    usable = np.abs(right) > 1e-6
    if usable.sum() > 1:
        factor = np.median(mine[usable] / right[usable])
        if _explains(factor * right, mine, right, _tolerance(spec, label)):
            if abs(factor + 1.0) < 1e-3:
                return f"{name} {_has(noun)} the wrong sign.", "sign"
            return f"{name} {_is(noun)} {_times(factor, values)}, always.", "factor"
        offset = np.median(mine - right)
        if _explains(right + offset, mine, right, 1e-4):
            return f"{name} {_is(noun)} off by {offset:.3g}, always.", "offset"
    return f"{name} {_has(noun)} the wrong {values}.", "value"


def _explains(guess: np.ndarray, mine: np.ndarray, right: np.ndarray, atol: float) -> bool:
    """Whether ``guess`` is what was returned, and leaves next to nothing of the difference."""
    left, difference = np.abs(mine - guess), np.abs(mine - right)
    return np.allclose(mine, guess, rtol=1e-3, atol=atol) and left.max() < 0.1 * difference.max()


def _times(factor: float, values: str) -> str:
    text = f"{factor:.5g}"
    if text == "1":
        return f"{100.0 * abs(factor - 1.0):.2g} % too {'large' if factor > 1.0 else 'small'}"
    return f"{text} times the right {values}"


def _expected_got(right: float, mine: float) -> str:
    """Both values, with as many digits as it takes to tell them apart."""
    for digits in (3, 5, 7, 9):
        texts = [f"{value:.{digits}g}" for value in (right, mine)]
        if texts[0] != texts[1]:
            break
    return "expected {}, got {}".format(*texts)


def _gradient(spec: Spec, answer: Callable, reference: Callable, cases: dict) -> Report | None:
    assert spec.gradient is not None
    arguments = next(iter(cases.values()))
    why = "Training follows the gradient of this function."
    try:
        # As in training: under jit, where values are not known. Traced only, which takes no time.
        jax.eval_shape(functools.partial(spec.gradient, answer), arguments)
        mine = np.asarray(spec.gradient(answer, arguments))
    except Exception as error:
        return Report(
            WRONG,
            f"The value of `{spec.name}` is right, but JAX cannot differentiate it.",
            why,
            "Use jnp instead of np, and no float() or Python loop on the values.",
            type(error).__name__,
            diagnosis="no_gradient",
            usable=False,
        )
    right = np.asarray(spec.gradient(reference, arguments))
    if np.allclose(mine, right, rtol=1e-3, atol=1e-4):
        return None
    index = _worst(mine, right)
    return Report(
        WRONG,
        f"The value of `{spec.name}` is right, but its gradient is not.",
        why,
        "Look for stop_gradient, rounding, or a constant where the argument should be.",
        f"gradient: {_expected_got(right[index], mine[index])}",
        diagnosis="gradient",
        usable=bool(np.isfinite(mine).all()),
    )


# --- words -----------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """What ``value`` is, in a few words for a sentence."""
    if value is None or value is ...:
        return "None" if value is None else "`...`"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    # JAX has a partial of its own, and what it compiles is of a class of its own.
    if isinstance(value, functools.partial) or inspect.isroutine(value):
        return "a function"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    if isinstance(value, (tuple, list)):
        return f"{article} {name} of {len(value)}"
    return f"{article} {name}"


def _plural(label: str) -> bool:
    """Whether what a label names is several things: "weights", but not "mean of the weights"."""
    noun = re.split(r" (?:at|in|made|of|per|with) | \(", label)[0]
    return noun.endswith("s") and not noun.endswith("ss")


def _has(label: str) -> str:
    return "have" if _plural(label) else "has"


def _is(label: str) -> str:
    return "are" if _plural(label) else "is"


def _own_line(answer: Callable, error: BaseException) -> str:
    """The last line in the file or cell of the student's own function that ``error`` passed."""
    code = getattr(_unwrapped(answer), "__code__", None)
    lines = [
        f"line {frame.lineno}: {linecache.getline(frame.filename, frame.lineno or 0).strip()}"
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return lines[-1] if lines else ""


def _report_error(answer: Callable, raised: _Raised) -> Report:
    given = ", ".join(describe(argument) for argument in raised.arguments)
    kind, text = type(raised.error).__name__, str(raised.error).strip().split("\n")[0]
    return Report(
        ERROR,
        f"Your code raised {kind}: {text[:200]}",
        f"It was called with {given}.",
        "Run it yourself on such arguments and follow the traceback.",
        _own_line(answer, raised.error),
        diagnosis=f"raised_{kind}",
        usable=False,
    )
