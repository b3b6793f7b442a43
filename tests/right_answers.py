"""Right answers to the exercises in other styles than the solution's: all must pass their check."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from tensorflow_probability.substrates import jax as tfp

tfd = tfp.distributions


def m_sigma_numpy(sigma, mass):
    u, v = np.log10(np.asarray(sigma, np.float64)), np.log10(np.asarray(mass, np.float64))
    slope = np.cov(u, v, bias=True)[0, 1] / np.var(u)
    intercept = v.mean() - slope * u.mean()
    return slope, intercept, np.sqrt(np.mean((v - slope * u - intercept) ** 2))


def m_sigma_lstsq(sigma, mass):
    u, v = jnp.log(sigma) / jnp.log(10.0), jnp.log(mass) / jnp.log(10.0)
    design = jnp.stack([u - 2.7, jnp.ones_like(u)], axis=1)
    (slope, height), *_ = jnp.linalg.lstsq(design, v)
    residual = v - design @ jnp.array([slope, height])
    return [slope, height - 2.7 * slope, jnp.linalg.norm(residual) / len(v) ** 0.5]


def m_sigma_polynomial(sigma, mass):
    u, v = np.log10(np.float64(sigma)), np.log10(np.float64(mass))
    intercept, slope = np.polynomial.Polynomial.fit(u, v, 1).convert().coef
    return np.array([slope, intercept, (v - slope * u - intercept).std(ddof=2)])


def mse_dot(prediction, target):
    difference = target - prediction.squeeze(-1)
    return difference @ difference / len(target)


def mse_column(prediction, target):
    return ((prediction - target[:, None]) ** 2).sum() / target.size


def mse_vmapped(prediction, target):
    return jax.vmap(lambda f, m: (f[0] - m) ** 2)(prediction, target).mean()


def mse_float64(prediction, target):
    # In double precision where it is switched on; a warning would fail the test.
    wide = jax.dtypes.canonicalize_dtype(jnp.float64)
    return jnp.mean(jnp.square(prediction.astype(wide).reshape(-1) - target.astype(wide)))


def mixture_slices(outputs):
    weights = jax.nn.softmax(outputs[:, :6], axis=-1)
    scale = 0.01 + 0.6 * jnp.log1p(jnp.exp(outputs[:, 12:]))
    components = tfd.Normal(loc=14.2 + 0.6 * outputs[:, 6:12], scale=scale)
    return tfd.MixtureSameFamily(tfd.Categorical(probs=weights), components)


def mixture_reshaped(outputs):
    a, b, c = jnp.moveaxis(outputs.reshape(-1, 3, 6), 1, 0)
    return tfd.MixtureSameFamily(
        mixture_distribution=tfd.Categorical(logits=jax.nn.log_softmax(a)),
        components_distribution=tfd.Normal(0.6 * b + 14.2, 0.6 * jax.nn.softplus(c) + 0.01),
    )


def mixture_arrays(outputs):
    a, b, c = (outputs[..., k * 6 : (k + 1) * 6] for k in range(3))
    logits = a - jnp.log(jnp.exp(a).sum(axis=-1, keepdims=True))
    scale = 0.01 + 0.6 * jnp.logaddexp(c, 0.0)
    return tfd.MixtureSameFamily(tfd.Categorical(logits), tfd.Normal(14.2 + 0.6 * b, scale))


def nll_sum(density, mass):
    return -density.log_prob(mass).sum() / mass.shape[0]


def nll_from_prob(density, mass):
    return (-jnp.log(density.prob(mass))).mean()


def nll_vmapped(density, mass):
    return jax.vmap(lambda loc, scale, m: -tfd.Normal(loc, scale).log_prob(m))(
        density.loc, density.scale, mass
    ).mean()


def summarise_numpy(log_p, grid):
    log_p, grid = np.asarray(log_p, np.float64), np.asarray(grid, np.float64)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p /= np.trapezoid(p, grid, axis=1)[:, None]
    pieces = 0.5 * (p[:, 1:] + p[:, :-1]) * np.diff(grid)
    cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(pieces, axis=1)], axis=1)

    def quantile(level):
        return np.array([np.interp(level, row, grid) for row in cdf])

    mean = np.trapezoid(p * grid, grid, axis=1)
    std = np.sqrt(np.trapezoid(p * grid**2, grid, axis=1) - mean**2)
    mode = grid[p.argmax(axis=1)]
    return dict(
        mean=mean, std=std, median=quantile(0.5), mode=mode, low=quantile(0.16), high=quantile(0.84)
    )


def summarise_vmapped(log_p, grid):
    def one(row):
        w = jax.nn.softmax(row)
        cdf = jnp.cumsum(w)
        mean = w @ grid
        std = jnp.sqrt(w @ (grid - mean) ** 2)
        median, low, high = (grid[jnp.searchsorted(cdf, q)] for q in (0.5, 0.16, 0.84))
        return {
            "mean": mean,
            "std": std,
            "median": median,
            "mode": grid[row.argmax()],
            "low": low,
            "high": high,
        }

    return jax.vmap(one)(log_p)


def summarise_scipy(log_p, grid):
    w = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    mean = w @ grid
    cdf = w.cumsum(axis=1)
    low, median, high = (grid[(cdf < q).sum(axis=1)] for q in (0.16, 0.5, 0.84))
    std = np.sqrt(w @ grid**2 - mean**2)
    mode = grid[log_p.argmax(axis=1)]
    return dict(mean=mean, std=std, median=median, mode=mode, low=low, high=high, more=0)


def prior_sum(log_p, log_old, log_new, grid):
    product = log_p + (log_new - log_old[None, :])
    total = jax.nn.logsumexp(product, axis=1) + jnp.log(grid[1] - grid[0])
    return product - total[:, None]


def prior_densities(log_p, log_old, log_new, grid):
    p = np.exp(np.float64(log_p)) * np.exp(np.float64(log_new)) / np.exp(np.float64(log_old))
    return np.log(p / np.trapezoid(p, np.float64(grid), axis=1)[:, None])


def prior_vmapped(log_p, log_old, log_new, grid):
    def one(row, new):
        product = row + new - log_old
        return product - jnp.log(jnp.sum(jnp.exp(product)) * (grid[-1] - grid[0]) / (len(grid) - 1))

    return jax.vmap(one)(log_p, log_new)


def coverage_numpy(pit, level):
    low, high = (1 - level) / 2, (1 + level) / 2
    return np.mean((np.asarray(pit) >= low) & (np.asarray(pit) <= high))


def coverage_loop(pit, level):
    inside = [1.0 for u in np.asarray(pit) if (1 - level) / 2 < u < 1 - (1 - level) / 2]
    return sum(inside) / len(pit)


def coverage_vmapped(pit, level):
    return jax.vmap(lambda u: jnp.where(2 * jnp.abs(u - 0.5) < level, 1.0, 0.0))(pit).mean()


RIGHT = {
    "01.1": (m_sigma_numpy, m_sigma_lstsq, m_sigma_polynomial),
    "01.2": (mse_dot, mse_column, mse_vmapped, mse_float64),
    "01.3": (mixture_slices, mixture_reshaped, mixture_arrays),
    "01.4": (nll_sum, nll_from_prob, nll_vmapped),
    "01.5": (summarise_numpy, summarise_vmapped, summarise_scipy),
    "01.6": (prior_sum, prior_densities, prior_vmapped),
    "01.7": (coverage_numpy, coverage_loop, coverage_vmapped),
}
