"""Posteriors of galaxies: draws, modes with their curvature, and the shipped reference chains."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from dlcourse_utils import diagnostics, galaxy_posteriors, galaxy_prior, paths, registry, telescope
from dlcourse_utils.diagnostics import double_precision
from dlcourse_utils.galaxy_posteriors import CHAINS, DRAWS, References
from dlcourse_utils.galaxy_prior import DIM, GalaxyPrior
from dlcourse_utils.registry import RegistryError
from dlcourse_utils.telescope import TelescopeError

KEY = jax.random.key(70)
SIGMA = 3.0 * telescope.NOISE
MASK = np.s_[12:18, 11:17]
DEEP, MASKED = 6, 7


@pytest.fixture(scope="module")
def stored():
    return galaxy_posteriors.load()


@jax.jit
def seen(u, operator, prior):
    """Images without noise (n, 21, 21) of u (n, 33)."""
    return telescope.apply(operator, prior.decode(prior.from_base(u)))


# --- draws -------------------------------------------------------------------------------------


def test_draws_are_images_with_noise_of_the_right_size(prior, operator):
    u, y = galaxy_posteriors.draw(KEY, 50, prior, operator, SIGMA)
    assert u.shape == (50, DIM) and y.shape == (50, 21, 21)
    noise = (y - np.asarray(seen(u, operator, prior))).ravel() / SIGMA
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert stats.kstest(u.ravel(), "norm").pvalue > 1e-3
    again, quiet = galaxy_posteriors.draw(KEY, 50, prior, operator, 0.0)
    np.testing.assert_array_equal(u, again)
    np.testing.assert_allclose(quiet, seen(u, operator, prior), rtol=1e-4, atol=1e-3)


# --- modes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(stored, prior, operator):
    """Of three stored observations, the last with a mask, where there is no number."""
    rows = [0, 2, MASKED]
    y = np.where(np.isfinite(stored.variance[rows]), stored.y[rows], np.nan)
    return rows, galaxy_posteriors.laplace(y, stored.variance[rows], operator, prior, starts=3)


def in_double(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a).astype(float)), tree)


@pytest.fixture
def fresh_orders(monkeypatch):
    """JAX keeps integers of an array that it has seen at 32 bits, when it goes on at 64."""
    monkeypatch.setattr(galaxy_prior, "_ORDERS", galaxy_prior._ORDERS.copy())


@pytest.mark.usefixtures("fresh_orders")
def test_modes_are_those_of_scipy_in_double_precision(stored, prior, operator, found):
    """L-BFGS finds no lower point from ours, and none from the truth."""
    rows, laplace = found
    with double_precision():
        exact, matrix = GalaxyPrior(in_double(prior.params)), in_double(operator)

        @jax.jit
        def value_and_slope(u, y, variance):
            def value(u):
                of = galaxy_posteriors.minus_log_posterior
                return of(u[None], y[None], variance[None], matrix, exact)[0]

            return jax.value_and_grad(value)(u)

        for k, row in enumerate(rows):
            data = in_double((stored.y[row], stored.variance[row]))

            def objective(u, data=data):
                value, slope = value_and_slope(jnp.asarray(u), *data)
                return float(value), np.asarray(slope)

            here = laplace.mode[k].astype(float)
            assert laplace.value[k] == pytest.approx(objective(here)[0], abs=0.02)
            for start in (here, stored.truth[row].astype(float)):
                best = optimize.minimize(objective, start, jac=True, options={"maxiter": 300})
                assert laplace.value[k] < best.fun + 0.05
                if start is here:
                    # In units of the posterior's width: 0.05 nats below is 0.3 of it.
                    gap = np.linalg.solve(laplace.factor[k].astype(float), best.x - here)
                    assert np.linalg.norm(gap) < 0.4


@pytest.mark.usefixtures("fresh_orders")
def test_factor_is_that_of_a_jacobian_by_finite_differences(stored, prior, operator, found):
    rows, laplace = found
    k = 1
    with double_precision():
        exact, matrix = GalaxyPrior(in_double(prior.params)), in_double(operator)
        images = jax.jit(lambda u: telescope.apply(matrix, exact.decode(exact.from_base(u))))
        mode, step = laplace.mode[k].astype(float), 1e-4 * np.eye(DIM)
        up, down = (np.asarray(images(jnp.asarray(mode + s * step))) for s in (1, -1))
    jacobian = ((up - down) / 2e-4).reshape(DIM, -1) / SIGMA
    covariance = np.linalg.inv(np.eye(DIM) + jacobian @ jacobian.T)
    factor = laplace.factor[k].astype(float)
    assert np.all(np.triu(factor, 1) == 0.0) and np.all(np.diagonal(factor) > 0.0)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=2e-3)
    assert rows[k] == 2 and np.ptp(np.diagonal(covariance)) > 0.2  # some are known, some are not


class Linear:
    """A stand-in for the prior: an image linear in u."""

    def __init__(self, matrix):
        self.matrix = matrix

    def from_base(self, u):
        return u

    def to_base(self, z):
        return z, jnp.zeros(len(z))

    def decode(self, z):
        return (z @ self.matrix).reshape(-1, galaxy_prior.SIZE, galaxy_prior.SIZE)


jax.tree_util.register_pytree_node(Linear, lambda p: ((p.matrix,), None), lambda _, m: Linear(*m))


def test_laplace_of_a_linear_model_is_the_exact_posterior(operator):
    """Against the normal equations in double precision, with pixels of different noise."""
    rng = np.random.default_rng(71)
    matrix = rng.normal(size=(DIM, galaxy_prior.SIZE**2)).astype(np.float32)
    variance = rng.uniform(5.0, 50.0, (2, 21, 21)).astype(np.float32)
    variance[1, 3:9, 4:12] = np.inf
    mean = (rng.normal(size=(2, DIM)) @ matrix @ np.asarray(operator).T).reshape(variance.shape)
    noise = np.sqrt(np.where(np.isfinite(variance), variance, 1e6))
    y = mean + noise * rng.normal(size=mean.shape)
    found = galaxy_posteriors.laplace(y, variance, operator, Linear(jnp.asarray(matrix)), starts=2)
    design = np.asarray(operator, float) @ matrix.T.astype(float)
    for k in range(2):
        scaled = design / variance[k].reshape(-1, 1)
        covariance = np.linalg.inv(np.eye(DIM) + scaled.T @ design)
        width = np.sqrt(np.diagonal(covariance))
        gap = found.mode[k] - covariance @ (scaled.T @ y[k].ravel())
        assert np.abs(gap / width).max() < 0.05
        product = found.factor[k].astype(float) @ found.factor[k].T
        np.testing.assert_allclose(
            product / np.outer(width, width), covariance / np.outer(width, width), atol=1e-3
        )
    np.testing.assert_array_equal(found.agreement, 1.0)
    assert found.ends.shape == (2, 2, DIM)


def test_agreement_counts_the_starts_at_the_best_value(stored, prior, operator, found):
    _, laplace = found
    value = jax.jit(galaxy_posteriors.minus_log_posterior)
    for k, row in enumerate(found[0]):
        y, variance = (np.repeat(a[row][None], 3, axis=0) for a in (stored.y, stored.variance))
        ends = np.asarray(value(laplace.ends[k], y, variance, operator, prior))
        assert ends.min() == pytest.approx(laplace.value[k], abs=0.01)
        assert laplace.agreement[k] == pytest.approx(np.mean(ends < laplace.value[k] + 1.0))


def test_bad_input_is_one_sentence(prior, operator):
    good, flat = np.zeros((2, 21, 21)), np.ones((21, 21))
    laplace = galaxy_posteriors.laplace
    with pytest.raises(TelescopeError, match=r"give a batch, y\[None\] for a single image"):
        laplace(good[0], flat, operator, prior)
    with pytest.raises(TelescopeError, match=r"starts >= 1, got \(2, 21, 21\) and 0"):
        laplace(good, flat, operator, prior, starts=0)
    with pytest.raises(TelescopeError, match="not positive"):
        laplace(good, 0.0 * flat, operator, prior)
    with pytest.raises(TelescopeError, match="not finite where the variance is"):
        laplace(np.nan * good, flat, operator, prior)
    with pytest.raises(TelescopeError, match="All pixels of an image are masked"):
        laplace(good, np.inf * flat, operator, prior)
    with pytest.raises(TelescopeError, match="must have shape"):
        laplace(good[:, :20], flat, operator, prior)


# --- the shipped chains ------------------------------------------------------------------------


def test_stored_shapes_and_bands(stored):
    assert stored.samples.shape == (8, CHAINS * DRAWS, DIM)
    assert stored.y.shape == stored.variance.shape == (8, 21, 21)
    for name in ("truth", "u_mean", "u_std", "z_mean", "z_std"):
        assert getattr(stored, name).shape == (8, DIM)
    assert all(
        np.isfinite(a).all() for n, a in stored._asdict().items() if n not in ("names", "variance")
    )
    assert np.all(stored.r_hat <= 1.01) and np.all(stored.ess >= 400)
    # Trajectories about as long as the posterior is wide, and many of them.
    assert np.all(stored.leapfrogs * stored.step_size > 1.5) and np.all(stored.iterations >= 700)
    assert np.all((stored.acceptance > 0.6) & (stored.acceptance < 0.95))
    assert np.all(stored.variance[:DEEP] == np.float32(SIGMA**2))
    assert np.all(stored.variance[DEEP] == np.float32(telescope.NOISE**2))
    assert np.isinf(stored.variance[MASKED][MASK]).all()
    assert np.isinf(stored.variance).sum() == 36


def test_the_observations_are_those_of_their_truths(stored, prior, operator):
    """Chi^2 of the truth is that of the noise; its magnitude is the last latent."""
    z = np.asarray(jax.jit(GalaxyPrior.from_base)(prior, jnp.asarray(stored.truth)))
    magnitude = 22.75 + 0.75 * z[:, -1]
    np.testing.assert_allclose(magnitude, stored.magnitude, atol=1e-3)
    assert 21.5 < magnitude[0] < 22.2 and np.all((magnitude > 21.0) & (magnitude < 23.3))
    misfit = (stored.y - np.asarray(seen(stored.truth, operator, prior))) ** 2 / stored.variance
    used = np.isfinite(stored.variance).sum(axis=(1, 2))
    assert np.all(np.abs(misfit.sum(axis=(1, 2)) - used) < 4.0 * np.sqrt(2.0 * used))
    inside = np.isfinite(stored.variance[MASKED])
    np.testing.assert_array_equal(stored.y[MASKED], np.where(inside, stored.y[0], 0.0))


def test_stored_samples_are_those_of_the_figures(stored, prior):
    """Means and widths of the thinned chains, within their error; and R-hat once more."""
    arviz = pytest.importorskip("arviz_stats.base", reason="arviz-stats is not installed")
    u = stored.samples.reshape(-1, DIM)
    z = np.asarray(jax.jit(GalaxyPrior.from_base)(prior, jnp.asarray(u)))
    for x, mean, std in ((u, stored.u_mean, stored.u_std), (z, stored.z_mean, stored.z_std)):
        for row, chains in enumerate(x.reshape(8, CHAINS, DRAWS, DIM)):
            chains = chains.astype(float).transpose(2, 0, 1)
            gap = chains.mean(axis=(1, 2)) - mean[row]
            assert np.all(np.abs(gap) < 4.5 * arviz.array_stats.mcse(chains, method="mean"))
            gap = chains.std(axis=(1, 2)) - std[row]
            assert np.all(np.abs(gap) < 4.5 * arviz.array_stats.mcse(chains, method="sd"))
            # Of m chains with n samples that count, about 1 + m / n; largest of 33 at n = 200.
            assert np.max(arviz.array_stats.rhat(chains)) < 1.08


def test_truths_lie_where_the_chains_say(stored):
    """Of six galaxies, 198 numbers: the rank of a truth is uniform."""
    rank = np.mean(stored.samples[:DEEP] < stored.truth[:DEEP, None], axis=1)
    inside = np.abs(rank - 0.5) < 0.34
    # Numbers of one galaxy are correlated: the error is that between galaxies, of six.
    share, error = diagnostics.mean_with_error(inside.mean(axis=1))
    assert abs(share - 0.68) < 4.0 * error and error < 0.06


def test_a_mask_hides_what_is_behind_it(stored, prior, operator):
    """The image's own uncertainty grows in the mask, and far from it is what it was."""
    plain, masked = (
        np.asarray(seen(stored.samples[row], operator, prior)).std(axis=0) for row in (0, MASKED)
    )
    ratio = masked / plain
    assert np.median(ratio[MASK]) > 1.15 and ratio[MASK].mean() > ratio.mean()
    assert 0.8 < np.median(ratio[:10]) < 1.2


def test_a_deeper_exposure_is_more_certain(stored, prior, operator):
    plain, deep = (
        np.asarray(seen(stored.samples[row], operator, prior)).std(axis=0) for row in (0, DEEP)
    )
    assert 0.2 < np.median(deep / plain) < 0.8


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("make_galaxy_posteriors")


def test_the_stored_chains_ran_as_the_script_says(script, stored):
    for group in script.GROUPS:
        rows = list(group.rows)
        assert np.all(stored.in_z[rows] == group.in_z)
        assert np.all(stored.leapfrogs[rows] == group.leapfrogs)
        assert np.all(stored.iterations[rows] == group.iterations)
    assert sorted(row for group in script.GROUPS for row in group.rows) == list(range(8))


def test_the_script_makes_the_stored_observations(script, stored, prior, operator):
    made = script.observations(prior, operator)
    np.testing.assert_array_equal(made.names, stored.names)
    np.testing.assert_allclose(made.truth, stored.truth, atol=1e-5)
    np.testing.assert_allclose(made.y, stored.y, atol=0.02)
    np.testing.assert_array_equal(made.variance, stored.variance)


@pytest.mark.slow
def test_a_short_run_stays_in_the_stored_posterior(script, stored, prior, operator):
    """A galaxy sampled in z: chains that begin at stored samples keep their mean and width."""
    pytest.importorskip("blackjax", reason="BlackJAX is not installed")
    arviz = pytest.importorskip("arviz_stats.base", reason="arviz-stats is not installed")
    row = int(np.flatnonzero(stored.in_z)[0])
    chains = jnp.asarray(stored.samples[row])
    z = np.asarray(script.latents(chains, prior)).reshape(1, CHAINS, DRAWS, DIM)
    pooled = z.reshape(-1, DIM).astype(float)
    group = next(group for group in script.GROUPS if row in group.rows)
    path, _, acceptance = script.run(
        KEY,
        z[:, :, -1],
        pooled.mean(axis=0)[None],
        np.linalg.cholesky(np.cov(pooled.T))[None],
        *(stored.y[row : row + 1], stored.variance[row : row + 1], (operator, prior), group),
        *(80, np.full((1, CHAINS), stored.step_size[row])),
        adapt=False,
    )
    assert 0.5 < acceptance.mean() < 0.97
    x = path[:, 0].astype(float).transpose(2, 1, 0)
    for figure, stored_one, method in (
        (x.mean, stored.z_mean, "mean"),
        (x.std, stored.z_std, "sd"),
    ):
        error = np.hypot(arviz.array_stats.mcse(x, method=method), stored.z_std[row] / 20.0)
        assert np.all(np.abs(figure(axis=(1, 2)) - stored_one[row]) < 4.5 * error)


def test_a_damaged_file_is_one_sentence(tmp_path, monkeypatch):
    for name in ("registry.toml", "galaxy_posteriors.npz"):
        shutil.copy(paths.data_dir() / name, tmp_path / name)
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path)
    assert isinstance(galaxy_posteriors.load(), References)
    file = tmp_path / "galaxy_posteriors.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RegistryError, match="is missing or changed: install the course again"):
        galaxy_posteriors.load()


def test_the_file_says_where_it_comes_from():
    path = registry.path("galaxy_posteriors.npz")
    assert path.stat().st_size < 1_000_000
    with np.load(path, allow_pickle=False) as file:
        assert "scripts/make_galaxy_posteriors.py" in str(file["provenance"])
