"""Mock galaxy clusters: a seeded simulator whose likelihood p(features | mass) is known.

Each cluster has a mass M200c and a redshift. What a survey measures of it are four features:

====================  =====================================================  ==========
feature               meaning                                                unit
====================  =====================================================  ==========
``log_richness``      log10 of the number of members with M_r < -20 in R200  dex
``log_sigma``         log10 of the line-of-sight velocity dispersion         log10 km/s
``log_n``             log10 of the number of velocities behind the latter    dex
``z``                 redshift                                               1
====================  =====================================================  ==========

Physics, with its sources (`Relations` holds the numbers):

- dispersion: sigma = 1177 km/s [h(z) M200 / 1e15 Msun]^0.364, the galaxies of Munari et al.
  (2013, MNRAS 430, 2638, doi:10.1093/mnras/stt049);
- richness: N = 19 (M200 / 1e14 Msun)^0.92, the slope of Popesso et al. (2007, A&A 464, 451,
  doi:10.1051/0004-6361:20054708);
- both scatter log-normally at fixed mass, together, because a halo seen along its long axis
  looks richer and hotter (White, Cohn & Smit 2010, MNRAS 408, 1818,
  doi:10.1111/j.1365-2966.2010.17248.x); counting adds the Poisson variance 1/N to ln N, in the
  log-normal form of Saro et al. (2015, MNRAS 454, 2305, doi:10.1093/mnras/stv2141);
- the measured dispersion is the sample standard deviation of n Gaussian velocities;
- one system in five is two structures along the line of sight, taken for one: 1.65 times too
  rich and, being some 2.6 sigma apart in velocity, with a dispersion 1.65 times too large.
  9 of 57 groups have several peaks in velocity and too high a mass (Ribeiro, Lopes & Trevisan
  2011, MNRAS 413, L81, doi:10.1111/j.1745-3933.2011.01038.x).

The mass of two structures in line is that of the main one. Left out: velocity errors, selection,
miscentring, and that the sample deviation of a velocity distribution with two peaks scatters less
than that of a Gaussian (`draw_velocities` draws the two peaks). This module draws and evaluates;
it does not fit anything.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr, logsumexp

from dlcourse_utils import registry

LN10 = float(np.log(10.0))

# Planck 2018 (A&A 641, A6), as in the stored mass function.
HUBBLE, OMEGA_M = 0.6766, 0.3111

Z_MIN, Z_MAX = 0.02, 0.20
N_MIN, N_MAX = 5, 200  # velocities per cluster: fewer say nothing, fibres run out

# Training masses: flat in log10 M, with edges softened by a Gaussian so that the density is smooth.
TRAIN_LOW, TRAIN_HIGH, TRAIN_EDGE = 13.2, 15.2, 0.10
# Masses of the survey: the halo mass function above this mass.
SURVEY_LOW, SURVEY_HIGH = 13.5, 15.4


class Relations(NamedTuple):
    """Scaling relations at fixed mass; scatters are standard deviations of natural logarithms."""

    sigma_norm: float = 1177.0  # km/s at h(z) M200 = 1e15 Msun
    sigma_slope: float = 0.364
    sigma_scatter: float = 0.10
    richness_norm: float = 19.0  # galaxies at M200 = 1e14 Msun
    richness_slope: float = 0.92
    richness_scatter: float = 0.20
    correlation: float = 0.30
    superposed_fraction: float = 0.20
    superposed_sigma_boost: float = 0.50  # added to ln sigma
    superposed_sigma_scatter: float = 0.12
    superposed_richness_boost: float = 0.50  # added to ln richness
    superposed_richness_scatter: float = 0.20


RELATIONS = Relations()


class Clusters(NamedTuple):
    """A catalogue of n mock clusters.

    ``log_mass`` (n,) is log10 M200c in Msun, ``features`` (n, 4) has the columns of the table
    above, ``superposed`` (n,) says which are two structures in one line of sight (no survey knows).
    """

    log_mass: jax.Array
    features: jax.Array
    superposed: jax.Array


def hubble_rate(z: jax.Array) -> jax.Array:
    """H(z) / (100 km/s/Mpc) in flat LambdaCDM, Planck 2018; z of any shape."""
    return HUBBLE * jnp.sqrt(OMEGA_M * (1.0 + z) ** 3 + 1.0 - OMEGA_M)


# --- masses ---------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=1)
def sample_training_mass(key: jax.Array, n: int) -> jax.Array:
    """Draw n values of log10 M200c from the training prior; see `log_training_prior`."""
    flat_key, edge_key = jax.random.split(key)
    flat = jax.random.uniform(flat_key, (n,), minval=TRAIN_LOW, maxval=TRAIN_HIGH)
    return flat + TRAIN_EDGE * jax.random.normal(edge_key, (n,))


@jax.jit
def log_training_prior(log_mass: jax.Array) -> jax.Array:
    """Log density, per dex, of the training masses: flat from 13.2 to 15.2, edges 0.1 dex soft.

    The same shape as ``log_mass`` (log10 M200c in Msun).
    """
    # The difference of two normal probabilities, mirrored so that both are small in the tails.
    distance = jnp.abs(log_mass - 0.5 * (TRAIN_LOW + TRAIN_HIGH))
    half = 0.5 * (TRAIN_HIGH - TRAIN_LOW)
    larger = log_ndtr((half - distance) / TRAIN_EDGE)
    smaller = log_ndtr((-half - distance) / TRAIN_EDGE)
    return larger + jnp.log1p(-jnp.exp(smaller - larger)) - jnp.log(TRAIN_HIGH - TRAIN_LOW)


class MassFunction(NamedTuple):
    """Densities of log10 M200c at a set of redshifts, each normalised over the survey's masses."""

    log_mass: np.ndarray  # (m,)
    z: np.ndarray  # (k,)
    density: np.ndarray  # (k, m), per dex


@lru_cache(maxsize=1)
def mass_function() -> MassFunction:
    """The halo mass function of Tinker et al. (2008, ApJ 688, 709, doi:10.1086/591439).

    Read from ``mass_function.npz``, cut to the survey's masses and normalised at each redshift.
    """
    with np.load(registry.path("mass_function.npz"), allow_pickle=False) as stored:
        grid, z, dndlogm = stored["log_mass"], stored["z"], stored["dndlog10m"]
    fine = np.linspace(SURVEY_LOW, SURVEY_HIGH, 1901)
    density = np.stack([np.exp(np.interp(fine, grid, np.log(row))) for row in dndlogm])
    density /= np.trapezoid(density, fine, axis=1)[:, None]
    return MassFunction(fine, z, density)


def log_mass_function(log_mass: jax.Array, z: jax.Array) -> jax.Array:
    """Log density, per dex, of log10 M200c at redshift z among haloes of the survey.

    ``log_mass`` and ``z`` broadcast together. Linear in z between the stored redshifts; minus
    infinity outside 13.5 to 15.4.
    """
    table = mass_function()
    return _log_interpolated(log_mass, z, table.z, jnp.asarray(table.density, dtype=jnp.float32))


@jax.jit
def _log_interpolated(log_mass, z, z_nodes, density):
    log_mass, z = jnp.broadcast_arrays(log_mass, z)
    step = z_nodes[1] - z_nodes[0]
    position = jnp.clip((z - z_nodes[0]) / step, 0.0, len(z_nodes) - 1.0)
    column = jnp.clip(
        (log_mass - SURVEY_LOW) / (SURVEY_HIGH - SURVEY_LOW) * (density.shape[1] - 1),
        0.0,
        density.shape[1] - 1.0,
    )
    density = jax.scipy.ndimage.map_coordinates(
        density, [position, column], order=1, mode="nearest"
    )
    inside = (log_mass >= SURVEY_LOW) & (log_mass <= SURVEY_HIGH)
    return jnp.where(inside, jnp.log(density), -jnp.inf)


def sample_survey_mass(key: jax.Array, z: jax.Array) -> jax.Array:
    """Draw log10 M200c from the mass function at each redshift; z and the result are (n,)."""
    table = mass_function()
    cdf = np.concatenate(
        [
            np.zeros((len(table.z), 1)),
            np.cumsum(
                0.5 * (table.density[:, 1:] + table.density[:, :-1]) * np.diff(table.log_mass),
                axis=1,
            ),
        ],
        axis=1,
    )
    levels = jnp.asarray(cdf / cdf[:, -1:], dtype=jnp.float32)
    return _invert(key, z, table.z, levels, jnp.asarray(table.log_mass, dtype=jnp.float32))


@jax.jit
def _invert(key, z, z_nodes, levels, fine):
    node_key, mass_key = jax.random.split(key)
    position = (z - z_nodes[0]) / (z_nodes[1] - z_nodes[0])
    # Linear interpolation between two densities is a mixture of them: pick one at random.
    node = jnp.floor(position + jax.random.uniform(node_key, z.shape)).astype(jnp.int32)
    node = jnp.clip(node, 0, len(z_nodes) - 1)
    u = jax.random.uniform(mass_key, z.shape)
    draws = jax.vmap(lambda row: jnp.interp(u, row, fine))(levels)
    return jnp.take_along_axis(draws, node[None, :], axis=0)[0]


# --- what is seen of a cluster ---------------------------------------------------------------


class _Gaussian(NamedTuple):
    """Mean and covariance of (ln richness, ln true dispersion) at fixed mass, for one kind."""

    richness_mean: jax.Array
    richness_var: jax.Array
    sigma_mean: jax.Array
    sigma_var: jax.Array
    cov: jax.Array


def _given_mass(log_mass, z, superposed, relations: Relations) -> _Gaussian:
    r = relations
    richness_mean = jnp.log(r.richness_norm) + r.richness_slope * LN10 * (log_mass - 14.0)
    sigma_mean = jnp.log(r.sigma_norm) + r.sigma_slope * (
        jnp.log(hubble_rate(z)) + LN10 * (log_mass - 15.0)
    )
    richness_mean += jnp.where(superposed, r.superposed_richness_boost, 0.0)
    sigma_mean += jnp.where(superposed, r.superposed_sigma_boost, 0.0)
    richness_scatter = jnp.where(superposed, r.superposed_richness_scatter, r.richness_scatter)
    sigma_scatter = jnp.where(superposed, r.superposed_sigma_scatter, r.sigma_scatter)
    return _Gaussian(
        richness_mean,
        richness_scatter**2 + jnp.exp(-richness_mean),  # intrinsic and counting
        sigma_mean,
        sigma_scatter**2,
        r.correlation * richness_scatter * sigma_scatter,
    )


# Clusters are drawn in blocks of this size, so that one compiled function serves every n.
_BLOCK = 20_000


def _chi_squared(key, freedom):
    """Chi-squared variables (n,) of whole degrees of freedom up to N_MAX.

    Half as many exponentials, and a squared normal for an odd number: a general gamma sampler
    takes longer to compile than these take to draw.
    """
    pair_key, odd_key = jax.random.split(key)
    pairs = jnp.floor(0.5 * freedom)
    exponentials = jax.random.exponential(pair_key, (*freedom.shape, N_MAX // 2))
    used = jnp.arange(N_MAX // 2)[None, :] < pairs[:, None]
    odd = freedom - 2.0 * pairs
    return 2.0 * jnp.sum(exponentials * used, axis=1) + odd * (
        jax.random.normal(odd_key, freedom.shape) ** 2
    )


@jax.jit
def _draw(key, index, log_mass, z, relations):
    """What is seen of a block of clusters: features (_BLOCK, 4) and superposed (_BLOCK,)."""
    keys = jax.random.split(jax.random.fold_in(key, index), 5)
    kind_key, richness_key, sigma_key, depth_key, chi_key = keys
    shape = log_mass.shape
    superposed = jax.random.bernoulli(kind_key, relations.superposed_fraction, shape)
    law = _given_mass(log_mass, z, superposed, relations)
    ln_richness = law.richness_mean + jnp.sqrt(law.richness_var) * jax.random.normal(
        richness_key, shape
    )
    slope = law.cov / law.richness_var
    ln_sigma = (
        law.sigma_mean
        + slope * (ln_richness - law.richness_mean)
        + jnp.sqrt(law.sigma_var - slope * law.cov) * jax.random.normal(sigma_key, shape)
    )
    # How many velocities: the survey's depth times what it saw, so n says nothing more on mass.
    depth = jnp.exp(jax.random.uniform(depth_key, shape, minval=jnp.log(0.3), maxval=jnp.log(3.0)))
    velocities = jnp.clip(N_MIN + jnp.floor(depth * jnp.exp(ln_richness)), N_MIN, N_MAX)
    chi2 = _chi_squared(chi_key, velocities - 1.0)  # sample variance of Gaussian velocities
    ln_measured = ln_sigma + 0.5 * jnp.log(chi2 / (velocities - 1.0))
    features = jnp.stack(
        [ln_richness / LN10, ln_measured / LN10, jnp.log10(velocities), z], axis=-1
    )
    return features, superposed


def simulate(
    key: jax.Array,
    n: int,
    *,
    survey: bool = False,
    log_mass: jax.Array | None = None,
    relations: Relations = RELATIONS,
) -> Clusters:
    """Draw n mock clusters.

    Masses come from the training prior (`log_training_prior`), with ``survey=True`` from the halo
    mass function (`log_mass_function`), or are given: ``log_mass`` (n,), log10 M200c in Msun.
    Redshifts are uniform in 0.02 to 0.20. Not for use under jit or vmap. Raises ValueError if the
    masses are not n.
    """
    z_key, mass_key, draw_key = jax.random.split(key, 3)
    z = jax.random.uniform(z_key, (n,), minval=Z_MIN, maxval=Z_MAX)
    if log_mass is None:
        log_mass = sample_survey_mass(mass_key, z) if survey else sample_training_mass(mass_key, n)
    if log_mass.shape != (n,):
        raise ValueError(f"Expected {n} masses in one dimension, got shape {log_mass.shape}.")
    # NumPy cuts and joins: XLA would compile both anew for every n.
    blocks = -(-n // _BLOCK)
    padding = (0, blocks * _BLOCK - n)
    masses = np.split(np.pad(log_mass, padding, mode="edge"), blocks)
    redshifts = np.split(np.pad(z, padding, mode="edge"), blocks)
    parts = [
        _draw(draw_key, np.uint32(index), block_mass, block_z, relations)
        for index, (block_mass, block_z) in enumerate(zip(masses, redshifts, strict=True))
    ]
    features, superposed = (
        jnp.asarray(np.concatenate(columns)[:n]) for columns in zip(*parts, strict=True)
    )
    return Clusters(log_mass, features, superposed)


# --- the likelihood --------------------------------------------------------------------------

# Nodes and weights for an integral over a normal law, centred on the integrand below.
_NODES, _WEIGHTS = (x.astype(np.float32) for x in np.polynomial.hermite_e.hermegauss(7))
_LOG_WEIGHTS = np.log(_WEIGHTS) - np.float32(0.5 * np.log(2.0 * np.pi))


def _log_normal(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var + jnp.log(2.0 * jnp.pi * var))


def _log_likelihood_kind(features, log_mass, superposed, relations):
    """Log p(ln richness, ln measured dispersion | mass, kind, n, z)."""
    ln_richness, ln_measured = LN10 * features[..., 0], LN10 * features[..., 1]
    freedom = 10.0 ** features[..., 2] - 1.0
    law = _given_mass(log_mass, features[..., 3], superposed, relations)
    slope = law.cov / law.richness_var
    mean = law.sigma_mean + slope * (ln_richness - law.richness_mean)
    var = law.sigma_var - slope * law.cov
    # The true dispersion is unknown: integrate it out. Gauss-Hermite nodes sit on the Gaussian
    # closest to (normal law of ln sigma) x (law of the measured one), so that seven suffice.
    centre_var = 1.0 / (1.0 / var + 2.0 * freedom)
    centre = centre_var * (mean / var + 2.0 * freedom * ln_measured)
    log_chi_norm = (
        jnp.log(2.0) + 0.5 * freedom * (jnp.log(0.5 * freedom) - 1.0) - gammaln(0.5 * freedom)
    )
    nodes = _NODES.reshape((1,) * centre.ndim + (-1,))
    ln_sigma = centre[..., None] + jnp.sqrt(centre_var)[..., None] * nodes
    d = ln_measured[..., None] - ln_sigma
    # (f/2)(1 + 2d - e^2d) without cancellation: the logarithm of the scaled chi density.
    log_chi = 0.5 * freedom[..., None] * (2.0 * d - jnp.expm1(2.0 * d))
    log_ratio = -0.5 * ((ln_sigma - mean[..., None]) ** 2 / var[..., None] - nodes**2)
    log_sigma_part = (
        logsumexp(_LOG_WEIGHTS.reshape(nodes.shape) + log_chi + log_ratio, axis=-1)
        + log_chi_norm
        + 0.5 * jnp.log(centre_var / var)
    )
    return _log_normal(ln_richness, law.richness_mean, law.richness_var) + log_sigma_part


def log_likelihood(
    features: jax.Array, log_mass: jax.Array, relations: Relations = RELATIONS
) -> jax.Array:
    """Log p(log_richness, log_sigma | log_mass, log_n, z), per dex squared.

    ``features`` is (..., 4) with the columns of the table above; ``log_mass`` broadcasts with its
    leading axes. ``log_n`` depends on the mass only through the richness: it needs no factor.
    """
    single = _log_likelihood_kind(features, log_mass, False, relations)
    double = _log_likelihood_kind(features, log_mass, True, relations)
    fraction = relations.superposed_fraction
    return jnp.logaddexp(jnp.log1p(-fraction) + single, jnp.log(fraction) + double) + 2.0 * jnp.log(
        LN10
    )


# --- members ---------------------------------------------------------------------------------


def draw_velocities(key: jax.Array, sample: Clusters, index: int) -> jax.Array:
    """Draw the line-of-sight velocities of one cluster's members, in km/s around their mean.

    There are as many as ``log_n`` says, and their sample standard deviation is the measured one.
    One structure is Gaussian, which given its sample deviation is exact; two in line are two equal
    Gaussians 2.6 of their standard deviations apart.
    """
    n = round(float(10.0 ** sample.features[index, 2]))
    peak = jnp.where(jnp.arange(n) % 2 == 0, 1.3, -1.3) * sample.superposed[index]
    velocity = jax.random.normal(key, (n,)) + peak
    velocity -= velocity.mean()
    return velocity / jnp.std(velocity, ddof=1) * 10.0 ** sample.features[index, 1]
