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
