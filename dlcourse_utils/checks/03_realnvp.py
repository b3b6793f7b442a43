"""The checks of lesson 03: for each exercise its cases, and the wrong answers it can name.

A coupling may bound its scale in many ways: what is compared there are properties that all right
answers share, not their values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import flows

from .engine import Misfit, Spec, Suspect, namespace
from .tools import must_trace, ours, to_compile

tfb, tfd = tfp.bijectors, tfp.distributions

# --- what is compiled ------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _call(function, *arguments):
    return function(*arguments)


# --- 03.1 the loss of a flow -----------------------------------------------------------------


def _bent(size, offset, bend, x):
    """Each coordinate scaled and moved, the last one by an amount that depends on x1."""
    if x.ndim != 2:
        raise ValueError(
            f"`inverse` takes the whole batch, an array (n, d); it got one of shape {x.shape}"
        )
    last = x[..., -1:] * jnp.exp(bend * x[..., :1])
    z = jnp.concatenate([x[..., :-1], last], axis=-1) * size + offset
    return z, jnp.log(size).sum() + bend * x[..., 0]


def _nll_cases(rng):
    def case(n, d):
        size = jnp.float32(rng.uniform(1.1, 1.3, d))
        offset = jnp.float32(rng.uniform(-0.6, 0.6, d))
        bend = jnp.float32(rng.uniform(1.0, 1.2))

        # As a pytree, which may pass through jax.eval_shape.
        inverse = jax.tree_util.Partial(_bent, size, offset, bend)
        # Near zero, so that no point alone decides the mean.
        x = rng.uniform(-1.0, 1.0, (n, d))
        # The log-determinants have both signs, and a mean that is that of `size` alone.
        x[:2, 0] = -1.0, 1.0
        x[:, 0] -= x[:, 0].mean()
        return jnp.float32(x), inverse

    return {"8 points, d = 2": case(8, 2), "5 points, d = 3": case(5, 3)}


def _loss(function, arguments):
    """The value, in one compilation where it can be: it is fast, and the fault is told later."""
    if ours(function):
        return function(*arguments)  # many small ones share their operations
    try:
        return _call(to_compile(function), *arguments)
    except Exception:
        return function(*arguments)


@functools.partial(jax.jit, static_argnums=0)
def _call_gradient(function, x, inverse):
    return jax.grad(function)(x, inverse)


def _nll_of(log_prob):
    """The loss with another log density: log_prob(z, log_det, x) gives what the mean is of."""

    def wrong(x, inverse):
        z, log_det = inverse(x)
        return -jnp.mean(log_prob(z, log_det, x))

    return wrong


def _gaussian(z):
    return (-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi)).sum(axis=-1)


def _log_probs(x, inverse):
    z, log_det = inverse(x)
    return _gaussian(z) + log_det


_NLL = Spec(
    id="03.1",
    name="nll",
    cases=_nll_cases,
    # The loss is a few nats: sums in another order differ by some 1e-6.
    atol=1e-4,
    rtol=1e-5,
    evaluate=_loss,
    gradient=lambda f, case: _call_gradient(to_compile(f), *case),
    insight="A flow is trained on the exact likelihood, so its loss has a known floor: the entropy "
    "of the data.",
    suspects=(
        Suspect(
            "log_det_sign",
            _nll_of(lambda z, log_det, x: _gaussian(z) - log_det),
            "The log-determinant has the wrong sign.",
            "`inverse` returns that of x to z, which is added to log p(z); that of z to x would be "
            "subtracted. With this sign the loss falls without end as the flow squeezes all "
            "points into one.",
            "Use log p(z) + log_det.",
        ),
        Suspect(
            "no_log_det",
            _nll_of(lambda z, log_det, x: _gaussian(z)),
            "The log-determinant is missing.",
            "The best map is then the one that sends every point to z = 0.",
            "Add `log_det` to the log density of z.",
        ),
        Suspect(
            "absolute",
            _nll_of(lambda z, log_det, x: _gaussian(z) + jnp.abs(log_det)),
            "You took the absolute value of the log-determinant.",
            "The bars in log |det| stand around the determinant. Its logarithm is negative where "
            "the map squeezes space.",
            "Add `log_det` as it comes.",
        ),
        Suspect(
            "always_two",
            _nll_of(lambda z, log_det, x: -0.5 * (z**2).sum(-1) - jnp.log(2 * jnp.pi) + log_det),
            "The constant of the Gaussian is that of two dimensions, also where d is not 2.",
            "Each of the d coordinates has its own 1/2 log 2π.",
            "Take d from the data: `x.shape[-1]`.",
        ),
        Suspect(
            "log_of_mean",
            lambda x, inverse: -jnp.log(jnp.mean(jnp.exp(_log_probs(x, inverse)))),
            "This is the logarithm of the mean density, not the mean of the logarithms.",
            "The likelihood of independent points is a product, and its logarithm a sum of "
            "logarithms. The mean of densities hardly notices a point that the model excludes.",
            "Take the mean of the log densities.",
            usable=False,
        ),
        Suspect(
            "no_constant",
            _nll_of(lambda z, log_det, x: -0.5 * (z**2).sum(axis=-1) + log_det),
            "The constant of the Gaussian is missing.",
            "Training does not notice, but the loss is then d/2 log 2π too low: 1.84 nats in the "
            "plane, and below the entropy of the data.",
            "Subtract d/2 · log 2π from the log density of z.",
        ),
        Suspect(
            "constant_once",
            _nll_of(
                lambda z, log_det, x: (
                    -0.5 * (z**2).sum(axis=-1) - 0.5 * jnp.log(2 * jnp.pi) + log_det
                )
            ),
            "The constant of the Gaussian is that of one dimension.",
            "A Gaussian in d dimensions is a product of d, each with its own 1/2 log 2π.",
            "Multiply the constant by d = `x.shape[-1]`.",
        ),
        Suspect(
            "mean_over_coordinates",
            _nll_of(lambda z, log_det, x: _gaussian(z) / x.shape[-1] + log_det),
            "The log density of z is averaged over the coordinates, not summed.",
            "Independent coordinates multiply their densities, so the logarithms add up.",
            "Sum over the last axis first, then average over the points.",
        ),
        Suspect(
            "log_det_per_coordinate",
            _nll_of(lambda z, log_det, x: _gaussian(z) + x.shape[-1] * log_det),
            "The log-determinant is counted once for each coordinate.",
            "It already belongs to the whole point: one number for all d coordinates.",
            "Sum the Gaussian over the last axis before you add `log_det`.",
        ),
        Suspect(
            "sum_over_batch",
            lambda x, inverse: -jnp.sum(_log_probs(x, inverse)),
            "This is the sum over the batch, not the mean.",
            "The number depends on the size of the batch and cannot be read as nats per point.",
            "Use `jnp.mean`.",
        ),
        Suspect(
            "sign",
            lambda x, inverse: jnp.mean(_log_probs(x, inverse)),
            "This is the mean log-likelihood: the minus in front is missing.",
            "The optimiser would make the data as unlikely as it can.",
            "Put a minus in front of the mean.",
        ),
        Suspect(
            "per_point",
            lambda x, inverse: -_log_probs(x, inverse),
            "You return one value for each point.",
            "A gradient needs one number to descend.",
            "Take `jnp.mean` of it.",
        ),
        Suspect(
            "base_at_x",
            _nll_of(lambda z, log_det, x: _gaussian(x) + log_det),
            "The Gaussian is evaluated at x, not at z.",
            "It is z that the model takes for Gaussian; x has the shape of the data.",
            "Use the z that `inverse` returns.",
        ),
        Suspect(
            "bits",
            _nll_of(lambda z, log_det, x: (_gaussian(z) + log_det) / jnp.log(2.0)),
            "This is in bits: a logarithm to base 2.",
            "The entropy and the verdicts of this lesson are in nats, natural logarithms.",
            "Leave out the division by log 2.",
        ),
    ),
)

# --- 03.2 and 03.3: one coupling, forward and back -------------------------------------------

# Raw outputs at which a coupling is looked at. At the ends exp(r) or exp(-r) overflows.
_LEVELS = (-300.0, -1.0, 0.0, 1.0, 300.0)
_HALF = 3  # coordinates in each half

_COUPLING_LABELS = (
    "result",
    "half that is kept",
    "sign of the scale",
    "direction in which the scale grows with r",
    "shift, in units of t",
    "scaling of the shift",
    "size of the scale",
    "share of finite values",
    "log-det, in units of the sum of s",
    "difference between one point and a batch",
)
# |s| at the ends and at zero. A softplus grows to log 300 = 5.7 at the upper end.
_MOST, _MOST_AT_ZERO = 6.0, 0.75
_TOO_LARGE = (
    "The network gives too large or too small a scale: |s| must stay below about 5 for every r, "
    "and be near 0 at r = 0."
)


def _bounded(raw):
    return 2.0 * jnp.tanh(raw / 2.0)


def _coupling_net(shift, x1):
    """t near `shift`, and r the first half itself, backwards: points can be made for any r."""
    if jnp.shape(x1)[-1:] != (_HALF,):
        raise Misfit(
            f"`net` was called with an array of shape {jnp.shape(x1)}; for {2 * _HALF} coordinates "
            f"it takes the first half, with a last axis of {_HALF}."
        )
    return jnp.concatenate([shift * (1.0 + 0.3 * jnp.tanh(x1)), x1[..., ::-1]], axis=-1)


def _coupling_cases(rng):
    # Away from r = 0 no usual bound gives a log-scale near 0, by which nothing could be divided.
    x1 = np.concatenate(
        [
            np.repeat(np.array(_LEVELS)[:, None], _HALF, axis=1),
            rng.uniform(-1.5, -0.6, (3, _HALF)),
            rng.uniform(1.0, 2.0, (2, _HALF)),
        ]
    )
    # Each x1 twice, the second time with an x2 that is larger by one: a coupling is linear in x2.
    x2 = np.concatenate([np.zeros(x1[:5].shape), rng.uniform(-1.0, 1.0, (5, _HALF))])
    points = np.concatenate([np.hstack([x1, x2]), np.hstack([x1, x2 + 1.0])])
    shift = rng.uniform(0.6, 1.6, _HALF) * rng.choice([-1.0, 1.0], _HALF)
    net = jax.tree_util.Partial(_coupling_net, jnp.float32(shift))
    return {"20 points, d = 6": (jnp.float32(points), net)}


def _pair(name, result, first):
    """The two arrays of a result, with what is wrong with it said."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        what = f"a {type(result).__name__}"
        if hasattr(result, "shape"):
            what = f"an array of shape {result.shape}"
        elif isinstance(result, (tuple, list)):
            what += f" of {len(result)}"
        raise Misfit(f"`{name}` returns {what}; expected ({first}, log-det).")
    try:
        return tuple(np.asarray(part, np.float64) for part in result)
    except (TypeError, ValueError) as error:
        raise Misfit(f"`{name}` must return two arrays: {first} and the log-det.") from error


def _look_at(name, first, *, back):
    """The evaluation of a coupling, ``back`` for an inverse: properties under any bound."""

    def evaluate(function, arguments):
        points, net = arguments
        result = function(points, net)
        if result is None or result is ...:
            return result
        image, log_det = _pair(name, result, first)
        if image.shape != points.shape:
            # The rest reads both halves of the image: only its shape is told.
            return (np.zeros(image.shape), *(np.nan,) * (len(_COUPLING_LABELS) - 1))
        try:
            alone = _pair(name, function(points[6], net), first)
        except Exception as error:
            raise Misfit(
                f"`{name}` works for points (n, d), but not for one point (d,). Count axes from "
                "the end: `axis=-1`, `x[..., :k]`."
            ) from error
        kept = np.asarray(points)[:, :_HALF]
        places = [
            k + 1.0
            for k, half in enumerate(np.split(image, 2, axis=-1))
            if np.allclose(half, kept, rtol=0.0, atol=1e-5)
        ]
        shift = np.float64(net(points[:, :_HALF])[:, :_HALF])
        with np.errstate(all="ignore"):
            at_zero = (image[:10, _HALF:] / shift[:10])[1:4]  # r = -1, 0, 1
            slope = image[10:, _HALF:] - image[:10, _HALF:]
            low, middle, high = slope[1:4]
            sign, growth = _sign(low), _sign(high - low)
            # Where a map that goes back is zero, and what one that goes forward makes of zero.
            relative = _finite(-at_zero[1] / middle if back else at_zero[1])
            # Zero goes to t, or to t times a power of the scale, if that was applied after it.
            power = np.log(np.abs(at_zero[0] / at_zero[1])) / np.log(np.abs(low / middle))
            # An offset that is zero at r = 0 alone is no shift times a power of the scale.
            power = np.where(np.isinf(power), 8.0, _finite(power))
            # A bound is looked at in a map that is right so far: its t is t, and its scale grows.
            log_scale = np.log(np.abs(slope[:5]))
            most = np.array([_MOST, np.inf, _MOST_AT_ZERO, np.inf, _MOST])[:, None]
            right = (sign > 0).all() and growth.all() and np.allclose(relative, 1.0, atol=1e-3)
            bounded = not right or bool((np.abs(log_scale) <= most).all())
            if log_det.shape != points.shape[:-1]:
                ratio = np.zeros(log_det.shape)
            elif not (sign > 0).all() or not growth.all():
                ratio = np.full(5, 9.0)  # no scale that grows: no determinant to speak of
            else:
                # The Jacobian is triangular; above the diagonal of ones stand the scales. Their
                # logarithms are s, or -s where they shrink as r grows.
                ratio = _finite(log_det[5:10] / (growth * np.log(slope[5:])).sum(axis=-1))
        # Without a bound all kinds of values overflow, and with it none may.
        finite = np.concatenate([np.isfinite(image).ravel(), np.isfinite(log_det).ravel()])
        difference = 0.0
        if log_det.shape == points.shape[:-1]:
            if alone[0].shape != image.shape[1:] or alone[1].shape != ():
                raise Misfit(
                    f"For one point {image.shape[1:]} `{name}` returns shapes {alone[0].shape} and "
                    f"{alone[1].shape}; expected {image.shape[1:]} and ()."
                )
            with np.errstate(all="ignore"):
                difference = np.abs(alone[0] - image[6]).max() + np.abs(alone[1] - log_det[6])
        place = places[0] if places else 0.0
        return (
            np.zeros(image.shape),
            place,
            sign,
            growth,
            relative,
            power,
            1.0 * bounded,
            finite.mean() if bounded else 1.0,
            ratio,
            difference,
        )

    return evaluate


def _finite(values):
    """A number that nothing else gives in the places of 0/0 and 1/0."""
    return np.nan_to_num(values, nan=9.0, posinf=9.0, neginf=9.0)


def _sign(slope):
    return np.sign(np.where((np.abs(slope) < 1e-4) | ~np.isfinite(slope), 0.0, slope))


def _traced(function, arguments):
    """Only whether JAX can differentiate a coupling: its gradient depends on the bound."""
    points, net = arguments
    jax.eval_shape(jax.grad(lambda x: sum(part.sum() for part in function(x, net))), points)
    return jnp.zeros(())


def _coupled(second, log_det=lambda s: s.sum(axis=-1), scale=_bounded, join=None):
    """A coupling with mistakes: second(x2, s, t) is the new half, log_det(s) its log-det."""

    def wrong(points, net):
        kept, other = jnp.split(points, 2, axis=-1)
        shift, raw = jnp.split(net(kept), 2, axis=-1)
        log_scale = scale(raw)
        new = second(other, log_scale, shift)
        halves = [kept, new] if join is None else join(kept, new)
        return jnp.concatenate(halves, axis=-1), log_det(log_scale)

    return wrong


def _swapped_outputs(second, sign):
    def wrong(points, net):
        kept, other = jnp.split(points, 2, axis=-1)
        raw, shift = jnp.split(net(kept), 2, axis=-1)
        log_scale = _bounded(raw)
        new = second(other, log_scale, shift)
        return jnp.concatenate([kept, new], axis=-1), sign * log_scale.sum(axis=-1)

    return wrong


def _interleaved_outputs(second, sign):
    def wrong(points, net):
        kept, other = jnp.split(points, 2, axis=-1)
        outputs = net(kept)
        log_scale = _bounded(outputs[..., 1::2])
        new = second(other, log_scale, outputs[..., ::2])
        return jnp.concatenate([kept, new], axis=-1), sign * log_scale.sum(axis=-1)

    return wrong


def _other_half(second, sign):
    def wrong(points, net):
        other, kept = jnp.split(points, 2, axis=-1)
        shift, raw = jnp.split(net(kept), 2, axis=-1)
        log_scale = _bounded(raw)
        new = second(other, log_scale, shift)
        return jnp.concatenate([new, kept], axis=-1), sign * log_scale.sum(axis=-1)

    return wrong


def _there(x2, s, t):
    return x2 * jnp.exp(s) + t


def _back(y2, s, t):
    return (y2 - t) * jnp.exp(-s)


def _forward_unless(log_det):
    return _coupled(_there, log_det)


def _inverse_unless(log_det):
    return _coupled(_back, log_det)


# Ratios and roots lose a few digits where a scale is small: 1e-5 of them; 1 stands against 0, -1,
# 1/2 and 1/3.
_COUPLING_ATOL = 1e-3

_FORWARD = Spec(
    id="03.2",
    name="forward",
    cases=_coupling_cases,
    evaluate=_look_at("forward", "y", back=False),
    labels=_COUPLING_LABELS,
    gradient=_traced,
    atol=_COUPLING_ATOL,
    insight="The network is never inverted, and its own Jacobian never enters the determinant: it "
    "can be as wild as you like.",
    suspects=(
        Suspect(
            "log_det_sign",
            _forward_unless(lambda s: -s.sum(axis=-1)),
            "The log-determinant has the wrong sign: it is that of the inverse map.",
            "Where the scale is larger than one the coupling stretches space, and its determinant "
            "is larger than one.",
            "Return the sum of s, without a minus.",
        ),
        Suspect(
            "no_log_det",
            _forward_unless(lambda s: jnp.zeros(s.shape[:-1])),
            "The log-determinant is zero everywhere.",
            "The test of a flow compares it with automatic differentiation, and the density of "
            "samples needs it. Training takes the one of `inverse`.",
            "Sum s over its last axis.",
        ),
        Suspect(
            "log_det_axis",
            _forward_unless(lambda s: s.sum(axis=0)),
            "The log-determinant is summed over the points, not over the coordinates.",
            "Each point has a Jacobian of its own, so there is one log-determinant per point.",
            "Use `axis=-1`.",
        ),
        Suspect(
            "log_det_mean",
            _forward_unless(lambda s: s.mean(axis=-1)),
            "The log-determinant is the mean of s, not the sum.",
            "A determinant is the product of the scales, whose logarithm is a sum. With one "
            "coordinate in each half the two agree, with more they do not.",
            "Use `sum(axis=-1)`.",
        ),
        Suspect(
            "log_det_of_batch",
            _forward_unless(lambda s: s.sum()),
            "The log-determinant is summed over all points.",
            "No error is raised: it would broadcast to all points, and spoil the log density of "
            "every sample.",
            "Sum over the last axis only: `axis=-1`.",
        ),
        Suspect(
            "log_det_per_coordinate",
            _forward_unless(lambda s: s),
            "You return one log-determinant for each coordinate.",
            "The determinant of a triangular matrix is the product of its diagonal: one number for "
            "each point.",
            "Sum over the last axis.",
        ),
        Suspect(
            "log_det_of_scales",
            _forward_unless(lambda s: jnp.exp(s).sum(axis=-1)),
            "You summed the scales, not their logarithms.",
            "The determinant is the product of the scales exp(s), and its logarithm the sum of s.",
            "Sum s itself.",
        ),
        Suspect(
            "determinant",
            _forward_unless(lambda s: jnp.exp(s.sum(axis=-1))),
            "You return the determinant, not its logarithm.",
            "The log-determinants of the layers are added up; determinants would be multiplied.",
            "Leave out the last `jnp.exp`.",
        ),
        Suspect(
            "unbounded",
            _coupled(_there, scale=lambda raw: raw),
            _TOO_LARGE,
            "One infinite value in a batch turns the loss, and then all weights, into NaN.",
            "Use s = 2 tanh(r / 2) in both places, the scale and the log-determinant.",
        ),
        Suspect(
            "swapped_outputs",
            _swapped_outputs(_there, 1.0),
            "The shift and the scale are swapped: the second half of the outputs is used as t.",
            "`inverse` and the reference read t from the first half and r from the second.",
            "Use `shift, raw = jnp.split(net(x1), 2, axis=-1)`.",
        ),
        Suspect(
            "interleaved_outputs",
            _interleaved_outputs(_there, 1.0),
            "You took every second output as t, and the others as r.",
            "The outputs are two blocks side by side: first all of t, then all of r.",
            "Use `jnp.split(net(x1), 2, axis=-1)`.",
        ),
        Suspect(
            "wrong_half",
            _other_half(_there, 1.0),
            "The wrong half is changed: the first half must be kept, the second one changed.",
            "It is a coupling too, but not the inverse of the one in exercise 03.3.",
            "Give x1 to the net, and transform x2.",
        ),
        Suspect(
            "wrong_order",
            _coupled(_there, join=lambda kept, new: [new, kept]),
            "The two halves are joined in the wrong order.",
            "The inverse looks for the kept half in front; swapping is the task of the stack.",
            "Join x1 first, then the new second half.",
        ),
        Suspect(
            "half_dropped",
            _coupled(_there, join=lambda kept, new: [new]),
            "You return the second half alone.",
            "y must have as many coordinates as x, or there is no way back.",
            "Join x1 and the new half with `jnp.concatenate` and `axis=-1`.",
        ),
        Suspect(
            "shift_first",
            _coupled(lambda x2, s, t: (x2 + t) * jnp.exp(s)),
            "The shift is added before the scaling, so it is scaled as well.",
            "It is invertible too, but the inverse of exercise 03.3 takes the shift away first.",
            "Multiply x2 by the scale, then add t.",
        ),
        Suspect(
            "no_exp",
            _coupled(lambda x2, s, t: x2 * s + t),
            "x2 is multiplied by s, not by exp(s).",
            "Where s is zero the second half is lost, and the map has no inverse; the "
            "log-determinant is then not the sum of s.",
            "Use `jnp.exp(s)`.",
        ),
        Suspect(
            "divided",
            _coupled(lambda x2, s, t: x2 * jnp.exp(-s) + t, lambda s: -s.sum(axis=-1)),
            "x2 is divided by the scale, not multiplied.",
            "It is a coupling too, but not the inverse of the one in exercise 03.3.",
            "Multiply by `jnp.exp(s)`, and sum s itself.",
        ),
        Suspect(
            "divided_only",
            _coupled(lambda x2, s, t: x2 * jnp.exp(-s) + t),
            "x2 is divided by the scale, but the log-determinant is that of a multiplication.",
            "It is a coupling too, but not the inverse of the one in exercise 03.3; and its "
            "log-determinant is not that of its map.",
            "Multiply by `jnp.exp(s)`.",
        ),
        Suspect(
            "inverse_map",
            _coupled(_back),
            "You take the shift away and divide by the scale: that is the way back.",
            "It belongs in exercise 03.3. The log-determinant must fit the map as well.",
            "Multiply x2 by `jnp.exp(s)`, then add t.",
        ),
        Suspect(
            "no_shift",
            _coupled(lambda x2, s, t: x2 * jnp.exp(s)),
            "The shift is missing.",
            "Half of what the network returns is not used: the coupling can stretch, but not bend.",
            "Add t after scaling.",
        ),
        Suspect(
            "shift_subtracted",
            _coupled(lambda x2, s, t: x2 * jnp.exp(s) - t),
            "The shift is subtracted.",
            "The inverse of exercise 03.3 takes away what you add here.",
            "Add t after scaling.",
        ),
    ),
)

_INVERSE = Spec(
    id="03.3",
    name="inverse",
    cases=_coupling_cases,
    evaluate=_look_at("inverse", "x", back=True),
    labels=_COUPLING_LABELS,
    gradient=_traced,
    atol=_COUPLING_ATOL,
    insight="Going back costs as much as going forward, so both the density and new samples are "
    "cheap. Many other flows are fast in one direction only.",
    suspects=(
        Suspect(
            "shift_last",
            _coupled(lambda y2, s, t: y2 * jnp.exp(-s) - t, lambda s: -s.sum(axis=-1)),
            "You divide by the scale first and take the shift away afterwards.",
            "The shift came last on the way forward, so it must go first on the way back. The "
            "log-determinant is the same, so only a round trip shows it.",
            "Use (y2 - t) · exp(-s).",
        ),
        Suspect(
            "log_det_sign",
            _inverse_unless(lambda s: s.sum(axis=-1)),
            "The log-determinant is that of the forward map: the sign is wrong.",
            "Going back undoes the stretching, so the two log-determinants cancel.",
            "Return minus the sum of s.",
        ),
        Suspect(
            "multiplied",
            _coupled(lambda y2, s, t: (y2 - t) * jnp.exp(s), lambda s: -s.sum(axis=-1)),
            "You multiply by the scale again, where it must be divided out.",
            "A round trip does not come back, and the log-determinant, with its minus, belongs to "
            "another map.",
            "Use exp(-s) in place of exp(s).",
        ),
        Suspect(
            "multiplied_with_its_log_det",
            _coupled(lambda y2, s, t: (y2 - t) * jnp.exp(s)),
            "Both the scale and the log-determinant have the sign of the forward map.",
            "They agree with each other, but not with `forward`: a round trip does not come back.",
            "Use exp(-s), and minus the sum of s.",
        ),
        Suspect(
            "forward_again",
            _coupled(_there),
            "This is the forward map once more.",
            "It must undo what `forward` does, step by step.",
            "Take the shift away, then divide by the scale.",
        ),
        Suspect(
            "shift_added",
            _coupled(lambda y2, s, t: (y2 + t) * jnp.exp(-s), lambda s: -s.sum(axis=-1)),
            "The shift is added once more.",
            "`forward` added it, so the way back must take it away.",
            "Use y2 - t.",
        ),
        Suspect(
            "no_shift",
            _coupled(lambda y2, s, t: y2 * jnp.exp(-s), lambda s: -s.sum(axis=-1)),
            "The shift is not taken away.",
            "The log-determinant does not depend on it, so only a round trip shows it.",
            "Use y2 - t.",
        ),
        Suspect(
            "no_exp",
            _coupled(lambda y2, s, t: (y2 - t) / s, lambda s: -s.sum(axis=-1)),
            "You divide by s, not by exp(s).",
            "s is the logarithm of the scale: it can be zero or negative.",
            "Multiply by `jnp.exp(-s)`.",
        ),
        Suspect(
            "unbounded",
            _coupled(_back, lambda s: -s.sum(axis=-1), scale=lambda raw: raw),
            _TOO_LARGE,
            "One infinite value in a batch spoils the loss, and the bound must be that of "
            "`forward`, or it is not its inverse.",
            "Use s = 2 tanh(r / 2), or the bound that you chose in `forward`.",
        ),
        Suspect(
            "no_log_det",
            _inverse_unless(lambda s: jnp.zeros(s.shape[:-1])),
            "The log-determinant is zero everywhere.",
            "This is the one that the density of the flow is made of.",
            "Return minus the sum of s over the last axis.",
        ),
        Suspect(
            "log_det_axis",
            _inverse_unless(lambda s: -s.sum(axis=0)),
            "The log-determinant is summed over the points, not over the coordinates.",
            "Each point has a Jacobian of its own, so there is one log-determinant per point.",
            "Use `axis=-1`.",
        ),
        Suspect(
            "log_det_mean",
            _inverse_unless(lambda s: -s.mean(axis=-1)),
            "The log-determinant is made of the mean of s, not the sum.",
            "A determinant is the product of the scales, whose logarithm is a sum.",
            "Use `sum(axis=-1)`.",
        ),
        Suspect(
            "log_det_of_batch",
            _inverse_unless(lambda s: -s.sum()),
            "The log-determinant is summed over all points.",
            "It would be added to the log density of every single point. No error is raised.",
            "Sum over the last axis only: `axis=-1`.",
        ),
        Suspect(
            "log_det_per_coordinate",
            _inverse_unless(lambda s: -s),
            "You return one log-determinant for each coordinate.",
            "The determinant of a triangular matrix is the product of its diagonal: one number for "
            "each point.",
            "Sum over the last axis.",
        ),
        Suspect(
            "determinant",
            _inverse_unless(lambda s: jnp.exp(-s.sum(axis=-1))),
            "You return the determinant, not its logarithm.",
            "The log-determinants of the layers are added up; determinants would be multiplied.",
            "Leave out the last `jnp.exp`.",
        ),
        Suspect(
            "swapped_outputs",
            _swapped_outputs(_back, -1.0),
            "The shift and the scale are swapped: the second half of the outputs is used as t.",
            "The network is that of `forward`, with t in the first half and r in the second.",
            "Use `shift, raw = jnp.split(net(y1), 2, axis=-1)`.",
        ),
        Suspect(
            "interleaved_outputs",
            _interleaved_outputs(_back, -1.0),
            "You took every second output as t, and the others as r.",
            "The outputs are two blocks side by side: first all of t, then all of r.",
            "Use `jnp.split(net(y1), 2, axis=-1)`.",
        ),
        Suspect(
            "wrong_half",
            _other_half(_back, -1.0),
            "The wrong half is changed: the first half was kept by `forward`.",
            "Only for the first half does the network return what it returned on the way forward.",
            "Give y1 to the net, and transform y2.",
        ),
        Suspect(
            "wrong_order",
            _coupled(_back, lambda s: -s.sum(axis=-1), join=lambda kept, new: [new, kept]),
            "The two halves are joined in the wrong order.",
            "The coordinates of x must come back in their places.",
            "Join y1 first, then the new second half.",
        ),
        Suspect(
            "half_dropped",
            _coupled(_back, lambda s: -s.sum(axis=-1), join=lambda kept, new: [new]),
            "You return the second half alone.",
            "x must have as many coordinates as y.",
            "Join y1 and the new half with `jnp.concatenate` and `axis=-1`.",
        ),
    ),
)

# --- 03.4 the stack --------------------------------------------------------------------------

# Sums of some ten terms of a few nats through five layers: rounding is 1e-6 to 1e-5.
_STACK_ATOL = 5e-4
_STACK_LABELS = ("use of `coupling`", "log density", "image of x, back at z", "image of z")


def _wave(wave, size, x1):
    """A net of one coordinate, with a shift and a raw scale."""
    if jnp.shape(x1)[-1:] != (1,):
        raise Misfit(
            f"A net was called with an array of shape {jnp.shape(x1)}; it takes one coordinate of "
            "each point, with a last axis of 1."
        )
    bent = wave * (x1 - 0.4)
    return size * bent / (1.0 + bent**2)  # no sine: it takes long to compile


def _stack_cases(rng):
    def net():
        wave = rng.uniform(0.7, 0.9, 2) * rng.choice([-1.0, 1.0], 2)
        size = rng.uniform(0.8, 1.3, 2) * rng.choice([-1.0, 1.0], 2)
        return jax.tree_util.Partial(_wave, jnp.float32(wave), jnp.float32(size))

    return {"five nets": ([net() for _ in range(5)], _sheared), "no nets": ([], _sheared)}


def _sheared(net):
    """Another coupling than the lesson's, with the same nets: a cell later passes another one."""

    def outputs(x1):
        bent = net(x1)
        return bent[..., :1] - bent[..., 1:], 0.4 + 0.5 * bent[..., 1:]

    def forward(x):
        shift, log_scale = outputs(x[..., :1])
        y = jnp.concatenate([x[..., :1], x[..., 1:] * jnp.exp(log_scale) + shift], axis=-1)
        return y, log_scale[..., 0]

    def inverse(y):
        shift, log_scale = outputs(y[..., :1])
        x = jnp.concatenate([y[..., :1], (y[..., 1:] - shift) * jnp.exp(-log_scale)], axis=-1)
        return x, -log_scale[..., 0]

    return flows.as_bijector(forward, inverse)


def _distribution(density):
    """The density, if it is one of points in the plane."""
    if density is None or density is ...:
        raise Misfit(f"`stack` returns {density}: is there a `return`, and a last line?")
    if isinstance(density, tfb.Bijector):
        raise Misfit(
            "`stack` returns the bijector alone: put it into a `tfd.TransformedDistribution`, with "
            "the base density in front."
        )
    if not all(hasattr(density, name) for name in ("log_prob", "bijector", "distribution")):
        raise Misfit(
            f"`stack` returns `{type(density).__name__}`; expected a `tfd.TransformedDistribution`."
        )
    event, batch = tuple(density.distribution.event_shape), tuple(density.distribution.batch_shape)
    if event != (2,) or batch != ():
        raise Misfit(
            f"The base has event shape {event} and batch shape {batch}; expected (2,) and (): one "
            "event of two numbers. `tfd.MultivariateNormalDiag(jnp.zeros(2))` is one."
        )
    return density


def _pulled(function, coupling, nets, x):
    density = _distribution(function(nets, coupling))
    return density.log_prob(x), density.bijector.inverse(x)


def _pushed(function, coupling, nets, z):
    return _distribution(function(nets, coupling)).bijector.forward(z)


@functools.cache
def _quickly(function):
    """The function under jit. It runs once: an optimisation would take longer than the rest."""
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    try:
        jax.block_until_ready(jax.jit(jnp.negative, compiler_options=options)(1.0))
    except Exception:
        options = None  # the names of options are no promise
    return jax.jit(function, static_argnums=(0, 1), compiler_options=options)


# Points in standardised units.
_POINTS = np.float32([[-1.2, 0.3], [-0.4, -1.0], [0.2, 1.4], [0.9, -0.5], [1.0, 1.0]])


def _pull(function, nets, coupling):
    scope = namespace("03")
    x = np.float32(scope["CENTRE"]) + np.float32(scope["SPREAD"]) * _POINTS
    log_prob, z = _quickly(_pulled)(to_compile(function), coupling, nets, x)
    if log_prob.shape != (len(x),):
        raise Misfit(
            f"The `log_prob` of {len(x)} points has shape {log_prob.shape}; expected {(len(x),)}."
        )
    return np.float64(log_prob), np.float64(z)


def _same_values(mine, right):
    return all(
        one.shape == two.shape and np.allclose(one, two, rtol=0.0, atol=_STACK_ATOL)
        for one, two in zip(mine, right, strict=True)
    )


def _stack_values(function, arguments):
    nets, coupling = arguments
    reference = namespace("03")["stack"]
    if not nets:
        # Most mistakes in the loop would show here in some other way: only where it is right.
        some = _stack_cases(np.random.default_rng(0))["five nets"]
        if not _same_values(_pull(function, *some), _pull(reference, *some)):
            function = reference
    else:
        used = []
        _distribution(function(nets, lambda net: used.append(net) or coupling(net)))
        if not used:
            # Whatever it does instead, there is one thing to say.
            return 0.0, np.zeros(5), np.zeros((5, 2)), np.zeros((5, 2))
    pulled = _pull(function, nets, coupling)
    # The way forward is worth a compilation only if the way back is right.
    right = function is reference or _same_values(pulled, _pull(reference, nets, coupling))
    forward = to_compile(function if right else reference)
    return 1.0, *pulled, np.float64(_quickly(_pushed)(forward, coupling, nets, _POINTS))


def _swap():
    return tfb.Permute([1, 0])


def _flow(layers, base=None):
    base = tfd.MultivariateNormalDiag(jnp.zeros(2)) if base is None else base
    return tfd.TransformedDistribution(base, tfb.Chain(layers))


def _layers(nets, coupling, first=True):
    layers = [namespace("03")["standardise"]()] if first else []
    for net in nets:
        layers += [coupling(net), _swap()]
    return layers


def _couplings_then(*last):
    def wrong(nets, coupling):
        standardise = namespace("03")["standardise"]()
        return _flow([standardise, *(coupling(net) for net in nets), *(make() for make in last)])

    return wrong


def _overwritten(nets, coupling):
    layers = [namespace("03")["standardise"]()]
    for net in nets:
        layers = [namespace("03")["standardise"](), coupling(net), _swap()]
    return _flow(layers)


def _own_coupling(nets, coupling):
    """A stack of TFP's RealNVP, with the formulas of the lesson inside."""

    def layer(net):
        def second_half(x1, _units, **_):
            shift, raw = jnp.split(net(x1), 2, axis=-1)
            return tfb.Shift(shift)(tfb.Scale(log_scale=_bounded(raw)))

        return tfb.RealNVP(num_masked=1, bijector_fn=second_half)

    return _flow(_layers(nets, lambda net: layer(net)))


def _swap_in_front(nets, coupling):
    layers = [namespace("03")["standardise"]()]
    for net in nets:
        layers += [_swap(), coupling(net)]
    return _flow(layers)


_STACK = Spec(
    id="03.4",
    name="stack",
    cases=_stack_cases,
    evaluate=_stack_values,
    labels=_STACK_LABELS,
    atol=_STACK_ATOL,
    rtol=0.0,
    insight="Every layer bends one coordinate and keeps the other: with the swaps both are bent, "
    "again and again.",
    suspects=(
        Suspect(
            "no_swap",
            _couplings_then(),
            "Every coupling changes the same coordinate: the swaps are missing.",
            "The other one passes through all layers unbent, so its density stays a Gaussian.",
            "Put `tfb.Permute([1, 0])` after each coupling, inside the loop.",
        ),
        Suspect(
            "one_swap",
            _couplings_then(_swap),
            "The coordinates are swapped once, after all the couplings.",
            "Between two couplings nothing is swapped, so all of them change the same coordinate.",
            "Move `tfb.Permute([1, 0])` into the loop.",
        ),
        Suspect(
            "overwritten",
            _overwritten,
            "Only the last net acts: each turn of the loop makes a new list.",
            "The flow has a single layer, whatever the number of nets.",
            "Make the list before the loop, and let it grow with `+=`.",
        ),
        Suspect(
            "first_only",
            lambda nets, coupling: _flow(_layers(nets[:1], coupling)),
            "Only the first net acts.",
            "The flow has a single layer, whatever the number of nets; perhaps a `return` stands "
            "inside the loop.",
            "Build the distribution after the loop.",
        ),
        Suspect(
            "first_two",
            lambda nets, coupling: _flow(_layers(nets[:2], coupling)),
            "Only the first two nets act.",
            "The flow has two layers, whatever the number of nets.",
            "Use each net of the list once: `for net in nets`.",
        ),
        Suspect(
            "first_three",
            lambda nets, coupling: _flow(_layers(nets[:3], coupling)),
            "Only the first three nets act.",
            "The flow has three layers, whatever the number of nets.",
            "Use each net of the list once: `for net in nets`.",
        ),
        Suspect(
            "first_four",
            lambda nets, coupling: _flow(_layers(nets[:4], coupling)),
            "Of five nets the last one does not act.",
            "Its parameters would never be trained.",
            "Use each net of the list once: `for net in nets`.",
        ),
        Suspect(
            "without_first",
            lambda nets, coupling: _flow(_layers(nets[1:], coupling)),
            "The first net does not act.",
            "Its parameters would never be trained.",
            "Use each net of the list once: `for net in nets`.",
        ),
        Suspect(
            "reversed",
            lambda nets, coupling: _flow(_layers(nets[::-1], coupling)),
            "The nets are in the reverse order.",
            "It is a good flow, but the first net must be the one nearest to the data: a later "
            "cell leaves out the first nets of the list to show the way of a point through the "
            "layers.",
            "Take the nets as they come: `tfb.Chain` applies the last of its list to z first.",
        ),
        Suspect(
            "swap_in_front",
            _swap_in_front,
            "The swap is on the wrong side of each coupling.",
            "It is a good flow, but the first coupling then changes the other coordinate of the "
            "data, and later cells count on the order of the text.",
            "In the list, put `coupling(net)` first and `tfb.Permute([1, 0])` behind it.",
        ),
        Suspect(
            "no_last_swap",
            lambda nets, coupling: _flow(_layers(nets, coupling)[: 2 * len(nets)]),
            "The swap behind the last coupling is missing.",
            "The density is the same, but z has its coordinates swapped: a later cell follows a "
            "point from z through the layers, two at a time.",
            "Put `tfb.Permute([1, 0])` behind each coupling, also behind the last one.",
        ),
        Suspect(
            "own_coupling",
            _own_coupling,
            "The argument `coupling` is not used.",
            "Later cells call `stack` with other couplings, such as one with splines.",
            "Make each layer with `coupling(net)`.",
            usable=False,
        ),
        Suspect(
            "all_share_last",
            lambda nets, coupling: _flow(_layers(nets[-1:] * len(nets), coupling)),
            "All couplings use the last net.",
            "A function made in a loop looks its variable up when it is called: by then the loop "
            "is over.",
            "Pass the net itself, `coupling(net)`, or bind it: `lambda x, net=net: net(x)`.",
        ),
        Suspect(
            "all_share_first",
            lambda nets, coupling: _flow(_layers(nets[:1] * len(nets), coupling)),
            "All couplings use the first net.",
            "The layers then bend space in the same way, and the other nets are never trained.",
            "Use each net of the list once: `for net in nets`.",
        ),
        Suspect(
            "not_standardised",
            lambda nets, coupling: _flow(_layers(nets, coupling, first=False)),
            "`standardise()` is missing.",
            "The layers would have to learn the mean and the spread of the data as well.",
            "Make it the first bijector of the list.",
        ),
        Suspect(
            "standardised_last",
            lambda nets, coupling: _flow(
                [*_layers(nets, coupling, first=False), namespace("03")["standardise"]()]
            ),
            "`standardise()` is at the wrong end: it acts on z, not next to the data.",
            "`tfb.Chain` applies the last of its list to z first. The nets then see the data as "
            "they come, off centre and unscaled.",
            "Make it the first bijector of the list.",
        ),
        Suspect(
            "standardised_last_reversed",
            lambda nets, coupling: _flow(_layers(nets, coupling)[::-1]),
            "The list is the wrong way round.",
            "`tfb.Chain` applies the last of its list to z first, so that `standardise()` now acts "
            "on z and not next to the data.",
            "Keep the order of the text: `standardise()`, then the layers.",
        ),
        Suspect(
            "standardised_each",
            lambda nets, coupling: _flow(
                [
                    layer
                    for net in nets
                    for layer in (namespace("03")["standardise"](), coupling(net), _swap())
                ]
            ),
            "`standardise()` is inside the loop, once for each net.",
            "Each layer squeezes and shifts the points again, by the spread of the data.",
            "Put it in the list once, before the loop.",
        ),
        Suspect(
            "inverted",
            lambda nets, coupling: tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(jnp.zeros(2)),
                tfb.Invert(tfb.Chain(_layers(nets, coupling))),
            ),
            "The chain is inverted.",
            "The bijector of a TransformedDistribution leads from z to x, from the base to the "
            "data.",
            "Leave out `tfb.Invert`.",
        ),
        Suspect(
            "wide_base",
            lambda nets, coupling: _flow(
                _layers(nets, coupling),
                tfd.MultivariateNormalDiag(jnp.zeros(2), 2.0 * jnp.ones(2)),
            ),
            "The base is a Gaussian of standard deviation 2, not 1.",
            "`standardise()` and the bound of the scales are made for a base of spread one.",
            "Use `tfd.MultivariateNormalDiag(jnp.zeros(2))`.",
        ),
        Suspect(
            "base_at_centre",
            lambda nets, coupling: _flow(
                _layers(nets, coupling),
                tfd.MultivariateNormalDiag(jnp.float32(namespace("03")["CENTRE"])),
            ),
            "The base is centred on the data, not on zero.",
            "`standardise()` adds the mean of the data already.",
            "Use `jnp.zeros(2)` as its mean.",
        ),
    ),
)

# --- 03.5 a net that sees the observation ----------------------------------------------------


def _given_cases(rng):
    n = 6  # one shape, compiled once

    def case():
        phase = jnp.float32(rng.uniform(0.2, 0.8))

        def net(inputs):
            """Sums over the columns, and their number: it tells all inputs but not their order."""
            if jnp.ndim(inputs) != 2:
                raise Misfit(
                    f"`net` was called with an array of shape {jnp.shape(inputs)}; expected "
                    f"{(n, 2)}: x1 and y side by side."
                )
            columns = jnp.full(inputs.shape[:1], 1.0 * inputs.shape[1] ** 2)
            waves = jnp.tanh(jnp.sin(1.3 * inputs + phase).sum(axis=-1))
            return jnp.stack([jnp.square(inputs).sum(axis=-1), waves, columns], axis=-1)

        # Away from zero, where a product or a sum with y could look like something else.
        return net, jnp.float32(rng.uniform(0.4, 2.0, (n, 1)))

    return {"one batch": case(), "another batch": case()}


def _conditioned(function, arguments):
    net, y = arguments
    n = len(y)
    x1 = jnp.linspace(-1.7, 2.3, n)[:, None]
    conditioned = function(*arguments)
    if conditioned is None or conditioned is ...:
        return conditioned
    if not callable(conditioned):
        kind = type(conditioned).__name__
        what = f"array of shape {conditioned.shape}" if hasattr(conditioned, "shape") else kind
        raise Misfit(
            f"`given` returns no function but a value ({what}): the net is still to be called, "
            "when x1 is known. Return `lambda x1: ...`."
        )
    outputs = conditioned(x1)
    if outputs is None or outputs is ...:
        raise Misfit("The function that `given` returns gives no value: is there a `return`?")
    if not hasattr(outputs, "shape"):
        raise Misfit(f"The function that `given` returns gives a {type(outputs).__name__}.")
    must_trace("given", lambda y, x1: function(net, y)(x1), y, x1)
    return outputs


def _given_inputs(inputs):
    return lambda net, y: lambda x1: net(inputs(x1, y))


def _beside(x1, y):
    return jnp.concatenate([x1, y], axis=-1)


_GIVEN = Spec(
    id="03.5",
    name="given",
    cases=_given_cases,
    evaluate=_conditioned,
    atol=1e-4,
    insight="Conditioning costs one more input per net: bijector, base and loss stay as they were.",
    suspects=(
        Suspect(
            "ignored",
            _given_inputs(lambda x1, y: x1),
            "The observation is not used: the net sees x1 alone.",
            "The flow would learn the same density for every observation.",
            "Put x1 and y side by side with `jnp.concatenate`.",
        ),
        Suspect(
            "only_y",
            _given_inputs(lambda x1, y: y),
            "x1 is not used: the net sees y alone.",
            "The coupling would shift and stretch, but no longer bend.",
            "Put x1 and y side by side with `jnp.concatenate`.",
        ),
        Suspect(
            "y_twice",
            _given_inputs(lambda x1, y: _beside(y, y)),
            "The net sees y twice, and x1 not at all.",
            "The coupling would shift and stretch, but no longer bend.",
            "Use `[x1, y]`.",
        ),
        Suspect(
            "x_twice",
            _given_inputs(lambda x1, y: _beside(x1, x1)),
            "The net sees x1 twice, and y not at all.",
            "The flow would learn the same density for every observation.",
            "Use `[x1, y]`.",
        ),
        Suspect(
            "added",
            _given_inputs(lambda x1, y: x1 + y),
            "The net sees the sum x1 + y.",
            "It cannot tell a large x1 from a large y.",
            "Give it two columns: `jnp.concatenate([x1, y], axis=-1)`.",
        ),
        Suspect(
            "multiplied",
            _given_inputs(lambda x1, y: x1 * y),
            "The net sees the product of x1 and y.",
            "It cannot tell one from the other, and where y is zero it sees nothing.",
            "Give it two columns: `jnp.concatenate([x1, y], axis=-1)`.",
        ),
        Suspect(
            "batch_axis",
            _given_inputs(lambda x1, y: jnp.concatenate([x1, y], axis=0)),
            "x1 and y are joined along the batch: one column of 2 n rows.",
            "The net takes each y for one more point.",
            "Use `axis=-1`.",
        ),
        Suspect(
            "mean_of_y",
            _given_inputs(lambda x1, y: _beside(x1, jnp.full_like(y, y.mean()))),
            "All points see the same observation, the mean of y.",
            "Each point of the batch was simulated with an observation of its own.",
            "Use y row by row, as it comes.",
        ),
        Suspect(
            "first_y",
            _given_inputs(lambda x1, y: _beside(x1, jnp.broadcast_to(y[:1], y.shape))),
            "All points see the first observation.",
            "Each point of the batch was simulated with an observation of its own.",
            "Use y row by row, as it comes.",
        ),
        Suspect(
            "standardised",
            _given_inputs(lambda x1, y: _beside(x1, (y - y.mean()) / y.std())),
            "y is standardised with the mean and the spread of its own batch.",
            "The answer for one observation then depends on which others are in the batch.",
            "Use y as it comes.",
        ),
        Suspect(
            "outputs_added",
            lambda net, y: lambda x1: net(x1) + net(y),
            "You added the outputs for x1 and for y.",
            "Then the observation can shift what x1 does, but not change its shape; and the net "
            "takes two inputs, not one.",
            "Call the net once, on both columns.",
        ),
    ),
)

# --- 03.6 the gradient of a log posterior ----------------------------------------------------


def _score_cases(rng):
    spread = np.float32(rng.uniform(0.7, 1.4, 2))

    def log_prob(params, x):
        """A Gaussian around `params`, times one around zero: no gradient is minus another."""
        first = jnp.square((x - params) / spread).sum(axis=-1)
        return -0.5 * first - 0.5 * jnp.square(x / 1.5).sum(axis=-1)

    n = 6  # one shape, compiled once

    def case(noise):
        params = jnp.float32(rng.uniform(0.5, 1.5, 2))
        x = rng.uniform(-2, 2, (n, 2))
        # At least half a unit off, so that the likelihood always has something to say.
        y = x + rng.uniform(0.5, 1.0, (n, 2)) * rng.choice([-1.0, 1.0], (n, 2))
        y[0] = x[0]  # but once nothing: `climb` starts there
        return log_prob, params, jnp.float32(x), jnp.float32(y), noise

    return {"noise 0.3": case(0.3), "noise 0.7": case(0.7)}


def _prior_score(log_prob, params, x):
    return jax.grad(lambda x: log_prob(params, x).sum())(x)


def _score_with(likelihood_score):
    return lambda log_prob, params, x, y, noise: (
        _prior_score(log_prob, params, x) + likelihood_score(y - x, noise)
    )


def _log_posteriors(log_prob, params, x, y, noise):
    return log_prob(params, x) - 0.5 * jnp.square((y - x) / noise).sum(axis=-1)


def _score(*arguments):
    log_prob, params, x, y, noise = arguments
    return _prior_score(log_prob, params, x) + (y - x) / noise**2


def _differentiated(log_likelihood):
    def wrong(log_prob, params, x, y, noise):
        return jax.grad(
            lambda x: jnp.sum(log_prob(params, x) + log_likelihood(x, y, noise)),
        )(x)

    return wrong


def _params_score(log_prob, params, x, y, noise):
    return jax.grad(lambda p: _log_posteriors(log_prob, p, x, y, noise).sum())(params)


def _score_of(function, arguments):
    log_prob, params, x, y, noise = arguments
    result = function(*arguments)
    if result is None or result is ...:
        return result
    if isinstance(result, (tuple, list)):
        raise Misfit(
            f"`posterior_score` returns `{type(result).__name__}`; expected one array, here of "
            f"shape {x.shape}."
        )
    must_trace("posterior_score", lambda *arrays: function(log_prob, *arrays, noise), params, x, y)
    return result


_SCORE = Spec(
    id="03.6",
    name="posterior_score",
    cases=_score_cases,
    evaluate=_score_of,
    # Gradients reach ten; divided by noise**2 their rounding is 1e-5.
    atol=5e-4,
    rtol=1e-4,
    insight="Prior and likelihood add up in the gradient: a flow trained once serves any "
    "observation with a known likelihood.",
    suspects=(
        Suspect(
            "for_parameters",
            _params_score,
            "This is the gradient with respect to the parameters of the flow.",
            "`jax.grad` differentiates by the first argument, and `log_prob` has the parameters "
            "there. The shape (2,) of this check's parameters would even broadcast to all points.",
            "Differentiate a function whose first argument is x: `jax.grad(lambda x: ...)(x)`.",
        ),
        Suspect(
            "for_parameters_per_point",
            lambda log_prob, params, x, y, noise: jax.vmap(
                lambda x, y: jax.grad(_log_posteriors, argnums=1)(log_prob, params, x, y, noise)
            )(x, y),
            "For each point this is the gradient with respect to the parameters, not to the point.",
            "The parameters stay as they are; it is the point that moves up the posterior.",
            "Differentiate a function whose first argument is x.",
        ),
        Suspect(
            "for_parameters_broadcast",
            lambda log_prob, params, x, y, noise: jnp.broadcast_to(
                _params_score(log_prob, params, x, y, noise), x.shape
            ),
            "All points get one gradient, that with respect to the parameters of the flow.",
            "It has become (n, 2) by broadcasting. No error is raised.",
            "Differentiate a function whose first argument is x.",
        ),
        Suspect(
            "for_parameters_plus_likelihood",
            lambda log_prob, params, x, y, noise: (
                _params_score(log_prob, params, x, y, noise) + (y - x) / noise**2
            ),
            "The prior's part is its gradient with respect to the parameters of the flow.",
            "It has the shape (2,) here, which broadcasts to all points. No error is raised.",
            "Differentiate `log_prob(params, x)` by x as well.",
        ),
        Suspect(
            "no_likelihood",
            _score_with(lambda difference, noise: 0.0 * difference),
            "The likelihood is missing: this is the gradient of the prior.",
            "It leads to the ridge of the moons, wherever the observation is.",
            "Add the log-likelihood before you differentiate.",
        ),
        Suspect(
            "no_prior",
            lambda log_prob, params, x, y, noise: (y - x) / noise**2,
            "The prior is missing: this is the gradient of the likelihood.",
            "It leads to the observation itself, noise included.",
            "Add `log_prob(params, x)` before you differentiate.",
        ),
        Suspect(
            "sign",
            lambda *arguments: -_score(*arguments),
            "The sign is that of a descent.",
            "It would lead away from the likely points.",
            "Differentiate the log posterior itself, not minus it.",
        ),
        Suspect(
            "likelihood_sign",
            _score_with(lambda difference, noise: -difference / noise**2),
            "The likelihood has the wrong sign: it pushes the point away from the observation.",
            "The log-likelihood is largest where x is y.",
            "Put the minus in front of the square: -1/2 |y - x|² / τ².",
        ),
        Suspect(
            "noise_not_squared",
            _score_with(lambda difference, noise: difference / noise),
            "The noise is not squared.",
            "`noise` is a standard deviation; the Gaussian has its variance in the exponent.",
            "Divide by `noise**2`.",
        ),
        Suspect(
            "noise_squared_twice",
            _score_with(lambda difference, noise: difference / noise**4),
            "The noise is squared twice.",
            "`noise` is a standard deviation and not yet a variance, but one square is enough; "
            "`tfd.Normal` takes the standard deviation itself.",
            "Divide by `noise**2`, or pass `noise` to `tfd.Normal`.",
        ),
        Suspect(
            "noise_multiplied",
            _score_with(lambda difference, noise: difference * noise**2),
            "The likelihood is multiplied by the variance, not divided.",
            "The noisier an observation, the less it should count.",
            "Divide by `noise**2`.",
        ),
        Suspect(
            "no_half",
            _score_with(lambda difference, noise: 2.0 * difference / noise**2),
            "The likelihood counts twice: its factor 1/2 is missing.",
            "The Gaussian is exp(-1/2 |y - x|²/τ²); without the 1/2 the noise is too small by the "
            "root of two.",
            "Put 0.5 in front of the square.",
        ),
        Suspect(
            "mean_over_points",
            lambda *arguments: _score(*arguments) / len(arguments[2]),
            "You differentiated the mean over the points, not the sum.",
            "Each gradient is n times too small, so the steps depend on the size of the batch.",
            "Use `jnp.sum`.",
        ),
        Suspect(
            "for_observation",
            lambda log_prob, params, x, y, noise: (x - y) / noise**2,
            "This is the gradient with respect to the observation y.",
            "The observation is given; it is the point that moves.",
            "Differentiate a function whose first argument is x.",
        ),
        Suspect(
            "norm",
            _differentiated(
                lambda x, y, noise: -0.5 * jnp.linalg.norm(y - x, axis=-1) ** 2 / noise**2
            ),
            "The gradient is not a number where x is exactly y: the norm has none at zero.",
            "The ascent starts at x = y, so every point would be lost in its first step.",
            "Square the differences and sum them: no root, no norm.",
        ),
        Suspect(
            "norm_not_squared",
            _differentiated(lambda x, y, noise: -0.5 * jnp.linalg.norm(y - x, axis=-1) / noise**2),
            "The distance is not squared in the likelihood.",
            "A Gaussian falls with the square of the distance; the distance itself has no gradient "
            "where x is y.",
            "Use the sum of the squared differences.",
        ),
        Suspect(
            "mean_over_coordinates",
            _score_with(lambda difference, noise: 0.5 * difference / noise**2),
            "The likelihood counts half: the squares are averaged over the two coordinates.",
            "Two independent measurements multiply their likelihoods, so the squares add up.",
            "Use `jnp.sum` with `axis=-1` for the squares.",
        ),
        Suspect(
            "prior_at_y",
            lambda log_prob, params, x, y, noise: (
                _prior_score(log_prob, params, y) + (y - x) / noise**2
            ),
            "The prior's gradient is taken at the observation y, not at the point x.",
            "It would push every point on its way in the same direction, wherever it is by then.",
            "Use `log_prob(params, x)`.",
        ),
        Suspect(
            "values",
            _log_posteriors,
            "You return the log posterior itself, not its gradient.",
            "An ascent needs a direction for each point, of shape (n, 2).",
            "Apply `jax.grad` to its sum.",
        ),
    ),
)

SPECS = (_NLL, _FORWARD, _INVERSE, _STACK, _GIVEN, _SCORE)
