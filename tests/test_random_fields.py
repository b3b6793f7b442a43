"""Random fields: spectra and posteriors against dense linear algebra, scipy and simulations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlcourse_utils.datasets import random_fields as fields
from dlcourse_utils.diagnostics import double_precision

KEY = jax.random.key(40)
NOISE = 0.5


def dense(power):
    """Covariance matrix (n^2, n^2) of all pixels, by the definition: a sum over modes."""
    power = np.asarray(power, dtype=float)
    n = len(power)
    k = 2 * np.pi * np.fft.fftfreq(n)
    wave = np.exp(1j * np.outer(np.arange(n), k))
    modes = np.einsum("ak,bl->abkl", wave, wave).reshape(n * n, n * n) / n
    return ((modes * power.ravel()) @ modes.conj().T).real


def observe(n, count):
    """Fields (count, n, n), their observations, mask and power."""
    power, mask = fields.power(n), fields.mask(n)
    x = fields.simulate(KEY, count, power)
    noise = NOISE * jax.random.normal(jax.random.key(41), x.shape)
    return x, mask[None] * (x + noise), mask, power


def dense_posterior(y, mask, power):
    """Mean (count, n^2) and covariance (n^2, n^2) by solving with full matrices."""
    prior, seen = dense(power), np.asarray(mask).ravel() == 1
    with_noise = prior[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum())
    gain = np.linalg.solve(with_noise, prior[seen]).T
    y = np.asarray(y, dtype=float).reshape(len(y), -1)
    return y[:, seen] @ gain.T, prior - gain @ prior[seen]


# --- fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 32, 64])
def test_power_is_that_of_an_exponential_correlation_with_unit_variance(n):
    power = np.asarray(fields.power(n), dtype=float)
    assert power.mean() == pytest.approx(1.0, abs=1e-6)
    # From the lowest mode to the corner, by the formula.
    k = 2 * np.pi * np.fft.fftfreq(n)
    ratio = ((1 + 36 * (k[1] ** 2)) / (1 + 36 * (k[n // 2] ** 2 + k[2] ** 2))) ** 1.5
    assert power[n // 2, 2] / power[0, 1] == pytest.approx(ratio, rel=1e-5)


def test_correlation_falls_as_an_exponential():
    found = np.asarray(fields.correlation(fields.power(256)))
    assert found[0, 0] == pytest.approx(1.0, abs=1e-6)
    # The grid has no modes beyond pi per pixel, which hold 5 % of the variance of the plane: what
    # is left is enlarged by that, and compared away from offset 0.
    d = np.array([6, 12, 18])
    np.testing.assert_allclose(found[0, d] / found[0, 6], np.exp(-d / 6) / np.exp(-1), atol=0.01)
    np.testing.assert_allclose(found[0, 6] / np.exp(-1), 1.05, atol=0.02)


def test_simulated_modes_have_this_power():
    power = fields.power(16)
    x = fields.simulate(KEY, 4000, power)
    # |x_k|^2 / P is half a chi-square of two degrees of freedom, of one for the four real modes.
    ratio = np.abs(np.fft.fft2(x, norm="ortho")) ** 2 / np.asarray(power)
    error = np.full((16, 16), 4000**-0.5)
    error[::8, ::8] *= 2**0.5
    pull = (ratio.mean(axis=0) - 1) / error
    # Half of the modes are copies of others: some 130 numbers, and 4.5 is passed once in 1100 runs.
    assert np.abs(pull).max() < 4.5
    assert stats.kstest(np.asarray(x[:, 3, 5]), stats.norm.cdf).pvalue > 1e-3


def test_log_normal_has_the_moments_of_scipy():
    law = stats.lognorm(s=0.8, scale=np.exp(-0.32), loc=-1.0)
    g = 0.8 * jax.random.normal(KEY, (400_000,))
    delta = np.asarray(fields.log_normal(g, 0.64), dtype=float)
    assert law.mean() == pytest.approx(0.0, abs=1e-12)
    assert delta.mean() == pytest.approx(0.0, abs=4 * law.std() / 400_000**0.5)
    assert stats.kstest(delta[:50_000], law.cdf).pvalue > 1e-3
    np.testing.assert_allclose(fields.log_normal(jnp.array([0.0]), 0.64), law.median(), rtol=1e-5)
    power = 0.64 * fields.power(32)
    assert float(fields.log_normal_power(power).mean()) == pytest.approx(law.var(), rel=1e-5)


def test_log_normal_power_against_simulations():
    power, edges = fields.power(32), np.array([0, 0.5, 1.5, 3, 6, 10, 16, 23])
    x = fields.log_normal(fields.simulate(KEY, 8000, power))
    measured = np.asarray(fields.binned_power(x, edges), dtype=float)
    error = measured.std(axis=0) / len(x) ** 0.5
    assert error[1:].max() / measured[:, 1:].mean() < 0.2  # the comparison says something
    expected = fields.in_rings(fields.log_normal_power(power), edges)
    assert np.abs((measured.mean(axis=0) - expected) / error).max() < 4


@pytest.mark.parametrize("n", [16, 32, 64, 65])
def test_mask_hides_a_fifth_to_a_quarter(n):
    mask = np.asarray(fields.mask(n))
    assert mask.shape == (n, n) and set(np.unique(mask)) == {0.0, 1.0}
    assert 0.2 < 1 - mask.mean() < 0.25
    big = mask[round(0.25 * n) : round(0.58 * n), round(0.30 * n) : round(0.42 * n)]
    assert not big.any() and mask[:, n // 4].any()


# --- score and spectrum ----------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_score_against_the_gradient_of_the_multivariate_normal(sigma):
    power = fields.power(8)
    with double_precision():
        law = jax.scipy.stats.multivariate_normal
        cov = jnp.asarray(dense(power) + sigma**2 * np.eye(64))
        x = jax.random.normal(KEY, (64,), dtype=float)
        expected = jax.grad(lambda x: law.logpdf(x, jnp.zeros(64), cov))(x)
        # scipy's own density: a central difference along the score agrees with its length.
        other = stats.multivariate_normal(np.zeros(64), np.asarray(cov))
        step = 1e-4 * np.asarray(expected / jnp.linalg.norm(expected))
        slope = (other.logpdf(x + step) - other.logpdf(x - step)) / 2e-4
        x, expected = np.asarray(x), np.asarray(expected)
    assert np.linalg.norm(expected) == pytest.approx(slope, rel=1e-6)
    found = fields.score(x.reshape(8, 8), sigma, power).ravel()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_score_takes_batches_and_one_sigma_each():
    power, sigma = fields.power(9), jnp.array([0.1, 0.3, 2.0])
    x = fields.simulate(KEY, 6, power).reshape(2, 3, 9, 9)
    found = fields.score(x, sigma[:, None, None], power)
    under_jit = jax.jit(fields.score)(x, sigma[:, None, None], power)
    np.testing.assert_allclose(under_jit, found, atol=1e-5)
    for column in range(3):
        alone = fields.score(x[1, column], float(sigma[column]), power)
        np.testing.assert_allclose(found[1, column], alone, atol=1e-5)


def test_binned_power_of_a_wave_and_of_noise():
    p = np.arange(16)
    wave = np.cos(2 * np.pi * 3 * p / 16)[:, None] * np.ones((1, 16))
    found = fields.binned_power(wave, np.array([0.0, 2.5, 3.5]))
    # Two modes of amplitude n / 2 each: n^2 / 2 in all, over the 16 modes from 2.5 to 3.5.
    np.testing.assert_allclose(found, [0.0, 16**2 / 2 / 16], atol=1e-4)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(16, 1 / 16), np.fft.fftfreq(16, 1 / 16)))
    assert np.sum((k >= 2.5) & (k < 3.5)) == 16
    white = 2.0 * jax.random.normal(KEY, (50, 16, 16))
    whole = np.asarray(fields.binned_power(white, np.array([0.0, 12.0])))
    # The mean of the power over all modes is the mean square of the pixels, each time.
    np.testing.assert_allclose(whole[:, 0], np.mean(np.asarray(white) ** 2, axis=(1, 2)), rtol=1e-5)


# --- the posterior of a Gaussian field -------------------------------------------------------


def test_wiener_mean_against_dense_matrices():
    _, y, mask, power = observe(16, 3)
    expected, _ = dense_posterior(y, mask, power)
    found = np.asarray(fields.wiener_mean(y, mask, NOISE, power)).reshape(3, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(
        fields.wiener_mean(y[0], mask, NOISE, power).ravel(), found[0], atol=1e-5
    )
    # What is behind the mask does not count.
    anything = jnp.where(mask[None] == 1, y, 7.0)
    np.testing.assert_allclose(
        fields.wiener_mean(anything, mask, NOISE, power).reshape(3, -1), found
    )


def test_wiener_mean_solves_the_large_problem():
    """At 64 x 64 by its equation, P^-1 x + mask (x - y) / noise^2 = 0, in double precision."""
    _, y, mask, power = observe(64, 1)
    x = np.asarray(fields.wiener_mean(y, mask, NOISE, power), dtype=float)[0]
    pull = np.asarray(mask * (y[0] - x), dtype=float) / NOISE**2
    back = np.fft.ifft2(np.asarray(power, dtype=float) * np.fft.fft2(pull)).real
    np.testing.assert_allclose(x, back, atol=2e-3)  # P / noise^2 is 950 at most, times 2e-6
    inner = np.fft.ifft2(np.fft.fft2(x - back) / (1 + np.asarray(power) / NOISE**2)).real
    np.testing.assert_allclose(inner, 0.0, atol=1e-4)


@pytest.mark.parametrize("n", [9, 16])
def test_wiener_spread_against_dense_matrices(n):
    _, y, mask, power = observe(n, 1)
    _, cov = dense_posterior(y, mask, power)
    spread = fields.wiener_spread(mask, NOISE, power)
    np.testing.assert_allclose(spread.std.ravel(), np.sqrt(np.diag(cov)), rtol=1e-6)
    # F cov F^dagger, its diagonal: one transform over each index of a pixel.
    modes = np.fft.fft2(cov.reshape(n * n, n, n), norm="ortho").reshape(n * n, n * n)
    modes = np.fft.ifft2(modes.T.reshape(n * n, n, n), norm="ortho").reshape(n * n, n * n)
    np.testing.assert_allclose(spread.power.ravel(), np.diag(modes).real, rtol=1e-6)
    assert spread.power.mean() == pytest.approx(np.mean(spread.std**2))


def test_wiener_spread_without_holes():
    power = fields.power(16)
    spread = fields.wiener_spread(jnp.ones((16, 16)), NOISE, power)
    np.testing.assert_allclose(spread.power, 1 / (1 / np.asarray(power) + 1 / NOISE**2), rtol=1e-6)
    assert np.ptp(spread.std) < 1e-12


def test_constrained_realisations_have_the_posterior_mean_and_covariance():
    _, y, mask, power = observe(8, 1)
    mean, cov = dense_posterior(y, mask, power)
    n = 20_000
    samples = fields.wiener_samples(KEY, n, y[0], mask, NOISE, power)
    samples = np.asarray(samples, dtype=float).reshape(n, -1)
    pull = (samples.mean(axis=0) - mean[0]) / np.sqrt(np.diag(cov) / n)
    assert np.abs(pull).max() < 4.5  # 64 numbers
    found = np.cov(samples.T)
    error = np.sqrt((cov**2 + np.outer(np.diag(cov), np.diag(cov))) / n)  # of Wishart's law
    assert np.abs((found - cov) / error).max() < 5.0  # 2080 numbers
    # All at once: the squared distance from the mean follows chi-square with 64 degrees.
    off = samples - mean
    distance = np.sum(off * np.linalg.solve(cov, off.T).T, axis=1)
    assert stats.kstest(distance, stats.chi2(64).cdf).pvalue > 1e-3


def test_constrained_realisations_and_spread_agree_at_full_size():
    _, y, mask, power = observe(64, 1)
    spread = fields.wiener_spread(mask, NOISE, power)
    samples = fields.wiener_samples(KEY, 64, y[0], mask, NOISE, power)
    off = np.asarray(samples - fields.wiener_mean(y[0], mask, NOISE, power)[None], dtype=float)
    chi2 = np.mean((off / spread.std) ** 2)
    # Pixels within some 6 of each other go together: 64 x 4096 / 100 independent ones.
    assert chi2 == pytest.approx(1.0, abs=4 * (2 / 2600) ** 0.5)
    edges = np.array([3, 6, 12, 20, 32, 45])
    ratio = fields.binned_power(off, edges) / fields.in_rings(spread.power, edges)[None]
    error = np.asarray(ratio).std(axis=0) / 8
    assert np.abs((np.asarray(ratio).mean(axis=0) - 1) / error).max() < 4
    assert error.max() < 0.05  # the comparison says something


# --- bad input -------------------------------------------------------------------------------

P, M, Y = fields.power(8), fields.mask(8), jnp.zeros((8, 8))


def wiener_calls(y, mask, noise, power):
    yield lambda: fields.wiener_mean(y, mask, noise, power)
    yield lambda: fields.wiener_samples(KEY, 2, y, mask, noise, power)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((Y.at[2, 3].set(jnp.nan), M, NOISE, P), "y holds NaN or infinite values: put 0 where"),
        ((jnp.zeros((8, 7)), M, NOISE, P), r"y must have shape \(\.\.\., 8, 8\), got \(8, 7\)"),
        ((Y, jnp.zeros((8, 8)), NOISE, P), "mask is 0 everywhere"),
        ((Y, 0.5 * M, NOISE, P), "mask must hold only 1"),
        ((Y, M[:4], NOISE, P), r"mask must have shape \(8, 8\), that of the power; got \(4, 8\)"),
        ((Y, M, 0.0, P), r"noise must be positive and finite, got 0\.0"),
        ((Y, M, float("nan"), P), "noise must be positive and finite, got nan"),
        ((Y, M, NOISE, P[0]), r"power must have shape \(n, n\), got \(8,\)"),
    ],
)
def test_observations_that_make_no_sense_are_refused(arguments, sentence):
    for call in wiener_calls(*arguments):
        with pytest.raises(ValueError, match=sentence):
            call()
    if "y " not in sentence:
        with pytest.raises(ValueError, match=sentence):
            fields.wiener_spread(*arguments[1:])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fields.wiener_samples(KEY, 2, Y[None], M, 0.5, P), "or 2 of them"),
        (lambda: fields.score(Y, 0.0, P), r"sigma must be positive and finite, got 0\.0"),
        (lambda: fields.score(Y, -1, P), "sigma must be positive and finite, got -1"),
        (lambda: fields.score(jnp.zeros((5, 8)), 0.1, P), r"x must have shape \(\.\.\., 8, 8\)"),
        (lambda: fields.score(Y, 0.1, jnp.ones((8, 5))), r"power must have shape \(n, n\)"),
        (lambda: fields.simulate(KEY, 3, jnp.ones(8)), r"power must have shape \(n, n\)"),
        (lambda: fields.power(0), "n, the pixels of a side, must be a whole number from 4 on"),
        (lambda: fields.mask(32.0), "must be a whole number from 4 on, got 32.0"),
        (lambda: fields.power(8, -1.0), r"scale must be positive and finite, got -1\.0"),
        (lambda: fields.log_normal(Y, 0.0), "variance must be positive"),
        (lambda: fields.binned_power(Y, [0.0, 1.0, 1.0]), "at least two numbers that rise"),
        (lambda: fields.binned_power(Y, [0.2, 0.8]), "No mode lies between 0.2 and 0.8"),
        (
            lambda: fields.binned_power(Y[:4], [0.0, 2.0]),
            r"values must have shape \(\.\.\., n, n\)",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
