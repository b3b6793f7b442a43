"""Make data/galaxy_posteriors.npz: posteriors of eight observations of galaxies, by long chains.

    python scripts/make_galaxy_posteriors.py

needs BlackJAX (Cabezas et al. 2024, arXiv:2402.10797) and arviz-stats, and takes some ten minutes
on two cores. The galaxies are drawn from the prior of `dlcourse_utils.galaxy_prior`, behind the
telescope of `dlcourse_utils.telescope`; the file's arrays are those of
`dlcourse_utils.galaxy_posteriors.References`, and ``provenance``, a text.

The sampler is Hamiltonian Monte Carlo (Neal 2011, arXiv:1206.1901) in coordinates in which the
posterior is about as wide in all directions: first by the Laplace approximation, then twice by the
covariance of all chains. They are whitened latents z for bright galaxies, whose likelihood is
nearly Gaussian in z and bent by the flow in u, and whitened u for faint ones, whose posterior is
close to the prior. Chains start around every end of a descent that is not far below the best mode.
The sha256 printed at the end belongs in data/registry.toml.
"""

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import galaxy_posteriors, galaxy_prior, photometry, telescope
from dlcourse_utils.galaxy_posteriors import CHAINS, DRAWS, minus_log_posterior

OUTPUT = Path(__file__).resolve().parents[1] / "data" / "galaxy_posteriors.npz"
SEED, DRAWN = 7, 256  # of the galaxies, and how many there are to choose from
SHALLOW, DEEP = 3.0 * telescope.NOISE, telescope.NOISE  # nJy
MASK = np.s_[12:18, 11:17]  # rows and columns of the survey's pixels
STARTS = 8  # descents per observation
NEAR = 8.0  # nats: where chains start, in units of minus log posterior above the best mode
WARM_UP = (40, 60, 30)  # iterations: the coordinates are renewed after the first and second
TARGET = 0.8  # acceptance
PROVENANCE = (
    "Posteriors of galaxies of dlcourse_utils.galaxy_prior behind the telescope of "
    "dlcourse_utils.telescope, sampled with BlackJAX's HMC (Cabezas et al. 2024, arXiv:2402.10797) "
    f"by scripts/make_galaxy_posteriors.py, seed {SEED}."
)


class Group(NamedTuple):
    """Rows of observations that are sampled together, in z or u, and for how long."""

    rows: tuple[int, ...]
    in_z: bool
    leapfrogs: int
    iterations: int


# Bright galaxies, those that take longer, and faint ones. Number 4 is bright, but in z its
# posterior has stiff corners, where chains are caught for a while.
GROUPS = (
    Group((0, 7), True, 10, 960),
    Group((1, 6), True, 25, 800),
    Group((2, 3, 5), False, 15, 800),
    Group((4,), False, 40, 800),
)


class Observations(NamedTuple):
    """Eight of them: ``names`` (8,), ``magnitude`` (8,), ``truth`` (8, 33) in u, ``y`` and
    ``variance`` (8, 21, 21)."""

    names: np.ndarray
    magnitude: np.ndarray
    truth: np.ndarray
    y: np.ndarray
    variance: np.ndarray


def observations(prior: galaxy_prior.GalaxyPrior, operator: jax.Array) -> Observations:
    """Six galaxies of magnitude 21 to 23.3, and the first of them again, deeper and with a mask.

    The first is the first drawn of magnitude 21.5 to 22.2, half-light radius above 0.4 arcsec and
    ellipticity above 0.2; the others are the first of the rest.
    """
    key = jax.random.key(SEED)
    u, y = galaxy_posteriors.draw(key, DRAWN, prior, operator, SHALLOW)
    _, deep = galaxy_posteriors.draw(key, DRAWN, prior, operator, DEEP)
    images = jax.jit(lambda u, prior: prior.decode(prior.from_base(u)))(u, prior)
    seen = photometry.measure(images)
    extended = (seen.half_light_radius > 0.4) & (seen.ellipticity > 0.2)
    first = np.flatnonzero(extended & (seen.magnitude > 21.5) & (seen.magnitude < 22.2))[0]
    rest = np.flatnonzero((seen.magnitude > 21.0) & (seen.magnitude < 23.3))
    rows = np.array([first, *rest[rest != first][:5], first, first])
    y = np.concatenate([y[rows[:6]], deep[rows[6:7]], y[rows[7:]]])
    variance = np.full(y.shape, SHALLOW**2, np.float32)
    variance[6] = DEEP**2
    variance[7][MASK], y[7][MASK] = np.inf, 0.0
    names = np.array([f"galaxy {i}" for i in range(6)] + ["deep", "masked"])
    return Observations(names, seen.magnitude[rows], u[rows], y, variance)


# --- coordinates -------------------------------------------------------------------------------


def log_density(e, centre, factor, y, variance, operator, prior, in_z):
    """Log posterior (), up to a constant, of e (33,): centre + factor e is z or u."""
    x = (centre + factor @ e)[None]
    if not in_z:
        return -minus_log_posterior(x, y[None], variance[None], operator, prior)[0]
    mean = telescope.apply(operator, prior.decode(x))[0]
    return prior.log_prob(x)[0] - 0.5 * jnp.sum((y - mean) ** 2 / variance)


@jax.jit
def slopes_of_z(u, prior):
    """dz/du (n, 33, 33) at u (n, 33)."""
    return jax.vmap(jax.jacfwd(lambda u: prior.from_base(u[None])[0]))(u)


@jax.jit
def latents(u, prior):
    return prior.from_base(u)


@jax.jit
def base(z, prior):
    return prior.to_base(z)[0]


# --- chains ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="in_z")
def begin(e, data, shared, in_z):
    """States of chains at e (n, 33), each with its own row of the arrays in ``data``."""
    import blackjax

    def one(e, *data):
        return blackjax.hmc.init(e, lambda e: log_density(e, *data, *shared, in_z))

    return jax.vmap(one)(e, *data)


@partial(jax.jit, static_argnames=("in_z", "leapfrogs"))
def advance(key, state, step_size, data, shared, in_z, leapfrogs):
    """The next states, the probability (n,) that each was accepted, and where they are (n, 33)."""
    import blackjax

    kernel = blackjax.hmc.build_kernel()

    def one(key, state, step_size, *data):
        for_step, for_kernel = jax.random.split(key)
        # Trajectories of one length could come back to where they began; and a chain where the
        # posterior is narrow needs a small step now and then to get away.
        step = step_size * jax.random.uniform(for_step, minval=0.5, maxval=1.3)
        state, info = kernel(
            for_kernel,
            state,
            lambda e: log_density(e, *data, *shared, in_z),
            step,
            jnp.ones(galaxy_prior.DIM),
            leapfrogs,
        )
        centre, factor = data[:2]
        return state, info.acceptance_rate, centre + factor @ state.position

    return jax.vmap(one)(jax.random.split(key, len(step_size)), state, step_size, *data)


def run(key, x, centre, factor, y, variance, shared, group, iterations, step_size, adapt):
    """Chains (iterations, n, CHAINS, 33) that begin at x (n, CHAINS, 33); the step size at their
    end and the acceptance, both (n, CHAINS)."""
    n = len(x)
    data = tuple(jnp.asarray(a, jnp.float32) for a in (centre, factor, y, variance))
    data = tuple(jnp.repeat(a, CHAINS, axis=0) for a in data)
    e = np.linalg.solve(factor, (x - centre[:, None]).transpose(0, 2, 1)).transpose(0, 2, 1)
    state = begin(jnp.asarray(e.reshape(n * CHAINS, -1), jnp.float32), data, shared, group.in_z)
    path, accepted = [], []
    for i in range(iterations):
        key, now = jax.random.split(key)
        steps = jnp.asarray(step_size.ravel(), jnp.float32)
        state, acceptance, x = advance(now, state, steps, data, shared, group.in_z, group.leapfrogs)
        path.append(np.asarray(x).reshape(n, CHAINS, -1))
        accepted.append(np.asarray(acceptance).reshape(n, CHAINS))
        if adapt:
            step_size = step_size * np.exp(0.4 / (1.0 + i / 10) * (accepted[-1] - TARGET))
    return np.stack(path), step_size, np.mean(accepted, axis=0)


def pooled(path):
    """Centres (n, 33) and Cholesky factors of the covariances of the later half of chains."""
    late = path[len(path) // 2 :].astype(float)
    late = late.transpose(1, 0, 2, 3).reshape(path.shape[1], -1, path.shape[-1])
    return late.mean(axis=1), np.linalg.cholesky(np.stack([np.cov(x.T) for x in late]))


def sample(seen: Observations, group: Group, operator, prior) -> dict[str, np.ndarray]:
    """Chains of n observations: u and z (iterations, n, CHAINS, 33), and how they ran."""
    in_z = group.in_z
    laplace = galaxy_posteriors.laplace(seen.y, seen.variance, operator, prior, starts=STARTS)
    value = jax.jit(minus_log_posterior)
    rng = np.random.default_rng(SEED)
    centre, factor = laplace.mode.astype(float), laplace.factor.astype(float)
    ends = laplace.ends
    if in_z:
        slopes = np.asarray(slopes_of_z(laplace.mode, prior), float)
        factor = np.linalg.cholesky(slopes @ factor @ np.swapaxes(slopes @ factor, 1, 2))
        centre = np.asarray(latents(laplace.mode, prior), float)
    start = []
    for i in range(len(seen.y)):
        y, variance = (a[i : i + 1].repeat(STARTS, axis=0) for a in (seen.y, seen.variance))
        height = np.asarray(value(ends[i], y, variance, operator, prior)) - laplace.value[i]
        print(seen.names[i], "ends above the mode:", np.sort(height).round(1), flush=True)
        near = ends[i][height < NEAR]
        near = np.asarray(latents(near, prior)) if in_z else near
        near = near[np.arange(CHAINS) % len(near)]
        start.append(near + 1.2 * rng.normal(size=near.shape) @ factor[i].T)
    x = np.stack(start)
    step_size = np.full(x.shape[:2], 0.1)
    shared = operator, prior
    for stage, iterations in enumerate((*WARM_UP, group.iterations)):
        began, last = time.time(), stage == len(WARM_UP)
        if last:  # each chain has found its own until now
            step_size = np.median(step_size, axis=1, keepdims=True).repeat(CHAINS, axis=1)
        path, step_size, acceptance = run(
            jax.random.key(100 * SEED + stage),
            *(x, centre, factor, seen.y, seen.variance, shared, group, iterations, step_size),
            adapt=not last,
        )
        x = path[-1]
        print(f"  stage {stage}: {time.time() - began:.0f} s; step sizes and least acceptance")
        print(
            "   ",
            np.median(step_size, axis=1).round(3),
            acceptance.min(axis=1).round(2),
            flush=True,
        )
        if stage < 2:
            centre, factor = pooled(path)
    flat = path.reshape(-1, path.shape[-1])
    other = np.asarray((base if in_z else latents)(flat, prior)).reshape(path.shape)
    u, z = (other, path) if in_z else (path, other)
    return {"u": u, "z": z, "step_size": step_size[:, 0], "acceptance": acceptance.mean(axis=1)}


def convergence(path):
    """Largest rank-normalised split R-hat and smallest bulk ESS of chains (draws, chains, k).

    Vehtari, Gelman, Simpson, Carpenter & Buerkner 2021, Bayesian Analysis 16, 667,
    doi:10.1214/20-BA1221.
    """
    from arviz_stats.base import array_stats

    x = path.astype(float).transpose(2, 1, 0)
    return np.max(array_stats.rhat(x)), np.min(array_stats.ess(x))


def main() -> None:
    began = time.time()
    prior = galaxy_prior.load()
    operator = telescope.operator(telescope.difference_kernel(telescope.moffat()))
    seen = observations(prior, operator)
    print("magnitudes", seen.magnitude.round(2))
    count, found = len(seen.names), {}
    for group in GROUPS:
        rows, thin = list(group.rows), group.iterations // DRAWS
        part = sample(Observations(*(a[rows] for a in seen)), group, operator, prior)
        both = np.concatenate([part["u"], part["z"]], axis=-1)
        figures = np.array([convergence(both[:, i]) for i in range(len(rows))])
        part |= {
            "r_hat": figures[:, 0],
            "ess": figures[:, 1],
            "in_z": np.full(len(rows), group.in_z),
        }
        part["leapfrogs"] = np.full(len(rows), group.leapfrogs)
        part["iterations"] = np.full(len(rows), group.iterations)
        for name in ("u", "z"):
            path = part[name].astype(float)
            part[f"{name}_mean"], part[f"{name}_std"] = (
                path.mean(axis=(0, 2)),
                path.std(axis=(0, 2)),
            )
        thinned = part.pop("u")[thin - 1 :: thin].transpose(1, 2, 0, 3)
        part["samples"] = thinned.reshape(len(rows), -1, galaxy_prior.DIM)
        del part["z"]
        for name, values in part.items():
            found.setdefault(name, np.zeros((count, *values.shape[1:]), values.dtype))[rows] = (
                values
            )
        print("rhat", figures[:, 0].round(4), "ess", figures[:, 1].round(0), flush=True)
    found = {k: v.astype(np.float32) if v.dtype == float else v for k, v in found.items()}
    np.savez(OUTPUT, **seen._asdict(), **found, provenance=np.array(PROVENANCE))
    content = OUTPUT.read_bytes()
    print(f"{time.time() - began:.0f} s")
    print(f"{OUTPUT}: size = {len(content)}, sha256 = {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
