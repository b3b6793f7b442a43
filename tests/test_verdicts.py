"""Verdicts judge honestly, and diagnostics agree with scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlcourse_utils import diagnostics
from dlcourse_utils.verdicts import sentence, verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "ok"),
    [
        (0.5, None, 1.0, True),
        (1.5, None, 1.0, False),
        (0.5, 0.4, 0.6, True),
        (0.3, 0.4, 0.6, False),
        (0.3, 0.2, None, True),
        (float("nan"), 0.0, 1.0, False),
        (float("inf"), 0.0, None, False),
    ],
)
def test_verdict(value, low, high, ok, capsys):
    record = verdict("gap", value, low=low, high=high, unit="nats")
    assert record.ok is ok
    said = capsys.readouterr().out
    assert said.startswith("✓ pass · gap" if ok else "✗ fail · gap")


def test_the_error_does_not_widen_the_band():
    assert not verdict("gap", 1.05, high=1.0, error=0.5).ok


def test_a_verdict_without_a_band_is_refused():
    with pytest.raises(ValueError, match="no band"):
        verdict("gap", 1.0)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.0012345, 0.00031, "0.00123 ± 0.00031"),
        (0.0012345, None, "0.00123"),
        (2.8362e-7, None, "2.84e-07"),
        (1.0003, None, "1.00"),
        (99.96, None, "100"),
        (123.4, None, "123"),
        (999.7, None, "1000"),
        (1193.6, None, "1194"),
        (-2.8362, 0.47, "-2.84 ± 0.47"),
        (-283.62, 47.0, "-284 ± 47"),
        (-0.5, 0.0, "-0.500 ± 0"),
        (0.01004, 0.0031, "0.01004 ± 0.0031"),  # 0.0100 would be inside
        (0.010001, None, "0.010001"),
        (float("nan"), 0.1, "nan ± 0.1"),
        (0.001, float("nan"), "0.00100 ± nan"),
    ],
)
def test_sentence(value, error, said):
    record = verdict("gap", value, high=0.01, unit="nats", error=error)
    word = "✓ pass" if record.ok else "✗ fail"
    assert sentence(record) == f"{word} · gap: {said} nats (band: at most 0.01)"


def test_mean_with_error():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    mean, error = diagnostics.mean_with_error(values)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_mean_with_error_refuses(bad):
    with pytest.raises(ValueError, match="Expected at least two finite values"):
        diagnostics.mean_with_error(np.array(bad))


def test_binomial_band_holds_its_level():
    low, high = diagnostics.binomial_band(0.05, 2000)
    draws = np.random.default_rng(1).binomial(2000, 0.05, 20_000) / 2000
    inside = np.mean((draws >= low) & (draws <= high))
    assert 0.945 < inside < 0.965  # counts are whole numbers: a little above 95 %


def test_pit_histogram_integrates_to_one():
    heights = diagnostics.pit_histogram(np.random.default_rng(2).uniform(size=5000), 20)
    assert heights.mean() == pytest.approx(1.0)


LOG_WEIGHTS = {
    "light": lambda rng, n: rng.normal(size=n),
    "heavy": lambda rng, n: 3.0 * rng.normal(size=n),
    "bounded": lambda rng, n: np.log(rng.uniform(size=n)),
    "power law": lambda rng, n: 0.9 * rng.exponential(size=n),
    "large numbers": lambda rng, n: 1e4 + rng.normal(size=n),
    "some of zero": lambda rng, n: np.where(np.arange(n) % 3, rng.normal(size=n), -np.inf),
}


@pytest.mark.parametrize("n", [40, 225, 226, 2000])
@pytest.mark.parametrize("law", LOG_WEIGHTS)
def test_pareto_k_is_that_of_arviz(law, n):
    arviz = pytest.importorskip("arviz_stats.base", reason="arviz-stats is not installed")
    log_weights = LOG_WEIGHTS[law](np.random.default_rng(3), n)
    _, expected = arviz.array_stats.psislw(-log_weights)  # it takes minus the logarithms
    assert diagnostics.pareto_k(log_weights) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("shape", [0.3, 0.7, 1.2])
def test_pareto_k_of_a_power_law_is_its_own(shape):
    """The weight u^-k of a uniform u has this k; the error is (1 + k) / sqrt(tail)."""
    log_weights = -shape * np.log(np.random.default_rng(4).uniform(size=1_000_000))
    error = (1.0 + shape) / np.sqrt(3000)
    assert diagnostics.pareto_k(log_weights) == pytest.approx(shape, abs=4.0 * error)


def test_pareto_k_at_the_ends():
    assert diagnostics.pareto_k(np.zeros(100)) == -np.inf
    for spread in (1.0, 40.0, 46.0, 47.0, 1e4):  # up to the largest number and beyond
        assert diagnostics.pareto_k(spread * np.arange(100.0)) > 2.0
    light = np.random.default_rng(5).normal(size=400)
    assert diagnostics.pareto_k(light.astype(np.float32) - 50.0) == pytest.approx(
        diagnostics.pareto_k(light), abs=1e-3
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pareto_k_refuses_what_is_no_weight(bad):
    with pytest.raises(ValueError, match=r"shape \(50,\) with 1 NaN or infinite"):
        diagnostics.pareto_k(np.append(np.zeros(49), bad))


def test_pareto_k_refuses_too_few():
    with pytest.raises(ValueError, match="at least 25 weights in one dimension"):
        diagnostics.pareto_k(np.zeros(24))
    with pytest.raises(ValueError, match="at least 25 weights in one dimension"):
        diagnostics.pareto_k(np.zeros((5, 10)))
    with pytest.raises(ValueError, match="Only 3 of 100 weights are above zero, the tail takes 20"):
        diagnostics.pareto_k(np.append(np.full(97, -np.inf), np.zeros(3)))


def test_double_precision_holds_inside_only():
    third = jax.jit(lambda x: x / 3.0)
    with diagnostics.double_precision():
        inside = np.asarray(third(jnp.ones(1, dtype=float)))
    assert inside.dtype == np.float64
    assert inside[0] == 1.0 / 3.0
    assert third(jnp.ones(1, dtype=float)).dtype == jnp.float32
