"""Every exercise's check, on right answers, on each wrong answer it names, and on garbage."""

import dataclasses
import inspect
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from contextlib import redirect_stdout, suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from right_answers import RIGHT
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import checks, cli, lessons
from dlcourse_utils.checks import engine, record, report, tools
from dlcourse_utils.errors import CourseError
from tests.environments import ROOT

tfd = tfp.distributions

# TFP, and solutions written as a student would, broadcast (n, g) with (g,).
pytestmark = pytest.mark.tfp_ranks

IDS = [id for path in lessons.sources() for id in lessons.load(path).exercises]
SUSPECTS = [(id, suspect.name) for id in IDS for suspect in engine.find(id).suspects]
RIGHT_WAYS = [(id, k) for id in IDS for k in range(len(RIGHT.get(id, ())))]
SEEDS = 40  # of each exercise: some 1,200 judgements in all


SOLVED = {path.stem[:2]: lessons.reference(lessons.load(path)) for path in lessons.sources()}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """Right answers of the tests stay as they are, and are not compiled at each of 40 seeds."""
    monkeypatch.setattr(tools, "_UNCHANGING", (*tools._UNCHANGING, "right_answers"))


def reference(id):
    """The solution as a student would have written it: equal to the check's own, another object."""
    return SOLVED[id[:2]][engine.find(id).name]


def suspect(id, name):
    return next(s for s in engine.find(id).suspects if s.name == name)


def checked(id, answer):
    """The object that check hands back, and what it says."""
    said = io.StringIO()
    with redirect_stdout(said):
        back = checks.check(id, answer)
    return back, said.getvalue()


def goes_on_with(id, answer, back, said):
    """What the report says that the notebook goes on with, which must be what came back."""
    kept = "The notebook goes on with your version." in said
    replaced = "The notebook goes on with the reference until this is mended." in said
    assert kept != replaced
    assert back is (answer if kept else engine.namespace(id[:2])[engine.find(id).name])
    return "your version" if kept else "the reference"


def can_be_used(id, wrong):
    """Whether what a suspect returns has the shapes of the reference and is finite where it is."""
    spec = engine.find(id)
    trial = engine._trial(spec, 0)

    def fits(label, mine, right):
        if mine.shape != right.shape:
            return False
        shares = "finite" in label.split()
        return (mine >= right).all() if shares else np.isfinite(mine[np.isfinite(right)]).all()

    return spec.affordable(wrong, next(iter(trial._cases.values()))) and all(
        fits(label, trial.result(wrong, case)[label], right)
        for case, labels in trial.expected(judged_cases(id, wrong)).items()
        for label, right in labels.items()
    )


def judged_cases(id, wrong):
    """The cases that are compared: late ones where the others are right only."""
    spec = engine.find(id)
    trial = engine._trial(spec, 0)
    early = [case for case in trial._cases if case not in spec.late]
    theirs = {case: trial.result(wrong, case) for case in early}
    return early if engine._different(spec, theirs, trial.expected(early)) else trial._cases


@pytest.mark.parametrize("id", IDS)
def test_the_solution_passes(id):
    back, said = checked(id, reference(id))
    assert back is reference(id)
    assert "· right" in said and engine.find(id).insight in said


@pytest.mark.parametrize("id", IDS)
def test_the_stub_is_not_started_and_becomes_the_reference(id):
    back, said = checked(id, engine.stub(id))
    assert "not started" in said
    assert back is engine.namespace(id[:2])[engine.find(id).name]
    again, said = checked(id, back)
    assert again is back and "not started" in said, "the cell run twice must not turn it right"
    assert "still empty" not in said


def test_a_check_run_again_does_not_call_an_answer_empty(home):
    back, _ = checked("01.2", _no_return)
    _, said = checked("01.2", back)
    assert "is the reference, which the last run of this cell handed out" in said
    assert "still empty" not in said
    assert [entry["outcome"] for entry in record.read()] == [engine.WRONG]


def emptied(signature):
    scope = {}
    exec(f"def answer{signature}:\n    ...", scope)
    return scope["answer"]


@pytest.mark.parametrize("id", IDS)
def test_a_stub_without_its_docstring_is_not_started(id):
    empty = emptied(str(inspect.signature(engine.stub(id))))
    assert engine.judge(engine.find(id), empty).outcome == engine.NOT_STARTED


@pytest.mark.parametrize("id", IDS)
def test_code_without_return_is_not_called_empty(id):
    def answer(*args):
        total = sum(1 for _ in args)
        total += 1

    found = engine.judge(engine.find(id), answer)
    assert found.outcome == engine.WRONG and "return" in found.says


@pytest.mark.parametrize(("id", "name"), SUSPECTS)
def test_each_wrong_answer_gets_its_own_sentence(id, name):
    wrong = suspect(id, name)
    back, said = checked(id, wrong.wrong)
    kept = goes_on_with(id, wrong.wrong, back, said) == "your version"
    assert kept == (wrong.usable and can_be_used(id, wrong.wrong))
    assert "not yet right" in said
    assert wrong.says in said and wrong.why in said and wrong.next in said
    others = [s for s in engine.find(id).suspects if s is not wrong]
    assert not any(s.says in said for s in others)
    assert is_far_from_right(id, wrong.wrong)


def is_far_from_right(id, wrong):
    """In some case it is 100 tolerances away, or has another shape, or is NaN."""
    spec = engine.find(id)
    trial = engine._trial(spec, 0)
    for case, labels in trial.expected(trial._cases).items():
        for label, right in labels.items():
            mine = trial.result(wrong, case)[label]
            if mine.shape != right.shape or not np.isfinite(mine[np.isfinite(right)]).all():
                return True
            tolerance = engine._tolerance(spec, label) + spec.rtol * np.abs(right)
            if np.max(np.abs(mine - right) / tolerance) > 100:
                return True
    return False


@pytest.mark.parametrize(("id", "name"), SUSPECTS)
def test_each_wrong_answer_is_named_under_other_seeds(id, name):
    spec = engine.find(id)
    for seed in range(1, 4):
        found = engine.judge(spec, suspect(id, name).wrong, seed=seed)
        assert found.diagnosis == name, f"seed {seed}: {found}"


def test_every_exercise_has_enough_wrong_and_right_answers():
    for id in IDS:
        assert len(engine.find(id).suspects) >= 5, id
        assert len(RIGHT[id]) >= 3, id
    sentences = [s.says for id in IDS for s in engine.find(id).suspects]
    for id in IDS:
        own = [s.says for s in engine.find(id).suspects]
        assert len(set(own)) == len(own)
    assert all(s.endswith(".") for s in sentences)


@pytest.mark.parametrize(("id", "way"), RIGHT_WAYS)
def test_other_right_ways_pass(id, way):
    answer = RIGHT[id][way]
    back, said = checked(id, answer)
    assert back is answer
    assert "· right" in said, said


@pytest.mark.parametrize("id", IDS)
def test_no_false_alarm_in_many_seeds(id):
    spec = engine.find(id)
    for seed in range(SEEDS):
        answer = RIGHT[id][seed % len(RIGHT[id])]
        found = engine.judge(spec, answer, seed=seed)
        assert found.outcome == engine.RIGHT, f"seed {seed}, {answer.__name__}: {found}"


def test_the_page_says_how_the_checks_are_tested():
    page = " ".join((ROOT / "course" / "how_the_checks_work.md").read_text("utf-8").split())
    says = (
        f"at least three right answers in other styles, which take turns at {SEEDS} random inputs"
    )
    assert says in page


@pytest.mark.parametrize("id", IDS)
def test_two_runs_give_the_same_report(id):
    spec = engine.find(id)
    wrong = spec.suspects[0].wrong
    first = engine.judge(spec, wrong)
    engine._trial.cache_clear()  # so that all of it runs again
    assert engine.judge(spec, wrong) == first


# --- garbage ---------------------------------------------------------------------------------


def _raises(*args):
    return args[0].no_such_attribute


def _nan(*args):
    return jnp.nan


def _text(*args):
    return "the answer"


def _forever(*args):
    while True:
        pass


def _swallows(*args):
    while True:
        with suppress(Exception):
            time.sleep(0.01)


GARBAGE = {
    "None": None,
    "a string": "nll",
    "a number": 3.0,
    "no arguments": lambda: 1.0,
    "too many arguments": lambda a, b, c, d, e, f: 1.0,
    "an exception": _raises,
    "NaN": _nan,
    "text": _text,
    "an empty list": lambda *args: [],
    "a wrong shape": lambda *args: jnp.zeros((3, 1, 4)),
    "a generator": lambda *args: (x for x in ()),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("id", IDS)
def test_garbage_gets_a_sentence(id, name):
    back, said = checked(id, GARBAGE[name])
    assert goes_on_with(id, GARBAGE[name], back, said) == "the reference"
    assert "Traceback" not in said
    assert "right" not in said.split("\n")[0] or "not yet right" in said
    assert said.count("\n") >= 3


@pytest.mark.parametrize("endless", [_forever, _swallows])
def test_an_endless_loop_is_stopped(monkeypatch, endless):
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.3)
    start = time.monotonic()
    back, said = checked("01.2", endless)
    assert time.monotonic() - start < 5
    assert goes_on_with("01.2", endless, back, said) == "the reference"
    assert "did not finish within" in said


def test_the_time_limit_is_for_all_that_is_run(monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT", 2.0)

    def slow(sigma, mass):
        time.sleep(0.5)  # three cases, a late one, and the first again: 1.5, 0.5 and 0.5 s
        return reference("01.1")(sigma, mass)

    assert engine.judge(engine.find("01.1"), slow).diagnosis == "out_of_time"


def test_an_exception_in_a_library_is_told_with_the_students_line():
    def mse(prediction, target):
        if len(target) == 33:
            return statistics.mean([])
        return reference("01.2")(prediction, target)

    _, said = checked("01.2", mse)
    assert "return statistics.mean([])" in said and "StatisticsError" in said
    assert "an array of shape (33, 1)" in said, "the inputs of the case that failed"


def test_a_suspect_that_raises_is_not_put_down_to_the_answer():
    """As one does that takes the logarithm of what is negative, while a student looks for a NaN."""
    spec = engine.find("01.3")
    answer = suspect("01.3", "floor_in_bracket").wrong
    engine._trial.cache_clear()
    with jax.debug_nans(True):
        assert engine.judge(spec, answer).diagnosis == "floor_in_bracket"
    raising = engine.Suspect("raising", _raises, "", "", "")
    spec = dataclasses.replace(spec, suspects=(raising, *spec.suspects))
    assert engine.judge(spec, answer).diagnosis == "floor_in_bracket"


@pytest.mark.parametrize("id", ["01.3", "03.1", "09.2"])
def test_an_answer_edited_in_place_is_judged_anew(id):
    """As `%autoreload 2` does with a module of the student's own."""
    solved = reference(id)

    def answer(*arguments):
        return jax.tree.map(jax.lax.stop_gradient, solved(*arguments))

    def mended(*arguments):
        return solved(*arguments)

    answer.__module__ = "mine"
    assert engine.judge(engine.find(id), answer).outcome == engine.WRONG
    answer.__code__ = mended.__code__
    assert engine.judge(engine.find(id), answer).outcome == engine.RIGHT


def test_leaving_python_is_an_error_like_any_other():
    back, said = checked("01.2", lambda f, m: sys.exit(3))
    assert "SystemExit" in said and callable(back)


def test_the_time_limit_leaves_the_timer_as_it_was():
    before = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        checked("01.2", reference("01.2"))
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        assert signal.getsignal(signal.SIGALRM) == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def test_an_exception_is_told_with_the_line_and_the_inputs():
    def mse(prediction, target):
        return jnp.men((prediction - target) ** 2)

    _, said = checked("01.2", mse)
    assert "AttributeError" in said and "jnp.men(" in said
    assert "an array of shape (8, 1) and dtype float32" in said


def mixture_in_numpy(outputs):
    a, b, c = np.split(np.asarray(outputs), 3, axis=1)
    scale = np.float32(0.01 + 0.6 * np.logaddexp(0.0, c))
    return tfd.MixtureSameFamily(tfd.Categorical(logits=a), tfd.Normal(14.2 + 0.6 * b, scale))


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("01.2", lambda f, m: np.mean((np.asarray(f)[:, 0] - np.asarray(m)) ** 2)),
        ("01.3", mixture_in_numpy),
        ("01.4", lambda q, m: np.mean(-np.asarray(q.log_prob(m)))),
    ],
)
def test_numpy_in_what_is_trained_cannot_be_differentiated(id, answer):
    _, said = checked(id, answer)
    assert "JAX cannot differentiate it" in said and "jnp instead of np" in said


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("01.2", lambda f, m: jnp.mean((jax.lax.stop_gradient(f)[:, 0] - m) ** 2)),
        ("01.3", lambda x: reference("01.3")(jax.lax.stop_gradient(x))),
        ("01.4", lambda q, m: -jnp.mean(jax.lax.stop_gradient(q.log_prob(m)))),
    ],
)
def test_a_stopped_gradient_is_seen(id, answer):
    _, said = checked(id, answer)
    assert "its gradient is not" in said


def test_results_must_come_as_the_next_cell_takes_them():
    _, said = checked("01.5", lambda log_p, grid: tuple(reference("01.5")(log_p, grid).values()))
    assert "expected a dict with mean, std, median, mode, low, high" in said
    _, said = checked("01.1", lambda s, m: dict(zip("abc", reference("01.1")(s, m), strict=True)))
    assert "returns a dict; expected (slope, intercept, scatter)" in said


def test_two_mistakes_at_once_name_one_of_them():
    def summarise(log_p, grid):
        right = dict(reference("01.5")(log_p, grid))
        return right | {"std": right["std"] ** 2, "mode": right["median"]}

    _, said = checked("01.5", summarise)
    assert "The std is a variance." in said or "The mode is the median." in said


@pytest.mark.parametrize(
    ("id", "answer", "sentence"),
    [
        ("01.2", lambda f, m: ..., "its last line is still to be written"),
        ("01.1", lambda s, m: (1.0, 2.0, ...), "returns `...` as its scatter"),
        ("01.7", lambda u, level: jnp.abs(u - 0.5) <= level / 2, "is a mean missing?"),
    ],
)
def test_unfinished_code_is_told_so(id, answer, sentence):
    _, said = checked(id, answer)
    assert sentence in said


def test_a_function_with_a_memory_is_seen():
    calls = []

    def coverage(pit, level):
        calls.append(1)
        return jnp.mean(jnp.abs(pit - 0.5) <= level / 2) + (0.0 if len(calls) <= 3 else 1.0)

    _, said = checked("01.7", coverage)
    assert "two different results for the same input" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: 3.0 * v, "is 3 times the right value, always"),
        (lambda v: -v, "has the wrong sign"),
        (lambda v: v + 2.0, "is off by 2, always"),
        (lambda v: v**3 + 7.0, "has the wrong value"),
    ],
)
def test_mistakes_without_a_suspect_get_their_signature(change, sentence):
    right = reference("01.2")
    _, said = checked("01.2", lambda f, m: change(right(f, m)))
    assert sentence in said


@pytest.mark.parametrize(
    ("right", "mine", "sentence"),
    [
        # Alike but in one place: no factor, least of all 1.
        ([0.0, 1.0, 2.0, 3.0], [0.5, 1.0, 2.0, 3.0], "has the wrong value"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.002], "has the wrong value"),
        ([0.0, 1.0, 2.0, 3.0], [0.5, -1.0, -2.0, -3.0], "has the wrong value"),
        # Errors of both signs, and small: no offset.
        ([1e3, 2e3, 3e3, 4e3], [1e3 + 5e-5, 2e3 - 5e-5, 3e3 + 5e-5, 4e3], "has the wrong value"),
        ([1.0, 2.0, 3.0, 4.0], [1.0002, 2.0004, 3.0006, 4.0008], "is 1.0002 times the right"),
        ([1.0, 2.0, 3.0], [1.00002, 2.00004, 3.00006], "is 0.002 % too large, always"),
        ([1.0, 2.0, 3.0], [0.99999, 1.99998, 2.99997], "is 0.99999 times the right value, always"),
        ([1.0, 2.0, 3.0], [0.999998, 1.999996, 2.999994], "is 0.0002 % too small, always"),
        ([0.0, -1.0, 2.0], [0.25, -0.75, 2.25], "is off by 0.25, always"),
        ([0.0, -1.0, 2.0], [0.0, 1.0, -2.0], "has the wrong sign"),
    ],
)
def test_a_signature_holds_for_all_values(right, mine, sentence):
    spec = engine.find("09.1")  # whose tolerances are the tightest
    got, expected = ({"case": {"value": np.array(values)}} for values in (mine, right))
    says, _ = engine._signature(spec, "value", got, expected)
    assert sentence in says


def test_values_that_are_nearly_alike_are_told_apart():
    """Neither "expected 1, got 1" nor "1 times the right value"."""
    right = reference("09.1")
    found = engine.judge(engine.find("09.1"), lambda x, s, score: 1.00004 * right(x, s, score))
    assert "is 0.004 % too large, always" in found.says
    expected, got = found.detail.split(" (")[0].removeprefix("expected ").split(", got ")
    assert expected != got and float(got) == pytest.approx(float(expected), rel=1e-4)


def test_the_report_says_what_held_as_well():
    right = reference("01.7")
    _, said = checked("01.7", lambda u, level: right(u, 0.68))
    assert "right in 1 of 3 cases" in said


def test_an_unknown_exercise_is_named():
    with pytest.raises(CourseError, match=r"no exercise '01\.99'"):
        checks.check("01.99", None)
    with pytest.raises(CourseError, match=r"no exercise '99\.9'"):
        checks.hint("99.9")


def test_checks_work_without_asserts():
    """python -O drops assert statements: a check must not stand on them."""
    code = (
        "import jax.numpy as jnp\n"
        "from dlcourse_utils.checks import check\n"
        "check('01.2', lambda f, m: jnp.sum((f[:, 0] - m) ** 2))\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "This is the sum over the batch, not the mean." in done.stdout, done.stderr


@pytest.mark.parametrize("id", IDS)
def test_a_check_does_not_keep_anybody_waiting(id):
    """Processor time, so that a busy machine does not count, of an answer that is checked again."""
    spec = engine.find(id)
    solved = reference(id)
    for _ in range(2):
        answer = types.FunctionType(solved.__code__, solved.__globals__, spec.name)
        answer.__defaults__, answer.__module__ = solved.__defaults__, "__main__"
        start = time.process_time()
        assert engine.judge(spec, answer).outcome == engine.RIGHT
        seconds = time.process_time() - start
    assert seconds < 5.0  # 07.2 takes 3, most others less than half of one: it compiles


# --- what the notebook goes on with ----------------------------------------------------------


def _no_return(one, other):
    one + other


def two_of_three(sigma, mass):
    return np.polyfit(np.log10(sigma), np.log10(mass), 1)


UNUSABLE = {
    "two values for three": ("01.1", two_of_three),
    "no return": ("01.1", _no_return),
    "an exception": ("01.1", _raises),
    "no function": ("01.1", (2.0, 8.6, 0.3)),
    "one argument": ("01.1", lambda sigma: (2.0, 8.6, 0.3)),
    "float()": ("01.2", lambda f, m: float(jnp.mean((f[:, 0] - m) ** 2))),
    "no return, in training": ("01.2", _no_return),
    "NaN": ("01.2", lambda f, m: jnp.mean(jnp.sqrt(f[:, 0] - m))),
    "one number for each cluster": ("01.2", lambda f, m: (f[:, 0] - m) ** 2),
}


@pytest.fixture(scope="module")
def few_clusters():
    """What the cells of lesson 01 that use the first two answers find, with few clusters."""
    simulate = SOLVED["01"]["clusters"].simulate
    train = simulate(jax.random.key(1), 2000)
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)
    return {"train": train, "test": train, "x_mean": mean, "x_std": std}


def cells_after(id):
    """The code cells between the check of an exercise and the next statement of one."""
    cells = lessons.load("01").cells
    start = next(k for k, cell in enumerate(cells) if f'check("{id}"' in cell.source)
    for cell in cells[start + 1 :]:
        if cell.exercise:
            return
        if cell.kind == "code":
            yield re.sub(r"(steps)=[\d_]+", r"\1=2", cell.source)


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_the_next_cells_cannot_use_does_not_stop_them(name, few_clusters):
    id, answer = UNUSABLE[name]
    back, said = checked(id, answer)
    assert goes_on_with(id, answer, back, said) == "the reference"
    scope = SOLVED["01"] | few_clusters | {engine.find(id).name: back}
    if id == "01.1":
        exec(next(iter(cells_after(id))), scope)
        assert scope["scatter"] > 0.0
    else:
        network = next(c for c in cells_after("01.1") if "class MLP" in c)
        exec(network, scope)
        exec(next(iter(cells_after(id))), scope)
        assert scope["mse_prediction"].shape == (2000,)


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("01.1", lambda sigma, mass: (1.0, 2.0, 3.0)),
        ("01.2", lambda f, m: jnp.mean(jnp.abs(f[:, 0] - m))),
        ("01.2", lambda f, m: jnp.mean((jax.lax.stop_gradient(f)[:, 0] - m) ** 2)),
    ],
)
def test_wrong_values_are_kept_so_that_their_effect_is_seen(id, answer):
    back, said = checked(id, answer)
    assert goes_on_with(id, answer, back, said) == "your version"


@pytest.mark.parametrize(
    "answer",
    [
        suspect("01.4", "broadcast").wrong,
        lambda q, m: -jnp.sum(q.log_prob(m[:, None])),
        lambda q, m: jnp.mean(q.log_prob(value=m[:, None])),
        lambda q, m: -jnp.mean(jnp.log(q.prob(m[:, None]))) / jnp.log(2.0),
    ],
)
def test_a_loss_too_large_for_the_held_out_clusters_is_replaced(answer):
    back, said = checked("01.4", answer)
    assert goes_on_with("01.4", answer, back, said) == "the reference"


# --- late cases, numbers and words -----------------------------------------------------------


def in_single_precision(sigma, mass):
    design = jnp.stack([jnp.log10(sigma), jnp.ones_like(sigma)], axis=1)
    return jnp.log10(sigma), jnp.log10(mass), design


def least_squares(sigma, mass):
    u, v, design = in_single_precision(sigma, mass)
    slope, intercept = jnp.linalg.lstsq(design, v)[0]
    return slope, intercept, jnp.std(v - (slope * u + intercept))


def normal_equations(sigma, mass):
    u, v, design = in_single_precision(sigma, mass)
    slope, intercept = jnp.linalg.solve(design.T @ design, design.T @ v)
    return slope, intercept, jnp.std(v - (slope * u + intercept))


@pytest.mark.parametrize("answer", [least_squares, normal_equations])
def test_what_only_many_clusters_spoil_is_put_down_to_precision(answer):
    found = engine.judge(engine.find("01.1"), answer)
    assert found.diagnosis == "single_precision"
    assert "right in 3 of 4 cases" in found.detail


def test_the_line_in_double_precision_works_as_it_is_printed():
    import_line, fit = suspect("01.1", "single_precision").next.split("`")[1].split("; ")

    def fit_m_sigma(sigma, mass):
        scope = {"sigma": sigma, "mass": mass}
        exec(import_line, scope)
        slope, intercept = eval(fit, scope)
        return slope, intercept, np.std(np.log10(mass) - (slope * np.log10(sigma) + intercept))

    assert engine.judge(engine.find("01.1"), fit_m_sigma).outcome == engine.RIGHT


@pytest.mark.parametrize("name", ["natural_log", "variance", "swapped_results", "mean_distance"])
def test_single_precision_hides_no_other_mistake(name):
    def fit_m_sigma(sigma, mass):
        log = jnp.log if name == "natural_log" else jnp.log10
        slope, intercept = jnp.polyfit(log(sigma), log(mass), 1)
        residual = log(mass) - (slope * log(sigma) + intercept)
        if name == "mean_distance":
            return slope, intercept, jnp.abs(residual).mean()
        if name == "swapped_results":
            return intercept, slope, residual.std()
        return slope, intercept, residual.var() if name == "variance" else residual.std()

    assert engine.judge(engine.find("01.1"), fit_m_sigma).diagnosis == name


def test_any_number_added_to_a_density_is_seen():
    def nll(density, mass):
        return -jnp.log(density.prob(mass) + 1e-20).mean()

    found = engine.judge(engine.find("01.4"), nll)
    assert found.diagnosis == "capped" and found.usable


def test_the_number_belongs_to_what_is_named():
    def summarise(log_p, grid):
        right = dict(reference("01.5")(log_p, grid))
        return right | {"median": right["mode"], "mode": right["median"]}

    found = engine.judge(engine.find("01.5"), summarise)
    assert found.diagnosis == "mode_is_median" and found.detail.startswith("mode: ")


def test_what_to_try_belongs_to_the_exercise():
    found = engine.judge(engine.find("01.6"), lambda p, old, new, grid: p**2)
    assert "the same prior as old and new" in found.next


GRID = jnp.linspace(12.4, 16.0, 301)  # the lesson's
NORMAL = -0.5 * ((GRID[None, :] - 14.2) / 0.3) ** 2
POINTS = jnp.array([[0.3, -1.0], [2.0, 0.5]])


def of_a_gaussian(x, sigma):
    return -x / (1 + sigma**2)


def summaries_of(summarise):
    found = summarise(NORMAL, GRID)
    return [found[name][0] for name in ("mean", "median", "mode", "std", "low", "high")]


# What each exercise tells to try, and what must then come out.
EXAMPLES = {
    "01.3": (lambda f: [(q := f(jnp.zeros((1, 18)))).mean()[0], q.stddev()[0]], [14.2, 0.426]),
    "01.4": (lambda f: f(tfd.Normal(jnp.zeros(2), 1.0), jnp.zeros(2)), 0.919),
    "01.5": (summaries_of, [14.2, 14.2, 14.2, 0.3, 13.9, 14.5]),
    "01.6": (
        lambda f: f(NORMAL, jnp.sin(GRID)[None, :], jnp.sin(GRID)[None, :], GRID),
        NORMAL + jnp.log(1 / (0.3 * jnp.sqrt(2 * jnp.pi))),
    ),
    "09.1": (lambda f: f(POINTS, 0.7, of_a_gaussian), POINTS / 1.49),
    "09.2": (lambda f: f(lambda x, sigma: x, 5 + POINTS, jnp.full((2, 1), 0.7), POINTS), 2.67),
    "09.3": (
        lambda f: f(lambda *_: jnp.zeros((2, 2)), POINTS, SOLVED["09"]["SPREAD"]),
        0.5 * (POINTS + SOLVED["09"]["CENTRE"]),
    ),
    "09.6": (lambda f: f(0.7, POINTS, of_a_gaussian), 0.7 * POINTS / 1.49),
}


@pytest.mark.parametrize("id", IDS)
def test_what_to_try_gives_what_is_said(id):
    general = engine.Spec.__dataclass_fields__["example"].default
    assert (engine.find(id).example == general) is (id not in EXAMPLES)
    if id in EXAMPLES:
        compute, said = EXAMPLES[id]
        # The sentences have three digits, and the grid of 01.5 steps of 0.012.
        atol = 0.006 if id == "01.5" else 5e-4
        np.testing.assert_allclose(np.array(compute(reference(id))), said, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "an int"),
        (3.0, "a float"),
        ((1, 2), "a tuple of 2"),
        (jax.tree_util.Partial(max), "a function"),
        (max, "a function"),
    ],
)
def test_values_are_described_in_words(value, words):
    assert engine.describe(value) == words


# --- hints, solutions, progress --------------------------------------------------------------


def test_hints_and_solutions_come_from_the_source(capsys):
    checks.hint("01.4")
    first = capsys.readouterr().out
    assert first.startswith("Hint 1 of") and 'hint("01.4", 2)' in first
    checks.hint("01.4", 99)
    assert "Hint 2 of 2" in capsys.readouterr().out
    checks.solution("01.4")
    code = capsys.readouterr().out
    assert "def nll(" in code and "SOLUTION" not in code


def test_an_exercise_is_found_without_its_zero(home, capsys):
    for name in ("01.4", "1.4"):
        checks.hint(name)
        checks.solution(name)
        assert callable(checks.check(name, engine.stub("01.4")))
    said = capsys.readouterr().out
    half = len(said) // 2
    assert said[:half] == said[half:] and "Exercise 01.4 · not started" in said
    assert [entry["exercise"] for entry in record.read()] == ["01.4", "01.4"]
    assert engine.find("1.4") is engine.find("01.4")


def test_progress_of_one_lesson(home, capsys):
    assert cli.main(["progress", "3"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    of_lesson = [line.split()[1] for line in lines]
    assert of_lesson == list(lessons.load("03").exercises)
    assert head == f"0 of {len(of_lesson)} exercises right"
    checks.progress("03")
    assert capsys.readouterr().out.splitlines() == [head, *lines]
    assert cli.main(["progress", "77"]) == 2
    assert capsys.readouterr().err.startswith("There is no lesson '77'")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLCOURSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_progress_is_appended_and_survives(home, capsys):
    checks.check("01.2", engine.stub("01.2"))
    checks.check("01.2", suspect("01.2", "sum_for_mean").wrong)
    checks.check("01.2", reference("01.2"))
    checks.check("01.4", suspect("01.4", "sign").wrong)
    lines = [json.loads(line) for line in (home / "progress.jsonl").read_text().splitlines()]
    assert [(e["exercise"], e["outcome"], e["diagnosis"]) for e in lines] == [
        ("01.2", "not started", ""),
        ("01.2", "wrong", "sum_for_mean"),
        ("01.2", "right", ""),
        ("01.4", "wrong", "sign"),
    ]
    assert all(set(e) == {"exercise", "outcome", "diagnosis", "time"} for e in lines)
    capsys.readouterr()
    checks.progress()
    said = capsys.readouterr().out
    checks.check("01.2", suspect("01.2", "sum_for_mean").wrong)
    capsys.readouterr()
    checks.progress()
    assert "✗ 01.2  Mean squared error · wrong, was right before" in capsys.readouterr().out
    total = sum(len(lessons.load(source).exercises) for source in lessons.sources())
    assert f"1 of {total} exercises right" in said
    assert "✓ 01.2  Mean squared error · right · 2 checks" in said
    assert re.search(r"✗ 01\.4  .* · wrong · 1 check\n", said) and "○ 01.1" in said


def test_a_damaged_record_is_read_as_far_as_possible(home):
    home.mkdir()
    good = '{"exercise": "01.2", "outcome": "right", "diagnosis": "", "time": ""}'
    (home / "progress.jsonl").write_bytes(f"{good}\n{{half a li\n\xff\xfe\n[1]\n".encode("latin-1"))
    assert [e["exercise"] for e in record.read()] == ["01.2"]


def test_a_record_that_cannot_be_written_is_not_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DLCOURSE_HOME", str(tmp_path / "file"))
    _, said = checked("01.2", reference("01.2"))
    assert "· right" in said
    assert record.read() == []


def test_the_html_report_is_the_plain_one_and_escaped():
    found = engine.Report(engine.WRONG, "`a` < b & c", "Why <b>", "Next", "1 < 2")
    markup = report.rich("Exercise 01.2", found)
    assert "<code>a</code> &lt; b &amp; c" in markup and "Why &lt;b&gt;" in markup
    assert "background" not in markup, "it must take the theme's own background"
    assert "✗" in markup and "not yet right" in markup, "colour alone must not tell the status"


def test_markup_stresses_words_and_leaves_code_and_products_alone():
    text = "Take *twice the* step, `a * b * c`, 2 * x * y and a < b."
    wanted = "Take <em>twice the</em> step, <code>a * b * c</code>, 2 * x * y and a &lt; b."
    assert report.inline(text) == wanted
