"""What the checks of several lessons share: answers under jit, wrong ones in NumPy, a small prior.

Wrong answers are in NumPy where they can be, since eager JAX compiles each new operation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .engine import Misfit, describe, namespace

# How the names of modules begin whose functions stay as they are: wrong answers, and solved cells.
_UNCHANGING: tuple[str, ...] = (f"{__package__}.", "dlcourse_lesson_")

# --- running an answer -----------------------------------------------------------------------


def is_array(result: Any) -> bool:
    """Whether an answer's result can be compared: a number or an array."""
    return isinstance(result, float) or hasattr(result, "shape")


def pair(name: str, result: Any, wanted: str) -> tuple[Any, Any]:
    """The two parts of what ``name`` returned. Raises `Misfit` where there are not two."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Misfit(f"`{name}` returns {describe(result)}; expected ({wanted}).")
    return result[0], result[1]


def as_array(result: Any) -> Any:
    """A list or tuple of numbers, or of rows of them, as an array; anything else as it is."""
    if isinstance(result, tuple | list) and result:
        with suppress(Exception):  # of rows of several lengths, or of no numbers
            array = np.asarray(result)
            if array.dtype == bool or np.issubdtype(array.dtype, np.number):
                return array
    return result


def ours(function: Any) -> bool:
    """Whether it is a wrong answer of a module of checks."""
    return str(getattr(function, "__module__", None)).startswith(f"{__package__}.")


class _NoArrays(Exception):
    """What was returned while it was traced, where it is nothing that jit can return."""


def _arrays(function, last, *arguments):
    result = function(*arguments, *last)
    leaves = jax.tree.leaves(result)
    if not all(
        hasattr(leaf, "dtype") or isinstance(leaf, complex | float | int) for leaf in leaves
    ):
        raise _NoArrays(result)
    return result


_jitted = jax.jit(_arrays, static_argnums=(0, 1))


def to_compile(function: Callable) -> Callable:
    """``function`` as the key of a compilation: a new one each time for what a student wrote.

    That may compute something else than before, through a global, or edited in place by autoreload.
    """
    module = str(getattr(function, "__module__", None))
    return function if module.startswith(_UNCHANGING) else functools.partial(function)


def compiled(name: str, function: Callable, *last: Any) -> Callable:
    """``function`` under jit, as later cells call it; all its operations compile together.

    ``last`` are its last arguments, which are not traced. Raises `Misfit` when what works with
    numbers only is called. The wrong answers of the checks are called as they are.
    """
    key = to_compile(function)
    return _called(name, function, last, lambda *arguments: _jitted(key, last, *arguments))


def outside_jit(function: Callable, *last: Any) -> Callable:
    """``function`` under jit, or called with numbers where it cannot be traced.

    For exercises that later cells call outside of jit only: NumPy, loops and float() are welcome.
    ``last`` are its last arguments, which are not traced.
    """
    if ours(function):
        return lambda *arguments: function(*arguments, *last)
    key, traceable = to_compile(function), True

    def call(*arguments):
        nonlocal traceable
        if traceable:
            try:
                return _jitted(key, last, *arguments)
            except _NoArrays as odd:
                return odd.args[0]
            except Exception:  # called with numbers it works, or raises what the student would see
                traceable = False
        return function(*jax.tree.map(jnp.asarray, arguments), *last)

    return call


def traced(name: str, function: Callable, *last: Any) -> Callable:
    """As `compiled`, but nothing is computed: what is returned has shapes and no values."""
    of = functools.partial(_arrays, function, last)
    return _called(name, function, last, lambda *arguments: jax.eval_shape(of, *arguments))


def _called(name, function, last, run):
    if ours(function):
        return lambda *arguments: function(*arguments, *last)

    def call(*arguments):
        try:
            with _tracing(name):
                return run(*arguments)
        except _NoArrays as odd:
            return odd.args[0]

    return call


def must_trace(name: str, function: Callable, *arguments: Any) -> None:
    """Refuse what works with numbers only: it is traced as jit does, but not compiled."""
    with _tracing(name):
        jax.eval_shape(function, *arguments)


@contextmanager
def _tracing(name: str) -> Iterator[None]:
    """Raise a `Misfit` that says so where JAX cannot trace what the body calls."""
    try:
        yield
    except jax.errors.NonConcreteBooleanIndexError as error:
        raise Misfit(
            f"JAX cannot trace `{name}`: `y[mask]` has a length that depends on values, which jit "
            "cannot know. Keep all of them, and choose with `jnp.where`."
        ) from error
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise Misfit(
            f"JAX cannot trace `{name}`: it works with numbers, but not under `jax.jit`, where "
            "later cells call it. Use jnp in place of np, and no float() or item()."
        ) from error


@functools.partial(jax.jit, static_argnums=(0, 1))
def slope(function: Callable, position: int, *arguments: Any) -> Any:
    """Gradient of the sum of what ``function`` returns, by one of its arguments."""

    def total(argument):
        mine = (*arguments[:position], argument, *arguments[position + 1 :])
        return jnp.sum(function(*mine))

    return jax.grad(total)(arguments[position])


@contextmanager
def judged_alone(function: Callable, number: str, *earlier: str) -> Iterator[None]:
    """Within it ``function`` calls the reference where it would call the student's earlier answers.

    These, of lesson ``number``, have been judged already: their mistakes are not found a second
    time.
    """
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    theirs = {name: scope[name] for name in earlier if name in scope}
    scope.update({name: namespace(number)[name] for name in theirs})
    try:
        yield
    finally:
        scope.update(theirs)


def in_numpy(wrong: Callable) -> Callable:
    """A wrong answer given NumPy arrays in double precision; it may divide by zero in silence."""

    @functools.wraps(wrong)
    def answer(*arguments):
        with np.errstate(all="ignore"):
            return wrong(*jax.tree.map(np.float64, arguments))

    return answer


# --- a prior over images, and a telescope, of a few numbers ----------------------------------


class Prior(NamedTuple):
    """A prior with the two functions of `galaxy_prior.GalaxyPrior` that the exercises need.

    Images grow exponentially with the latents, whose density is logistic, not around zero.
    """

    pattern: Any  # (d, k, k)
    place: Any  # (d,)
    width: Any  # (d,)

    def decode(self, z):
        """Images (n, k, k) of latents z (n, d)."""
        self._must_be_latents("decode", z)
        return jnp.exp(0.4 * jnp.tensordot(z, self.pattern, 1))

    def log_prob(self, z):
        """Log density (n,) of latents z (n, d)."""
        self._must_be_latents("log_prob", z)
        t = (z - self.place[None]) / self.width[None]
        return jnp.sum(-t - 2 * jax.nn.softplus(-t) - jnp.log(self.width)[None], axis=-1)

    def _must_be_latents(self, name, z):
        d = len(self.place)
        if jnp.ndim(z) != 2 or jnp.shape(z)[-1] != d:
            raise ValueError(
                f"`prior.{name}` takes latents (n, d), here d = {d}; it got an array of shape "
                f"{jnp.shape(z)}"
            )


def through_blur(blur: jax.Array, x: jax.Array) -> jax.Array:
    """Images x (n, k, k) with their rows and columns mixed by ``blur`` (k, k)."""
    if jnp.ndim(x) != 3:
        raise ValueError(
            f"`observe` takes images (n, s, s), as `prior.decode` gives them; it got shape "
            f"{jnp.shape(x)}"
        )
    return jnp.einsum("ij,njk,lk->nil", blur, x, blur)
