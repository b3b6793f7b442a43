"""The checks of lesson 09: for each exercise its cases, and the wrong answers it can name.

A step with noise may draw its numbers in many ways: what is compared there are properties that all
right answers share, not their values.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils.datasets import two_moons

from .engine import Misfit, Spec, Suspect, namespace
from .tools import must_trace, ours, to_compile

# --- what the exercises are given ------------------------------------------------------------


def _must_be_points(name, x, level, *, column=False):
    """Scores and networks of the lesson take the whole batch; an error says so."""
    if jnp.ndim(x) != 2 or jnp.shape(x)[-1] != 2:
        raise ValueError(
            f"`{name}` takes all points at once, (n, 2), as its first argument; it got one of "
            f"shape {jnp.shape(x)}"
        )
    n, shape = len(x), jnp.shape(level)
    if shape != (n, 1) and (column or shape != ()):
        wanted = "a column (n, 1)" if column else "one number or a column (n, 1)"
        raise ValueError(
            f"the second argument of `{name}` is {wanted}, here n = {n}; it got shape {shape}"
        )


def _field(place, bend, x, sigma):
    """A score whose every value depends on both coordinates and on the noise level."""
    _must_be_points("score", x, sigma)
    pull = (place - x) / (0.5 + sigma**2)
    return pull + bend * jnp.sin(2.0 * x[:, ::-1] + sigma)


def _a_field(rng):
    """As a pytree, which may pass through jax.eval_shape."""
    place = jnp.float32(rng.uniform(0.3, 0.9, (1, 2)) * rng.choice([-1.0, 1.0], (1, 2)))
    return jax.tree_util.Partial(_field, place, jnp.float32(rng.uniform(0.8, 1.2)))


def _some_points(rng, n):
    return jnp.float32(rng.uniform(-1.5, 1.5, (n, 2)))


def _some_levels(rng, n, low=0.3, high=1.6):
    """A column of noise levels over the whole range, in any order."""
    levels = np.exp(np.linspace(np.log(low), np.log(high), n) + rng.uniform(-0.05, 0.05, n))
    return jnp.float32(rng.permutation(levels)[:, None])


def _given(name, function, calls):
    """``function`` as an answer gets it, as its argument ``name``: it notes its ``calls``.

    A call with other arguments than its own says how it is called.
    """
    signature = inspect.signature(function)

    def given(*arguments, **named):
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            raise TypeError(f"`{name}` is called as `{name}{signature}`: {error}") from None
        calls.append(name)
        return function(*arguments, **named)

    return given


def _must_be_called(name, calls):
    """Refuse an answer that takes a function of its own, or none, in place of its argument."""
    if not calls:
        raise Misfit(
            f"The argument `{name}` is never called: what is returned cannot depend on it. Use "
            "the argument, not a function from another cell."
        )


def _call(given, function, arguments):
    """What an answer returns; ``given`` is the name of the function among its arguments."""
    calls = []
    result = function(
        *(_given(given, part, calls) if callable(part) else part for part in arguments)
    )
    if isinstance(result, float) or hasattr(result, "shape"):
        _must_be_called(given, calls)
    return result


def _traced(name, *, given=None, differentiable=False):
    """The evaluation of a function that later cells compile; ``given`` is what it has to call."""

    def evaluate(function, arguments):
        result = _call(given, function, arguments) if given else function(*arguments)
        if hasattr(result, "shape") and not ours(function):  # ours trace, and there are many
            must_trace(name, function, *arguments)
            if differentiable:  # by the points, as a gradient through a sampler is
                x, *rest = arguments
                total = jax.grad(lambda x: jnp.sum(function(x, *rest)))
                must_trace(name, total, x)
        return result

    return evaluate


# --- 09.1 Tweedie's formula ------------------------------------------------------------------


def _denoise_cases(rng):
    score = _a_field(rng)
    # Levels below one and above: a square makes them smaller, or larger.
    return {
        "5 points, one level": (_some_points(rng, 5), float(rng.uniform(0.4, 0.6)), score),
        "5 points, a column of levels": (_some_points(rng, 5), _some_levels(rng, 5), score),
    }


def _denoised(shift):
    return lambda x, sigma, score: x + shift(sigma, score(x, sigma))


_DENOISE = Spec(
    id="09.1",
    name="denoise",
    cases=_denoise_cases,
    example="Try the score of a Gaussian, `lambda x, sigma: -x / (1 + sigma**2)`: the point must "
    "come out as `x / (1 + sigma**2)`.",
    evaluate=_traced("denoise", given="score", differentiable=True),
    atol=1e-5,
    rtol=1e-5,
    insight="Denoiser and score are the same thing in two units: who can take noise away knows the "
    "gradient of the log density.",
    suspects=(
        Suspect(
            "sigma_not_squared",
            _denoised(lambda sigma, s: sigma * s),
            "The score is multiplied by σ, not by σ².",
            "A score is one over a length. Times σ it is a pure number, and no step for a point.",
            "Use the variance of the noise, not its standard deviation.",
        ),
        Suspect(
            "noise_of_the_moons",
            _denoised(lambda sigma, s: (sigma**2 + two_moons.NOISE**2) * s),
            "The variance of the moons' own noise is added to σ².",
            "That noise is part of the clean points x; σ alone is what was added to them.",
            "Multiply the score by σ² alone.",
        ),
        Suspect(
            "no_sigma",
            _denoised(lambda sigma, s: s),
            "The noise level is missing: the point moves by the bare score.",
            "With little noise a point is nearly clean, and should hardly move; the score there is "
            "at its largest.",
            "Multiply the score by the variance of the noise.",
        ),
        Suspect(
            "sign",
            _denoised(lambda sigma, s: -(sigma**2) * s),
            "The point moves against the score.",
            "The score points to where the density is high, and there the clean point is likely.",
            "Add the step, do not subtract it.",
        ),
        Suspect(
            "half",
            _denoised(lambda sigma, s: 0.5 * sigma**2 * s),
            "The point goes only half the way.",
            "The 1/2 of the Gaussian's exponent is gone after differentiation: Tweedie's formula "
            "has the whole variance.",
            "Leave out the factor 1/2.",
        ),
        Suspect(
            "twice",
            _denoised(lambda sigma, s: 2.0 * sigma**2 * s),
            "The point goes twice as far as it should.",
            "It would land on the other side of the curve that it came from.",
            "Leave out the factor 2.",
        ),
        Suspect(
            "divided",
            _denoised(lambda sigma, s: s / sigma**2),
            "The score is divided by the variance, not multiplied.",
            "Points with hardly any noise would then be thrown the farthest.",
            "Multiply by the variance.",
        ),
        Suspect(
            "only_the_step",
            lambda x, sigma, score: sigma**2 * score(x, sigma),
            "You return the step from the noisy point to the clean one, not the clean point.",
            "The next cells take what is returned for a place.",
            "Add the noisy point itself.",
        ),
        Suspect(
            "noise_added",
            lambda x, sigma, score: (
                x
                + sigma**2 * score(x, sigma)
                + sigma * jax.random.normal(jax.random.key(0), x.shape)
            ),
            "Noise is added to the denoised point.",
            "Tweedie's formula gives the *mean* of the clean points that may be behind x: there is "
            "nothing random in it.",
            "Leave the noise out.",
        ),
        Suspect(
            "noise",
            lambda x, sigma, score: -sigma * score(x, sigma),
            "You return the expected noise ε, not the clean point.",
            "Some networks predict it; here the denoised point is asked for.",
            "Subtract σ times this noise from the noisy point.",
        ),
        Suspect(
            "score_at_variance",
            lambda x, sigma, score: x + sigma**2 * score(x, sigma**2),
            "The score is taken at the level σ², not at σ.",
            "`score` takes a standard deviation. At another level it belongs to another density.",
            "Pass sigma as it comes.",
        ),
        Suspect(
            "score_of_the_clean_density",
            lambda x, sigma, score: x + sigma**2 * score(x, 0.0 * sigma),
            "The score is that of the clean density, at noise level 0.",
            "Tweedie's formula has the score of the *noisy* density, from which the points come.",
            "Pass sigma as it comes.",
        ),
        Suspect(
            "score_elsewhere",
            lambda x, sigma, score: x + sigma**2 * score(x + sigma**2 * score(x, sigma), sigma),
            "The score is taken at the denoised point, not at the noisy one.",
            "One step from the noisy point is exact already; the formula needs no second one.",
            "Call `score` once, at x.",
        ),
        Suspect(
            "variance_preserving",
            lambda x, sigma, score: (x + sigma**2 * score(x, sigma)) / jnp.sqrt(1.0 - sigma**2),
            "This is Tweedie's formula for points that were shrunk before the noise came.",
            "Here the noise is only added, x + σ ε: nothing is to be divided by √(1-σ²), which has "
            "no value for σ above 1.",
            "Leave out the division.",
        ),
    ),
)


# --- 09.2 the loss ---------------------------------------------------------------------------


def _toy_denoiser(bend, offset, x, sigma):
    _must_be_points("denoiser", x, sigma, column=True)
    return offset + x / (1.0 + sigma**2) + bend * sigma * jnp.cos(2.0 * x[:, ::-1] - sigma)


def _dsm_cases(rng):
    def case(high):
        n = 6  # one shape, compiled once
        bend, offset = rng.uniform(0.5, 0.8), rng.uniform(0.2, 0.5, (1, 2)) * [[-1.0, 1.0]]
        denoiser = jax.tree_util.Partial(_toy_denoiser, jnp.float32(bend), jnp.float32(offset))
        # No point has little noise, so that none alone decides the mean.
        noise = jnp.float32(rng.uniform(0.5, 2.0, (n, 2)) * rng.choice([-1.0, 1.0], (n, 2)))
        return denoiser, _some_points(rng, n), _some_levels(rng, n, high=high), noise

    return {"6 points": case(1.6), "6 points, levels below one": case(0.9)}


def _weighted_clean_loss(denoiser, x, sigma):
    return float(jnp.mean(jnp.sum(((denoiser(x, sigma) - x) / sigma) ** 2, axis=-1)))


_DSM_LABELS = ("same loss for the same noise", "change of the loss with the noise", "loss")


def _losses(function, arguments):
    """The loss, and whether it depends on the argument `noise` and on nothing else."""
    denoiser, x, sigma, noise = arguments
    loss = _call("denoiser", function, arguments)
    if loss is None or loss is ...:
        return loss
    try:
        value = float(np.asarray(loss)) if np.shape(loss) == () else np.nan
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        return 1.0, 1.0, loss
    other = jnp.float32(-np.asarray(noise)[::-1])
    # A loss with noise of its own has any value: it is not compared.
    if abs(float(function(*arguments)) - value) > 1e-6 * abs(value):
        return 0.0, 1.0, 0.0
    if abs(float(function(denoiser, x, sigma, other)) - value) > 1e-5 * abs(value):
        return 1.0, 1.0, loss
    clean = _weighted_clean_loss(denoiser, x, sigma)
    return 1.0, 0.0, clean if abs(value - clean) < 1e-4 * clean else 0.0


@functools.partial(jax.jit, static_argnums=0)
def _call_gradient(function, model, arguments):
    return jax.grad(lambda model: jnp.sum(function(model, *arguments) ** 2))(model)


def _by_parameters(function, arguments):
    """The gradient that training follows: by the parameters of the network."""
    model, *rest = arguments
    gradient = _call_gradient(to_compile(function), model, rest)
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


def _added(x, sigma, noise):
    return x + sigma * noise


def _squared_sum(error):
    return jnp.sum(error**2, axis=-1)


def _dsm_with(
    *,
    noisy=_added,
    seen=lambda x, noisy: noisy,
    level=lambda sigma: sigma,
    target=lambda x, noise, noisy: x,
    size=_squared_sum,
    weigh=lambda squares, sigma: squares / sigma[:, 0] ** 2,
    total=jnp.mean,
):
    """The loss with mistakes: each argument is one part of it."""

    def wrong(denoiser, x, sigma, noise):
        points = noisy(x, sigma, noise)
        error = denoiser(seen(x, points), level(sigma)) - target(x, noise, points)
        return total(weigh(size(error), sigma))

    return wrong


def _own_noise(draw):
    return lambda denoiser, x, sigma, noise: _dsm_with()(
        denoiser, x, sigma, jnp.float32(draw(x.shape))
    )


_DSM_LOSS = Spec(
    id="09.2",
    name="dsm_loss",
    cases=_dsm_cases,
    example="Try a denoiser that changes nothing, `lambda x, sigma: x`: the loss is then the mean "
    "of the squared lengths of the noise.",
    labels=_DSM_LABELS,
    evaluate=_losses,
    gradient=_by_parameters,
    atol=1e-5,
    rtol=2e-5,
    insight="No density appears in this loss, and yet its minimum is the posterior mean, and with "
    "it the score.",
    suspects=(
        Suspect(
            "no_weight",
            _dsm_with(weigh=lambda squares, sigma: squares),
            "The error is not in units of the noise: the division by σ² is missing.",
            "Where the noise is large so is the error; without the weight the network learns the "
            "high levels and ignores the low ones.",
            "Divide each difference by its σ before you square it.",
        ),
        Suspect(
            "weight_not_squared",
            _dsm_with(weigh=lambda squares, sigma: squares / sigma[:, 0]),
            "The squared error is divided by σ, not by σ².",
            "A squared distance in units of the noise has the *variance* below it.",
            "Divide the difference by σ first, then square.",
        ),
        Suspect(
            "weight_twice",
            _dsm_with(weigh=lambda squares, sigma: squares / sigma[:, 0] ** 4),
            "The squared error is divided by σ⁴.",
            "The levels with the least noise would be all that counts. That is the error of the "
            "score, without any weight.",
            "Divide by σ² once: before the square by σ, or after it by σ².",
        ),
        Suspect(
            "weight_multiplied",
            _dsm_with(weigh=lambda squares, sigma: squares * sigma[:, 0] ** 2),
            "The squared error is multiplied by σ², not divided.",
            "The highest levels would be all that counts.",
            "Divide by the variance of the noise.",
        ),
        Suspect(
            "weights_broadcast",
            _dsm_with(weigh=lambda squares, sigma: squares / sigma**2),
            "The squared errors (n,) met the levels (n, 1): that makes an array (n, n).",
            "Each error is divided by the levels of *all* points. No error is raised, and the mean "
            "is again one number.",
            "Divide the differences (n, 2) by `sigma` before you sum, or use `sigma[:, 0]`.",
        ),
        Suspect(
            "sum_over_batch",
            _dsm_with(total=jnp.sum),
            "This is the sum over the batch, not the mean.",
            "The loss, and with it the step of the optimiser, would grow with the batch.",
            "Average over the points.",
        ),
        Suspect(
            "sum_over_points",
            _dsm_with(
                size=jnp.square,
                weigh=lambda squares, sigma: jnp.sum(squares / sigma**2, axis=0),
            ),
            "The squares are summed over the points, and averaged over the two coordinates.",
            "The first axis is the batch: the loss would grow with the number of points.",
            "Sum over the last axis, `axis=-1`, then average over the points.",
        ),
        Suspect(
            "mean_over_coordinates",
            _dsm_with(size=lambda error: jnp.mean(error**2, axis=-1)),
            "The loss is half as large as it should be: the squares are averaged over the two "
            "coordinates, not summed, or there is a factor 1/2.",
            "|…|² is the squared length of a vector. The minimum stays in place, but the numbers "
            "below could not be compared.",
            "Sum over the last axis first, then average over the points; or, if you wrote a factor "
            "1/2, leave it out.",
        ),
        Suspect(
            "per_point",
            _dsm_with(total=lambda losses: losses),
            "You return one value for each point.",
            "A gradient needs one number to descend.",
            "Take the mean over the points.",
        ),
        Suspect(
            "first_noise",
            _dsm_with(noisy=lambda x, sigma, noise: x + sigma * noise[:1]),
            "All points get the first row of the noise.",
            "The whole batch then moves as one, and the gradient becomes far noisier.",
            "Use the noise row by row, as it comes.",
        ),
        Suspect(
            "mean_level",
            lambda denoiser, x, sigma, noise: _dsm_with()(
                denoiser, x, jnp.full_like(sigma, sigma.mean()), noise
            ),
            "All points get one noise level, the mean of `sigma`.",
            "The network would never see the other levels, and a sampler needs them all.",
            "Use `sigma` row by row, as it comes.",
        ),
        Suspect(
            "mean_weight",
            _dsm_with(weigh=lambda squares, sigma: squares / jnp.mean(sigma**2)),
            "All errors are divided by one variance, the mean of σ².",
            "The weight is there to make the levels count alike; one number for all does nothing.",
            "Divide each point's error by its own level.",
        ),
        Suspect(
            "target_noise",
            _dsm_with(target=lambda x, noise, noisy: noise),
            "The output is compared with the noise, in units of σ.",
            "This denoiser gives the clean point; nets that give the noise have another loss.",
            "Compare with the clean point x.",
            usable=False,
        ),
        Suspect(
            "target_noise_unweighted",
            _dsm_with(target=lambda x, noise, noisy: noise, weigh=lambda squares, sigma: squares),
            "The output is compared with the noise.",
            "That is the loss of a network that predicts ε. This one gives the clean point.",
            "Compare with the clean point x, in units of the noise.",
        ),
        Suspect(
            "target_noisy",
            _dsm_with(target=lambda x, noise, noisy: noisy),
            "The output is compared with the noisy point.",
            "The best denoiser would be the one that does nothing.",
            "Compare with the clean point x.",
        ),
        Suspect(
            "clean_input",
            _dsm_with(seen=lambda x, noisy: x),
            "The denoiser is given the clean points.",
            "It could return its input and be perfect, and would learn nothing.",
            "Give it the noisy points.",
        ),
        Suspect(
            "fixed_noise",
            _own_noise(lambda shape: jax.random.normal(jax.random.key(0), shape)),
            "The argument `noise` is not used: other noise gives the same loss.",
            "With the same numbers at every step the network learns these by heart.",
            "Make the noisy points from the argument.",
        ),
        Suspect(
            "own_noise",
            _own_noise(lambda shape: np.random.default_rng().normal(size=shape)),
            "The same arguments give another loss each time: it draws random numbers of its own.",
            "Under `jax.jit` they would be drawn once, while it compiles, and never again.",
            "Use the argument `noise`.",
        ),
        Suspect(
            "not_squared",
            _dsm_with(
                size=lambda error: jnp.sum(jnp.abs(error), axis=-1),
                weigh=lambda sums, sigma: sums / sigma[:, 0],
            ),
            "The differences are not squared: these are absolute values.",
            "The minimum of absolute errors is the posterior median; Tweedie's formula is about "
            "the posterior *mean*, the minimum of squares.",
            "Square the differences.",
        ),
        Suspect(
            "sum_before_square",
            _dsm_with(size=lambda error: jnp.sum(error, axis=-1) ** 2),
            "The two coordinates are summed before they are squared.",
            "Errors of opposite sign cancel, and the loss sees one direction only.",
            "Square first, then sum over the last axis.",
        ),
        Suspect(
            "variance",
            lambda denoiser, x, sigma, noise: jnp.sum(
                jnp.var((denoiser(x + sigma * noise, sigma) - x) / sigma, axis=0)
            ),
            "This is the variance of the errors over the batch.",
            "Their mean is subtracted first: a denoiser that is off by the same everywhere would "
            "cost nothing.",
            "Average the squares themselves.",
        ),
        Suspect(
            "distance",
            _dsm_with(
                size=lambda error: jnp.sqrt(_squared_sum(error)),
                weigh=lambda lengths, sigma: lengths / sigma[:, 0],
            ),
            "This is the mean distance, not the mean of its square.",
            "Only the minimum of squares is the posterior mean that Tweedie's formula needs.",
            "Take no root.",
        ),
        Suspect(
            "root",
            lambda *arguments: jnp.sqrt(_dsm_with()(*arguments)),
            "You took the square root of the mean.",
            "The claim and the figures of this lesson are about the mean square itself.",
            "Leave out the root.",
        ),
        Suspect(
            "variance_of_noise",
            _dsm_with(noisy=lambda x, sigma, noise: x + sigma**2 * noise),
            "The noise is multiplied by σ², not by σ.",
            "`sigma` is a standard deviation: the network would be told another amount of noise "
            "than there is.",
            "Multiply the noise by σ.",
        ),
        Suspect(
            "root_of_level",
            _dsm_with(noisy=lambda x, sigma, noise: x + jnp.sqrt(sigma) * noise),
            "The noise is multiplied by √σ, not by σ.",
            "`sigma` is a standard deviation already, not a variance.",
            "Multiply the noise by σ.",
        ),
        Suspect(
            "noise_without_level",
            _dsm_with(noisy=lambda x, sigma, noise: x + noise),
            "The noise is added without σ: every point gets the full amount.",
            "The network would be told another amount of noise than there is.",
            "Multiply the noise by σ.",
        ),
        Suspect(
            "variance_preserving",
            _dsm_with(noisy=lambda x, sigma, noise: jnp.sqrt(1.0 - sigma**2) * x + sigma * noise),
            "The points are shrunk by √(1-σ²) before the noise is added.",
            "That is the variance-preserving kind of noise. Here σ goes up to 2, and x keeps its "
            "place.",
            "Add the noise to x itself.",
        ),
        Suspect(
            "level_is_variance",
            _dsm_with(level=lambda sigma: sigma**2),
            "The denoiser is told σ², not σ.",
            "It takes a standard deviation, here and in all later cells.",
            "Pass sigma as it comes.",
        ),
    ),
)


# --- 09.3 a network for every noise level ----------------------------------------------------


def _toy_net(bend, x, t):
    _must_be_points("net", x, t, column=True)
    return bend * jnp.sin(2.0 * x[:, ::-1] + 3.0 * t) + 0.3 * x + t


def _precondition_cases(rng):
    def case(n, low, high):
        net = jax.tree_util.Partial(_toy_net, jnp.float32(rng.uniform(0.7, 1.3, (1, 2))))
        return net, _some_points(rng, n), _some_levels(rng, n, low, high)

    return {"6 points": case(6, 0.2, 2.0), "6 points, little noise": case(6, 0.02, 0.2)}


class _Parts(NamedTuple):
    """The parts of a preconditioned network: added + skip kept + out net(scale seen, level)."""

    x: Any
    sigma: Any
    centre: Any
    spread: float
    total: Any
    added: Any
    skip: Any
    kept: Any
    out: Any
    scale: Any
    seen: Any
    level: Any


def _preconditioned(change):
    """The network with mistakes: ``change`` replaces some of the parts."""

    def wrong(net, x, sigma):
        centre, spread = namespace("09")["CENTRE"], namespace("09")["SPREAD"]
        total = jnp.sqrt(sigma**2 + spread**2)
        right = _Parts(
            x,
            sigma,
            centre,
            spread,
            total,
            added=centre,
            skip=spread**2 / total**2,
            kept=x - centre,
            out=sigma * spread / total,
            scale=1.0 / total,
            seen=x - centre,
            level=jnp.log(sigma) / 4,
        )
        p = right._replace(**change(right))
        return p.added + p.skip * p.kept + p.out * net(p.scale * p.seen, p.level)

    return wrong


def _with_total(total):
    """All three factors made of another sum than the root of the squares."""

    def change(p):
        other = total(p)
        return {
            "skip": p.spread**2 / other**2,
            "out": p.sigma * p.spread / other,
            "scale": 1.0 / other,
        }

    return _preconditioned(change)


_PRECONDITION = Spec(
    id="09.3",
    name="precondition",
    cases=_precondition_cases,
    example="Try a net that returns zeros: at σ = `SPREAD` each point must go half of the way to "
    "`CENTRE`.",
    evaluate=functools.partial(_call, "net"),
    gradient=_by_parameters,
    atol=1e-5,
    rtol=1e-5,
    insight="At every noise level the net sees numbers near one and has to give numbers near one; "
    "what is linear about denoising it need not learn.",
    suspects=(
        Suspect(
            "skip_and_out_swapped",
            _preconditioned(lambda p: {"skip": p.out, "out": p.skip}),
            "c_skip and c_out are exchanged.",
            "With no noise the point would then vanish, and the net would have to make it anew.",
            "c_skip belongs to the point, c_out to the net.",
            usable=False,
        ),
        Suspect(
            "no_root",
            _preconditioned(
                lambda p: {"out": p.sigma * p.spread / p.total**2, "scale": 1.0 / p.total**2}
            ),
            "The root is missing in c_in and c_out.",
            "σ² + σ_d² is a variance; points are scaled by a standard deviation.",
            "Take the square root of the sum in both.",
        ),
        Suspect(
            "no_root_out",
            _preconditioned(lambda p: {"out": p.sigma * p.spread / p.total**2}),
            "The root is missing in c_out.",
            "Numerator and denominator are a length times a length, and a length: their ratio is "
            "how far the net may move the point.",
            "Take the square root of the sum.",
        ),
        Suspect(
            "no_root_in",
            _preconditioned(lambda p: {"scale": 1.0 / p.total**2}),
            "The root is missing in c_in.",
            "σ² + σ_d² is a variance; the net's input has size one only if it is divided by the "
            "standard deviation.",
            "Take the square root of the sum.",
        ),
        Suspect(
            "skip_not_squared",
            _preconditioned(lambda p: {"skip": p.spread / p.total**2}),
            "σ_d is not squared in the numerator of c_skip.",
            "Without noise c_skip must be one: a clean point stays where it is.",
            "Use σ_d² there.",
        ),
        Suspect(
            "skip_of_deviations",
            _preconditioned(lambda p: {"skip": p.spread / p.total}),
            "c_skip is a ratio of standard deviations, not of variances.",
            "Gaussian data are denoised best with the ratio of the variances.",
            "Square the ratio.",
        ),
        Suspect(
            "skip_not_squared_at_all",
            _preconditioned(lambda p: {"skip": p.spread / (p.spread + p.sigma)}),
            "c_skip has σ_d and σ without their squares.",
            "Gaussian data are denoised best with the ratio of the variances.",
            "Square all three.",
        ),
        Suspect(
            "skip_of_the_noise",
            _preconditioned(lambda p: {"skip": p.sigma**2 / p.total**2}),
            "c_skip has σ² on top: this is the share of the noise, not of the data.",
            "A clean point would be sent to the centre, and pure noise kept as it is.",
            "Put σ_d² on top.",
        ),
        Suspect(
            "sum_of_deviations",
            _with_total(lambda p: p.sigma + p.spread),
            "σ and σ_d are added, not their squares.",
            "Data and noise are independent: their variances add up.",
            "Take the square root of the sum of the squares.",
        ),
        Suspect(
            "spread_not_squared",
            _with_total(lambda p: jnp.sqrt(p.sigma**2 + p.spread)),
            "σ_d is not squared in σ² + σ_d².",
            "A variance and a standard deviation cannot be added.",
            "Square `SPREAD` in the sum.",
        ),
        Suspect(
            "uncentred",
            _preconditioned(lambda p: {"added": 0.0, "kept": p.x, "seen": p.x}),
            "`CENTRE` is not used at all.",
            "With much noise the best guess is the mean of the data; this one goes to the origin.",
            "Take the centre off first, and add it at the end.",
        ),
        Suspect(
            "centre_not_added",
            _preconditioned(lambda p: {"added": 0.0}),
            "The centre is taken off, but not added at the end.",
            "All denoised points are off by the mean of the data, whatever the net does.",
            "Add `CENTRE` to the result.",
        ),
        Suspect(
            "skip_without_centre",
            _preconditioned(lambda p: {"added": 0.0, "kept": p.x}),
            "c_skip multiplies the point itself, and the centre is not added.",
            "With much noise the best guess is the mean of the data; this one goes to the origin.",
            "Start from `CENTRE`, and multiply c_skip with x minus `CENTRE`.",
        ),
        Suspect(
            "point_uncentred",
            _preconditioned(lambda p: {"kept": p.x}),
            "c_skip multiplies the point itself, not its offset from the centre.",
            "The centre is added as well, so a clean point would be moved by all of it.",
            "Multiply c_skip with x minus `CENTRE`.",
        ),
        Suspect(
            "net_uncentred",
            _preconditioned(lambda p: {"seen": p.x}),
            "The net is given the point itself, not its offset from the centre.",
            "Its input is then neither around zero nor of size one.",
            "Give it the scaled offset.",
        ),
        Suspect(
            "no_scale",
            _preconditioned(lambda p: {"scale": 1.0}),
            "c_in is left out.",
            "With much noise the net would be given large numbers, with little noise small ones.",
            "Scale the offset with c_in before the net sees it.",
        ),
        Suspect(
            "raw_input",
            _preconditioned(lambda p: {"scale": 1.0, "seen": p.x}),
            "The net is given the noisy point as it is, neither centred nor scaled.",
            "The size of its input would depend on the noise level.",
            "Give it the offset from the centre, scaled with c_in.",
        ),
        Suspect(
            "no_quarter",
            _preconditioned(lambda p: {"level": 4.0 * p.level}),
            "The net is told ln σ, without the 1/4.",
            "The waves in the net have lengths that were chosen for a quarter of the logarithm.",
            "Divide the logarithm by 4.",
        ),
        Suspect(
            "log10",
            _preconditioned(lambda p: {"level": p.level / jnp.log(10.0)}),
            "This logarithm is to base 10.",
            "The formula has the natural logarithm, 2.3 times as large.",
            "Use `jnp.log`.",
        ),
        Suspect(
            "log2",
            _preconditioned(lambda p: {"level": p.level / jnp.log(2.0)}),
            "This logarithm is to base 2.",
            "The formula has the natural logarithm, 0.69 times as large.",
            "Use `jnp.log`.",
        ),
        Suspect(
            "no_log",
            _preconditioned(lambda p: {"level": p.sigma}),
            "The net is told σ itself, not its logarithm.",
            "From 0.02 to 0.2 is as much of a change as from 0.2 to 2, but in σ hardly visible.",
            "Give it a quarter of the logarithm.",
        ),
        Suspect(
            "no_out",
            _preconditioned(lambda p: {"out": 1.0}),
            "c_out is left out.",
            "With little noise the point is nearly right, and the net must not move it far: its "
            "errors would be errors of the point.",
            "Multiply the net's output with c_out.",
        ),
        Suspect(
            "no_skip",
            _preconditioned(lambda p: {"skip": 1.0}),
            "c_skip is left out.",
            "The net would have to undo all of the noise where there is much of it.",
            "Multiply the offset with c_skip.",
        ),
        Suspect(
            "no_skip_path",
            _preconditioned(lambda p: {"skip": 0.0}),
            "The point itself is missing: everything comes from the net.",
            "With little noise a net cannot give the point more exactly than its own errors.",
            "Add the term with c_skip.",
        ),
        Suspect(
            "out_times_point",
            _preconditioned(lambda p: {"skip": p.skip + p.out}),
            "c_out multiplies the offset too, not the net alone.",
            "c_skip is all that the point's own part gets.",
            "Look at the brackets: c_out stands before F only.",
        ),
        Suspect(
            "out_without_spread",
            _preconditioned(lambda p: {"out": p.sigma / p.total}),
            "σ_d is missing in c_out.",
            "With much noise the net has to place points over the whole data: c_out must go to "
            "σ_d, not to one.",
            "Multiply σ by σ_d on top.",
        ),
        Suspect(
            "out_without_sigma",
            _preconditioned(lambda p: {"out": p.spread / p.total}),
            "σ is missing in c_out.",
            "With little noise the point is nearly right, and the net must not move it: c_out must "
            "go to zero with σ.",
            "Multiply σ_d by σ on top.",
        ),
        Suspect(
            "out_is_sigma",
            _preconditioned(lambda p: {"out": p.sigma}),
            "c_out is σ alone.",
            "That is right with little noise only. With much noise the net has to place points "
            "over the whole data, a width of σ_d and not of σ.",
            "Multiply σ by σ_d, and divide by the root of σ² + σ_d².",
        ),
        Suspect(
            "net_subtracted",
            _preconditioned(lambda p: {"out": -p.out}),
            "The net's part is subtracted, not added.",
            "The net could learn that too, but trained parameters would have the wrong sign.",
            "Add c_out times the net's output.",
        ),
        Suspect(
            "only_the_net",
            _preconditioned(lambda p: {"added": 0.0, "skip": 0.0, "out": 1.0}),
            "You return what the net gives, without c_skip, c_out and centre.",
            "The net's output has size one; the denoised point is made of it.",
            "Put it together with the point as in the formula.",
        ),
    ),
)


# --- 09.4 and 09.5: steps with noise ---------------------------------------------------------

_N = 4096  # points, of two coordinates each
_OTHER_KEYS = (987654321, 31415926, 27182818, 16180339, 14142135)  # whose numbers count as well
# The noise is judged by the numbers of all six keys, within six Monte Carlo errors: 1.9 % of a
# standard deviation, 0.027 of a mean, 0.038 of a correlation, 0.13 of a kurtosis. A size that is
# wrong by 5 % is nine errors further off.
_DRAWN = 2 * _N * (1 + len(_OTHER_KEYS))
_SIZE_LIMIT, _MEAN_LIMIT = 6.0 * (0.5 / _DRAWN) ** 0.5, 6.0 * (1.0 / _DRAWN) ** 0.5
_CORRELATION_LIMIT, _KURTOSIS_LIMIT = 6.0 * (2.0 / _DRAWN) ** 0.5, 6.0 * (24.0 / _DRAWN) ** 0.5

_STEP_LABELS = (
    "result",
    "share of finite values",
    "share of x in the result",
    "relative drift",
    "relative size of the noise",
    "same noise for the same key",
    "other noise for another key",
    "points with noise of their own",
    "coordinates with noise of their own",
    "Gaussian noise",
    "relative growth of the noise in a longer step",
    "share of scores taken at x",
    "relative level of the score",
)
_PUSH = np.float32([[3.0, -2.0]])


def _scores_that_tell():
    """Scores by which a step shows where it takes them: at which point, and at which level."""
    return {
        "none": lambda x, sigma: 0.0 * x,
        "constant": lambda x, sigma: 0.0 * x + _PUSH,
        "place": lambda x, sigma: _PUSH * x,
        "level": lambda x, sigma: 0.0 * x + _PUSH * sigma,
    }


class _Law(NamedTuple):
    """What a step should do: drift in units of the score, size of the noise, and its growth."""

    drift: Any
    size: Any
    growth: float
    sigma: float | None = None  # where the score is taken, if it has a level


def _points_of(name, result, shape):
    try:
        return np.asarray(result, np.float64)
    except (TypeError, ValueError) as error:
        raise Misfit(
            f"`{name}` returns a {type(result).__name__}; expected an array of shape {shape}."
        ) from error


def _statistics(name, run, x, key, law):
    """What a step does, apart from the numbers it draws: the values of `_STEP_LABELS`.

    ``run(key, score, longer)`` takes the step. One key gives one set of numbers, so differences
    between two scores are free of noise. What a mistake makes unmeasurable is left at its right
    value: the mistake itself is named.
    """
    scores, calls = _scores_that_tell(), []
    scores["none"] = _given("score", scores["none"], calls)
    found = dict.fromkeys(_STEP_LABELS, np.float64(1.0))
    found["result"] = np.zeros(x.shape)
    found["relative drift"] = np.ones((4, 2))
    base = run(key, scores["none"], False)
    if base is None or base is ...:
        return base
    base = _points_of(name, base, x.shape)
    _must_be_called("score", calls)
    if base.shape != x.shape:
        return (np.zeros(base.shape), *(np.nan,) * (len(_STEP_LABELS) - 1))
    start = np.asarray(x, np.float64)
    _look(found, lambda *how: _points_of(name, run(*how), x.shape), base, start, key, law, scores)
    return tuple(found[label] for label in _STEP_LABELS)


def _look(found, run, base, start, key, law, scores):
    """Fill in what differs from the right values, up to where nothing more can be measured."""
    finite = np.isfinite(base).mean()
    if finite < 1.0:
        found["share of finite values"] = finite
        return
    if not np.array_equal(run(key, scores["none"], False), base):
        found["same noise for the same key"] = 0.0
        return
    pushed = run(key, scores["constant"], False) - base
    found["relative drift"] = (pushed / (law.drift * _PUSH))[:4]
    if np.abs(pushed).max() > 1e-6:
        placed = run(key, scores["place"], False) - base
        expected = pushed * start
        found["share of scores taken at x"] = 1.0 * np.allclose(
            placed, expected, rtol=1e-3, atol=1e-4
        )
        if law.sigma is not None:
            with np.errstate(all="ignore"):
                level = np.median((run(key, scores["level"], False) - base) / pushed)
            found["relative level of the score"] = level / law.sigma
    # The noise is independent of x, which has mean zero and a spread of its own.
    share = (base * start).sum() / (start**2).sum()
    if abs(share - 1.0) > 0.2:
        found["share of x in the result"] = np.round(share)
        return
    kick = base - start
    if np.abs(kick).max() < 1e-5:
        found["relative size of the noise"] = 0.0
        return

    def kick_of(seed):
        return run(jax.random.key(seed), scores["none"], False) - start

    other = kick_of(_OTHER_KEYS[0])
    if np.allclose(other, kick, rtol=1e-4, atol=1e-5):
        found["other noise for another key"] = 0.0
    longer = run(key, scores["none"], True) - start
    growth = np.nanmedian(longer / np.where(kick == 0.0, np.nan, kick))
    found["relative growth of the noise in a longer step"] = growth / law.growth
    # Steps have at most four sizes here: shared noise takes few values.
    values = np.unique(np.round(kick[:, 0] / np.abs(kick).max(), 4))
    shared = values.size < len(kick) / 64
    if np.allclose(kick[:, 0], kick[:, 1], rtol=1e-3, atol=1e-5):
        found["coordinates with noise of their own"] = 0.0
    if shared:
        found["points with noise of their own"] = 0.0
    elif found["other noise for another key"] and abs(growth / law.growth - 1.0) < 1e-2:
        kicks = [kick, other, *(kick_of(seed) for seed in _OTHER_KEYS[1:])]
        _look_at_distribution(found, np.concatenate([kick / law.size for kick in kicks]))


def _look_at_distribution(found, units):
    if found["coordinates with noise of their own"] == 1.0:
        correlation = np.corrcoef(units[:, 0], units[:, 1])[0, 1]
        if abs(correlation) > _CORRELATION_LIMIT:
            found["coordinates with noise of their own"] = 1.0 - abs(correlation)
    size = np.sqrt(np.mean(units**2))
    kurtosis = np.mean((units - units.mean()) ** 4) / units.var() ** 2 - 3.0
    if abs(units.mean()) > _MEAN_LIMIT * size or abs(kurtosis) > _KURTOSIS_LIMIT:
        found["Gaussian noise"] = 0.0
        return
    # Snapped to a power of the root of two, where it is one within the Monte Carlo error.
    power = 2.0 ** (np.round(2.0 * np.log2(size)) / 2.0)
    found["relative size of the noise"] = power if abs(size / power - 1.0) < _SIZE_LIMIT else size


def _step_points(rng):
    return jnp.float32(rng.normal(size=(_N, 2)))


def _a_key(rng):
    return jax.random.key(int(rng.integers(2**31)))


def _gaussian(key, shape):
    return jax.random.normal(key, shape)


# Mistakes in drawing the noise, the same in both exercises: name, draw(key, x), sentences.
_WRONG_NOISE = (
    (
        "fixed_key",
        lambda key, x: _gaussian(jax.random.key(0), x.shape),
        "Another key gives the same noise: the argument `key` is not used.",
        "A chain would then take the same random step a thousand times, and run away.",
        "Draw with the key that is passed in.",
    ),
    (
        "numpy_noise",
        lambda key, x: jnp.float32(np.random.default_rng().normal(size=x.shape)),
        "The same key gives other noise each time: it does not come from the key.",
        "Under `jax.jit` such numbers are drawn once, while it compiles, and then repeat for ever.",
        "Draw with `jax.random.normal` and the key that is passed in.",
    ),
    (
        "one_number_per_point",
        lambda key, x: _gaussian(key, (len(x), 1)),
        "Both coordinates of a point get the same noise.",
        "Points would spread along a diagonal only, and never across it.",
        "Draw an array of the full shape of x.",
    ),
    (
        "noise_for_all_points",
        lambda key, x: _gaussian(key, (2,)),
        "All points get the same noise, one number for each coordinate.",
        "The whole cloud moves as one. It broadcasts, so no error is raised.",
        "Draw an array of the full shape of x.",
    ),
    (
        "one_number",
        lambda key, x: _gaussian(key, ()),
        "One random number is drawn, for all points and coordinates.",
        "The whole cloud moves as one, along a diagonal. It broadcasts, so no error is raised.",
        "Draw an array of the full shape of x.",
    ),
    (
        "uniform",
        lambda key, x: jax.random.uniform(key, x.shape),
        "The noise is not standard Gaussian.",
        "Uniform numbers have another spread; those from 0 to 1 also push all points one way.",
        "Draw with `jax.random.normal`, from the key alone.",
    ),
)


def _noise_suspects(step):
    return tuple(Suspect(name, step(draw=draw), *says) for name, draw, *says in _WRONG_NOISE)


def _full_noise(key, x):
    return _gaussian(key, x.shape)


# --- 09.4 a Langevin step --------------------------------------------------------------------


def _langevin_cases(rng):
    key, x, score = _a_key(rng), _step_points(rng), _a_field(rng)
    score = jax.tree_util.Partial(_at_level_one, score)
    # Neither 1/2 nor 2, where some wrong powers of the step have the right value.
    step = float(rng.uniform(0.03, 0.06))
    column = np.tile([1.0, 2.0, 4.0, 8.0], _N // 4)[:, None] * rng.uniform(0.03, 0.06)
    return {
        "4096 points, one step size": (key, x, score, step),
        "4096 points, a column of step sizes": (key, x, score, jnp.float32(column)),
    }


def _at_level_one(score, x):
    return score(x, 1.0)


def _langevin_statistics(function, arguments):
    key, x, score, step = arguments

    def run(key, score, longer):
        return function(key, x, _of_points(score), 4.0 * step if longer else step)

    law = _Law(np.asarray(step), np.sqrt(2.0 * np.asarray(step)), growth=2.0)
    found = _statistics("langevin_step", run, x, key, law)
    if isinstance(found, tuple) and not ours(function):
        must_trace(
            "langevin_step",
            lambda key, x, step: function(key, x, score, step),
            *(key, x, step),
        )
    return found


def _of_points(score):
    def at(x):
        _must_be_points("score", x, 1.0)
        return score(x, 1.0)

    return _given("score", at, [])


def _langevin(
    *,
    drift=lambda step: step,
    size=lambda step: jnp.sqrt(2.0 * step),
    draw=_full_noise,
    at=lambda x, kick: x,
    start=lambda x: x,
):
    """A step with mistakes: each argument is one part of it."""

    def wrong(key, x, score, step):
        kick = size(step) * draw(key, x)
        return start(x) + drift(step) * score(at(x, kick)) + kick

    return wrong


_LANGEVIN = Spec(
    id="09.4",
    name="langevin_step",
    cases=_langevin_cases,
    labels=_STEP_LABELS,
    evaluate=_langevin_statistics,
    atol=1e-3,
    rtol=1e-3,
    insight="Drift and noise balance: repeated, this step leaves the density as it is, up to an "
    "error of the order of the step.",
    suspects=(
        Suspect(
            "no_two",
            _langevin(size=lambda step: jnp.sqrt(step)),
            "The noise has the variance τ, not 2 τ.",
            "The drift is then too strong for it: samples end up at the power 2 of the density, "
            "too narrow by a root of two.",
            "Take the root of *twice* the step.",
        ),
        Suspect(
            "two_outside_the_root",
            _langevin(size=lambda step: 2.0 * jnp.sqrt(step)),
            "The 2 stands outside the root: the noise has the variance 4 τ.",
            "Samples would come out too wide by a root of two.",
            "Put the 2 under the root.",
        ),
        Suspect(
            "no_root",
            _langevin(size=lambda step: 2.0 * step),
            "The noise is proportional to the step, without a root.",
            "Noise adds up in variance: with small steps there would be hardly any, and the points "
            "climb to the maximum.",
            "Take the root of twice the step.",
        ),
        Suspect(
            "noise_not_scaled",
            _langevin(size=lambda step: 1.0),
            "The noise has size one, whatever the step.",
            "After a few steps the points have walked away from the density.",
            "Multiply it by the root of twice the step.",
        ),
        Suspect(
            "noise_times_step",
            _langevin(size=lambda step: step * jnp.sqrt(2.0 * step)),
            "The noise is multiplied by the step once more, as by brackets around score and noise.",
            "There would be hardly any noise, and the points climb to the maximum.",
            "Multiply the score alone by the step.",
        ),
        Suspect(
            "root_times_both",
            _langevin(drift=lambda step: jnp.sqrt(2.0 * step)),
            "The score is multiplied by the root too, not by the step.",
            "For small steps the root is far larger than the step: the drift is too strong for the "
            "noise.",
            "Multiply the score by the step, and the noise alone by the root of twice the step.",
        ),
        Suspect(
            "no_noise",
            _langevin(size=lambda step: 0.0),
            "There is no noise: this climbs the density.",
            "All points would end on the ridge; a sampler must not.",
            "Add Gaussian numbers, scaled by the root of twice the step.",
        ),
        Suspect(
            "sign",
            _langevin(drift=lambda step: -step),
            "The drift goes downhill, against the score.",
            "The points would leave the density, faster and faster.",
            "Add the drift.",
        ),
        Suspect(
            "half_drift",
            _langevin(drift=lambda step: step / 2.0),
            "The drift has half the step, but the noise that of a whole one.",
            "Both ways of writing it are in use: τ/2 with √τ, or τ with √(2τ). Mixed, samples come "
            "out too wide by a root of two.",
            "Take the whole step for the drift.",
        ),
        Suspect(
            "half_of_both",
            _langevin(drift=lambda step: step / 2.0, size=lambda step: jnp.sqrt(step)),
            "Drift and noise are those of a step of τ/2.",
            "The balance is right, and the samples too, but each step is half as long as the "
            "formula here says, and the later cells count with it.",
            "Use the whole step in the drift, and twice the step under the root.",
        ),
        Suspect(
            "double_drift",
            _langevin(drift=lambda step: 2.0 * step),
            "The drift has twice the step.",
            "It is too strong for the noise: samples come out too narrow.",
            "Leave out the factor 2 before the score.",
        ),
        Suspect(
            "drift_not_scaled",
            _langevin(drift=lambda step: 1.0),
            "The score is added without the step.",
            "Near the ridge the score is large, and the points would be thrown far beyond it.",
            "Multiply the score by the step.",
            usable=False,
        ),
        Suspect(
            "no_drift",
            _langevin(drift=lambda step: 0.0),
            "There is no drift: this is a random walk.",
            "Nothing holds the points to the density.",
            "Add the step times the score.",
        ),
        Suspect(
            "moved_first",
            _langevin(at=lambda x, kick: x + kick),
            "The score is taken at the point after the noise, not at x.",
            "Drift and noise of one step start from the same place.",
            "Take the score at x, before anything moves.",
        ),
        Suspect(
            "increment",
            _langevin(start=lambda x: 0.0),
            "You return how far the points move, not where they are then.",
            "The next step would start from there.",
            "Add x.",
        ),
        *_noise_suspects(_langevin),
    ),
)


# --- 09.5 a step of the reverse-time SDE -----------------------------------------------------


def _reverse_cases(rng):
    key, x, score = _a_key(rng), _step_points(rng), _a_field(rng)

    def case(sigma, share):
        sigma = float(sigma * rng.uniform(0.95, 1.05))
        return key, x, sigma, share * sigma, score

    # Not so low that the noise is small beside x; no share has a special ratio to the others.
    return {"a high level": case(1.3, 0.8), "a low level": case(0.4, 0.6)}


def _removed(sigma, next_sigma):
    return sigma**2 - next_sigma**2


def _reverse_statistics(function, arguments):
    key, x, sigma, next_sigma, score = arguments
    far = 0.5 * next_sigma  # where a longer step leads

    def run(key, score, longer):
        def at(x, sigma):
            _must_be_points("score", x, sigma)
            return score(x, sigma)

        lower = far if longer else next_sigma
        return function(key, x, sigma, lower, _given("score", at, []))

    variance = _removed(sigma, next_sigma)
    growth = (_removed(sigma, far) / variance) ** 0.5
    law = _Law(variance, variance**0.5, growth, sigma)
    found = _statistics("reverse_step", run, x, key, law)
    if isinstance(found, tuple) and not ours(function):
        must_trace(
            "reverse_step",
            lambda key, x, sigma, next_sigma: function(key, x, sigma, next_sigma, score),
            *(key, x, sigma, next_sigma),
        )
    return found


def _reverse(
    *,
    drift=_removed,
    size=lambda sigma, next_sigma: jnp.sqrt(_removed(sigma, next_sigma)),
    draw=_full_noise,
    at=lambda x, kick: x,
    level=lambda sigma, next_sigma: sigma,
    start=lambda x: x,
):
    """A step with mistakes: each argument is one part of it."""

    def wrong(key, x, sigma, next_sigma, score):
        levels = sigma, next_sigma
        kick = size(*levels) * draw(key, x)
        return start(x) + drift(*levels) * score(at(x, kick), level(*levels)) + kick

    return wrong


def _either_way(law):
    """With sigma and next_sigma exchanged."""
    return lambda sigma, next_sigma: law(next_sigma, sigma)


def _root_of(law):
    return lambda sigma, next_sigma: jnp.sqrt(law(sigma, next_sigma))


def _squared_difference(sigma, next_sigma):
    return (sigma - next_sigma) ** 2


def _difference(sigma, next_sigma):
    return sigma - next_sigma


_REVERSE = Spec(
    id="09.5",
    name="reverse_step",
    cases=_reverse_cases,
    labels=_STEP_LABELS,
    evaluate=_reverse_statistics,
    atol=1e-3,
    rtol=1e-3,
    insight="Going back takes the drift twice: once to undo the blurring, once to pay for the "
    "noise that is added again.",
    suspects=(
        Suspect(
            "exchanged",
            _reverse(drift=_either_way(_removed), size=_root_of(_either_way(_removed))),
            "The result is not a number: Δ is negative under the root.",
            "Points go from `sigma` down to the smaller `next_sigma`, so the difference must be "
            "positive.",
            "Subtract the square of `next_sigma` from that of `sigma`.",
        ),
        Suspect(
            "sign",
            _reverse(drift=_either_way(_removed)),
            "The drift has the wrong sign: it goes against the score.",
            "Back in time the points gather where the density is high.",
            "Add Δ times the score; Δ is positive.",
        ),
        Suspect(
            "half_drift",
            _reverse(drift=lambda sigma, after: 0.5 * _removed(sigma, after)),
            "The drift is half as large as it should be.",
            "Half of Δ is the drift of the ODE, which adds no noise. With noise the drift must "
            "carry away twice as much.",
            "Leave out the factor 1/2.",
        ),
        Suspect(
            "ode",
            _reverse(drift=lambda sigma, after: 0.5 * _removed(sigma, after), size=lambda *_: 0.0),
            "This is a step of the probability-flow ODE: half the drift, and no noise.",
            "It leads to the same density, but comes later in this lesson. Here the SDE is asked "
            "for.",
            "Take the whole drift and add the noise.",
        ),
        Suspect(
            "ode_by_euler",
            _reverse(
                drift=lambda sigma, after: sigma * _difference(sigma, after),
                size=lambda *_: 0.0,
            ),
            "This is an Euler step in σ of the probability-flow ODE, as DDIM takes it: no noise, "
            "and σ (σ-σ') before the score.",
            "It leads to the same density, but comes later in this lesson. Here the SDE is asked "
            "for.",
            "Use Δ before the score, and add the noise.",
        ),
        Suspect(
            "double_drift",
            _reverse(drift=lambda sigma, after: 2.0 * _removed(sigma, after)),
            "The drift is twice as large as it should be.",
            "Δ is already the whole variance that is taken away.",
            "Leave out the factor 2.",
        ),
        Suspect(
            "drift_of_differences",
            _reverse(drift=_squared_difference),
            "The drift has (σ-σ')², not σ²-σ'².",
            "Variances add up, standard deviations do not: (σ-σ')² is far less than what is taken "
            "away.",
            "Square first, then subtract.",
        ),
        Suspect(
            "squared_difference",
            _reverse(drift=_squared_difference, size=_difference),
            "Δ is (σ-σ')² here, not σ²-σ'², in drift and noise.",
            "Variances add up, standard deviations do not. The steps are far too short.",
            "Square first, then subtract.",
        ),
        Suspect(
            "difference",
            _reverse(drift=_difference, size=_root_of(_difference)),
            "Δ is the difference of the standard deviations, not of the variances.",
            "Δ is the variance to be taken away; only variances add up.",
            "Square both levels before you subtract.",
        ),
        Suspect(
            "no_drift",
            _reverse(drift=lambda *_: 0.0),
            "There is no drift: this only adds noise.",
            "The points would spread, not gather.",
            "Add Δ times the score.",
        ),
        Suspect(
            "no_noise",
            _reverse(size=lambda *_: 0.0),
            "There is no noise.",
            "Δ times the score takes away twice the variance that a level loses; the noise gives "
            "half of it back. Without it the samples come out too narrow.",
            "Add Gaussian numbers, scaled by the root of Δ.",
        ),
        Suspect(
            "no_root",
            _reverse(size=_removed),
            "The noise is multiplied by Δ, without the root.",
            "Δ is a variance, the noise needs a standard deviation.",
            "Take the square root of Δ.",
        ),
        Suspect(
            "noise_of_differences",
            _reverse(size=_difference),
            "The noise has the size σ-σ', not √(σ²-σ'²).",
            "The root of a difference of squares is more than the difference.",
            "Subtract the squares, then take the root.",
        ),
        Suspect(
            "noise_doubled",
            _reverse(size=lambda sigma, after: jnp.sqrt(2.0 * _removed(sigma, after))),
            "There is a factor 2 under the root.",
            "It belongs to a Langevin step. Here Δ itself is the variance of the noise.",
            "Leave out the 2.",
        ),
        Suspect(
            "noise_of_next_level",
            _reverse(size=lambda sigma, after: after),
            "The noise has the size σ', not √Δ.",
            "That is how far a point at the level σ' is from a clean one. This point starts at σ, "
            "and keeps the noise that the drift leaves in it.",
            "Scale the noise by the root of Δ.",
        ),
        Suspect(
            "noise_whatever_next_level",
            _reverse(size=lambda sigma, after: sigma),
            "The size of the noise does not depend on σ': it is σ, or a constant, not √Δ.",
            "The shorter the step, the less noise it may add; with many short steps the points "
            "would walk away.",
            "Scale the noise by the root of Δ.",
        ),
        Suspect(
            "denoised_then_noised",
            _reverse(drift=lambda sigma, after: sigma**2, size=lambda sigma, after: after),
            "The point is denoised all the way, and then gets new noise of size σ'.",
            "The denoised point is the *mean* of the clean points that may be behind x: their "
            "spread is lost, and the samples come out too narrow.",
            "Go only Δ times the score, and add noise of size √Δ.",
        ),
        Suspect(
            "drift_all_the_way",
            _reverse(drift=lambda sigma, after: sigma**2),
            "The drift is σ² times the score: it leads to the denoised point, past the level σ'.",
            "One step takes away the variance between two levels, not all of it.",
            "Use Δ, the difference of the squares, in place of σ².",
        ),
        Suspect(
            "ancestral",
            _reverse(
                size=lambda sigma, after: after / sigma * jnp.sqrt(_removed(sigma, after)),
            ),
            "The noise has an extra factor σ'/σ.",
            "That is the ancestral step of Song et al. (2021) for variance-exploding noise (SMLD). "
            "It is right as well, and the same for short steps; here the plain step of the SDE is "
            "asked for.",
            "Leave out the factor.",
        ),
        Suspect(
            "score_at_next_level",
            _reverse(level=lambda sigma, after: after),
            "The score is taken at the level σ', where the points go.",
            "They are still at σ: at a smaller level their score is much larger, and the step "
            "overshoots.",
            "Take the score at the level where the points are.",
        ),
        Suspect(
            "score_at_variance",
            _reverse(level=lambda sigma, after: sigma**2),
            "The score is taken at the level σ², not at σ.",
            "`score` takes a standard deviation.",
            "Pass sigma as it comes.",
        ),
        Suspect(
            "moved_first",
            _reverse(at=lambda x, kick: x + kick),
            "The score is taken at the point after the noise, not at x.",
            "Drift and noise of one step start from the same place.",
            "Take the score at x, before anything moves.",
        ),
        Suspect(
            "increment",
            _reverse(start=lambda x: 0.0),
            "You return how far the points move, not where they are then.",
            "The next step would start from there.",
            "Add x.",
        ),
        *_noise_suspects(_reverse),
    ),
)


# --- 09.6 the probability-flow ODE -----------------------------------------------------------


def _flow_cases(rng):
    score = _a_field(rng)
    return {
        "5 points, a low level": (float(rng.uniform(0.3, 0.45)), _some_points(rng, 5), score),
        "5 points, a high level": (float(rng.uniform(1.4, 1.8)), _some_points(rng, 5), score),
    }


def _flow(speed):
    return lambda sigma, x, score: speed(sigma) * score(x, sigma)


_FLOW = Spec(
    id="09.6",
    name="flow_velocity",
    cases=_flow_cases,
    example="Try the score of a Gaussian, `lambda x, sigma: -x / (1 + sigma**2)`: the velocity "
    "must be `sigma * x / (1 + sigma**2)`.",
    evaluate=_traced("flow_velocity", given="score"),
    atol=1e-5,
    rtol=1e-5,
    insight="Every density of the blurring is met on the way, and yet nothing is random: the flow "
    "has an inverse, and with it an exact likelihood.",
    suspects=(
        Suspect(
            "no_half",
            _flow(lambda sigma: -2.0 * sigma),
            "The factor 1/2 is missing.",
            "That is the drift of the reverse SDE. The ODE has no noise to pay for, and needs half "
            "of it.",
            "Half of the derivative of σ² is σ.",
        ),
        Suspect(
            "sign",
            _flow(lambda sigma: sigma),
            "The sign is wrong.",
            "As σ grows the density spreads: points move away from where it is high.",
            "Go against the score.",
        ),
        Suspect(
            "no_half_sign",
            _flow(lambda sigma: 2.0 * sigma),
            "The sign is wrong, and the factor 1/2 is missing.",
            "As σ grows the density spreads: points move away from where it is high.",
            "Go against the score, with half of the derivative of σ².",
        ),
        Suspect(
            "sigma_squared",
            _flow(lambda sigma: -(sigma**2)),
            "The score is multiplied by σ², not by σ.",
            "That is the way from the denoised point to the noisy one. The velocity is *per "
            "unit of σ*.",
            "Differentiate σ² with respect to σ.",
        ),
        Suspect(
            "half_of_sigma_squared",
            _flow(lambda sigma: -0.5 * sigma**2),
            "σ² is not differentiated: the factor is -σ²/2.",
            "The velocity is *per unit of σ*: it takes how fast the variance grows with σ, not the "
            "variance.",
            "Differentiate σ² with respect to σ.",
        ),
        Suspect(
            "no_sigma",
            _flow(lambda sigma: -1.0),
            "σ is missing.",
            "The derivative of σ² grows with σ: at high levels the same step of σ blurs more.",
            "Half of the derivative of σ² is σ.",
        ),
        Suspect(
            "only_half",
            _flow(lambda sigma: -0.5),
            "The derivative of σ² is missing: there is only the factor -1/2.",
            "That is the velocity per unit of the *variance*; here it is per unit of σ.",
            "Multiply by the derivative of σ² with respect to σ.",
        ),
        Suspect(
            "half_twice",
            _flow(lambda sigma: -0.5 * sigma),
            "There is a factor 1/2 too many.",
            "The derivative of σ² is 2σ, and its 2 cancels the 1/2 of the formula.",
            "Leave out the factor.",
        ),
        Suspect(
            "divided",
            _flow(lambda sigma: -1.0 / sigma),
            "The score is divided by σ, not multiplied.",
            "At low levels the points would fly apart; there they should hardly move.",
            "Multiply by σ.",
        ),
        Suspect(
            "the_score",
            _flow(lambda sigma: 1.0),
            "You return the score itself.",
            "The velocity is per unit of σ, and goes against the score.",
            "Multiply with minus half of the derivative of σ².",
        ),
        Suspect(
            "moved",
            lambda sigma, x, score: x - sigma * score(x, sigma),
            "You return x plus the velocity, not the velocity.",
            "The solver of the ODE makes the steps; it needs the derivative of x alone.",
            "Leave out x.",
        ),
        Suspect(
            "denoised",
            lambda sigma, x, score: x + sigma**2 * score(x, sigma),
            "You return the denoised point, not a velocity.",
            "x minus the denoised point, divided by σ, would be the velocity.",
            "Use the score, times minus half of the derivative of σ².",
        ),
        Suspect(
            "score_at_variance",
            lambda sigma, x, score: -sigma * score(x, sigma**2),
            "The score is taken at the level σ², not at σ.",
            "`score` takes a standard deviation.",
            "Pass sigma as it comes.",
        ),
    ),
)


# --- 09.7 the likelihood of a noised variable ------------------------------------------------


def _likelihood_cases(rng):
    def case(shape, mask, noise, sigma):
        x = rng.uniform(-1.5, 1.5, shape)
        y = rng.uniform(2.0, 3.0, (1, *shape[1:])) * rng.choice([-1.0, 1.0], (1, *shape[1:]))
        arrays = (jnp.float32(values) for values in (x, y, np.asarray(mask)[None]))
        return *arrays, noise * float(rng.uniform(0.9, 1.1)), sigma * float(rng.uniform(0.9, 1.1))

    image = rng.permutation(np.r_[np.ones(12), np.zeros(8)]).reshape(4, 5)
    x, y, mask, noise, sigma = case((5, 2), [1.0, 0.0], 0.4, 1.4)
    return {
        "5 points, one coordinate observed": (x, y, mask, noise, sigma),
        "5 points, both observed": case((5, 2), [1.0, 1.0], 0.6, 0.35),
        "5 points, level zero": (x, y, mask, noise, 0.0),
        "3 images of 4 x 5 pixels": case((3, 4, 5), image, 0.3, 0.8),
    }


def _pulled(variance, pull=lambda x, y, mask: mask * (y - x)):
    return lambda x, y, mask, noise, sigma: pull(x, y, mask) / variance(noise, sigma)


def _both(noise, sigma):
    return noise**2 + sigma**2


def _scaled(factor):
    return lambda x, y, mask, noise, sigma: (
        factor(x, mask, noise, sigma) * mask * (y - x) / _both(noise, sigma)
    )


def _log_likelihoods(x, y, mask, noise, sigma):
    variance = _both(noise, sigma)
    values = -0.5 * (y - x) ** 2 / variance - 0.5 * jnp.log(2.0 * jnp.pi * variance)
    return (mask * values).reshape(len(x), -1).sum(axis=-1)


_LIKELIHOOD = Spec(
    id="09.7",
    name="likelihood_score",
    cases=_likelihood_cases,
    evaluate=_traced("likelihood_score"),
    atol=1e-5,
    rtol=1e-5,
    insight="Prior and likelihood add up as scores. That x_σ is all that is known of x is the one "
    "approximation, and it fades as σ goes to zero.",
    suspects=(
        Suspect(
            "no_sigma",
            _pulled(lambda noise, sigma: noise**2),
            "The variance of x_σ is missing.",
            "At a high level x_σ is a poor guess of x. With the noise of the observation alone the "
            "pull is far too strong, and the sampler flies apart.",
            "Add the variance σ² to that of the observation.",
            usable=False,
        ),
        Suspect(
            "no_noise",
            _pulled(lambda noise, sigma: sigma**2),
            "The variance of the observation is missing.",
            "At a low level the point would be pulled onto the observation, noise included.",
            "Add the square of `noise` to σ².",
        ),
        Suspect(
            "deviations_added",
            _pulled(lambda noise, sigma: (noise + sigma) ** 2),
            "The standard deviations are added, then squared.",
            "Independent errors add up in variance: (a + b)² is more than a² + b².",
            "Square each, then add.",
        ),
        Suspect(
            "not_squared",
            _pulled(lambda noise, sigma: noise + sigma),
            "The standard deviations are not squared.",
            "The Gaussian has variances in its exponent.",
            "Square each, then add.",
        ),
        Suspect(
            "noise_not_squared",
            _pulled(lambda noise, sigma: noise + sigma**2),
            "`noise` is not squared.",
            "It is a standard deviation, and cannot be added to a variance.",
            "Square it.",
        ),
        Suspect(
            "sigma_not_squared",
            _pulled(lambda noise, sigma: noise**2 + sigma),
            "σ is not squared.",
            "It is a standard deviation, and cannot be added to a variance.",
            "Square it.",
        ),
        Suspect(
            "root",
            _pulled(lambda noise, sigma: jnp.sqrt(_both(noise, sigma))),
            "The difference is divided by the standard deviation, not by the variance.",
            "That counts by how many standard deviations y is off. A gradient is one over a "
            "length: it takes the variance.",
            "Leave out the root.",
        ),
        Suspect(
            "precisions_added",
            _scaled(
                lambda x, mask, noise, sigma: _both(noise, sigma) ** 2 / jnp.square(noise * sigma)
            ),
            "The precisions 1/noise² and 1/σ² are added, not the variances.",
            "Precisions add up when two measurements of one thing are combined. Here two errors "
            "follow each other.",
            "Add the variances, then divide.",
        ),
        Suspect(
            "multiplied",
            _pulled(lambda noise, sigma: 1.0 / _both(noise, sigma)),
            "The difference is multiplied by the variance, not divided.",
            "The less is known, the less the observation should pull.",
            "Divide by the variance.",
        ),
        Suspect(
            "no_variance",
            _pulled(lambda noise, sigma: 1.0),
            "The variance is missing.",
            "How strongly an observation pulls depends on how exact it is.",
            "Divide by the sum of the two variances.",
        ),
        Suspect(
            "sign",
            _scaled(lambda x, mask, noise, sigma: -1.0),
            "The sign is wrong: this pushes the point away from the observation.",
            "It is the gradient with respect to y, or that of minus the log-likelihood.",
            "The likelihood is largest where x is y: pull from x towards y.",
            usable=False,
        ),
        Suspect(
            "half",
            _scaled(lambda x, mask, noise, sigma: 0.5),
            "There is a factor 1/2 too many.",
            "The derivative of a square brings a 2, which cancels the 1/2 of the Gaussian.",
            "Leave it out.",
        ),
        Suspect(
            "twice",
            _scaled(lambda x, mask, noise, sigma: 2.0),
            "There is a factor 2 too many.",
            "The Gaussian's exponent has a 1/2, which cancels the 2 of the square's derivative.",
            "Leave it out.",
        ),
        Suspect(
            "no_mask",
            lambda x, y, mask, noise, sigma: (y - x) / _both(noise, sigma),
            "The mask is not applied.",
            "Where nothing was observed `y` holds no measurement, and yet it would pull.",
            "Multiply the result with the mask.",
        ),
        Suspect(
            "mask_on_data",
            _pulled(_both, lambda x, y, mask: mask * y - x),
            "The mask is applied to y alone.",
            "Where nothing was observed the point would be pulled to zero.",
            "Apply it to the whole difference: mind the brackets.",
        ),
        Suspect(
            "mask_on_points",
            _pulled(_both, lambda x, y, mask: y - mask * x),
            "The mask is applied to x alone: the result is wrong only where nothing is observed.",
            "There y holds no measurement, and yet it would drive the point.",
            "Apply it to the whole difference: mind the brackets.",
        ),
        Suspect(
            "mask_on_noise",
            lambda x, y, mask, noise, sigma: (y - x) / (mask * noise**2 + sigma**2),
            "The mask is applied to the variance of the observation: the result is wrong only "
            "where nothing is observed.",
            "No variance there reads as a measurement without any error: the strongest pull, "
            "where there must be none.",
            "Multiply the difference with the mask, not the variance.",
        ),
        Suspect(
            "mask_inverted",
            _pulled(_both, lambda x, y, mask: (1.0 - mask) * (y - x)),
            "The mask is inverted: only what was not observed pulls.",
            "`mask` is 1 where y was observed.",
            "Multiply with the mask as it comes.",
        ),
        Suspect(
            "mask_divides",
            _pulled(_both, lambda x, y, mask: (y - x) / mask),
            "The result is divided by the mask: infinite where nothing was observed.",
            "No observation means no pull at all, which is zero.",
            "Multiply with the mask.",
        ),
        Suspect(
            "mean_over_coordinates",
            _scaled(lambda x, mask, noise, sigma: 1.0 / x[0].size),
            "The log-likelihood is averaged over the coordinates, not summed.",
            "Independent measurements multiply their likelihoods, so the logarithms add up.",
            "Sum, or leave the mean out.",
        ),
        Suspect(
            "mean_over_observed",
            _scaled(lambda x, mask, noise, sigma: 1.0 / jnp.sum(mask)),
            "The log-likelihood is averaged over the observed coordinates, not summed.",
            "A hundred measurements must pull a hundred times as strongly in total as one.",
            "Do not divide by their number.",
        ),
        Suspect(
            "mean_over_points",
            _scaled(lambda x, mask, noise, sigma: 1.0 / len(x)),
            "The gradient is that of a mean over the points.",
            "Each point is a sample of its own; the pull on it does not depend on how many there "
            "are.",
            "Sum over the points before you differentiate.",
        ),
        Suspect(
            "mean_over_all",
            _scaled(lambda x, mask, noise, sigma: 1.0 / x.size),
            "The gradient is that of a mean over all points and coordinates.",
            "Each point gets the full pull of each of its measurements.",
            "Sum before you differentiate, or leave the mean out.",
        ),
        Suspect(
            "times_sigma_squared",
            _scaled(lambda x, mask, noise, sigma: sigma**2),
            "The gradient is multiplied by σ².",
            "That would be a shift of the denoised point, as in Tweedie's formula. Here the score "
            "is asked for.",
            "Leave out σ² on top.",
        ),
        Suspect(
            "for_sigma",
            lambda x, y, mask, noise, sigma: (
                mask * sigma * ((y - x) ** 2 / _both(noise, sigma) - 1.0) / _both(noise, sigma)
            ),
            "This is the derivative with respect to σ, not to x.",
            "The level is given by the sampler; it is the point that moves.",
            "Differentiate by x.",
        ),
        Suspect(
            "values",
            _log_likelihoods,
            "You return the log-likelihood itself, not its gradient.",
            "A sampler needs a direction for each point, of the same shape as x.",
            "Differentiate it by x.",
        ),
    ),
)

SPECS = (_DENOISE, _DSM_LOSS, _PRECONDITION, _LANGEVIN, _REVERSE, _FLOW, _LIKELIHOOD)
