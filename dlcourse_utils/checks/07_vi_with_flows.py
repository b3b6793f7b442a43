"""The checks of lesson 07: for each exercise its cases, and the wrong answers it can name.

Noise may be drawn in many ways: of the bound (07.2) the check measures what all right answers
share. Wrong answers are in NumPy, or share one compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from tensorflow_probability.substrates import jax as tfp

from .engine import Spec, Suspect, namespace
from .tools import (
    Prior,
    as_array,
    compiled,
    in_numpy,
    is_array,
    judged_alone,
    ours,
    outside_jit,
    pair,
    slope,
    through_blur,
    to_compile,
    traced,
)


def _reference(name: str) -> Callable:
    return namespace("07")[name]


class _Mistake(NamedTuple):
    """A wrong answer: ``of``, which is compiled once for all mistakes, with their ``sizes``."""

    of: Callable
    sizes: tuple[float, ...]

    def __call__(self, *arguments):
        return _mistaken(self.of, self.sizes, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def _mistaken(of, sizes, *arguments):
    return of(*arguments, *sizes)


def _to_differentiate(function):
    """What is compiled, and its further arguments."""
    return function if isinstance(function, _Mistake) else _Mistake(to_compile(function), ())


# --- a guide ---------------------------------------------------------------------------------

_D = 3
_OTHERS = np.float32([0.0, 1.0, 1.0])  # coordinates that the first one bends


class _Bent(tfp.bijectors.Bijector):
    """Noise to points: the first coordinate scales and pushes the others, then all are mixed."""

    def __init__(self, *arrays):
        self.size, self.bend, self.push, self.offset, self.lower = arrays
        super().__init__(forward_min_event_ndims=1, name="guide")

    def rows(self):
        """All parameters but the mixing: (d,) each."""
        return self.size, self.bend, self.push, self.offset

    def _mix(self):
        return jnp.tril(self.lower, -1)

    def _log_scale(self, first):
        return self.size + _OTHERS * self.bend * jnp.tanh(first)

    def _forward(self, eps):
        _must_be_points("bijector.forward", eps)
        first = eps[..., :1]
        y = eps * jnp.exp(self._log_scale(first)) + _OTHERS * self.push * first**2
        return y + y @ self._mix().T + self.offset

    def _inverse(self, x):
        y, mix = x - self.offset, self._mix().T
        y = y - y @ mix + y @ mix @ mix  # its third power is zero
        first = y[..., :1] * jnp.exp(-self.size[:1])
        return (y - _OTHERS * self.push * first**2) * jnp.exp(-self._log_scale(first))

    def _forward_log_det_jacobian(self, eps):
        return self._log_scale(eps[..., :1]).sum(axis=-1)


jax.tree_util.register_pytree_node(
    _Bent, lambda guide: ((*guide.rows(), guide.lower), None), lambda _, arrays: _Bent(*arrays)
)


def _must_be_points(name, x):
    if jnp.ndim(x) not in (1, 2) or jnp.shape(x)[-1] != _D:
        raise ValueError(
            f"`{name}` takes points (n, d), here d = {_D}; it got an array of shape {jnp.shape(x)}"
        )


def _a_guide(rng):
    # The bends do not cancel in the log-det, and all scales stretch: its mean is far from zero.
    bend = rng.uniform(0.4, 0.7, _D) * rng.choice([-1.0, 1.0])
    push = rng.uniform(0.2, 0.4, _D) * rng.choice([-1.0, 1.0], _D)
    lower = rng.uniform(0.3, 0.7, (_D, _D)) * rng.choice([-1.0, 1.0])
    arrays = (rng.uniform(0.3, 0.6, _D), bend, push, rng.uniform(0.8, 1.5, _D), lower)
    return _Bent(*map(np.float32, arrays))


def _log_normal(eps):
    return jnp.sum(-0.5 * eps**2 - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def _numbers_of(guide):
    """All parameters of a guide, or of a gradient by it, in a row."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(guide)])


# --- 07.1 sample_and_log_prob ----------------------------------------------------------------


def _sample_cases(rng):
    def case():
        eps = rng.uniform(0.3, 1.8, (5, _D)) * rng.choice([-1.0, 1.0], (5, _D))
        return np.float32(eps), _a_guide(rng)

    return {"5 samples, d = 3": case(), "5 samples of another guide": case()}


@functools.partial(jax.jit, static_argnums=0)
def _sample_slopes(function, sizes, eps, bijector):
    """Gradients by the guide of a mean of the samples, and of one of the log density."""

    def totals(bijector):
        x, log_q = function(eps, bijector, *sizes)
        return jnp.sum(x * jnp.cos(eps)), jnp.sum(log_q * jnp.cos(eps[:, 0]))

    return jax.jacrev(totals)(bijector)


def _arrives(mine, right):
    """Whether a gradient is the right one: 1; 0 if it is zero, 2 if it is another."""
    mine, right = _numbers_of(mine), _numbers_of(right)
    if np.allclose(mine, right, 1e-3, 1e-3):
        return 1.0
    return 0.0 if np.allclose(mine, 0.0) else 2.0


def _samples(function, arguments):
    """Samples and log density; and of right ones, whether their gradients are right."""
    eps, bijector = arguments
    name = "sample_and_log_prob"
    answer = compiled(name, function)
    result = answer(eps, bijector)
    if result is None or result is ...:
        return result
    x, log_q = pair(name, result, "samples, log density")
    if not (is_array(x) and is_array(log_q)):
        return x, log_q, 1.0, 1.0, 1.0
    right = jax.tree.map(np.asarray, _reference_samples(eps, bijector))
    x, log_q = np.asarray(x), np.asarray(log_q)
    if x.shape == eps.shape and not np.allclose(x, right[0]):
        moved = pair(name, answer(eps + np.float32(0.5), bijector), "samples, log density")
        if np.allclose(moved[0], x):  # what else is wrong cannot be said of noise of its own
            return *right, 0.0, 1.0, 1.0
    slopes = 1.0, 1.0
    if _close(x, right[0]) and _close(log_q, right[1]):
        mine = _sample_slopes(*_to_differentiate(function), eps, bijector)
        theirs = _sample_slopes(_reference(name), (), eps, bijector)
        slopes = map(_arrives, mine, theirs)
    return x, log_q, 1.0, *slopes


def _reference_samples(eps, bijector):
    return compiled("sample_and_log_prob", _reference("sample_and_log_prob"))(eps, bijector)


def _close(mine, right):
    return mine.shape == right.shape and np.allclose(mine, right, 1e-4, 1e-4)


class _Density(NamedTuple):
    """What answers to 07.1, right and wrong, are made of."""

    x: Any  # (n, d)
    eps: Any
    log_det: Any  # (n,)
    log_det_at_x: Any
    inverse_at_eps: Any  # log-det of the inverse, at eps
    pulled: Any  # eps through the inverse (n, d)


@jax.jit
def _density(eps, bijector):
    x = bijector.forward(eps)
    return _Density(
        x,
        eps,
        bijector.forward_log_det_jacobian(eps, 1),
        bijector.forward_log_det_jacobian(x + 0.0, 1),
        bijector.inverse_log_det_jacobian(eps + 0.0, 1),
        bijector.inverse(eps + 0.0),
    )


def _normals(points):
    """log N of each coordinate (n, d)."""
    return -0.5 * points**2 - 0.5 * np.log(2 * np.pi)


def _from_density(log_q, x=lambda p: p.x):
    """A wrong log density, or wrong samples, made of the parts p."""

    def wrong(eps, bijector):
        p = _Density(*map(np.float64, _density(eps, bijector)))
        return x(p), log_q(p)

    return wrong


def _right_log_q(p):
    return _normals(p.eps).sum(-1) - p.log_det


def _exchanged(eps, bijector):
    return _from_density(lambda p: p.x, _right_log_q)(eps, bijector)


def _own_noise(eps, bijector):
    return _from_density(_right_log_q)(np.random.default_rng(0).normal(size=eps.shape), bijector)


def _cut(eps, bijector, cut_x, cut_q, through_inverse):
    """The right values; gradients are cut at the samples, at log q, or between the two."""
    x = bijector.forward(eps)
    log_q = _log_normal(eps) - bijector.forward_log_det_jacobian(eps, 1)
    stopped = jax.lax.stop_gradient(x)
    again = _log_normal(bijector.inverse(stopped)) + bijector.inverse_log_det_jacobian(stopped, 1)
    log_q = through_inverse * again + (1.0 - through_inverse) * log_q
    return (
        cut_x * stopped + (1.0 - cut_x) * x,
        cut_q * jax.lax.stop_gradient(log_q) + (1.0 - cut_q) * log_q,
    )


_SAMPLE = Spec(
    id="07.1",
    name="sample_and_log_prob",
    cases=_sample_cases,
    evaluate=_samples,
    labels=(
        "samples",
        "log density",
        "samples made of eps (0 no, 1 yes)",
        "gradient of the samples (0 none, 1 right, 2 wrong)",
        "gradient of the log density (0 none, 1 right, 2 wrong)",
    ),
    atol=1e-4,
    rtol=1e-4,
    insight="The noise comes from outside and the guide only moves it, so gradients pass through a "
    "random number. And the density comes with each sample: nothing was inverted.",
    suspects=(
        Suspect(
            "no_log_det",
            _from_density(lambda p: _normals(p.eps).sum(-1)),
            "The log-determinant is missing.",
            "A guide that squeezes all samples into one point would seem as wide as one that "
            "spreads them: the bound could not see its width.",
            "Subtract `bijector.forward_log_det_jacobian(eps, 1)`.",
        ),
        Suspect(
            "log_det_sign",
            _from_density(lambda p: _normals(p.eps).sum(-1) + p.log_det),
            "The log-determinant has the wrong sign.",
            "Where the map stretches space the same probability fills more room: the density is "
            "lower. With this sign a wide guide would seem narrow.",
            "Subtract the log-determinant of the *forward* map; that of the inverse, at x, would "
            "be added.",
        ),
        Suspect(
            "inverse_at_eps",
            _from_density(lambda p: _normals(p.eps).sum(-1) + p.inverse_at_eps),
            "The log-determinant of the inverse is taken at eps.",
            "The inverse starts from x. For a flow that bends, its determinant elsewhere is "
            "another number.",
            "Use `bijector.forward_log_det_jacobian(eps, 1)`, and subtract it.",
        ),
        Suspect(
            "inverse_at_eps_subtracted",
            _from_density(lambda p: _normals(p.eps).sum(-1) - p.inverse_at_eps),
            "The log-determinant of the inverse, at eps, is subtracted.",
            "Here the map goes forward, from eps to x: it is its own determinant that is wanted.",
            "Use `bijector.forward_log_det_jacobian(eps, 1)`, and subtract it.",
        ),
        Suspect(
            "log_det_at_x",
            _from_density(lambda p: _normals(p.eps).sum(-1) - p.log_det_at_x),
            "The log-determinant is taken at x, not at eps.",
            "The forward map starts from eps: how much it stretches is asked there.",
            "Pass eps to `forward_log_det_jacobian`.",
        ),
        Suspect(
            "base_at_x",
            _from_density(lambda p: _normals(p.x).sum(-1) - p.log_det),
            "The Gaussian is evaluated at x, not at eps.",
            "It is eps that is Gaussian; x has the shape of the posterior.",
            "Use log N(eps; 0, I).",
        ),
        Suspect(
            "mean_over_coordinates",
            _from_density(lambda p: _normals(p.eps).mean(-1) - p.log_det),
            "The Gaussian is averaged over the coordinates, not summed.",
            "Independent coordinates multiply their densities, so the logarithms add up.",
            "Sum over the last axis.",
        ),
        Suspect(
            "no_constant",
            _from_density(lambda p: -0.5 * (p.eps**2).sum(-1) - p.log_det),
            "The constant of the Gaussian is missing.",
            "Training does not notice, but the bound would be off by d/2 ln 2π, 30 nats for 33 "
            "latents, and could not be compared with the evidence.",
            "Subtract d/2 · ln 2π.",
        ),
        Suspect(
            "constant_once",
            _from_density(
                lambda p: -0.5 * (p.eps**2).sum(-1) - 0.5 * np.log(2 * np.pi) - p.log_det
            ),
            "The constant of the Gaussian is that of one dimension.",
            "Each of the d coordinates has its own 1/2 ln 2π.",
            "Multiply the constant by d = `eps.shape[-1]`.",
        ),
        Suspect(
            "constant_of_a_plane",
            _from_density(lambda p: -0.5 * (p.eps**2).sum(-1) - np.log(2 * np.pi) - p.log_det),
            "The constant of the Gaussian is that of two dimensions.",
            "The toys live in a plane, d = 2; the galaxy has 33 latents.",
            "Subtract d/2 · ln 2π with d = `eps.shape[-1]`.",
        ),
        Suspect(
            "constant_per_sample",
            _from_density(
                lambda p: (
                    -0.5 * (p.eps**2).sum(-1) - 0.5 * len(p.eps) * np.log(2 * np.pi) - p.log_det
                )
            ),
            "The constant of the Gaussian counts the samples, not the coordinates.",
            "The density of one sample would change with how many are drawn beside it.",
            "Subtract d/2 · ln 2π with d = `eps.shape[-1]`, not `eps.shape[0]`.",
        ),
        Suspect(
            "constant_sign",
            _from_density(lambda p: _normals(p.eps).sum(-1) + _D * np.log(2 * np.pi) - p.log_det),
            "The constant of the Gaussian has the wrong sign.",
            "The normaliser √(2π) stands below the exponential, so its logarithm is subtracted.",
            "Subtract d/2 · ln 2π.",
        ),
        Suspect(
            "no_half",
            _from_density(lambda p: -(p.eps**2).sum(-1) - 0.5 * _D * np.log(2 * np.pi) - p.log_det),
            "The factor 1/2 before the square of eps is missing.",
            "That is no density of this noise: its width would be 0.7, not 1.",
            "Use -|eps|²/2.",
        ),
        Suspect(
            "only_log_det",
            _from_density(lambda p: -p.log_det),
            "The density of eps itself is missing.",
            "Samples in the middle of the guide are denser than those in its wings.",
            "Add log N(eps; 0, I).",
        ),
        Suspect(
            "negative",
            _from_density(lambda p: -_right_log_q(p)),
            "You return -log q.",
            "The bound subtracts log q itself; minus twice is plus.",
            "Return log N(eps; 0, I) - log-det.",
        ),
        Suspect(
            "density",
            _from_density(lambda p: np.exp(_right_log_q(p))),
            "You return the density, not its logarithm.",
            "In 33 dimensions it is too small or too large for single precision.",
            "Return the sum of the logarithms.",
        ),
        Suspect(
            "log_det_of_all",
            _from_density(lambda p: _normals(p.eps).sum(-1) - p.log_det.sum()),
            "Every sample gets the log-determinant of all samples together.",
            "The second argument counts the axes of *one* point; with 2 the batch is taken for "
            "part of it.",
            "Use `forward_log_det_jacobian(eps, 1)`.",
        ),
        Suspect(
            "gaussian_of_all",
            _from_density(lambda p: _normals(p.eps).sum() - p.log_det),
            "Every sample gets the Gaussian of all samples together.",
            "How likely the noise of one sample is says nothing of another.",
            "Sum over the last axis only, `axis=-1`.",
        ),
        Suspect(
            "per_coordinate",
            _from_density(lambda p: _normals(p.eps) - p.log_det[:, None]),
            "You return a log density for each coordinate, (n, d).",
            "The density belongs to the whole point, and the log-determinant too.",
            "Sum log N over the last axis first.",
        ),
        Suspect(
            "sum_over_samples",
            _from_density(lambda p: _right_log_q(p).sum()),
            "The log densities of all samples are added up to one number.",
            "Each sample has its own: importance weights will need them one by one.",
            "Sum over the last axis only, `axis=-1`.",
        ),
        Suspect(
            "mean_over_samples",
            _from_density(lambda p: _right_log_q(p).mean()),
            "The log densities are averaged over the samples.",
            "The mean is taken in the next exercise; importance weights need each of them.",
            "Return (n,), one value for each sample.",
        ),
        Suspect(
            "noise_returned",
            _from_density(_right_log_q, x=lambda p: p.eps),
            "You return the noise, not the samples.",
            "The guide would never be looked at: the posterior would be a standard Gaussian.",
            "Return `bijector.forward(eps)`.",
        ),
        Suspect(
            "inverse_returned",
            _from_density(_right_log_q, x=lambda p: p.pulled),
            "The samples are made with the inverse of the bijector.",
            "The inverse turns samples into noise. The guide makes samples out of noise.",
            "Return `bijector.forward(eps)`.",
        ),
        Suspect(
            "exchanged",
            _exchanged,
            "The two results are exchanged.",
            "The next cells take the first for the samples.",
            "Return the samples first, then log q.",
        ),
        Suspect(
            "own_noise",
            _own_noise,
            "The samples are not made of `eps`: other noise is drawn inside.",
            "The caller decides on the noise, new at every step. Drawn in here, under `jax.jit`, "
            "it would be the same for ever.",
            "Use the argument `eps`, and no random numbers.",
        ),
        Suspect(
            "samples_stopped",
            _Mistake(_cut, (1.0, 0.0, 0.0)),
            "The values are right, but no gradient comes back through the samples.",
            "The guide learns where to put its samples from this gradient alone. Without it only "
            "the entropy counts, and the guide grows without end.",
            "Leave `stop_gradient` away from x.",
        ),
        Suspect(
            "log_q_stopped",
            _Mistake(_cut, (0.0, 1.0, 0.0)),
            "The values are right, but no gradient comes back through log q.",
            "The guide would not feel its own width: it shrinks to the mode.",
            "Leave `stop_gradient` away from log q.",
        ),
        Suspect(
            "both_stopped",
            _Mistake(_cut, (1.0, 1.0, 0.0)),
            "The values are right, but no gradient comes back at all.",
            "The guide would stay as it was made.",
            "Leave `stop_gradient` out; the noise needs none.",
        ),
        Suspect(
            "log_q_of_stopped_samples",
            _Mistake(_cut, (0.0, 0.0, 1.0)),
            "The gradient of log q does not pass through the samples: they were stopped first.",
            "This is the score of the guide. Its mean is zero: it says nothing of the width.",
            "Use log N(eps; 0, I) minus the log-determinant at eps, without `stop_gradient`.",
        ),
    ),
)


# --- 07.2 elbo -------------------------------------------------------------------------------

_SHAPE = (4096, _D)
# Monte Carlo errors at 4,096 samples: 0.016 for a mean and a correlation, 1.1 % for a standard
# deviation, 0.08 for a kurtosis, 0.03 nats for the difference of two means of log q. The limits
# are six and more of them, and far below what wrong answers do.
_MEAN_LIMIT, _SIZE_LIMIT, _KURTOSIS_LIMIT, _NATS_LIMIT = 0.1, 0.08, 0.6, 0.25

_ELBO_LABELS = (
    "bound",
    "mean of logarithms (0 no, 1 yes)",
    "log_joint at the samples (0 at the noise, 1 yes, 2 at their mean)",
    "share of log_joint",
    "share of log q",
    "log q at the samples of log_joint (0 no, 1 yes, 2 but for the density of the noise)",
    "other noise for another key (0 no, 1 yes)",
    "samples with noise of their own (0 no, 1 yes)",
    "coordinates with noise of their own (0 no, 1 yes)",
    "Gaussian noise (0 no, 1 yes)",
    "size of the noise",
    "gradient (0 none, 1 right, 2 without log_joint, 3 without log q, 4 wrong)",
)


class _Target(NamedTuple):
    """A log density that is no Gaussian."""

    place: Any
    width: Any

    def log_prob(self, x):
        t = (x - self.place) / self.width
        return jnp.sum(-0.5 * t**2 - 0.1 * jnp.cos(t), axis=-1) - 2.0


def _seen(target, guide, x):
    """What is to be averaged over the samples x (n, d) that an answer draws: {name: (n, ...)}.

    Gradients by the guide of each term of the bound are those at the noise that makes x.
    """
    x = jax.lax.stop_gradient(x)
    eps = guide.inverse(x)
    # Each sample has parameters of its own, by which the sum is differentiated.
    rows = [jnp.broadcast_to(part, x.shape) for part in guide.rows()]

    def log_q(x):
        eps = guide.inverse(x)
        return _log_normal(eps) - guide.forward_log_det_jacobian(eps, 1)

    def terms(rows):
        moving = _Bent(*rows, guide.lower)
        x = moving.forward(eps)
        return x, moving.forward_log_det_jacobian(eps, 1)

    (moved, log_det), pull = jax.vjp(terms, rows)
    zeros, ones = jnp.zeros_like(moved), jnp.ones_like(log_det)
    cotangents = (
        (jax.grad(lambda x: target.log_prob(x).sum())(x), 0.0 * ones),
        (zeros, ones),
        (jax.grad(lambda x: -log_q(x).sum())(x), 0.0 * ones),
    )
    slopes = [jnp.concatenate(pull(cotangent)[0], axis=-1) for cotangent in cotangents]
    return {
        "one": jnp.ones(len(x)),
        "target": target.log_prob(x),
        "log q": log_q(x),
        "x": x,
        "products of x": x[:, :, None] * x[:, None, :],
        "eps": eps,
        "products": eps[:, :, None] * eps[:, None, :],
        "fourth": eps**4,
        # Of the target, of the log-det, and of -log q where only the samples move.
        "slopes": jnp.stack(slopes, axis=1),
    }


def _log_joint(target, x):
    if jnp.ndim(x) != 2 or jnp.shape(x)[-1] != _D:
        raise ValueError(
            f"`log_joint` takes points (n, d), here d = {_D}; it got an array of shape "
            f"{jnp.shape(x)}"
        )
    return target.log_prob(x)


def _weighted(weights, target, guide, x):
    """A log joint density: the target, and what is seen, times weights that are zero.

    Its derivative by a weight is the mean over the samples, however an answer makes it.
    """
    total = _log_joint(target, x)
    for name, values in _seen(target, guide, x).items():
        total = total + jnp.sum((weights[name] * values).reshape(len(x), -1), axis=-1)
    return total


def _elbo_cases(rng):
    guide = _a_guide(rng)
    zeros = jax.tree.map(
        lambda part: np.zeros(part.shape[1:], np.float32),
        {
            "one": np.zeros(1),
            "target": np.zeros(1),
            "log q": np.zeros(1),
            "x": np.zeros((1, _D)),
            "products of x": np.zeros((1, _D, _D)),
            "eps": np.zeros((1, _D)),
            "products": np.zeros((1, _D, _D)),
            "fourth": np.zeros((1, _D)),
            "slopes": np.zeros((1, 3, len(_numbers_of(guide.rows())))),
        },
    )
    target = _Target(*map(np.float32, (rng.uniform(0.5, 2.0, _D), rng.uniform(0.7, 1.5, _D))))
    log_joint = jax.tree_util.Partial(_weighted, zeros, target, guide)
    key = jax.random.key(int(rng.integers(2**31)))
    return {"4096 samples, d = 3": (key, guide, log_joint, _SHAPE)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(function, shape, sizes, key, bijector, log_joint):
    """The value, what is seen of the samples, and the gradient by the guide."""

    def total(weights, bijector):
        mine = jax.tree_util.Partial(_weighted, weights, *log_joint.args[1:])
        value = jnp.asarray(function(key, bijector, mine, shape, *sizes))
        return value.sum(), value

    grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, value), (seen, slopes) = grad(log_joint.args[0], bijector)
    return value, seen, slopes


def _bounds(function, arguments):
    """Shares and properties of the bound, apart from the numbers that are drawn."""
    if function is _reference("elbo"):
        return _RIGHT_BOUND  # by definition: measured, it would take as long as the answer
    key, bijector, log_joint, shape = arguments
    with judged_alone(function, "07", "sample_and_log_prob"):
        if not isinstance(function, _Mistake):
            plain = jax.tree_util.Partial(_log_joint, log_joint.args[1])
            value = traced("elbo", function, shape)(key, bijector, plain)
            if not is_array(value):
                return value
            if np.shape(value) != ():
                return (np.zeros(np.shape(value)), *_RIGHT_BOUND[1:])
        how = *_to_differentiate(function), bijector, log_joint
        first, other = (
            jax.tree.map(np.float64, _look(how[0], shape, how[1], k, *how[2:]))
            for k in (key, jax.random.key(987654321))
        )
    found = dict(zip(_ELBO_LABELS, _RIGHT_BOUND, strict=True))
    if not np.isfinite(first[0]):
        return first[0], *_RIGHT_BOUND[1:]
    _fill(found, bijector, first, other)
    return tuple(found.values())


_RIGHT_BOUND = (0.0, *(1.0,) * (len(_ELBO_LABELS) - 1))


def _mean_of(guide):
    """The mean of the samples (d,)."""
    y = _OTHERS * guide.push
    return y + y @ np.tril(guide.lower, -1).T + guide.offset


def _fill(found, guide, first, other):
    """Fill in what differs from the right values, up to where nothing more can be measured."""
    value, seen, slopes = first
    (_, logarithms, points, joint, entropy, same, *of_noise, size, gradient) = _ELBO_LABELS
    fresh, samples, coordinates, gaussian = of_noise
    share = seen["one"]
    # The derivative of a mean of exponentials is that mean.
    if share > 0.0 and all(np.isclose(v, s["one"], 1e-4, 0.0) for v, s, _ in (first, other)):
        found[logarithms] = 0.0
        return
    if abs(share) < 1e-4:
        found[joint] = 0.0
        return
    found[joint] = share
    looks = seen, seen_later = [{k: v / s["one"] for k, v in s.items()} for s in (seen, other[1])]
    if all(_is_standard(look) for look in looks):
        found[points], found[joint] = 0.0, 1.0
        return
    if all(_is_one_point(look, _mean_of(guide)) for look in looks):
        found[points], found[joint] = 2.0, 1.0
        return
    rest = value - share * seen["target"]  # without log_joint
    excesses = [
        v / share - look["target"] + look["log q"]
        for v, look in zip((value, other[0]), looks, strict=True)
    ]
    excess = max(excesses, key=abs)
    if abs(excess) > _NATS_LIMIT:
        found[entropy] = -rest / seen["log q"]
    elif abs(excess) > 2e-3:
        # What -log N(eps) has more than its mean, if that stands in its place.
        scatter = [0.5 * (_D - np.trace(look["products"])) for look in looks]
        found[same] = 2.0 if np.allclose(excesses, scatter, rtol=0.0, atol=5e-4) else 0.0
        found[entropy] = share
    else:
        found[entropy] = share
    squares = np.diag(seen["products"])
    if squares.max() < 1e-6:
        found[size] = 0.0
        return
    if np.allclose(seen["products"], seen_later["products"], rtol=1e-5, atol=1e-6):
        found[fresh] = 0.0
    spread = squares - seen["eps"] ** 2
    if spread.max() < 1e-3 * squares.max():
        found[samples] = 0.0
        return
    correlation = seen["products"] / np.sqrt(np.outer(squares, squares))
    most = np.abs(correlation - np.eye(_D)).max()
    found[coordinates] = 0.0 if most > 0.99 else 1.0 if most < _MEAN_LIMIT else 0.5
    kurtosis = np.mean(seen["fourth"]) / np.mean(squares) ** 2
    if np.abs(seen["eps"]).max() > _MEAN_LIMIT or abs(kurtosis - 3.0) > _KURTOSIS_LIMIT:
        found[gaussian] = 0.0
        return
    width = np.sqrt(squares.mean())
    if abs(width - 1.0) > _SIZE_LIMIT:
        found[size] = np.round(width, 1)
    if all(found[label] == 1.0 or abs(found[label] - 1.0) < 1e-4 for label in _ELBO_LABELS[1:-1]):
        found[gradient] = _which_slope(_numbers_of(slopes.rows()), *seen["slopes"])


def _is_standard(look):
    """Whether log_joint is taken at points that are standard Gaussian: at the noise."""
    return (
        np.abs(look["x"]).max() < _MEAN_LIMIT
        and np.abs(look["products of x"] - np.eye(_D)).max() < 2 * _MEAN_LIMIT
    )


def _is_one_point(look, place):
    """Whether log_joint is taken at one point alone, which is this one but for its scatter."""
    spread = np.diag(look["products of x"]) - look["x"] ** 2
    near = np.abs(look["x"] - place).max() < 0.5
    return near and np.abs(look["eps"]).max() > 1e-3 and spread.max() < 1e-3


def _which_slope(mine, of_target, of_log_det, of_samples):
    """A number for which terms of the bound the gradient has."""
    candidates = (
        (1.0, of_target + of_log_det),
        (1.0, of_target + of_samples),  # without the score of the guide, whose mean is zero
        (0.0, 0.0 * of_target),
        (2.0, of_log_det),
        (3.0, of_target),
    )
    close = 1e-3 * (1.0 + np.abs(of_target).max())
    return next((n for n, slopes in candidates if np.allclose(mine, slopes, 1e-3, close)), 4.0)


class _Sizes(NamedTuple):
    """Of the mistakes of `_mistaken_elbo`; as they are here, there are none."""

    joint: float = 1.0  # its weight
    log_q: float = -1.0  # and that of log q
    factor: float = 0.0  # to n: a sum
    inside: float = 0.0  # the mean inside of the logarithm
    fixed: float = 0.0  # noise of another key
    size: float = 1.0  # of the noise
    shared: float = 0.0  # one draw for all samples
    column: float = 0.0  # one number for all coordinates
    uniform: float = 0.0
    twice: float = 0.0  # log q at noise of its own
    closed: float = 0.0  # the mean log density of the noise in place of its values
    at_noise: float = 0.0  # log_joint there
    at_mean: float = 0.0  # log_joint at the mean of the samples
    raised: float = 0.0  # the mean of exponentials
    cut_x: float = 0.0
    cut_q: float = 0.0


def _mistaken_elbo(key, bijector, log_joint, shape, *sizes):
    m = _Sizes(*sizes)

    def mixed(share, one, two):
        return share * one + (1.0 - share) * two

    eps = mixed(m.fixed, *(jax.random.normal(k, shape) for k in (jax.random.key(0), key)))
    eps = m.size * mixed(m.uniform, jax.random.uniform(key, shape), eps)
    eps = mixed(m.shared, eps[:1], mixed(m.column, eps[:, :1], eps))
    x = bijector.forward(eps)
    again = mixed(m.twice, jax.random.normal(jax.random.fold_in(key, 1), shape), eps)
    log_noise = mixed(m.closed, -0.5 * shape[1] * (1 + jnp.log(2 * jnp.pi)), _log_normal(again))
    log_q = log_noise - bijector.forward_log_det_jacobian(again, 1)
    x = mixed(m.cut_x, jax.lax.stop_gradient(x), x)
    x = mixed(m.at_noise, eps, mixed(m.at_mean, jnp.mean(x, axis=0, keepdims=True), x))
    log_q = mixed(m.cut_q, jax.lax.stop_gradient(log_q), log_q)
    terms = m.joint * log_joint(x) + m.log_q * log_q
    # Where they are not raised the exponential must not overflow: its gradient would be NaN.
    averaged = jnp.where(m.raised > 0.0, jnp.exp(m.raised * terms), terms)
    mean = jnp.mean(averaged) * (1.0 + m.factor * (shape[0] - 1.0))
    return jnp.where(m.inside > 0.0, jax.nn.logsumexp(terms) - jnp.log(shape[0]), mean)


def _elbo_with(**sizes):
    return _Mistake(_mistaken_elbo, _Sizes(**sizes))


_ELBO = Spec(
    id="07.2",
    name="elbo",
    cases=_elbo_cases,
    evaluate=_bounds,
    labels=_ELBO_LABELS,
    atol=1e-3,
    rtol=1e-3,
    insight="The bound is a mean over samples, so a few are enough for a gradient. Its gap to the "
    "evidence is KL(q || p): the closer the guide, the tighter the bound.",
    suspects=(
        Suspect(
            "loss",
            _elbo_with(joint=-1.0, log_q=1.0),
            "The sign is wrong: this is -ELBO, a loss.",
            "The bound lies below the evidence and is to go up. The training cell puts the minus.",
            "Return the mean of log_joint(x) - log q.",
            usable=False,
        ),
        Suspect(
            "no_entropy",
            _elbo_with(log_q=0.0),
            "log q is left out: this is the mean of log_joint alone.",
            "The best guide is then a single point at the mode: nothing rewards it for being wide.",
            "Subtract log q of the same samples.",
        ),
        Suspect(
            "only_entropy",
            _elbo_with(joint=0.0),
            "Only the entropy is there: log_joint is missing.",
            "The data are not felt, and the guide grows without end.",
            "Add log_joint(x).",
            usable=False,
        ),
        Suspect(
            "log_q_added",
            _elbo_with(log_q=1.0),
            "log q has the wrong sign.",
            "A narrow guide would be rewarded twice: it collapses to a point.",
            "Subtract log q.",
        ),
        Suspect(
            "joint_subtracted",
            _elbo_with(joint=-1.0, log_q=-1.0),
            "log_joint has the wrong sign.",
            "The guide would flee from where the data want it.",
            "Return the mean of log_joint(x) - log q.",
        ),
        Suspect(
            "sum_for_mean",
            _elbo_with(factor=1.0),
            "This is the sum over the samples, not the mean.",
            "The bound would grow with the number of samples, and no longer be a bound.",
            "Use `jnp.mean`.",
        ),
        Suspect(
            "mean_over_coordinates",
            _elbo_with(factor=(1.0 / _D - 1.0) / (_SHAPE[0] - 1.0)),
            "The mean is taken over the coordinates too: it is divided by n · d.",
            "Each sample has one log density, that of all of its coordinates together: there are n "
            "numbers to average.",
            "Divide by n = `shape[0]`, or use `jnp.mean`.",
        ),
        Suspect(
            "exponential",
            _elbo_with(raised=1.0),
            "This is the mean of exp(log_joint - log q), not of the logarithms.",
            "That estimates the evidence itself. For a galaxy it overflows or is zero, and a few "
            "samples decide it.",
            "Leave out the exponential.",
        ),
        Suspect(
            "at_the_noise",
            _elbo_with(at_noise=1.0),
            "log_joint is taken at the noise, not at the samples x.",
            "Its value would not change with the guide, and the data would not be felt.",
            "Use log_joint(x).",
        ),
        Suspect(
            "at_the_mean",
            _elbo_with(at_mean=1.0),
            "log_joint is taken at the mean of the samples.",
            "Nothing then holds the samples together: width is rewarded, and only the mean of the "
            "guide feels the data.",
            "Take log_joint of each sample, then the mean: `jnp.mean(log_joint(x) - log_q)`.",
        ),
        Suspect(
            "log_of_mean",
            _elbo_with(inside=1.0),
            "The mean is taken inside of the logarithm.",
            "That estimates the evidence itself, by importance sampling. It is a tighter bound, "
            "but another one: most of its gradient comes from a few samples.",
            "Take the mean of the logarithms.",
            usable=False,
        ),
        Suspect(
            "per_sample",
            lambda key, bijector, log_joint, shape: np.zeros(shape[0]),
            "You return one value for each sample.",
            "A gradient needs one number to climb.",
            "Take `jnp.mean` over the samples.",
        ),
        Suspect(
            "key_ignored",
            _elbo_with(fixed=1.0),
            "The noise is the same for every key.",
            "Every step would see the same samples, and the guide would fit these few, not the "
            "posterior between them: if there is one, it sits at the mode, and the width grows "
            "without end. Noise must be new at every step.",
            "Draw with the `key` that is passed in.",
            usable=False,
        ),
        Suspect(
            "no_noise",
            _elbo_with(size=0.0),
            "There is no noise: eps is zero in all samples.",
            "The bound is then looked at in one point only, and the widths follow nothing.",
            "Draw `jax.random.normal(key, shape)`.",
        ),
        Suspect(
            "one_sample",
            _elbo_with(shared=1.0),
            "All samples are one and the same draw, or only the first one counts.",
            "An average of one is as noisy as it gets, however many are asked for.",
            "Draw noise of the full `shape`, and average over all samples.",
        ),
        Suspect(
            "one_number_per_sample",
            _elbo_with(column=1.0),
            "All coordinates of a sample get the same noise.",
            "The guide would be seen along one diagonal only. It broadcasts without an error.",
            "Draw noise of the full `shape`.",
        ),
        Suspect(
            "uniform",
            _elbo_with(uniform=1.0),
            "The noise is not standard Gaussian.",
            "log q counts on it: with another noise it is not the density of these samples.",
            "Draw with `jax.random.normal`.",
        ),
        Suspect(
            "two_draws",
            _elbo_with(twice=1.0),
            "log q is taken at other samples than log_joint.",
            "The mean is right, but the scatter of the two no longer cancels: for a perfect guide "
            "the difference is a constant, and its noise zero.",
            "Call `sample_and_log_prob` once, and use both of its results.",
        ),
        Suspect(
            "closed_entropy",
            _elbo_with(closed=1.0),
            "The entropy of the noise is taken in closed form.",
            "That is the right mean, but its scatter no longer cancels that of log_joint: where "
            "q = p, the difference of the two should be a constant, and its noise zero.",
            "Subtract log q of the same samples, the density of their noise included.",
        ),
        Suspect(
            "all_stopped",
            _elbo_with(cut_x=1.0, cut_q=1.0),
            "The value is right, but no gradient reaches the guide.",
            "It would stay as it was made.",
            "Leave `stop_gradient` out.",
        ),
        Suspect(
            "samples_stopped",
            _elbo_with(cut_x=1.0),
            "The value is right, but its gradient does not pass through the samples.",
            "The data are not felt, and the guide grows without end.",
            "Leave `stop_gradient` away from the samples.",
        ),
        Suspect(
            "log_q_stopped",
            _elbo_with(cut_q=1.0),
            "The value is right, but its gradient does not pass through log q.",
            "The guide does not feel its own width: it collapses to the mode.",
            "Leave `stop_gradient` away from log q.",
        ),
    ),
)


# --- 07.3 and 07.4: a galaxy and its image ---------------------------------------------------


def _telescope(extra, blur, x):
    return through_blur(blur, x) + extra[None]


def _image_cases(rng, n, d, k):
    pattern = rng.uniform(0.3, 1.0, (d, k, k)) * rng.choice([-1.0, 1.0], (d, k, k))
    pattern *= np.sqrt(2.0 / d)
    place = rng.uniform(0.6, 1.0, d) * rng.choice([-1.0, 1.0], d)
    prior = Prior(*map(np.float32, (pattern, place, rng.uniform(0.25, 0.5, d))))
    # Images keep their size, so that an answer without `observe` does not fail.
    blur = 0.3 * np.eye(k) + 0.35 * np.eye(k, k=1) + 0.2 * np.eye(k, k=-1)
    true = rng.uniform(-0.3, 0.3, d)
    z = true + rng.uniform(0.6, 1.2, (n, d)) * rng.choice([-1.0, 1.0], (n, d))
    # Below one: a square or a root makes another number of it.
    variance = rng.uniform(0.04, 0.2, (k, k))
    y = blur @ np.exp(0.4 * np.tensordot(true, pattern, 1)) @ blur.T
    y = y + np.sqrt(variance) * rng.normal(size=(k, k))
    masked = np.argsort(rng.uniform(size=k * k)).reshape(k, k) < 6
    observe = jax.tree_util.Partial(_telescope, np.zeros((k, k), np.float32), np.float32(blur))
    maps = np.where(masked, 0.0, y), np.where(masked, np.inf, variance)
    z = np.float32(z)
    return {
        f"{n} latents, some pixels masked": (z, *map(np.float32, maps), observe, prior),
        f"{n} latents": (z, np.float32(y), np.float32(variance), observe, prior),
    }


def _masked_count(answer, arguments, value):
    """Whether the data, and the model's light, in masked pixels change an answer's value."""
    z, y, variance, observe, prior = arguments
    change = np.float32(1.5 * np.isinf(variance))
    lit = jax.tree_util.Partial(observe.func, change, *observe.args[1:])
    changed = (z, y + change, variance, observe, prior), (z, y, variance, lit, prior)
    return [float(not np.allclose(answer(*c), value, 1e-5, 1e-5, equal_nan=True)) for c in changed]


class _View(NamedTuple):
    """What answers to 07.3 and 07.4 are made of; the variance is 1 where it is infinite."""

    z: Any  # (n, d)
    y: Any  # (k, k)
    variance: Any
    used: Any
    mean: Any  # (n, k, k)
    unblurred: Any
    of_mean_latent: Any  # mean image of the mean of the latents
    prior: Any  # (n,)


@jax.jit
def _view(z, y, variance, observe, prior):
    used = jnp.isfinite(variance)
    x = prior.decode(z)
    middle = observe(prior.decode(jnp.mean(z, axis=0, keepdims=True)))
    filled = jnp.where(used, variance, 1.0)
    return _View(z, y, filled, used, observe(x), x, middle, prior.log_prob(z))


def _from_view(combine):
    """A wrong answer made of the view v."""

    def wrong(*arguments):
        view = _View(*map(np.float64, _view(*arguments)))
        with np.errstate(all="ignore"):
            return combine(view)

    return wrong


def _misfit(v, variance=None, mean=None):
    mean = v.mean if mean is None else mean
    return (v.y - mean) ** 2 / (v.variance if variance is None else variance)


def _norm(v, variance=None):
    variance = v.variance if variance is None else variance
    return np.broadcast_to(np.log(2 * np.pi * variance), v.mean.shape)


def _right_terms(v):
    return _misfit(v) + _norm(v)


def _over_pixels(terms, v):
    return terms.sum((-2, -1))


def _joint(
    terms=_right_terms,
    *,
    total=_over_pixels,
    factor=-0.5,
    mask=True,
    join=lambda v, likelihood: likelihood + v.prior,
):
    """The joint log density with mistakes: each argument is one part of it."""

    def combine(v):
        found = terms(v)
        return join(v, factor * total(v.used * found if mask else found, v))

    return _from_view(combine)


def _spoiled(by):
    """The right density, but where pixels are masked."""
    return _joint(join=lambda v, likelihood: likelihood + v.prior + (0.0 if v.used.all() else by))


# --- 07.3 log_joint --------------------------------------------------------------------------


def _log_joints(function, arguments):
    """The log density, and what masked pixels do to it, which has one right value: nothing.

    Where they count, the log density may have any value: the right one stands for it.
    """
    answer = compiled("log_joint", function)
    value = answer(*arguments)
    if not is_array(value):
        return value
    value = np.asarray(value)
    z, _, variance = arguments[:3]
    masked = np.isinf(variance).sum()
    if not masked or value.shape != (len(z),):
        return value, 0.0, 0.0, 0.0, 1.0
    data, model = _masked_count(answer, arguments, value)
    right_at = compiled("log_joint", _reference("log_joint"))
    right = np.float64(right_at(*arguments))
    with np.errstate(invalid="ignore"):
        offset = (value - right) / masked
    # Of a made-up variance from e^-14 to e^14, with or without 2π.
    same = np.isfinite(offset).all() and np.allclose(offset, offset[0], 1e-3, 1e-4)
    constant = float(same and 1e-3 < abs(offset[0]) < 16 and not (data or model))
    if constant:  # of the masked pixels, if it is not there where none is masked
        whole = (*arguments[:2], np.where(np.isinf(variance), np.float32(1.0), variance))
        whole = (*whole, *arguments[3:])
        constant = float(np.allclose(answer(*whole), right_at(*whole), 1e-4, 1e-3))
    if np.isfinite(value).all() and (data or model or constant):
        return right, data, model, constant, 1.0
    gradient = 0.0
    if np.allclose(value, right, 1e-4) and (not ours(function) or function is _log_of_density):
        with suppress(Exception):  # of what cannot be differentiated the engine tells
            gradient = slope(to_compile(function), 0, *arguments)
    return value, data, model, constant, float(np.isfinite(gradient).all())


def _log_of_density(z, y, variance, observe, prior):
    squares = (y[None] - observe(prior.decode(z))) ** 2 / variance[None]
    density = jnp.exp(-0.5 * squares) / jnp.sqrt(2 * jnp.pi * variance[None])
    used = jnp.isfinite(variance)[None]
    return jnp.sum(jnp.where(used, jnp.log(density), 0.0), axis=(-2, -1)) + prior.log_prob(z)


_LOG_JOINT = Spec(
    id="07.3",
    name="log_joint",
    cases=lambda rng: _image_cases(rng, 4, 2, 5),
    evaluate=_log_joints,
    labels=(
        "log density",
        "the data in masked pixels count (0 no, 1 yes)",
        "the model in masked pixels counts (0 no, 1 yes)",
        "each masked pixel adds a constant (0 no, 1 yes)",
        "finite gradient",
    ),
    gradient=lambda function, arguments: slope(to_compile(function), 0, *arguments),
    atol=2e-3,
    rtol=1e-4,
    insight="This is all that inference needs to know of the problem: training and importance "
    "weights below call this one function, and a chain needs no more.",
    suspects=(
        Suspect(
            "no_prior",
            _joint(join=lambda v, likelihood: likelihood),
            "The prior is missing: this is the likelihood alone.",
            "441 noisy pixels do not fix 33 latents: the guide would spread over shapes that no "
            "galaxy has.",
            "Add `prior.log_prob(z)`.",
        ),
        Suspect(
            "no_likelihood",
            _joint(join=lambda v, likelihood: v.prior),
            "The likelihood is missing: this is the prior alone.",
            "Every image would give the same posterior.",
            "Add the log-likelihood of y.",
        ),
        Suspect(
            "prior_subtracted",
            _joint(join=lambda v, likelihood: likelihood - v.prior),
            "The prior is subtracted: the odder a galaxy, the better.",
            "p(y, z) is a product of two densities, so their logarithms add up.",
            "Add `prior.log_prob(z)`.",
            usable=False,
        ),
        Suspect(
            "likelihood_sign",
            _joint(factor=0.5),
            "The likelihood has the wrong sign: it grows with the misfit.",
            "The guide would look for the worst fit.",
            "Put the minus before the sum over pixels: -1/2 [...].",
        ),
        Suspect(
            "negative",
            _joint(join=lambda v, likelihood: -(likelihood + v.prior)),
            "This is minus the log density, as it is minimised in lesson 06.",
            "The bound goes up, and so must this: the guide would flee from the posterior.",
            "Return log p(y | z) + log p(z) itself.",
            usable=False,
        ),
        Suspect(
            "mean_over_pixels",
            _joint(total=lambda terms, v: terms.mean((-2, -1))),
            "This is the mean over the pixels, not the sum.",
            "Hundreds of pixels would weigh no more than one, and the posterior would be far too "
            "wide: nearly the prior.",
            "Sum over the last two axes.",
        ),
        Suspect(
            "mean_over_used_pixels",
            _joint(total=lambda terms, v: terms.sum((-2, -1)) / v.used.sum()),
            "The likelihood is divided by the number of used pixels.",
            "Each pixel is a measurement of its own. The posterior would be far too wide.",
            "Leave out the division.",
        ),
        Suspect(
            "variance_as_sigma",
            _joint(lambda v: _misfit(v, v.variance**2) + _norm(v, v.variance**2)),
            "`variance` is squared once more: it was taken for σ.",
            "With σ = 11.4 nJy the noise would seem 11 times larger than it is, and the posterior "
            "as much wider.",
            "`variance` is σ² already. `norm.logpdf` wants its square root.",
        ),
        Suspect(
            "misfit_over_fourth_power",
            _joint(lambda v: _misfit(v, v.variance**2) + _norm(v)),
            "The squared difference is divided by the square of the variance.",
            "`variance` is σ² already; divided by σ⁴ the misfit is no pure number.",
            "Divide by `variance` as it is.",
        ),
        Suspect(
            "root_of_variance",
            _joint(lambda v: _misfit(v, np.sqrt(v.variance)) + _norm(v, np.sqrt(v.variance))),
            "A root is taken of the variance, and then used in its place.",
            "The formula has σ² in both terms, and σ² is what `variance` holds. The posterior "
            "would be too narrow.",
            "Use `variance` as it is.",
        ),
        Suspect(
            "misfit_over_sigma",
            _joint(lambda v: _misfit(v, np.sqrt(v.variance)) + _norm(v)),
            "The squared difference is divided by σ, not by σ².",
            "A square in nJy² over σ² is a pure number; over σ it changes with the unit.",
            "Divide by `variance`, or square after dividing by σ.",
        ),
        Suspect(
            "likelihood_twice",
            _joint(factor=-1.0),
            "The likelihood counts twice: the factor 1/2 is missing.",
            "It is as if the galaxy had been observed twice: error bars too small by the root of "
            "two.",
            "Multiply the sum over pixels by -1/2.",
        ),
        Suspect(
            "half_of_misfit",
            _joint(lambda v: 2 * _misfit(v) + _norm(v)),
            "The factor 1/2 is missing before the misfit.",
            "A Gaussian is exp(-r²/2σ²): without the 1/2 the error bars are too small by the root "
            "of two.",
            "Put both terms in the bracket with the 1/2.",
        ),
        Suspect(
            "prior_twice",
            _joint(join=lambda v, likelihood: likelihood + 2 * v.prior),
            "The prior counts twice.",
            "Galaxies would look more common than they are.",
            "Add `prior.log_prob(z)` once.",
        ),
        Suspect(
            "prior_per_pixel",
            _joint(join=lambda v, likelihood: likelihood + v.y.size * v.prior),
            "The prior is added once for each pixel.",
            "There is one galaxy behind all pixels. Its prior would outweigh the data by far.",
            "Add `prior.log_prob(z)` after the sum over pixels.",
        ),
        Suspect(
            "prior_per_used_pixel",
            _joint(join=lambda v, likelihood: likelihood + v.used.sum() * v.prior),
            "The prior is added once for each used pixel.",
            "There is one galaxy behind all of them: its prior would outweigh the data by far.",
            "Add `prior.log_prob(z)` after the sum over pixels.",
        ),
        Suspect(
            "standard_gaussian",
            _joint(
                join=lambda v, likelihood: (
                    likelihood + (-0.5 * v.z**2 - 0.5 * np.log(2 * np.pi)).sum(-1)
                )
            ),
            "The prior is a standard Gaussian, not `prior.log_prob`.",
            "It is u that is Gaussian under the prior; the latents z have the density that was "
            "learned.",
            "Use `prior.log_prob(z)`.",
        ),
        Suspect(
            "not_observed",
            _joint(lambda v: _misfit(v, mean=v.unblurred) + _norm(v)),
            "`observe` is left out: the sharp image is compared with the blurred data.",
            "The posterior would be of a galaxy as blurred as its picture.",
            "Compare y with `observe(prior.decode(z))`.",
        ),
        Suspect(
            "infinite",
            _spoiled(-np.inf),
            "It is infinite where pixels are masked: their logarithm is counted.",
            "Their variance is infinite, and so is its logarithm.",
            "Set the terms of these pixels to zero with `jnp.where`.",
        ),
        Suspect(
            "nan",
            _spoiled(np.nan),
            "It is NaN where pixels are masked: 0 times infinity.",
            "Multiplying by the mask removes finite numbers only; one NaN stops the training.",
            "Replace the infinite variance by 1 first, and choose the terms with `jnp.where`.",
        ),
        Suspect(
            "masked_counted",
            _joint(mask=False),
            "Masked pixels count with a made-up variance.",
            "What they hold is no measurement, and error bars would be too small.",
            "After replacing the infinite variance, set the terms of these pixels to zero too.",
        ),
        Suspect(
            "data_zeroed",
            _joint(lambda v: (v.y * v.used - v.mean) ** 2 / v.variance + _norm(v), mask=False),
            "The data are set to zero in masked pixels, but the model's light there still counts.",
            "That asks for a galaxy that is dark behind the mask.",
            "Set the *terms* to zero, after the difference is taken.",
        ),
        Suspect(
            "masked_logarithm",
            _joint(lambda v: _misfit(v) * v.used + _norm(v), mask=False),
            "Each masked pixel still adds a constant: its logarithm is counted.",
            "Training does not notice, but the evidence would depend on what was made up.",
            "Set the whole term to zero there, not only the misfit.",
        ),
        Suspect(
            "no_logarithm",
            _joint(_misfit),
            "The logarithm is left out: the likelihood is -χ²/2.",
            "It is the same for every latent, but without it the bound is none on the evidence.",
            "Add ln(2π σ²) in each used pixel.",
        ),
        Suspect(
            "no_two_pi",
            _joint(lambda v: _misfit(v) + _norm(v) - np.log(2 * np.pi)),
            "2π is missing in the logarithm.",
            "The density would not integrate to one, and the bound be off by 0.9 nats a pixel.",
            "Use ln(2π σ²).",
        ),
        Suspect(
            "only_two_pi",
            _joint(lambda v: _misfit(v) + np.log(2 * np.pi)),
            "σ² is missing in the logarithm.",
            "The density would not integrate to one, and change with the unit.",
            "Use ln(2π σ²).",
        ),
        Suspect(
            "log_sigma",
            _joint(lambda v: _misfit(v) + 0.5 * _norm(v)),
            "The logarithm counts half: you have the root in ln √(2π σ²) and the 1/2 outside.",
            "The 1/2 before the bracket is this root already.",
            "Inside the bracket use ln(2π σ²).",
        ),
        Suspect(
            "logarithm_sign",
            _joint(lambda v: _misfit(v) - _norm(v)),
            "The logarithm has the wrong sign.",
            "The normaliser √(2π σ²) stands below the exponential.",
            "Inside the bracket, add ln(2π σ²).",
        ),
        Suspect(
            "logarithm_once",
            _joint(
                _misfit,
                join=lambda v, likelihood: (
                    likelihood - 0.5 * np.log(2 * np.pi * v.variance[v.used > 0]).mean() + v.prior
                ),
            ),
            "The logarithm is counted once, not in each pixel.",
            "Each pixel is a Gaussian of its own, with its own normaliser.",
            "Add ln(2π σ²) before the sum over pixels.",
        ),
        Suspect(
            "sum_over_samples",
            _joint(join=lambda v, likelihood: np.sum(likelihood + v.prior)),
            "You return one number, the sum over the latents.",
            "Each sample of the guide has its own value, and its own importance weight.",
            "Sum over the last two axes only, `axis=(-2, -1)`.",
        ),
        Suspect(
            "mean_over_samples",
            _joint(join=lambda v, likelihood: np.mean(likelihood + v.prior)),
            "You return one number, the mean over the latents.",
            "The mean is taken in `elbo`; importance weights need each value.",
            "Return (n,), one for each latent.",
        ),
        Suspect(
            "likelihood_of_all",
            _joint(total=lambda terms, v: terms.sum()),
            "Every latent gets the likelihood of all samples together.",
            "One bad sample would spoil all others.",
            "Sum over the last two axes only, `axis=(-2, -1)`.",
        ),
        Suspect(
            "prior_of_all",
            _joint(join=lambda v, likelihood: likelihood + v.prior.sum()),
            "Every latent gets the prior of all samples together.",
            "How odd one sample is says nothing of another.",
            "Use `prior.log_prob(z)` as it is, (n,).",
        ),
        Suspect(
            "per_pixel",
            _joint(
                total=lambda terms, v: terms,
                join=lambda v, likelihood: likelihood + v.prior[:, None, None],
            ),
            "You return a value for each pixel.",
            "The pixels are independent: their logarithms add up to that of the image.",
            "Sum over the last two axes, then add the prior.",
        ),
        Suspect(
            "log_of_zero",
            _log_of_density,
            "The value is right, but its gradient is NaN where pixels are masked.",
            "The density of a masked pixel is zero, its logarithm infinite. `jnp.where` hides that "
            "from the value; the gradient still has 0 times infinity, and the training stops.",
            "Replace the infinite variance by 1 *before* the logarithm, not only after it.",
        ),
    ),
)


# --- 07.4 predictive_chi2 --------------------------------------------------------------------


def _predictive(function, arguments):
    """chi^2; whether masked pixels count; and whether equal samples have equal chi^2."""
    answer = outside_jit(function)
    value = as_array(answer(*arguments))
    if not is_array(value):
        return value
    value = np.asarray(value)
    z, _, variance = arguments[:3]
    if value.shape != (len(z),) or not np.isfinite(value).all():
        return value, 0.0, 0.0, 1.0
    right = compiled("predictive_chi2", _reference("predictive_chi2"))
    same = np.asarray(answer(np.tile(z[:1], (len(z), 1)), *arguments[1:]))
    if not np.allclose(same, same[0], 1e-3):
        return right(*arguments), 0.0, 0.0, 0.0
    data = model = 0.0
    if np.isinf(variance).any():
        data, model = _masked_count(answer, arguments, value)
    return right(*arguments) if data or model else value, data, model, 1.0


def _chi2(v, variance=None, mean=None):
    return (v.used * _misfit(v, variance, mean)).sum((-2, -1))


def _counted(chi2, used=lambda v: v.used.sum()):
    """chi^2 with mistakes, divided by a number of pixels."""
    return _from_view(lambda v: chi2(v) / used(v))


def _replicated(v):
    noise = np.sqrt(v.variance) * np.random.default_rng(0).normal(size=v.mean.shape)
    return _chi2(v, mean=v.mean + noise)


_PREDICTIVE = Spec(
    id="07.4",
    name="predictive_chi2",
    # As many latents as in the lesson, 33.
    cases=lambda rng: _image_cases(rng, 4, 33, 7),
    evaluate=_predictive,
    labels=(
        "chi^2 per pixel",
        "the data in masked pixels count (0 no, 1 yes)",
        "the model in masked pixels counts (0 no, 1 yes)",
        "equal samples have equal chi^2 (0 no, 1 yes)",
    ),
    atol=1e-4,
    rtol=1e-4,
    insight="A posterior whose samples all have χ² near 1 explains the data. Far above 1, the "
    "model or the noise is wrong, or the posterior is much too wide. One that is too narrow hardly "
    "shows: for one galaxy the shift is below the scatter of the noise.",
    suspects=(
        Suspect(
            "mean_image",
            _counted(lambda v: np.repeat(_chi2(v, mean=v.mean.mean(0)), len(v.z))),
            "All samples get the χ² of their mean image.",
            "The mean is smoother than any sample and fits better: it hides bad samples.",
            "Compare each sample's own image with the data.",
        ),
        Suspect(
            "one_mean_image",
            _counted(lambda v: _chi2(v, mean=v.mean.mean(0))),
            "You return one number, the χ² of the mean image.",
            "The mean is smoother than any sample and fits better: it hides bad samples.",
            "Return (n,): each sample's own image against the data.",
        ),
        Suspect(
            "mean_latent",
            _counted(lambda v: np.repeat(_chi2(v, mean=v.of_mean_latent), len(v.z))),
            "All samples get the χ² of the image of their mean latent.",
            "The mean of the latents need not be a likely galaxy, and need not fit.",
            "Decode each latent, and compare each image with the data.",
        ),
        Suspect(
            "one_mean_latent",
            _counted(lambda v: _chi2(v, mean=v.of_mean_latent[0])),
            "You return one number, the χ² of the image of the mean latent.",
            "The mean of the latents need not be a likely galaxy, and need not fit.",
            "Return (n,): decode each latent, and compare each image with the data.",
        ),
        Suspect(
            "first_sample",
            _counted(lambda v: np.repeat(_chi2(v)[0], len(v.z))),
            "All samples get the χ² of the first one.",
            "A posterior is judged by all of its samples.",
            "Compare each sample's own image with the data.",
        ),
        Suspect(
            "masked_pixels_in_the_number",
            _counted(_chi2, lambda v: v.y.size),
            "χ² is divided by the number of all pixels, the masked ones too.",
            "They add nothing to χ², so the fit looks better the more of them there are.",
            "Divide the sum by the number of pixels with a finite variance.",
        ),
        Suspect(
            "masked_counted",
            _counted(lambda v: _misfit(v).sum((-2, -1))),
            "Masked pixels add to χ², with a made-up variance.",
            "What they hold is no measurement.",
            "Divide by the infinite variance as it is, which gives zero, or mask the terms.",
        ),
        Suspect(
            "not_divided",
            _from_view(_chi2),
            "You return χ² itself, not χ² per used pixel.",
            "Without the number of pixels beside it nobody can say whether 400 is much.",
            "Divide by the number of used pixels.",
        ),
        Suspect(
            "not_squared",
            _counted(lambda v: (v.used * (v.y - v.mean) / np.sqrt(v.variance)).sum((-2, -1))),
            "The residuals are not squared: those of either sign cancel.",
            "Their mean is near zero for many a bad fit.",
            "Square the differences.",
        ),
        Suspect(
            "half",
            _counted(lambda v: 0.5 * _chi2(v)),
            "You return half of χ².",
            "The 1/2 belongs to the logarithm of the Gaussian. χ² has none, and is 1 per pixel for "
            "pure noise.",
            "Leave out the factor 1/2.",
        ),
        Suspect(
            "pearson",
            _counted(lambda v: ((v.y - v.mean) ** 2 / v.mean).sum((-2, -1))),
            "The squared differences are divided by the model, not by the variance.",
            "That is right for counts of photons, whose variance is their mean. Here `variance` "
            "says what the noise is.",
            "Divide by `variance`.",
        ),
        Suspect(
            "absolute",
            _counted(lambda v: (v.used * np.abs(v.y - v.mean) / np.sqrt(v.variance)).sum((-2, -1))),
            "The residuals are not squared: these are absolute values.",
            "Their mean is 0.8 for pure noise, not 1.",
            "Square the differences.",
        ),
        Suspect(
            "absolute_over_variance",
            _counted(lambda v: (v.used * np.abs(v.y - v.mean) / v.variance).sum((-2, -1))),
            "The residuals are not squared, but they are divided by σ².",
            "A length over an area has a unit: 1 would have no meaning.",
            "Square the differences.",
        ),
        Suspect(
            "sigma",
            _counted(lambda v: _chi2(v, np.sqrt(v.variance))),
            "The squared difference is divided by σ, not by σ².",
            "A square in nJy² over σ² is a pure number; over σ it changes with the unit.",
            "Divide by `variance`.",
        ),
        Suspect(
            "variance_as_sigma",
            _counted(lambda v: _chi2(v, v.variance**2)),
            "`variance` is squared: it was taken for σ.",
            "Residuals are then not in units of the noise, and 1 has no meaning.",
            "Divide the squared difference by `variance` as it is.",
        ),
        Suspect(
            "no_variance",
            _counted(lambda v: _chi2(v, np.ones_like(v.variance))),
            "The variance is left out: this is a mean square in nJy².",
            "Whether a residual is large is a question of the noise in its pixel.",
            "Divide each square by its variance.",
        ),
        Suspect(
            "prior_added",
            _counted(lambda v: _chi2(v) - 2.0 * v.prior),
            "The prior is part of it: -2 log p(z) is added to χ².",
            "This asks whether the *data* look like noise around the model. How odd the galaxy is "
            "has no part in it.",
            "Leave out `prior.log_prob`.",
        ),
        Suspect(
            "log_likelihood",
            _from_view(lambda v: -0.5 * (v.used * _right_terms(v)).sum((-2, -1))),
            "You return the log-likelihood.",
            "It has no value that it should have; χ² per pixel should be near 1.",
            "Sum the squares over σ², and divide by the number of used pixels.",
        ),
        Suspect(
            "deviance",
            _counted(lambda v: (v.used * _right_terms(v)).sum((-2, -1))),
            "This is -2 log p: the logarithm of the normaliser is part of it.",
            "ln(2π σ²) changes with the unit; χ² per pixel is 1 for pure noise in any.",
            "Sum the squares over σ² alone.",
        ),
        Suspect(
            "latents_subtracted",
            _counted(_chi2, lambda v: v.used.sum() - v.z.shape[-1]),
            "The 33 latents are taken off the number of pixels.",
            "Each *free* parameter of a best fit takes one off. These are samples, no best fit, "
            "and the prior holds the latents: the data fix only a few of them.",
            "Divide by the number of used pixels itself.",
        ),
        Suspect(
            "one_degree_less",
            _counted(_chi2, lambda v: v.used.sum() - 1),
            "χ² is divided by one pixel too few.",
            "Nothing was fitted here: samples are compared as they come.",
            "Divide by the number of used pixels itself.",
        ),
        Suspect(
            "root",
            _from_view(lambda v: np.sqrt(_chi2(v) / v.used.sum())),
            "You return the root of χ² per pixel.",
            "That is the typical residual in σ. It is also 1 for pure noise, but not what is asked "
            "for.",
            "Leave out the root.",
        ),
        Suspect(
            "noise_added",
            _counted(_replicated),
            "Noise is added to the images: equal samples get different χ².",
            "The data have their noise already. The difference of two noisy images has twice the "
            "variance: χ² would be near 2 for a perfect model.",
            "Compare the mean observation, without noise, with the data.",
        ),
        Suspect(
            "not_observed",
            _counted(lambda v: _chi2(v, mean=v.unblurred)),
            "`observe` is left out: the sharp image is compared with the blurred data.",
            "No posterior, however good, would fit.",
            "Compare y with `observe(prior.decode(z))`.",
        ),
        Suspect(
            "mean_over_samples",
            _counted(lambda v: _chi2(v).mean()),
            "You return one number, the mean over the samples.",
            "One bad sample would hide among the good ones.",
            "Return (n,), one for each sample.",
        ),
        Suspect(
            "sum_over_samples",
            _counted(lambda v: _chi2(v).sum()),
            "You return one number, the sum over samples and pixels.",
            "It grows with the number of samples.",
            "Sum over the last two axes only, `axis=(-2, -1)`.",
        ),
        Suspect(
            "over_samples",
            _counted(lambda v: (v.used * _misfit(v)).sum(0)),
            "The sum is over the samples, not over the pixels.",
            "Axis 0 counts samples: this is a map, and says of no sample whether it fits.",
            "Sum over the last two axes, `axis=(-2, -1)`.",
        ),
        Suspect(
            "per_pixel",
            _counted(lambda v: v.used * _misfit(v)),
            "You return a value for each pixel.",
            "One number says whether a sample fits.",
            "Sum over the last two axes.",
        ),
    ),
)


# --- 07.5 importance -------------------------------------------------------------------------


def _importance_cases(rng):
    def case(around, far=0):
        """Six samples: log weights spread over a few nats, the last ``far`` of them at -1e4."""
        n = 6
        log_q = around / 2 + rng.permutation(np.linspace(-2.0, 3.0, n))
        weights = rng.permutation(np.linspace(0.0, 3.0, n)) + rng.uniform(-0.15, 0.15, n)
        weights[n - far :] -= 2e4
        # Multiples of 1/512 below 2^14: sums and differences are exact in single precision.
        log_q, weights = (np.round(part * 512.0) / 512.0 for part in (log_q, weights + around / 2))
        return np.float32(weights + log_q), np.float32(log_q)

    return {
        "6 samples": case(0.0),
        "log weights near -2000": case(-4000.0),
        "log weights from -1e4 to 1e4": case(2e4, far=2),
    }


def _weighed(function, arguments):
    result = outside_jit(function)(*arguments)
    if result is None or result is ...:
        return result
    return pair("importance", result, "weights, effective fraction")


def _softmax(log_weights):
    return scipy.special.softmax(log_weights)


def _kish(w):
    return 1.0 / (len(w) * np.sum(w**2))


def _weights(weights, fraction=_kish, log_weights=lambda joint, q: joint - q):
    """Weights and their fraction with mistakes: weights(l) and fraction(w) of right weights w."""

    @in_numpy
    def wrong(log_joint, log_q):
        found = log_weights(log_joint, log_q)
        return weights(found), fraction(_softmax(found))

    return wrong


@in_numpy
def _unstable(log_joint, log_q):
    # In single precision, as under JAX.
    raw = np.exp(np.float32(log_joint - log_q))
    w = raw / raw.sum()
    return w, _kish(w)


@in_numpy
def _not_scaled(log_joint, log_q):
    w = np.exp(np.float32(log_joint - log_q))
    return w, _kish(w)


@in_numpy
def _only_log_weights(log_joint, log_q):
    return log_joint - log_q, _kish(log_joint - log_q)


@in_numpy
def _from_the_mean(log_joint, log_q):
    log_weights = log_joint - log_q
    raw = np.exp(np.float32(log_weights - log_weights.mean()))
    w = raw / raw.sum()
    return w, _kish(w)


def _entropy(w):
    return np.exp(scipy.stats.entropy(w)) / len(w)


_IMPORTANCE = Spec(
    id="07.5",
    name="importance",
    cases=_importance_cases,
    evaluate=_weighed,
    labels=("weights", "effective fraction"),
    # Log weights of 1e4 are known to 1e-3 in single precision, where they are not subtracted first.
    atol=1e-6,
    rtol=2e-3,
    insight="Weights correct what the guide has wrong, where it has samples at all. A small "
    "fraction says that a few samples do all the work.",
    suspects=(
        Suspect(
            "unstable",
            _unstable,
            "It is NaN where log weights are large: the exponential overflows, or all are zero.",
            "In single precision exp(-2000) is 0 and exp(1e4) infinite. Their ratios are harmless.",
            "Subtract the largest log weight before `jnp.exp`, or use `jax.nn.softmax`.",
        ),
        Suspect(
            "not_scaled",
            _not_scaled,
            "The weights p / q are not scaled, and overflow or vanish where log weights are large.",
            "A weighted mean Σ w f asks for weights that sum to one, and 1 / (n Σ w²) too.",
            "Use `jax.nn.softmax` of the log weights: it divides by the sum, and is stable.",
        ),
        Suspect(
            "log_weights_in_both",
            _only_log_weights,
            "These are log weights, also in the fraction.",
            "Log weights may be negative and do not sum to one: they are no weights.",
            "Use `jax.nn.softmax` of them.",
        ),
        Suspect(
            "not_the_largest_subtracted",
            _from_the_mean,
            "Something other than the largest log weight is subtracted: the mean, or the smallest.",
            "Samples far above it overflow in the exponential.",
            "Subtract the maximum, or use `jax.nn.softmax`.",
        ),
        Suspect(
            "peak_to_one",
            _weights(lambda found: np.exp(found - found.max())),
            "The weights are not scaled: the largest is 1, not the sum.",
            "A weighted mean Σ w f would grow with the number of samples.",
            "Divide by the sum of the weights.",
        ),
        Suspect(
            "peak_to_one_in_both",
            _weights(
                lambda found: np.exp(found - found.max()),
                lambda w: _kish(w / w.max()),
            ),
            "Weights with a peak of 1 are also used for the fraction.",
            "1 / (n Σ w²) holds for weights that sum to one.",
            "Divide by the sum of the weights first.",
        ),
        Suspect(
            "mean_one",
            _weights(lambda found: len(found) * _softmax(found)),
            "The weights have a mean of 1, not a sum of 1.",
            "A weighted mean Σ w f would be n times too large.",
            "Divide by the sum.",
        ),
        Suspect(
            "mean_one_in_both",
            _weights(lambda found: len(found) * _softmax(found), lambda w: _kish(len(w) * w)),
            "Weights with a mean of 1 are also used for the fraction.",
            "1 / (n Σ w²) holds for weights that sum to one.",
            "Divide by the sum of the weights first.",
        ),
        Suspect(
            "unit_length",
            _weights(lambda found: _softmax(found) / np.linalg.norm(_softmax(found))),
            "The squares of the weights sum to 1, not the weights.",
            "Weights are shares of a whole, not a direction.",
            "Divide by the sum.",
        ),
        Suspect(
            "log_weights",
            _weights(lambda found: found),
            "You return log weights.",
            "They are negative, or beyond all bounds: nothing can be averaged with them.",
            "Exponentiate, after subtracting the largest, and divide by the sum.",
        ),
        Suspect(
            "scaled_logarithms",
            _weights(lambda found: found / found.sum()),
            "The logarithms are scaled, not the weights: exponentiate first.",
            "A weight that is e times as large has one more in its logarithm, not e times as much.",
            "Use `jax.nn.softmax`, which exponentiates and scales.",
        ),
        Suspect(
            "log_softmax",
            _weights(scipy.special.log_softmax),
            "You return the logarithms of the scaled weights.",
            "Means are taken with the weights themselves.",
            "Use `jax.nn.softmax`.",
        ),
        Suspect(
            "inverse_ratio",
            _weights(_softmax, log_weights=lambda joint, q: q - joint),
            "The ratio is upside down: q / p.",
            "What the guide draws too rarely would count even less.",
            "Use log_joint - log_q.",
        ),
        Suspect(
            "log_q_ignored",
            _weights(_softmax, log_weights=lambda joint, q: joint),
            "log_q is not used: the weights are p alone.",
            "Samples are already dense where q is large: likely points would count twice.",
            "Use log_joint - log_q.",
        ),
        Suspect(
            "log_q_added",
            _weights(_softmax, log_weights=lambda joint, q: joint + q),
            "log_q is added: the weights are p times q.",
            "Samples are already dense where q is large; they must be divided by it.",
            "Use log_joint - log_q.",
        ),
        Suspect(
            "ratio_of_logarithms",
            _weights(_softmax, log_weights=lambda joint, q: joint / q),
            "One logarithm is divided by the other.",
            "The ratio of two densities is a *difference* of their logarithms.",
            "Use log_joint - log_q.",
        ),
        Suspect(
            "equal_weights",
            _weights(lambda found: np.full_like(found, 1 / len(found)), lambda w: 1.0),
            "All weights are equal.",
            "That takes the guide for the posterior: nothing is corrected.",
            "Use exp(log_joint - log_q), scaled to a sum of 1.",
        ),
        Suspect(
            "number_of_samples",
            _weights(_softmax, lambda w: 1.0 / np.sum(w**2)),
            "You return the effective *number* of samples, not the fraction.",
            "The fraction can be compared between runs of any length.",
            "Divide by n, the number of samples.",
        ),
        Suspect(
            "one_over_largest",
            _weights(_softmax, lambda w: 1.0 / (len(w) * w.max())),
            "The fraction is made of the largest weight alone.",
            "Half of all samples may count nothing, and it would not notice.",
            "Use the sum of the squares: 1 / (n Σ w²).",
        ),
        Suspect(
            "number_from_largest",
            _weights(_softmax, lambda w: 1.0 / w.max()),
            "You return 1 over the largest weight.",
            "It is a number of samples, not a fraction, and looks at one weight only.",
            "Use 1 / (n Σ w²).",
        ),
        Suspect(
            "squares",
            _weights(_softmax, lambda w: np.sum(w**2)),
            "You return Σ w², without 1 over n times it.",
            "It is large where few samples count: the wrong way round.",
            "Return 1 / (n Σ w²).",
        ),
        Suspect(
            "upside_down",
            _weights(_softmax, lambda w: len(w) * np.sum(w**2)),
            "The fraction is upside down: n Σ w².",
            "It is 1 at best, and must get smaller as weights differ.",
            "Return 1 / (n Σ w²).",
        ),
        Suspect(
            "multiplied_by_n",
            _weights(_softmax, lambda w: len(w) / np.sum(w**2)),
            "It is multiplied by n, not divided.",
            "The result is above 1; a fraction lies between 1/n and 1.",
            "Return 1 / (n Σ w²).",
        ),
        Suspect(
            "square_of_sum",
            _weights(_softmax, lambda w: 1.0 / (len(w) * np.sum(w) ** 2)),
            "The sum is squared, not the weights.",
            "The weights sum to one, so this is 1/n whatever they are.",
            "Square first: `jnp.sum(weights**2)`.",
        ),
        Suspect(
            "root",
            _weights(_softmax, lambda w: np.sqrt(_kish(w))),
            "You return the root of the fraction.",
            "Errors go with the root of the number of samples; the number itself is asked for.",
            "Leave out the root.",
        ),
        Suspect(
            "entropy",
            _weights(_softmax, _entropy),
            "The fraction is made of the entropy of the weights.",
            "That counts samples too, in another way; the variance of a weighted mean goes with "
            "Σ w².",
            "Use 1 / (n Σ w²).",
        ),
        Suspect(
            "exchanged",
            in_numpy(lambda joint, q: (_kish(_softmax(joint - q)), _softmax(joint - q))),
            "The two results are exchanged.",
            "The next cells take the first for the weights.",
            "Return the weights first, then the fraction.",
        ),
    ),
)


# --- 07.6 covered ----------------------------------------------------------------------------

_OBJECTS = 64  # and as many samples of each: quantiles over the wrong axis must not fail


def _coverage_cases(rng):
    def case(level):
        samples = np.exp(rng.normal(size=(_OBJECTS, _OBJECTS, _D)))  # skewed
        samples = samples * np.array([0.5, 1.0, 2.0]) + rng.uniform(-5.0, 5.0, (_OBJECTS, 1, _D))
        # The truth lies between two samples, of all ranks, but not within two of where an interval
        # ends: there, quantiles may be defined in several ways.
        ends = _OBJECTS * np.array([1 - level, 1 + level]) / 2
        free = [k for k in range(_OBJECTS + 1) if np.abs(ends - k).min() > 2.0]
        ranks = rng.permutation(np.resize(free, _OBJECTS * _D)).reshape(_OBJECTS, 1, _D)
        order = np.sort(samples, axis=1)
        order = np.concatenate([order[:, :1] - 1.0, order, order[:, -1:] + 1.0], axis=1)
        low, high = (np.take_along_axis(order, ranks + k, axis=1)[:, 0] for k in (0, 1))
        return np.float32(samples), np.float32((low + high) / 2), level

    return {"level 0.68": case(0.68), "level 0.4": case(0.4)}


def _coverage(function, arguments):
    samples, truth, level = arguments
    inside = as_array(outside_jit(function, level)(samples, truth))
    if not is_array(inside):
        return inside
    inside = np.asarray(inside)
    # Of another shape than the truth they are another answer, whose kind does not matter.
    return inside.astype(float), float(inside.dtype == bool or inside.shape != truth.shape)


def _between(low, high):
    """Whether the truth is between low(s, level) and high(s, level), both (n, d)."""

    @in_numpy
    def wrong(samples, truth, level):
        return (low(samples, level) <= truth) & (truth <= high(samples, level))

    return wrong


def _quantiles(low, high, axis=1):
    """The interval between quantiles low(level) and high(level)."""
    return _between(
        lambda samples, level: np.quantile(samples, low(level), axis=axis),
        lambda samples, level: np.quantile(samples, high(level), axis=axis),
    )


def _lower(level):
    return (1 - level) / 2


def _upper(level):
    return (1 + level) / 2


def _around_mean(half_width):
    return _between(
        lambda s, level: s.mean(1) - half_width(s, level),
        lambda s, level: s.mean(1) + half_width(s, level),
    )


def _normal_units(level):
    return scipy.stats.norm.ppf(_upper(level))


def _reach(samples, level):
    """The distance (n, d) from the median within which a fraction ``level`` of the samples are."""
    distances = np.abs(samples - np.median(samples, axis=1, keepdims=True))
    return np.quantile(distances, level, axis=1)


def _then(change):
    """The right booleans, changed."""
    right = _quantiles(_lower, _upper)
    return lambda samples, truth, level: change(right(samples, truth, level))


def _shortest(side):
    def end(samples, level):
        order = np.sort(samples, axis=1)
        count = int(np.ceil(level * order.shape[1]))
        width = order[:, count - 1 :] - order[:, : order.shape[1] - count + 1]
        start = width.argmin(axis=1)[:, None] + side * (count - 1)
        return np.take_along_axis(order, start, axis=1)[:, 0]

    return end


_COVERED = Spec(
    id="07.6",
    name="covered",
    cases=_coverage_cases,
    evaluate=_coverage,
    labels=("inside (0 no, 1 yes)", "true or false"),
    insight="Over many galaxies a fraction `level` of the answers should be true. Fewer, and the "
    "error bars are too small; more, and they are too large.",
    suspects=(
        Suspect(
            "standard_error",
            _around_mean(lambda s, level: _normal_units(level) * s.std(1) / np.sqrt(s.shape[1])),
            "The interval is that of the *mean*: the standard error was used.",
            "It shrinks with every sample that you draw, and the galaxy is known no better for it.",
            "Use quantiles of the samples themselves.",
        ),
        Suspect(
            "one_standard_error",
            _around_mean(lambda s, level: s.std(1) / np.sqrt(s.shape[1])),
            "The interval is mean ± standard error, whatever the level.",
            "It shrinks with every sample that you draw, and the galaxy is known no better for it.",
            "Use quantiles of the samples themselves.",
        ),
        Suspect(
            "one_standard_deviation",
            _around_mean(lambda s, level: s.std(1)),
            "The interval is mean ± one standard deviation, whatever the level.",
            "Only for a Gaussian, and only for 68 %, is that the central interval.",
            "Use the quantiles (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "gaussian",
            _around_mean(lambda s, level: _normal_units(level) * s.std(1)),
            "The interval is that of a Gaussian with the mean and width of the samples.",
            "It would be right for a Gaussian posterior. These samples are skewed, and central "
            "quantiles are asked for: they ask for no shape.",
            "Use the quantiles (1 - level)/2 and (1 + level)/2 of the samples.",
        ),
        Suspect(
            "shortest",
            _between(_shortest(0), _shortest(1)),
            "This is the shortest interval with that fraction of the samples, not the central one.",
            "It holds as many samples, and is another convention: it leaves more out at one end.",
            "Use the quantiles (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "below_upper",
            _quantiles(lambda level: 0.0, _upper),
            "Only the upper end is looked at.",
            "A truth far below all samples would count as inside.",
            "Ask for truth >= low as well.",
        ),
        Suspect(
            "unbounded_below",
            _between(
                lambda s, level: np.full_like(s[:, 0], -np.inf),
                lambda s, level: np.quantile(s, _upper(level), axis=1),
            ),
            "There is no lower end: the truth is only compared with the upper one.",
            "A truth far below all samples would count as inside.",
            "Ask for truth >= low as well.",
        ),
        Suspect(
            "above_lower",
            _between(
                lambda s, level: np.quantile(s, _lower(level), axis=1),
                lambda s, level: np.full_like(s[:, 0], np.inf),
            ),
            "There is no upper end: the truth is only compared with the lower one.",
            "A truth far above all samples would count as inside.",
            "Ask for truth <= high as well.",
        ),
        Suspect(
            "one_sided",
            _between(
                lambda s, level: np.full_like(s[:, 0], -np.inf),
                lambda s, level: np.quantile(s, level, axis=1),
            ),
            "The interval is one-sided: all below the quantile `level`.",
            "It holds the right fraction, but calls a truth below all samples well covered.",
            "Leave out (1 - level)/2 at either end.",
        ),
        Suspect(
            "level_as_quantile",
            _quantiles(lambda level: 1 - level, lambda level: level),
            "The ends are the quantiles 1 - level and level.",
            "These leave out 1 - level at *either* end: 36 % of the samples are inside for a level "
            "of 0.68.",
            "Use (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "level_on_either_side",
            _quantiles(lambda level: max(0.5 - level, 0.0), lambda level: min(0.5 + level, 1.0)),
            "The ends are 0.5 ± level; take 0.5 ± level / 2.",
            "These hold twice the fraction that is asked for, and everything from 0.5 on.",
            "Use the quantiles (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "around_the_median",
            _between(
                lambda s, level: np.median(s, axis=1) - _reach(s, level),
                lambda s, level: np.median(s, axis=1) + _reach(s, level),
            ),
            "The interval reaches as far below the median as above it: it is not the central one.",
            "It holds the right fraction, but of skewed samples it leaves more out at one end.",
            "Use the quantiles (1 - level)/2 and (1 + level)/2 of the samples themselves.",
        ),
        Suspect(
            "half_of_level",
            _quantiles(lambda level: level / 2, lambda level: 1 - level / 2),
            "The ends are the quantiles level/2 and 1 - level/2.",
            "These leave out `level` itself, in two halves: 32 % are inside for a level of 0.68.",
            "Leave out 1 - level: use (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "from_the_bottom",
            _quantiles(lambda level: 0.0, lambda level: level),
            "The interval starts at the smallest sample, and ends at the quantile `level`.",
            "It holds the right fraction, but all that is left out is at one end.",
            "Leave out (1 - level)/2 at either end.",
        ),
        Suspect(
            "percent",
            _quantiles(lambda level: _lower(level) / 100, lambda level: _upper(level) / 100),
            "Fractions were given where percent are wanted.",
            "`percentile` takes 16 and 84, `quantile` 0.16 and 0.84. The interval is at the bottom "
            "of the samples.",
            "Use `jnp.quantile`.",
        ),
        Suspect(
            "level_ignored",
            _quantiles(lambda level: 0.16, lambda level: 0.84),
            "It is the interval of 68 %, whatever the level.",
            "The lesson counts at several levels.",
            "Use (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "whole_range",
            _between(lambda s, level: s.min(1), lambda s, level: s.max(1)),
            "The interval goes from the smallest to the largest sample.",
            "It grows with the number of samples until it holds everything.",
            "Use quantiles.",
        ),
        Suspect(
            "over_objects",
            _quantiles(_lower, _upper, axis=0),
            "The quantiles are taken over the objects, not over the samples of each.",
            "Axis 0 counts galaxies: this compares a galaxy with all others.",
            "Use `axis=1`.",
        ),
        Suspect(
            "all_objects",
            _quantiles(_lower, _upper, axis=(0, 1)),
            "All objects share one interval.",
            "It says how much galaxies differ, not how well each is known.",
            "Take the quantiles over axis 1 alone.",
        ),
        Suspect(
            "outside",
            _then(np.logical_not),
            "It is the other way round: true where the truth is outside.",
            "The fraction would be 1 - level for perfect error bars.",
            "Use (low <= truth) & (truth <= high).",
        ),
        Suspect(
            "either_end",
            _then(np.ones_like),
            "Everything counts as inside: the two comparisons are joined by `or`.",
            "Each number is above the lower end or below the upper one.",
            "Join them with `&`.",
        ),
        Suspect(
            "numbers",
            _then(lambda inside: inside.astype(float)),
            "You return numbers, not booleans.",
            "Later cells select objects with them: `x[inside]` takes numbers for places.",
            "Return the comparison itself.",
        ),
        Suspect(
            "fraction",
            _then(np.mean),
            "You return the fraction that is covered, one number.",
            "Which objects are missed is worth knowing; the fraction is their mean.",
            "Return the booleans, (n, d).",
        ),
        Suspect(
            "fraction_of_objects",
            _then(lambda inside: inside.mean(0)),
            "You return a fraction for each coordinate.",
            "Which objects are missed is worth knowing; the fractions are their mean.",
            "Return the booleans, (n, d).",
        ),
        Suspect(
            "fraction_of_coordinates",
            _then(lambda inside: inside.mean(-1)),
            "You return a fraction for each object: the mean over its coordinates.",
            "Which coordinates are missed is worth knowing; the fractions are their mean.",
            "Return the booleans, (n, d).",
        ),
        Suspect(
            "whole_object",
            _then(lambda inside: inside.all(-1)),
            "An object counts only if all of its coordinates are inside.",
            "With 33 latents hardly any would be, and `level` holds for each coordinate alone.",
            "Return (n, d), without `all`.",
        ),
        Suspect(
            "every_sample",
            in_numpy(lambda samples, truth, level: np.zeros(samples.shape, bool)),
            "You return a value for each sample.",
            "The question is one for each object and coordinate.",
            "Take the quantiles over axis 1, which removes it.",
        ),
    ),
)


SPECS = (_SAMPLE, _ELBO, _LOG_JOINT, _PREDICTIVE, _IMPORTANCE, _COVERED)
