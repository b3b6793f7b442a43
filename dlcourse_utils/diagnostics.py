"""Numbers that say how good a posterior is, each with its Monte Carlo error.

Computation only: `plot` draws these, `verdicts` judges them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats


def double_precision() -> AbstractContextManager:
    """A context in which JAX computes in 64 bits, for a diagnostic that rounding would spoil.

    Arrays made outside of it keep their 32 bits: convert them inside, with ``astype(float)``.
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # its place before jax 0.8

    return enable_x64()


class Estimate(NamedTuple):
    """A mean over n independent objects and its standard error."""

    value: float
    error: float


def mean_with_error(values: jax.Array | np.ndarray) -> Estimate:
    """Mean of ``values`` (n,) and its standard error; n >= 2, all finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"Expected at least two finite values in one dimension, got shape {values.shape} with "
            f"{np.count_nonzero(~np.isfinite(values))} not finite."
        )
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


def binomial_error(probability: float, n: int) -> float:
    """Standard error of the fraction of n independent trials that succeed."""
    return float(np.sqrt(probability * (1.0 - probability) / n))


def binomial_band(probability: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Central interval of the fraction of n independent trials that succeed."""
    low, high = stats.binom.interval(level, n, probability)
    return float(low) / n, float(high) / n


def pit_histogram(pit: jax.Array | np.ndarray, bins: int = 20) -> np.ndarray:
    """Histogram (bins,) of PIT values, as a density: 1 everywhere if calibrated."""
    counts, _ = np.histogram(np.asarray(pit), bins=bins, range=(0.0, 1.0))
    return counts * bins / len(pit)


def pareto_k(log_weights: jax.Array | np.ndarray) -> float:
    """Shape k of the generalised Pareto law of the largest of n importance weights; n >= 25.

    Takes their logarithms (n,), up to a constant; minus infinity is a weight of zero. The moments
    of the weights exist up to the order 1 / k. Below 0.7 averages with these weights can be
    trusted, from 1 on not even their mean is finite. Vehtari, Simpson, Gelman, Yao & Gabry 2024,
    JMLR 25, 72, whose tail is the largest 3 sqrt(n) weights, a fifth of them at most, and who draw
    k towards 0.5 as ten weights more would. The fit is that of Zhang & Stephens 2009, Technometrics
    51, 316, doi:10.1198/tech.2009.08017. Minus infinity if the largest weights are all equal,
    infinity if few of them rise above all others.

    Raises ValueError for fewer weights, NaN and plus infinity, and where too few are above zero.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    n = log_weights.size
    if log_weights.ndim != 1 or n < 25 or not (log_weights < np.inf).all():
        raise ValueError(
            f"Expected the logarithms of at least 25 weights in one dimension, got shape "
            f"{log_weights.shape} with {np.count_nonzero(~(log_weights < np.inf))} NaN or infinite."
        )
    count = int(3.0 * np.sqrt(n) if n > 225 else n / 5)
    ordered = np.sort(log_weights)
    if not np.isfinite(ordered[-count]):
        raise ValueError(
            f"Only {np.count_nonzero(np.isfinite(ordered))} of {n} weights are above zero, the "
            f"tail takes {count}: look at the logarithms of the weights."
        )
    weights = np.exp(ordered[-count - 1 :] - ordered[-1])
    tail = weights[1:] - weights[0]
    if tail[-1] == tail[0]:
        return -np.inf
    quartile = tail[int(count / 4 + 0.5) - 1]
    if quartile < 1e-300:  # one over it would overflow
        return np.inf
    # The law is 1 - (1 - b x)^(-1 / k): its likelihood on a grid of b, each with its best k.
    grid = 30 + int(np.sqrt(count))
    b = 1.0 / tail[-1] + (1.0 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3.0 * quartile)
    k = np.mean(np.log1p(-b[:, None] * tail), axis=1)
    log_likelihood = count * (np.log(-b / k) - k - 1.0)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    best = np.sum(b * likelihood) / likelihood.sum()
    shape = np.mean(np.log1p(-best * tail))
    return float((count * shape + 10.0 * 0.5) / (count + 10.0))
