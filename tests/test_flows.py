"""Bijectors for flows: held against TFP's own and against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import diagnostics, flows
from dlcourse_utils.errors import CourseError

tfb, tfd = tfp.bijectors, tfp.distributions
pytestmark = pytest.mark.tfp_ranks
KEY = jax.random.key(0)


def affine(counter=None):
    """y = 3 x + 1 in two dimensions; `counter` gets an entry for each call of the inverse."""

    def inverse(y):
        if counter is not None:
            counter.append(y)
        return (y - 1.0) / 3.0, jnp.full(y.shape[:-1], -2.0 * jnp.log(3.0))

    def forward(x):
        return 3.0 * x + 1.0, jnp.full(x.shape[:-1], 2.0 * jnp.log(3.0))

    return flows.as_bijector(forward, inverse)


def test_the_maps_are_those_of_tfp():
    ours, theirs = affine(), tfb.Chain([tfb.Shift(1.0), tfb.Scale(jnp.array([3.0, 3.0]))])
    x = jax.random.normal(KEY, (5, 2))
    for name in ("forward", "inverse"):
        np.testing.assert_allclose(getattr(ours, name)(x), getattr(theirs, name)(x), rtol=1e-6)
        one, two = (getattr(b, f"{name}_log_det_jacobian")(x, 1) for b in (ours, theirs))
        np.testing.assert_allclose(one, np.broadcast_to(two, (5,)), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_a_density_runs_each_network_once(jit):
    """Twice would be right too, but training would take half as long again."""
    calls = [[], []]

    def log_prob(x):
        chain = tfb.Chain([affine(calls[0]), tfb.Permute([1, 0]), affine(calls[1])])
        return tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(jnp.zeros(2)), chain
        ).log_prob(x)

    x = jax.random.normal(KEY, (5, 2))
    got = (jax.jit(log_prob) if jit else log_prob)(x)
    assert [len(call) for call in calls] == [1, 1]
    np.testing.assert_allclose(
        got, tfd.MultivariateNormalDiag([4.0, 4.0], [9.0, 9.0]).log_prob(x), rtol=1e-5
    )


def test_no_pair_is_remembered_for_other_points():
    bijector, one, two = affine(), jnp.zeros((3, 2)), jnp.ones((3, 2))
    first = bijector.inverse(one)
    np.testing.assert_allclose(bijector.inverse(two), first + 1.0 / 3.0, rtol=1e-6)
    np.testing.assert_allclose(bijector.inverse(one), first, rtol=1e-6)


def test_no_tracer_outlives_its_trace():
    bijector, y = affine(), jnp.ones((3, 2))
    expected = affine().inverse(y)
    jax.jit(lambda: bijector.inverse(y) + 1.0)()
    np.testing.assert_allclose(bijector.inverse(y), expected)
    jax.lax.scan(lambda total, _: (total + bijector.inverse(y), None), jnp.zeros((3, 2)), None, 2)
    np.testing.assert_allclose(bijector.inverse(y), expected)
    np.testing.assert_allclose(bijector.inverse_log_det_jacobian(y), -2.0 * jnp.log(3.0), rtol=1e-6)


def outputs(d=3, bins=8, scale=1.0):
    return scale * jax.random.normal(KEY, (20, d, 3 * bins - 1))


X = 2.5 * jax.random.normal(jax.random.key(1), (20, 3))  # some lie outside of the bound, 4


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_the_spline_is_that_of_tfp():
    """TFP's own, called outside of jit, where it works."""
    raw, bins = np.float64(outputs()), 8

    def sizes(part):
        part = np.exp(part) / np.exp(part).sum(axis=-1, keepdims=True)
        return jnp.float32(0.02 + part * (8.0 - bins * 0.02))

    shift = np.log(np.expm1(0.98))
    slopes = jnp.float32(0.02 + np.log1p(np.exp(raw[..., 16:] + shift)))
    theirs = tfb.RationalQuadraticSpline(sizes(raw[..., :8]), sizes(raw[..., 8:16]), slopes, -4.0)
    ours = flows.spline(outputs())
    np.testing.assert_allclose(ours.forward(X), theirs.forward(X), atol=1e-5)
    np.testing.assert_allclose(ours.inverse(X), theirs.inverse(X), atol=1e-5)


def test_the_bin_search_is_that_of_tfp_at_knots_and_bounds():
    """In double precision: in single, both lose digits of the log-det there."""
    with diagnostics.double_precision():
        raw = 2.0 * jnp.asarray(np.float64(outputs()[:, :1]))
        ours = flows.spline(raw)
        theirs = tfb.RationalQuadraticSpline(
            ours.bin_widths, ours.bin_heights, ours.knot_slopes, range_min=-4.0
        )
        for sizes, way in ((ours.bin_widths, "forward"), (ours.bin_heights, "inverse")):
            knots = -4.0 + jnp.cumsum(sizes, axis=-1)
            for k in range(8):
                for x in (knots[..., k], knots[..., k] - 1e-9, knots[..., k] + 1e-9):
                    for what in (way, f"{way}_log_det_jacobian"):
                        expected = getattr(theirs, what)(x)
                        np.testing.assert_allclose(getattr(ours, what)(x), expected, atol=1e-9)
        for x in (-5.0, -4.0, 4.0, 5.0):
            x = jnp.full((len(raw), 1), x)
            # The last knot is a sum of widths: it is 4 to a few units in the last place.
            np.testing.assert_allclose(ours.forward(x), x, rtol=1e-14)
            np.testing.assert_allclose(ours.inverse(x), x, rtol=1e-14)


def test_the_spline_at_its_knots():
    """At a knot both bins hold; from the last one on it is the identity."""
    with diagnostics.double_precision():
        raw = jnp.asarray(np.float64(outputs()[:1, :1]))  # one spline
        sizes = 0.02 + jax.nn.softmax(raw[0, 0, :16].reshape(2, 8)) * (8.0 - 8 * 0.02)
        x, y = -4.0 + jnp.cumsum(sizes, axis=-1)[..., None]
        bijector = flows.spline(raw[0])
        np.testing.assert_allclose(bijector.forward(x), y, atol=1e-12)
        np.testing.assert_allclose(flows.spline(raw[0]).inverse(y), x, atol=1e-12)
        for side in (-1e-9, 1e-9):
            np.testing.assert_allclose(bijector.forward(x + side), y, atol=1e-7)
        slopes = jax.vmap(jax.grad(lambda x: flows.spline(raw[0]).forward(x[None])[0, 0]))(x)
        inner = 0.02 + jax.nn.softplus(raw[0, 0, 16:] + jnp.log(jnp.expm1(0.98)))
        np.testing.assert_allclose(slopes[:-1, 0], inner, rtol=1e-9)
        assert slopes[-1, 0] == 1.0


def test_the_spline_under_jit_vmap_and_grad():
    @jax.jit
    def forward(raw, x):
        bijector = flows.spline(raw)
        return bijector.forward(x), bijector.forward_log_det_jacobian(x, 1)

    y, log_det = forward(outputs(), X)
    one, _ = jax.vmap(forward)(outputs(), X)
    np.testing.assert_allclose(one, y, atol=1e-6)
    # Another bijector goes back: the same one would look the answer up.
    back = jax.jit(lambda raw, y: flows.spline(raw).inverse(y))(outputs(), y)
    # y is rounded by up to 2.4e-7, which a small slope turns into more in x; four times that.
    slopes = jax.vmap(lambda raw, x: jnp.diag(jax.jacfwd(lambda x: forward(raw, x)[0])(x)))
    assert np.all(np.abs(back - X) <= 4 * 2.4e-7 / np.minimum(slopes(outputs(), X), 1.0))
    by_jax = jax.vmap(
        lambda raw, x: jnp.linalg.slogdet(jax.jacfwd(lambda x: forward(raw, x)[0])(x))[1]
    )
    np.testing.assert_allclose(by_jax(outputs(), X), log_det, atol=1e-4)
    gradient = jax.grad(lambda raw: forward(raw, X)[1].sum())(outputs())
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


def test_the_spline_is_the_identity_outside_and_at_zero():
    outside = jnp.array([[-9.0, 4.5, 100.0]])
    np.testing.assert_array_equal(flows.spline(outputs()[:1]).forward(outside), outside)
    np.testing.assert_allclose(flows.spline(outputs(scale=0.0)).forward(X), X, atol=1e-5)


def test_the_spline_survives_large_outputs():
    """Softmax and softplus bound them: no overflow."""
    raw = outputs(scale=1e3)
    y = flows.spline(raw).forward(X)
    assert np.isfinite(y).all()
    assert np.isfinite(flows.spline(raw).forward_log_det_jacobian(X, 1)).all()


@pytest.mark.parametrize("n", [2, 4, 36])
def test_a_wrong_number_of_outputs_is_refused(n):
    with pytest.raises(ValueError, match=rf"3 K - 1 outputs, at least 5; got {n}"):
        flows.spline(jnp.zeros((4, 1, n)))


def test_halves():
    one, two = flows.halves(X.reshape(15, 4))
    np.testing.assert_array_equal(jnp.concatenate([one, two], axis=-1), X.reshape(15, 4))
    assert one.shape == two.shape == (15, 2)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 0), ()])
def test_an_odd_number_of_coordinates_is_refused(shape):
    with pytest.raises(CourseError, match=r"two halves, and the last axis has .*even number"):
        flows.halves(jnp.zeros(shape))
