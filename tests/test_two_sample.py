"""Two-sample tests: 0.5 where there is nothing to tell, the best possible accuracy where there is.

The best classifier of two known densities is right with probability 1/2 + (total variation) / 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier

from dlcourse_utils.datasets import two_moons
from dlcourse_utils.two_sample import accuracies

N = 10_000
ERROR = 0.5 / (2 * N) ** 0.5  # 0.0035, from 2n points that are judged
SHIFT, SCALE = 0.5, 1.5
UNITS = np.array([100.0, 0.01], dtype=np.float32)  # classifiers must not mind them


def gaussian(key):
    """Standard Gaussian points, one more than is used: the halves are equal."""
    return np.asarray(jax.random.normal(jax.random.key(key), (N + 1, 2)))


TRUTH = UNITS * gaussian(60)
SETS = {f"same {key}": UNITS * gaussian(key) for key in (61, 62, 63, 64)} | {
    "shifted": UNITS * (gaussian(65) + np.array([SHIFT, 0.0], dtype=np.float32)),
    "rescaled": UNITS * SCALE * gaussian(66),
}


@pytest.fixture(scope="module")
def told():
    """All sets in one call: each call compiles its networks."""
    return accuracies(SETS, TRUTH, key=jax.random.key(67))


@pytest.mark.parametrize("name", ["same 61", "same 62", "same 63", "same 64"])
def test_the_same_law_cannot_be_told(told, name):
    for accuracy in told[name]:
        assert accuracy == pytest.approx(0.5, abs=4 * ERROR)


def test_different_seeds_give_different_accuracies(told):
    same = [accuracy for name, both in told.items() if "same" in name for accuracy in both]
    assert len(set(same)) == 8


def best(name):
    """Accuracy of the likelihood ratio, which says where each Gaussian is the denser one."""
    if name == "shifted":
        return stats.norm.cdf(SHIFT / 2)
    # In the plane |x|^2 / 2 is exponential; the densities cross where it is this.
    cross = 2 * np.log(SCALE) / (1 - SCALE**-2)
    return 0.5 * (1 - np.exp(-cross)) + 0.5 * np.exp(-cross / SCALE**2)


@pytest.mark.parametrize("name", ["shifted", "rescaled"])
def test_a_different_law_is_told_nearly_as_well_as_possible(told, name):
    neighbours, network = told[name]
    assert best(name) - 0.01 - 4 * ERROR < network < best(name) + 4 * ERROR
    # The vote of 50 errs where it is close: it is less sharp, and no better either.
    assert best(name) - 0.02 - 4 * ERROR < neighbours < best(name) + 4 * ERROR


def moons(key, outer):
    """N points of which this share is on the outer arc."""
    x = two_moons.simulate(jax.random.key(key), 2 * N)
    to_arcs = np.asarray(two_moons.distance(x))
    on_outer = to_arcs[:, 0] < to_arcs[:, 1]
    n_outer = round(outer * N)
    picked = np.flatnonzero(on_outer)[:n_outer], np.flatnonzero(~on_outer)[: N - n_outer]
    return x[np.random.default_rng(key).permutation(np.concatenate(picked))]


def test_weights_of_the_moons_are_told():
    """55 : 45 instead of half and half: at best 0.525, seven errors away from luck."""
    sets = {"right": moons(71, 0.5), "wrong": moons(72, 0.55)}
    told = accuracies(sets, moons(70, 0.5), key=jax.random.key(73))
    for right, wrong in zip(*told.values(), strict=True):
        assert right == pytest.approx(0.5, abs=4 * ERROR)
        assert wrong < 0.525 + 4 * ERROR
    # The vote has no chance: 50 kinds are even but for 0.07, which hides a difference of 0.025.
    assert told["wrong"].network > 0.5 + 4 * ERROR


@pytest.mark.parametrize("name", ["same 61", "shifted", "rescaled"])
def test_the_vote_is_that_of_scikit_learn(told, name):
    """Trained on one half and asked about the other; a tie is half right. The odd point is cut."""
    mean, spread = TRUTH[:N].mean(axis=0), TRUTH[:N].std(axis=0)
    halves = [
        np.concatenate([(a[part] - mean) / spread for a in (SETS[name], TRUTH)])
        for part in (slice(0, N // 2), slice(N // 2, N))
    ]
    kind = np.repeat([0, 1], N // 2)
    right = []
    for known, asked in (halves, halves[::-1]):
        classifier = KNeighborsClassifier(50).fit(known, kind)
        vote = classifier.predict_proba(asked)[:, 1]
        right.append(np.where(vote == 0.5, 0.5, (vote > 0.5) == kind))
    assert np.any(np.concatenate(right) == 0.5)  # there are ties
    # Rounding may swap the 50th and the 51st neighbour of a few of 20,000 points.
    assert told[name].neighbours == pytest.approx(np.mean(right), abs=2e-4)


@pytest.mark.parametrize("bad", [(199, 2), (200, 3), (200,), (200, 1, 2)])
def test_shapes_that_differ_are_refused(bad):
    with pytest.raises(ValueError, match=r"HMC has shape \(.*\) and the truth \(200, 2\): give as"):
        accuracies({"HMC": jnp.ones(bad)}, jnp.ones((200, 2)), key=jax.random.key(0))


@pytest.mark.parametrize("shape", [(200,), (99, 2)])
def test_arrays_that_are_no_lists_of_points_or_short_ones_are_refused(shape):
    x = jax.random.normal(jax.random.key(60), shape)
    with pytest.raises(ValueError, match=r"as arrays \(n, d\), with n of at least 100"):
        accuracies({"HMC": x}, x, key=jax.random.key(0))


def test_a_coordinate_without_variation_is_refused():
    x = np.column_stack([gaussian(60)[:200, 0], np.ones(200)])
    with pytest.raises(ValueError, match="The truth does not vary in one of its coordinates"):
        accuracies({"HMC": gaussian(61)[:200]}, x, key=jax.random.key(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_values_that_are_not_finite_are_refused(value, which):
    arrays = [np.array(gaussian(key)[:200]) for key in (60, 61)]
    arrays[which][17, 1] = value
    with pytest.raises(ValueError, match="HMC or the truth holds NaN or infinite values"):
        accuracies({"HMC": arrays[0]}, arrays[1], key=jax.random.key(0))


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="There are no samples: give at least one set, by name"):
        accuracies({}, TRUTH, key=jax.random.key(0))
