"""Two moons: the toy density of scikit-learn's ``make_moons``, with its exact log density.

A point sits on the outer arc (cos t, sin t) or on the inner one (1 - cos t, 1/2 - sin t), each with
probability 1/2; t is uniform between 0 and pi (``make_moons`` spaces it evenly); Gaussian noise is
added to both coordinates. Coordinates have no unit, densities are per unit area, logarithms are in
nats. A half turn about (1/2, 1/4) swaps the arcs and leaves the density as it is.

The density is an integral of Gaussians along the arcs. Gauss-Legendre nodes turn it into a sum, and
with it all that follows: the entropy, the law given a noisy observation, its mean and its mode.
The nodes are dense enough for a noise of at least `MIN_NOISE`. Nothing here is fitted.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

NOISE = 0.05
MIN_NOISE = 0.03

# Nodes are at most pi^2 / (2 * 160) = 0.031 apart along the arc. An integrand as narrow as 0.0276,
# the narrowest at noise 0.03 and 6 noise off the arc, is summed to 2 exp(-2 pi^2 0.89^2) = 3e-7.
_ROOTS, _ROOT_WEIGHTS = np.polynomial.legendre.leggauss(160)
_ANGLES = 0.5 * np.pi * (_ROOTS + 1.0)
_OUTER = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_FAR_CORNER = np.array([1.0, 0.5])  # a half turn takes x to _FAR_CORNER - x
_CENTRES = np.concatenate([_OUTER, _FAR_CORNER - _OUTER])
_LOG_WEIGHTS = np.log(0.25 * np.concatenate([_ROOT_WEIGHTS, _ROOT_WEIGHTS]))  # they sum to 1

# Points are handled in blocks, so that (points, nodes) arrays stay small.
_BLOCK = 1024


def _check_noise(noise, least: float = 0.0, name: str = "noise") -> None:
    """Inside jit there is nothing to look at."""
    if isinstance(noise, jax.core.Tracer):
        return
    smallest = float(np.min(noise))
    if not (smallest > 0.0 and smallest >= least * (1.0 - 1e-6)):  # single precision rounds
        wanted = f"at least {least}" if least else "positive"
        raise ValueError(f"{name} must be {wanted}, got {smallest}: it is a standard deviation.")


def _as_points(x, name: str = "x") -> jax.Array:
    x = jnp.asarray(x, dtype=jnp.float32)
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ValueError(f"{name} must have shape (..., 2), got {x.shape}: points in the plane.")
    return x


@partial(jax.jit, static_argnums=1)
def _simulate(key, n, noise):
    arc_key, angle_key, noise_key = jax.random.split(key, 3)
    angle = jax.random.uniform(angle_key, (n,), maxval=jnp.pi)
    outer = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    inner = jnp.asarray(_FAR_CORNER, dtype=jnp.float32)[None, :] - outer
    on_outer = jax.random.bernoulli(arc_key, 0.5, (n, 1))
    return jnp.where(on_outer, outer, inner) + noise * jax.random.normal(noise_key, (n, 2))


def simulate(key: jax.Array, n: int, noise: float = NOISE) -> jax.Array:
    """Draw n points; (n, 2).

    ``noise`` is the standard deviation of each coordinate about the arc. Raises ValueError unless
    it is positive.
    """
    _check_noise(noise)
    return _simulate(key, n, noise)


# --- the density -----------------------------------------------------------------------------


def _node_terms(point, variance, centres):
    """What each node adds to the density of one point (d,), as logarithms, and its offset.

    (m,) and (d, m) for ``centres`` (m, d); the factor of the Gaussian before its exponential is
    left out.
    """
    offset = jnp.asarray(centres.T, dtype=jnp.float32) - point[:, None]
    log_weights = jnp.asarray(_LOG_WEIGHTS, dtype=jnp.float32)
    return log_weights - 0.5 * jnp.sum(offset**2, axis=0) / variance, offset


def _in_blocks(function, points):
    """``function`` of every point of (..., d), remembering nothing for the gradient."""
    flat = points.reshape(-1, points.shape[-1])
    values = jax.lax.map(jax.checkpoint(function), flat, batch_size=min(_BLOCK, max(len(flat), 1)))
    return values.reshape(*points.shape[:-1], *values.shape[1:])


def _log_mixture(points, variance, centres):
    """Log density of (..., d) under Gaussians about the nodes; (...)."""

    def one(point):
        return logsumexp(_node_terms(point, variance, centres)[0])

    d = centres.shape[1]
    return _in_blocks(one, points) - 0.5 * d * jnp.log(2.0 * jnp.pi * variance)


@jax.jit
def _log_prob(x, noise):
    return _log_mixture(x, noise**2, _CENTRES)


def log_prob(x: jax.Array, noise: float = NOISE) -> jax.Array:
    """Exact log density of x (..., 2); (...), in nats.

    Within 6 ``noise`` of an arc the error is below 1e-5 nats, single precision included; far away
    it is below 1e-3 of the value. Raises ValueError if the last axis of x is not 2, or if ``noise``
    is below `MIN_NOISE`.
    """
    _check_noise(noise, MIN_NOISE)
    return _log_prob(_as_points(x), noise)


@jax.jit
def _score(x, noise):
    variance = jnp.broadcast_to(noise**2, (*x.shape[:-1], 1))

    def one(point):
        terms, offset = _node_terms(point[:2], point[2], _CENTRES)
        return jnp.sum(jax.nn.softmax(terms)[None, :] * offset, axis=1) / point[2]

    return _in_blocks(one, jnp.concatenate([x, variance], axis=-1))


def score(x: jax.Array, noise: float | jax.Array = NOISE) -> jax.Array:
    """Exact score, the gradient of `log_prob` with respect to x (..., 2); (..., 2).

    ``noise`` is one number, or a column (..., 1) with the noise of each point. Moons blurred by
    more Gaussian noise sigma are moons again, of noise sqrt(`NOISE`^2 + sigma^2). Raises ValueError
    as `log_prob` does.
    """
    _check_noise(noise, MIN_NOISE)
    return _score(_as_points(x), jnp.asarray(noise, jnp.float32))


def entropy(noise: float = NOISE) -> float:
    """Differential entropy, the mean of -log_prob over its own points, in nats.

    By quadrature in double precision: along the outer arc (the inner one has the same share),
    across and along it. Raises ValueError if ``noise`` is below `MIN_NOISE`.
    """
    _check_noise(noise, MIN_NOISE)
    # Across the arc -log p is nearly quadratic; along it, past the ends, it is not.
    across, across_weights = np.polynomial.hermite_e.hermegauss(12)
    along, along_weights = np.polynomial.hermite_e.hermegauss(24)
    tangent = _OUTER[:, ::-1] * np.array([-1.0, 1.0])
    weights = 0.5 * _ROOT_WEIGHTS[:, None] * along_weights / (2.0 * np.pi)
    total = 0.0
    for step, weight in zip(across, across_weights, strict=True):
        start = (1.0 + noise * step) * _OUTER
        x = start[:, None, :] + noise * along[:, None] * tangent[:, None, :]
        square = sum((x[..., i, None] - _CENTRES[:, i]) ** 2 for i in (0, 1))
        # No peak to subtract: an arc is less than 10 noise away, and exp(-0.5 * 10^2) is 2e-22.
        density = np.exp(_LOG_WEIGHTS - 0.5 * square / noise**2).sum(axis=-1)
        total -= weight * np.sum(weights * np.log(density))
    return float(total + np.log(2.0 * np.pi * noise**2))


# --- the arcs --------------------------------------------------------------------------------


def _norm(x):
    """Length of (..., 2), with gradient 0 instead of nan at the origin."""
    square = jnp.sum(x**2, axis=-1)
    return jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0)


def _distance_to_outer(x):
    end = jnp.stack([jnp.abs(x[..., 0]) - 1.0, x[..., 1]], axis=-1)
    return jnp.where(x[..., 1] >= 0.0, jnp.abs(_norm(x) - 1.0), _norm(end))


@jax.jit
def _distance(x):
    turned = jnp.stack([1.0 - x[..., 0], 0.5 - x[..., 1]], axis=-1)
    return jnp.stack([_distance_to_outer(x), _distance_to_outer(turned)], axis=-1)


def distance(x: jax.Array) -> jax.Array:
    """Distance of x (..., 2) from the outer and from the inner arc, ends included; (..., 2).

    Raises ValueError if the last axis of x is not 2.
    """
    return _distance(_as_points(x))


# --- given an observation --------------------------------------------------------------------


@jax.jit
def _log_prob_given_first(x, y, obs_noise, noise):
    evidence = _log_mixture(y[..., None], noise**2 + obs_noise**2, _CENTRES[:, :1])
    y, evidence = (jnp.broadcast_to(a, x.shape[:-1]) for a in (y, evidence))
    log_likelihood = -0.5 * ((y - x[..., 0]) / obs_noise) ** 2
    log_likelihood -= 0.5 * jnp.log(2.0 * jnp.pi * obs_noise**2)
    return _log_prob(x, noise) + log_likelihood - evidence


def log_prob_given_first(
    x: jax.Array, y: jax.Array, obs_noise: float, noise: float = NOISE
) -> jax.Array:
    """Exact log density of x (..., 2) given y, its first coordinate seen with noise; (...), nats.

    y, with a shape that broadcasts to (...), is x[..., 0] plus Gaussian noise of standard deviation
    ``obs_noise``. Raises ValueError for a wrong last axis of x, a ``noise`` below `MIN_NOISE` and
    an ``obs_noise`` that is not positive.
    """
    _check_noise(noise, MIN_NOISE)
    _check_noise(obs_noise, name="obs_noise")
    return _log_prob_given_first(_as_points(x), jnp.asarray(y, jnp.float32), obs_noise, noise)


@jax.jit
def _score_given_first(x, sigma, y, obs_noise, noise):
    first = jnp.asarray(_CENTRES[:, 0], dtype=jnp.float32)
    # Under each node x is Gaussian, and stays so given y: the node gets another weight, the first
    # coordinate another mean and variance.
    total = noise**2 + obs_noise**2
    log_weights = jnp.asarray(_LOG_WEIGHTS, jnp.float32) - 0.5 * (y - first) ** 2 / total
    mean = first + noise**2 / total * (y - first)
    centres = jnp.stack([mean, jnp.asarray(_CENTRES[:, 1], dtype=jnp.float32)])
    own = jnp.stack([noise**2 * obs_noise**2 / total, noise**2])
    blur = jnp.broadcast_to(sigma**2, (*x.shape[:-1], 1))

    def one(point):
        variance = own[:, None] + point[2]
        offset = centres - point[:2, None]
        terms = log_weights - 0.5 * jnp.sum(offset**2 / variance, axis=0)
        return jnp.sum(jax.nn.softmax(terms)[None, :] * offset / variance, axis=1)

    return _in_blocks(one, jnp.concatenate([x, blur], axis=-1))


def score_given_first(
    x: jax.Array, sigma: float | jax.Array, y: float, obs_noise: float, noise: float = NOISE
) -> jax.Array:
    """Exact score of points with the law of `log_prob_given_first`, blurred by ``sigma``; (..., 2).

    The gradient with respect to x (..., 2) of the log density of x_0 + sigma * eps, where x_0 is a
    point given one y, its first coordinate seen with ``obs_noise``. ``sigma`` is one number >= 0 or
    a column (..., 1). Raises ValueError as `log_prob_given_first` does, and for a negative sigma.
    """
    _check_noise(noise, MIN_NOISE)
    _check_noise(obs_noise, name="obs_noise")
    if not isinstance(sigma, jax.core.Tracer) and not float(np.min(sigma)) >= 0.0:
        raise ValueError(f"sigma must not be negative, got {float(np.min(sigma))}.")
    sigma = jnp.asarray(sigma, jnp.float32)
    return _score_given_first(_as_points(x), sigma, jnp.float32(y), obs_noise, noise)


@jax.jit
def _posterior_mean(y, obs_noise, noise):
    variance = noise**2 + obs_noise**2

    def one(point):
        terms, offset = _node_terms(point, variance, _CENTRES)
        # Given the node, x is between it and y, at the mean weighted with the precisions.
        shift = jnp.sum(jax.nn.softmax(terms)[None, :] * offset, axis=1)
        return point + obs_noise**2 / variance * shift

    return _in_blocks(one, y)


def posterior_mean(y: jax.Array, obs_noise: float, noise: float = NOISE) -> jax.Array:
    """Exact mean of the point behind y (..., 2), seen with Gaussian noise; (..., 2).

    ``obs_noise`` is the standard deviation of each coordinate of y about the point. Raises
    ValueError for a wrong last axis, a ``noise`` below `MIN_NOISE` and an ``obs_noise`` that is not
    positive.
    """
    _check_noise(noise, MIN_NOISE)
    _check_noise(obs_noise, name="obs_noise")
    return _posterior_mean(_as_points(y, "y"), obs_noise, noise)


_ITERATIONS = 15


def _starts(y, obs_noise, noise):
    """Where a maximum may be: y, and between y and the foot and ends of each arc; (7, 2)."""
    corner = jnp.asarray(_FAR_CORNER, dtype=jnp.float32)

    def on_outer(x):
        radius = _norm(x)
        foot = jnp.where(radius > 0.0, x / jnp.where(radius > 0.0, radius, 1.0), jnp.array([0, 1]))
        return jnp.stack([foot.at[1].set(jnp.abs(foot[1])), *jnp.array([[1.0, 0.0], [-1.0, 0.0]])])

    arcs = jnp.concatenate([on_outer(y), corner[None, :] - on_outer(corner - y)])
    weight = obs_noise**2 / (noise**2 + obs_noise**2)
    return jnp.concatenate([y[None, :], y[None, :] + weight * (arcs - y[None, :])])


@jax.jit
def _posterior_mode(y, obs_noise, noise):
    precision, obs_precision = noise**-2.0, obs_noise**-2.0

    def expand(x, y):
        """Log posterior but for a constant, its gradient, and minus its second derivatives."""
        terms, offset = _node_terms(x, noise**2, _CENTRES)
        total = logsumexp(terms)
        p, (dx, dy) = jnp.exp(terms - total), offset
        mean = jnp.stack([jnp.sum(p * dx), jnp.sum(p * dy)])
        dx, dy = dx - mean[0], dy - mean[1]
        xx, xy, yy = jnp.sum(p * dx * dx), jnp.sum(p * dx * dy), jnp.sum(p * dy * dy)
        cov = jnp.stack([jnp.stack([xx, xy]), jnp.stack([xy, yy])])
        value = total - 0.5 * obs_precision * jnp.sum((y - x) ** 2)
        gradient = precision * mean + obs_precision * (y - x)
        return value, gradient, (precision + obs_precision) * jnp.eye(2) - precision**2 * cov

    def ascend(start, y):
        """Newton steps, shortened where the surface is not a hill or the step leads down."""

        def step(_, state):
            x, damping, (value, gradient, curvature) = state
            a, b, c = curvature[0, 0], curvature[0, 1], curvature[1, 1]
            lowest = 0.5 * (a + c) - jnp.sqrt(0.25 * (a - c) ** 2 + b**2)
            shift = precision * damping + jnp.maximum(0.0, 1e-3 * precision - lowest)
            a, c = a + shift, c + shift
            move = jnp.stack([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
            tried = x + move / (a * c - b**2)
            found = expand(tried, y)
            # Close to the top the gain is below the rounding of the values: trust the step.
            better = found[0] >= value - 1e-6 * (1.0 + jnp.abs(value))
            state = (tried, 0.1 * damping, found), (x, 10.0 * damping + 1e-3, state[2])
            return jax.tree.map(partial(jnp.where, better), *state)

        begin = (start, jnp.float32(1e-3), expand(start, y))
        x, _, (value, _, _) = jax.lax.fori_loop(0, _ITERATIONS, step, begin)
        return x, value

    def one(point):
        starts = _starts(point, obs_noise, noise)
        x, value = jax.vmap(ascend, in_axes=(0, None))(starts, point)
        return x[jnp.argmax(value)]

    return _in_blocks(one, y)


def posterior_mode(y: jax.Array, obs_noise: float, noise: float = NOISE) -> jax.Array:
    """The most probable point behind y (..., 2), seen with Gaussian noise; (..., 2).

    The highest maximum of log_prob(x) - |y - x|^2 / (2 obs_noise^2) over x, to 1e-3, by Newton's
    method from several starts; ``obs_noise`` is the standard deviation of each coordinate of y
    about the point. Raises ValueError as `posterior_mean` does.
    """
    _check_noise(noise, MIN_NOISE)
    _check_noise(obs_noise, name="obs_noise")
    return _posterior_mode(_as_points(y, "y"), obs_noise, noise)
