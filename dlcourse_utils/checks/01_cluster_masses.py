"""The checks of lesson 01: for each exercise its cases, and the wrong answers it can name."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.scipy.special import logsumexp
from tensorflow_probability.substrates import jax as tfp

from .engine import Misfit, Spec, Suspect
from .tools import to_compile

tfd = tfp.distributions

# --- 01.1 the M-sigma relation ---------------------------------------------------------------


def _m_sigma_cases(rng):
    def sample(n, slope, scatter):
        log_sigma = rng.uniform(2.2, 3.2, n)
        log_mass = 14.0 + slope * (log_sigma - 2.7) + scatter * rng.standard_normal(n)
        return jnp.float32(10**log_sigma), jnp.float32(10**log_mass)

    return {
        "tight": sample(1000, 2.7, 0.15),
        "wide": sample(1000, 2.0, 0.5),
        # So few that n and n - 1 differ; so tight that in the scatter they do not.
        "few": sample(60, 2.7, 0.02),
        # As many as in the lesson, where single precision begins to matter.
        "many": sample(600_000, 2.0, 0.3),
    }


def _line(u, v):
    du = u - u.mean()
    slope = jnp.mean(du * v) / jnp.mean(du**2)
    intercept = v.mean() - slope * u.mean()
    return slope, intercept, v - (slope * u + intercept)


def _single_precision_polyfit(sigma, mass):
    u, v = jnp.log10(sigma), jnp.log10(mass)
    slope, intercept = jnp.polyfit(u, v, 1)
    return slope, intercept, jnp.std(v - (slope * u + intercept))


def _m_sigma_parts(sigma, mass):
    slope, intercept, residual = _line(jnp.log10(sigma), jnp.log10(mass))
    return np.array([slope, intercept, jnp.std(residual)])


def _on(of_sigma, of_mass):
    """The right line and scatter of other functions of the two arguments."""

    def wrong(sigma, mass):
        slope, intercept, residual = _line(of_sigma(sigma), of_mass(mass))
        return slope, intercept, jnp.std(residual)

    return wrong


def _with_slope(change):
    """Another slope, and the intercept and the scatter that follow from it."""

    def wrong(sigma, mass):
        u, v = jnp.log10(sigma), jnp.log10(mass)
        slope = change(_line(u, v)[0], u, v)
        intercept = v.mean() - slope * u.mean()
        return slope, intercept, jnp.std(v - (slope * u + intercept))

    return wrong


def _through_origin(sigma, mass):
    u, v = jnp.log10(sigma), jnp.log10(mass)
    slope = jnp.sum(u * v) / jnp.sum(u**2)
    return slope, 0.0, jnp.std(v - slope * u)


def _with_scatter(of_residual):
    def wrong(sigma, mass):
        slope, intercept, residual = _line(jnp.log10(sigma), jnp.log10(mass))
        return slope, intercept, of_residual(residual)

    return wrong


def _swapped(sigma, mass):
    slope, intercept, residual = _line(jnp.log10(mass), jnp.log10(sigma))
    return slope, intercept, jnp.std(residual)


def _inverted(sigma, mass):
    slope, intercept, _ = _line(jnp.log10(mass), jnp.log10(sigma))
    a, b = 1 / slope, -intercept / slope
    return a, b, jnp.std(jnp.log10(mass) - (a * jnp.log10(sigma) + b))


def _scatter_of_masses(sigma, mass):
    slope, intercept, _ = _line(jnp.log10(sigma), jnp.log10(mass))
    return slope, intercept, jnp.std(jnp.log10(mass))


_M_SIGMA = Spec(
    id="01.1",
    name="fit_m_sigma",
    cases=_m_sigma_cases,
    labels=("slope", "intercept", "scatter"),
    # Two least-squares solvers in single precision agree on the intercept to about 1e-4; a
    # standard deviation with n - 2 in place of n = 1000 is right as well, and 0.0005 larger.
    atol={"slope": 2e-4, "intercept": 6e-4, "scatter": 8e-4},
    rtol=0.0,
    late={"many": "single_precision"},
    insight="A scatter in dex is a factor: 0.3 dex means that one mass in three is off by more "
    "than a factor of two.",
    suspects=(
        Suspect(
            "natural_log",
            _on(jnp.log, jnp.log),
            "You used the natural logarithm.",
            "Masses and scatters are in dex, which are powers of ten: ln is 2.303 times larger.",
            "Use `jnp.log10`.",
        ),
        Suspect(
            "no_log",
            _on(lambda sigma: sigma, lambda mass: mass),
            "You fitted a line to σ and M themselves.",
            "M grows as a power of σ: that is a straight line in the logarithms only.",
            "Take `jnp.log10` of both arguments first.",
        ),
        Suspect(
            "no_log_of_mass",
            _on(jnp.log10, lambda mass: mass),
            "You took the logarithm of σ, but not of M.",
            "M grows as a power of σ: that is a straight line if both are logarithms.",
            "Take `jnp.log10` of the masses too.",
        ),
        Suspect(
            "natural_log_of_sigma",
            _on(jnp.log, jnp.log10),
            "The logarithm of σ is the natural one, that of M is to base 10.",
            "The slope is too small by the factor ln 10 = 2.303, and the next cells multiply it "
            "with log10 σ.",
            "Use `jnp.log10` for both.",
        ),
        Suspect(
            "natural_log_of_mass",
            _on(jnp.log10, jnp.log),
            "The logarithm of M is the natural one, that of σ is to base 10.",
            "Masses and scatters are in dex, which are powers of ten: ln is 2.303 times larger.",
            "Use `jnp.log10` for both.",
        ),
        Suspect(
            "scatter_in_nats",
            _with_scatter(lambda residual: jnp.log(10.0) * jnp.std(residual)),
            "The scatter is 2.303 times too large: that is ln 10, so it is in natural logarithms.",
            "A scatter in dex is a power of ten: 0.3 dex are a factor of two.",
            "Take the residuals of `jnp.log10(mass)`.",
        ),
        Suspect(
            "through_origin",
            _through_origin,
            "Your line goes through the origin.",
            "σ = 1 km/s does not mean M = 1 Msun: the line has an intercept of its own.",
            "Subtract the means of log10 σ and log10 M before you take the slope.",
        ),
        Suspect(
            "other_divisor",
            _with_slope(lambda slope, u, v: slope * len(u) / (len(u) - 1)),
            "The covariance is divided by n - 1, the variance by n.",
            "`jnp.cov` divides by n - 1 unless told otherwise, `jnp.var` and `jnp.mean` by n: the "
            "slope is too large by n/(n - 1).",
            "Use the same divisor for both, such as `jnp.cov(u, v, bias=True)` with `jnp.var(u)`.",
        ),
        Suspect(
            "over_deviation",
            _with_slope(lambda slope, u, v: slope * jnp.std(u)),
            "The covariance is divided by the standard deviation of log10 σ, not by its variance.",
            "A slope is dex over dex, a covariance dex squared.",
            "Divide by `jnp.var`.",
        ),
        Suspect(
            "correlation",
            _with_slope(lambda slope, u, v: slope * jnp.std(u) / jnp.std(v)),
            "The slope is the correlation coefficient.",
            "That says how tight the relation is, between -1 and 1, and not how steep.",
            "Divide the covariance by the variance of log10 σ alone.",
        ),
        Suspect(
            "variance",
            _with_scatter(jnp.var),
            "The scatter is a variance, not a standard deviation.",
            "A variance has the unit dex squared and cannot be read as an error bar.",
            "Take the square root, or `jnp.std` for `jnp.var`.",
        ),
        Suspect(
            "swapped",
            _swapped,
            "You fitted σ as a function of M.",
            "We want to predict the mass, so it must be the left-hand side of the line.",
            "Swap the two arguments of the fit.",
        ),
        Suspect(
            "inverted",
            _inverted,
            "You fitted σ as a function of M and turned the line around.",
            "Least squares minimises the scatter of one variable: the inverted line is steeper and "
            "predicts the mass worse.",
            "Fit log10 M on log10 σ directly.",
        ),
        Suspect(
            "standard_error",
            _with_scatter(lambda residual: jnp.std(residual) / jnp.sqrt(len(residual))),
            "The scatter is divided by the root of n.",
            "That is the error of the mean line. A new cluster scatters by the full standard "
            "deviation, however many were used in the fit.",
            "Return the standard deviation of the residuals.",
        ),
        Suspect(
            "mean_distance",
            _with_scatter(lambda residual: jnp.mean(jnp.abs(residual))),
            "The scatter is the mean distance from the line.",
            "For a normal law that is 0.80 standard deviations.",
            "Use `jnp.std` of the residuals.",
        ),
        Suspect(
            "single_precision",
            _single_precision_polyfit,
            "The line is right for 1,000 clusters and wrong for 600,000.",
            "Most likely it is single precision, which is what JAX computes in, and NumPy too when "
            "it is given JAX's arrays. Sums of many squares lose the digits that matter, and "
            "`polyfit` and `lstsq` drop the smaller of two singular values as if it were rounding.",
            "Subtract the mean of log10 σ, then take the covariance over the variance. Or fit in "
            "double precision: `import numpy as np; np.polyfit(np.log10(np.asarray(sigma, float)), "
            "np.log10(np.asarray(mass, float)), 1)`.",
        ),
        Suspect(
            "swapped_results",
            lambda sigma, mass: _m_sigma_parts(sigma, mass)[[1, 0, 2]],
            "The slope and the intercept are swapped.",
            "The next cell unpacks them in the order of the docstring.",
            "Return slope, intercept, scatter.",
        ),
        Suspect(
            "scatter_of_masses",
            _scatter_of_masses,
            "The scatter is that of the masses, not of the residuals.",
            "Only what the line leaves unexplained is its error.",
            "Subtract the line before you take the standard deviation.",
        ),
    ),
)

# --- 01.2 mean squared error -----------------------------------------------------------------


def _mse_cases(rng):
    def batch(n, offset):
        target = 14.0 + rng.standard_normal(n)
        prediction = target + offset + 0.7 * rng.standard_normal(n)
        return jnp.float32(prediction[:, None]), jnp.float32(target)

    return {"8 clusters": batch(8, 0.5), "33 clusters": batch(33, -0.3)}


def _difference(prediction, target):
    return prediction[:, 0] - target


_MSE = Spec(
    id="01.2",
    name="mse",
    cases=_mse_cases,
    atol=1e-5,
    gradient=lambda f, case: jax.grad(f)(*case),
    insight="The mean over the batch, not the sum: the number means the same for every size of "
    "batch.",
    suspects=(
        Suspect(
            "broadcast",
            lambda f, m: jnp.mean((f - m[None, :]) ** 2),
            "The column (n, 1) minus the vector (n,) became a matrix (n, n).",
            "Every prediction is compared with every mass, so the network learns to return the "
            "mean mass for all clusters. No error is raised.",
            "Use `prediction[:, 0]`.",
        ),
        Suspect(
            "sum_for_mean",
            lambda f, m: jnp.sum(_difference(f, m) ** 2),
            "This is the sum over the batch, not the mean.",
            "It grows with the batch, and with plain gradient descent so does each step.",
            "Use `jnp.mean`.",
        ),
        Suspect(
            "absolute",
            lambda f, m: jnp.mean(jnp.abs(_difference(f, m))),
            "This is the mean absolute error.",
            "It leads to the median of the posterior, not to its mean.",
            "Square the difference.",
        ),
        Suspect(
            "not_squared",
            lambda f, m: jnp.mean(_difference(f, m)),
            "The difference is not squared.",
            "Errors of opposite sign cancel, and the loss has no minimum.",
            "Square the difference before taking the mean.",
        ),
        Suspect(
            "square_of_mean",
            lambda f, m: jnp.mean(_difference(f, m)) ** 2,
            "You squared the mean of the differences.",
            "Errors of opposite sign cancel first: a useless network can have a loss of zero.",
            "Square each difference, then take the mean.",
        ),
        Suspect(
            "root",
            lambda f, m: jnp.sqrt(jnp.mean(_difference(f, m) ** 2)),
            "This is the root of the mean squared error.",
            "Its gradient keeps its size however small the error, and is NaN at zero; and a mean "
            "of it over batches is not the root of the mean.",
            "Leave out the square root.",
        ),
        Suspect(
            "half",
            lambda f, m: 0.5 * jnp.mean(_difference(f, m) ** 2),
            "The result is half of the mean squared error.",
            "The minimum is the same, but the number is no longer the variance of the errors.",
            "Leave out the factor 1/2.",
        ),
        Suspect(
            "variance",
            lambda f, m: jnp.var(_difference(f, m)),
            "This is the variance of the differences.",
            "Their mean is subtracted first, so a network that is off by 1 dex everywhere has a "
            "loss of zero.",
            "Use `jnp.mean` of the squares.",
        ),
        Suspect(
            "per_cluster",
            lambda f, m: _difference(f, m) ** 2,
            "You return one squared error for each cluster.",
            "A gradient needs one number to descend.",
            "Take `jnp.mean` of it.",
        ),
    ),
)

# --- 01.3 from outputs to a mixture ----------------------------------------------------------

_K, _CENTRE, _SCALE, _FLOOR = 6, 14.2, 0.6, 0.01
_MASSES = np.linspace(12.6, 15.8, 9, dtype=np.float32)


def _mixture_cases(rng):
    return {
        "any outputs": (jnp.float32(1.2 * rng.standard_normal((4, 3 * _K))),),
        # The floor of the scale decides where c is very negative.
        "narrow components": (
            jnp.float32(
                np.hstack([0.3 * rng.standard_normal((4, 2 * _K)), rng.uniform(-9, -7, (4, _K))])
            ),
        ),
        # Here no wrong use of an output gives NaN, which would make all of them look alike.
        "positive outputs": (jnp.float32(rng.uniform(0.2, 2.0, (4, 3 * _K))),),
    }


def _log_prob_of(function, arguments):
    density = function(*arguments)
    if not hasattr(density, "log_prob"):
        raise Misfit("`mixture` must return a TFP distribution, which has a `log_prob`.")
    n = arguments[0].shape[0]
    if tuple(density.batch_shape) != (n,) or tuple(density.event_shape) != ():
        raise Misfit(
            f"The density has batch shape {tuple(density.batch_shape)} and event shape "
            f"{tuple(density.event_shape)}; expected {(n,)} and (): one density for each cluster."
        )
    return density.log_prob(_MASSES[:, None])


@functools.partial(jax.jit, static_argnums=0)
def _mixture_gradient(function, outputs):
    return jax.grad(lambda x: function(x).log_prob(_MASSES[:1, None]).sum())(outputs)


def _blocks(outputs):
    return jnp.split(outputs, 3, axis=-1)


def _assemble(a, b, c):
    return tfd.MixtureSameFamily(
        tfd.Categorical(logits=a),
        tfd.Normal(_CENTRE + _SCALE * b, _FLOOR + _SCALE * nn.softplus(c)),
    )


def _with_weights(weights):
    def wrong(outputs):
        a, b, c = _blocks(outputs)
        components = tfd.Normal(_CENTRE + _SCALE * b, _FLOOR + _SCALE * nn.softplus(c))
        return tfd.MixtureSameFamily(weights(a), components)

    return wrong


def _with_scale(scale):
    def wrong(outputs):
        a, b, c = _blocks(outputs)
        return tfd.MixtureSameFamily(
            tfd.Categorical(logits=a), tfd.Normal(_CENTRE + _SCALE * b, scale(c))
        )

    return wrong


def _interleaved(outputs):
    grouped = outputs.reshape(outputs.shape[0], _K, 3)
    return _assemble(grouped[..., 0], grouped[..., 1], grouped[..., 2])


def _with_mean(mean):
    def wrong(outputs):
        a, b, c = _blocks(outputs)
        return tfd.MixtureSameFamily(
            tfd.Categorical(logits=a), tfd.Normal(mean(b), _FLOOR + _SCALE * nn.softplus(c))
        )

    return wrong


_MIXTURE = Spec(
    id="01.3",
    name="mixture",
    cases=_mixture_cases,
    evaluate=_log_prob_of,
    atol=2e-3,
    rtol=1e-4,
    gradient=lambda f, case: _mixture_gradient(to_compile(f), *case),
    example="Try outputs that are all zero: the density is then that of one normal law, with mean "
    "14.2 and scale 0.01 + 0.6 ln 2 = 0.426.",
    insight="Softmax and softplus turn any real outputs into a valid density, so the optimiser "
    "needs no constraints.",
    suspects=(
        Suspect(
            "softmax_over_batch",
            _with_weights(lambda a: tfd.Categorical(probs=jax.nn.softmax(a, axis=0))),
            "The softmax runs over the clusters, not over the components.",
            "The weights of one cluster then depend on which others are in the batch.",
            "Use `axis=-1`, or `tfd.Categorical(logits=a)`.",
        ),
        Suspect(
            "logits_as_probs",
            _with_weights(lambda a: tfd.Categorical(probs=a)),
            "The outputs a are used as probabilities.",
            "They can be negative, and the logarithm of a negative weight is NaN.",
            "Use `tfd.Categorical(logits=a)`.",
        ),
        Suspect(
            "softmax_twice",
            _with_weights(lambda a: tfd.Categorical(logits=jax.nn.softmax(a, axis=-1))),
            "The softmax is applied twice: by you, and by `logits=`.",
            "Logits between 0 and 1 make all weights nearly equal: no component can be left out.",
            "Pass `logits=a`, without a softmax of your own.",
        ),
        Suspect(
            "equal_weights",
            _with_weights(lambda a: tfd.Categorical(logits=jnp.zeros_like(a))),
            "All components have the same weight.",
            "The outputs a are not used: the network cannot say which peak is the likelier one.",
            "Pass `logits=a`.",
        ),
        Suspect(
            "no_constraint",
            _with_scale(lambda c: _FLOOR + _SCALE * c),
            "The scale can be negative: c goes in without softplus.",
            "The logarithm of a negative scale is NaN, and training dies at the first one.",
            "Use `nn.softplus(c)`.",
        ),
        Suspect(
            "variance_as_scale",
            _with_scale(lambda c: (_FLOOR + _SCALE * nn.softplus(c)) ** 2),
            "The scale is squared: `tfd.Normal` takes the standard deviation, not the variance.",
            "Widths below one shrink, so that the network looks more certain than it is.",
            "Pass s itself.",
        ),
        Suspect(
            "root_as_scale",
            _with_scale(lambda c: jnp.sqrt(_FLOOR + _SCALE * nn.softplus(c))),
            "You took the square root of the scale.",
            "s in the formulas is already a standard deviation.",
            "Pass s itself.",
        ),
        Suspect(
            "no_floor",
            _with_scale(lambda c: _SCALE * nn.softplus(c)),
            "The floor of the scales, 0.01 dex, is missing.",
            "A component can collapse onto one cluster, with an infinite likelihood.",
            "Add `MIN_SCALE`.",
        ),
        Suspect(
            "floor_in_bracket",
            _with_scale(lambda c: _SCALE * (_FLOOR + nn.softplus(c))),
            "The floor of the scales is multiplied by 0.6.",
            "It is then 0.006 dex and not 0.01: a bracket too many.",
            "Use `MIN_SCALE + MASS_SCALE * nn.softplus(c)`.",
        ),
        Suspect(
            "scale_not_in_units",
            _with_scale(lambda c: _FLOOR + nn.softplus(c)),
            "The scale lacks the factor 0.6, the spread of the masses.",
            "An untrained network would start with a density wider than all the masses.",
            "Use `MIN_SCALE + MASS_SCALE * nn.softplus(c)`.",
        ),
        Suspect(
            "exponential_scale",
            _with_scale(lambda c: _FLOOR + _SCALE * jnp.exp(c)),
            "The scale is exp(c), where the formula has log(1 + exp(c)).",
            "Both are positive, but an exponential overflows for a large output: one bad step ends "
            "the training.",
            "Use `nn.softplus(c)`.",
        ),
        Suspect(
            "unscaled_mean",
            _with_mean(lambda b: b),
            "The means are b, without the centre and the spread of the masses.",
            "The untrained density then sits at m = 0, 14 dex from the data.",
            "Use `MASS_CENTRE + MASS_SCALE * b`.",
        ),
        Suspect(
            "no_centre",
            _with_mean(lambda b: _SCALE * b),
            "The means lack the 14.2, the middle of the masses.",
            "The untrained density then sits at m = 0, 14 dex from the data.",
            "Use `MASS_CENTRE + MASS_SCALE * b`.",
        ),
        Suspect(
            "mean_not_scaled",
            _with_mean(lambda b: _CENTRE + b),
            "The means lack the factor 0.6, the spread of the masses.",
            "b is then in dex; the reference and the formulas count it in units of 0.6 dex.",
            "Use `MASS_CENTRE + MASS_SCALE * b`.",
        ),
        Suspect(
            "relu",
            _with_scale(lambda c: _FLOOR + _SCALE * jnp.maximum(c, 0.0)),
            "The scale has relu(c), where the formula has log(1 + exp(c)).",
            "For a negative c it is flat at the floor: a component that has collapsed gets no "
            "gradient, and never widens again.",
            "Use `nn.softplus(c)`.",
        ),
        Suspect(
            "weights_and_means_swapped",
            lambda outputs: _assemble(*(_blocks(outputs)[k] for k in (1, 0, 2))),
            "The blocks a and b are swapped.",
            "It would train, but the reference and the formulas count them the other way.",
            "The first block is the weights, the second the means.",
        ),
        Suspect(
            "swapped_blocks",
            lambda outputs: _assemble(*(_blocks(outputs)[k] for k in (0, 2, 1))),
            "The blocks b and c are swapped.",
            "It would train, but the reference and the formulas count them the other way.",
            "The second block is the means, the third the scales.",
        ),
        Suspect(
            "interleaved",
            _interleaved,
            "You reshaped to (n, K, 3): each component's three numbers side by side.",
            "The outputs are three blocks of K columns, so the numbers end up in the wrong place.",
            "Use `jnp.split(outputs, 3, axis=-1)`.",
        ),
    ),
)

# --- 01.4 the loss of a density --------------------------------------------------------------


def _nll_cases(rng):
    def batch(n, width):
        loc = 14.0 + rng.standard_normal(n)
        density = tfd.Normal(jnp.float32(loc), jnp.float32(width * rng.uniform(0.5, 2.0, n)))
        return density, jnp.float32(loc + width * rng.standard_normal(n))

    density, mass = batch(7, 0.3)
    return {
        "7 clusters": batch(7, 0.3),
        "40 clusters": batch(40, 1.5),
        # In single precision a density is zero beyond 13 standard deviations, its logarithm not.
        "a mass far out": (density, mass.at[0].set(density.loc[0] + 20.0 * density.scale[0])),
    }


class _Noting:
    """A density that notes the shapes of what it is asked for."""

    def __init__(self, density):
        self.density, self.shapes = density, set()

    def __getattr__(self, name):
        asked = getattr(self.density, name)
        return self._noted(asked) if name in ("log_prob", "prob") else asked

    def _noted(self, asked):
        def answer(*arguments, **words):
            result = asked(*arguments, **words)
            self.shapes.add(jnp.shape(result))
            return result

        return answer


def _one_each(loss, arguments):
    """Whether a loss asks for one density of each cluster.

    Of all pairs of the 20,000 held-out ones it would need 11 GB.
    """
    density, mass = arguments
    noting = _Noting(density)
    with contextlib.suppress(Exception):  # one that wants a distribution of TFP has not asked
        loss(noting, mass)
    return noting.shapes <= {mass.shape}


_NLL = Spec(
    id="01.4",
    name="nll",
    cases=_nll_cases,
    late={"a mass far out": "capped"},
    affordable=_one_each,
    example="Try it on `tfd.Normal(jnp.zeros(2), 1.0)` at masses of zero: half of ln 2π, 0.919.",
    atol=1e-4,
    gradient=lambda f, case: jax.grad(lambda loc: f(tfd.Normal(loc, case[0].scale), case[1]))(
        case[0].loc
    ),
    insight="Its floor is the entropy of the posterior: no method can go below, and the distance "
    "to it is the KL divergence to the truth.",
    suspects=(
        Suspect(
            "sum_for_mean",
            lambda q, m: -jnp.sum(q.log_prob(m)),
            "This is the sum over the batch, not the mean.",
            "The number depends on the size of the batch and cannot be read as nats per cluster.",
            "Use `jnp.mean`.",
        ),
        Suspect(
            "sign",
            lambda q, m: jnp.mean(q.log_prob(m)),
            "The sign is missing.",
            "The optimiser would make the likelihood as small as it can.",
            "Put a minus in front.",
        ),
        Suspect(
            "missing_log",
            lambda q, m: -jnp.mean(q.prob(m)),
            "The logarithm is missing: this is the mean density.",
            "A cluster that the network excludes should cost a lot; here it costs nothing.",
            "Use `log_prob`.",
        ),
        Suspect(
            "underflow",
            lambda q, m: -jnp.mean(jnp.log(q.prob(m))),
            "The loss is infinite for a mass far out: `prob` is zero there.",
            "In single precision a density ends at 1e-38, which is 13 standard deviations away. "
            "One such cluster in a batch ends the training.",
            "Use `log_prob`: it never takes the exponential.",
        ),
        Suspect(
            "capped",
            lambda q, m: -jnp.mean(jnp.log(q.prob(m) + 1e-8)),
            "The loss of a mass far out is wrong: there it stops growing.",
            "A number added to the density caps the cost: 1e-8 at 18 nats. Beyond, the network "
            "learns nothing from a cluster that it excludes.",
            "Use `log_prob`, which needs no such number.",
        ),
        Suspect(
            "log_of_mean",
            lambda q, m: -jnp.log(jnp.mean(q.prob(m))),
            "You took the logarithm of the mean density, not the mean of the logarithms.",
            "The likelihood of a batch is a product, whose logarithm is a sum of logarithms.",
            "Take `log_prob` first, then the mean.",
        ),
        Suspect(
            "broadcast",
            lambda q, m: -jnp.mean(q.log_prob(m[:, None])),
            "Every mass was compared with every density: `log_prob` returned (n, n).",
            "The network would learn one density for all clusters. No error is raised.",
            "Pass the masses as a vector (n,).",
        ),
        Suspect(
            "bits",
            lambda q, m: -jnp.mean(q.log_prob(m)) / jnp.log(2.0),
            "This is in bits: a logarithm to base 2.",
            "The verdicts of this lesson are in nats, natural logarithms.",
            "`log_prob` is natural already: leave it as it is.",
        ),
        Suspect(
            "dex",
            lambda q, m: -jnp.mean(q.log_prob(m)) / jnp.log(10.0),
            "This is a logarithm to base 10.",
            "Masses are in dex, but likelihoods are in nats, natural logarithms.",
            "`log_prob` is natural already: leave it as it is.",
        ),
        Suspect(
            "per_cluster",
            lambda q, m: -q.log_prob(m),
            "You return one value for each cluster.",
            "A gradient needs one number to descend.",
            "Take `jnp.mean` of it.",
        ),
    ),
)

# --- 01.5 summaries of a posterior -----------------------------------------------------------

_SUMMARIES = ("mean", "std", "median", "mode", "low", "high")


def _summary_cases(rng):
    grid = np.linspace(-6.0, 18.0, 9601)

    def mixture(rows):
        table = []
        for weight, near, far in rows:
            table.append(
                np.logaddexp(
                    np.log(weight) - 0.5 * (grid - near) ** 2,
                    np.log1p(-weight) - 0.5 * ((grid - far) / 2.0) ** 2 - np.log(2.0),
                )
            )
        # A constant for each row: the input is not normalised.
        return np.stack(table) + rng.uniform(-2.0, 2.0, (len(rows), 1))

    # In single precision exp ends at 88 above, and at -104 below.
    apart = np.array([[200.0], [0.0], [-150.0]])

    skewed = [(rng.uniform(0.25, 0.4), rng.uniform(-1, 0), rng.uniform(5, 6)) for _ in range(3)]
    other = [(rng.uniform(0.6, 0.75), rng.uniform(-1, 0), rng.uniform(5, 6)) for _ in range(3)]
    return {
        "heavy tail": (jnp.float32(mixture(skewed)), jnp.float32(grid)),
        "two peaks": (jnp.float32(mixture(other)), jnp.float32(grid)),
        "large constants": (jnp.float32(mixture(other) + apart), jnp.float32(grid)),
    }


def _density(log_p, grid):
    p = jnp.exp(log_p - log_p.max(axis=-1, keepdims=True))
    return _over_integral(p, grid)


def _over_integral(p, grid):
    return p / (p.sum(axis=-1, keepdims=True) * (grid[1] - grid[0]))


def _summaries(p, grid, **replaced):
    """The summaries of densities p, with some replaced by functions of (p, grid, right ones)."""
    step = grid[1] - grid[0]
    mean = (p * grid[None, :]).sum(axis=-1) * step
    variance = (p * (grid[None, :] - mean[:, None]) ** 2).sum(axis=-1) * step
    right = {
        "mean": mean,
        "std": jnp.sqrt(variance),
        "median": _quantile(p, grid, 0.5),
        "mode": grid[jnp.argmax(p, axis=-1)],
        "low": _quantile(p, grid, 0.16),
        "high": _quantile(p, grid, 0.84),
    }
    return right | {name: make(p, grid, right) for name, make in replaced.items()}


def _quantile(p, grid, level):
    cdf = jnp.cumsum(p, axis=-1) * (grid[1] - grid[0])
    return grid[jnp.argmax(cdf >= level, axis=-1)]


def _over_other_rows(log_p, grid):
    p = jnp.exp(log_p - log_p.max(axis=0, keepdims=True))
    return p / (p.sum(axis=0, keepdims=True) * (grid[1] - grid[0]))


def _first_point(p, grid, right):
    """What `argmax` gives where the cumulative sum never reaches the level."""
    return jnp.full(len(p), grid[0])


def _with(**replaced):
    return lambda log_p, grid: _summaries(_density(log_p, grid), grid, **replaced)


_SUMMARISE = Spec(
    id="01.5",
    name="summarise",
    cases=_summary_cases,
    labels=_SUMMARIES,
    mapping=True,
    example="Try it on a normal law, `-0.5 * ((grid[None, :] - 14.2) / 0.3)**2`: mean, median and "
    "mode are 14.2, the std is 0.3, and the interval is 13.9 to 14.5.",
    # One grid step, 0.0025, separates the ways to take a quantile of a table.
    atol={name: 3e-3 for name in _SUMMARIES},
    rtol=0.0,
    insight="Quantiles survive any change of variable, from dex to Msun: the mean and the mode do "
    "not.",
    suspects=(
        Suspect(
            "variance",
            _with(std=lambda p, grid, right: right["std"] ** 2),
            "The std is a variance.",
            "It has the square of the unit and is no error bar.",
            "Take the square root.",
        ),
        Suspect(
            "gaussian_interval",
            _with(
                low=lambda p, grid, right: right["mean"] - right["std"],
                high=lambda p, grid, right: right["mean"] + right["std"],
            ),
            "The interval is mean ± std.",
            "That holds 68 % for a normal law only; these posteriors are skewed.",
            "Use the points where the cumulative probability crosses 0.16 and 0.84.",
        ),
        Suspect(
            "quantiles_of_32",
            _with(
                low=lambda p, grid, right: _quantile(p, grid, 0.32),
                high=lambda p, grid, right: _quantile(p, grid, 0.68),
            ),
            "The ends are the 32 % and the 68 % points, which hold 36 %.",
            "An interval of 68 % leaves 32 % outside, so 16 % on either side.",
            "Use the levels 0.16 and 0.84.",
        ),
        Suspect(
            "median_is_mean",
            _with(median=lambda p, grid, right: right["mean"]),
            "The median is the mean.",
            "They agree for a symmetric density only.",
            "Use the point where the cumulative probability crosses 0.5.",
        ),
        Suspect(
            "mode_is_median",
            _with(mode=lambda p, grid, right: right["median"]),
            "The mode is the median.",
            "The mode is where the density is highest.",
            "Use `jnp.argmax` of the density along the grid.",
        ),
        Suspect(
            "mode_is_index",
            _with(mode=lambda p, grid, right: 1.0 * jnp.argmax(p, axis=-1)),
            "The mode is an index into the grid, not a value.",
            "The rest of the notebook expects a mass.",
            "Return `grid[index]`.",
        ),
        Suspect(
            "mode_is_density",
            _with(mode=lambda p, grid, right: jnp.max(p, axis=-1)),
            "The mode is the height of the density, not the place of the peak.",
            "A mode has the unit of the mass.",
            "Use `grid[jnp.argmax(p, axis=-1)]`.",
        ),
        Suspect(
            "missing_exp",
            lambda log_p, grid: _summaries(_over_integral(log_p, grid), grid),
            "You averaged with `log_p` as if it were the density.",
            "The weights of an average are probabilities, not their logarithms.",
            "Take `jnp.exp(log_p)` first.",
        ),
        Suspect(
            "not_normalised",
            lambda log_p, grid: _summaries(jnp.exp(log_p), grid),
            "The density is not normalised.",
            "The input is known up to a constant for each row; unless p integrates to one, every "
            "average is off by that factor.",
            "Divide p by its sum times the step of the grid, row by row.",
        ),
        Suspect(
            "overflow",
            lambda log_p, grid: _summaries(_over_integral(jnp.exp(log_p), grid), grid),
            "`exp(log_p)` overflows for one of the inputs.",
            "`log_p` is known up to a constant, which may be large; in single precision `exp` ends "
            "at 88.",
            "Subtract each row's maximum before `exp`: the normalisation takes it out again.",
        ),
        Suspect(
            "one_maximum",
            lambda log_p, grid: _summaries(
                _over_integral(jnp.exp(log_p - log_p.max()), grid), grid
            ),
            "You subtracted one maximum for all rows.",
            "Each row has a constant of its own. A row more than 100 below the highest becomes "
            "`exp(-100)`, which is 0 in single precision, and then 0/0.",
            "Subtract each row's own: `log_p.max(axis=-1, keepdims=True)`.",
        ),
        Suspect(
            "only_maximum",
            lambda log_p, grid: _summaries(
                jnp.exp(log_p - log_p.max(axis=-1, keepdims=True)), grid
            ),
            "The maximum is subtracted, but the density is not normalised.",
            "Its peak is then 1, whatever its width; its integral must be.",
            "Divide p by its sum times the step of the grid, row by row.",
        ),
        Suspect(
            "normalised_over_batch",
            lambda log_p, grid: _summaries(_over_other_rows(log_p, grid), grid),
            "The density is normalised over the clusters, not over the grid.",
            "Each cluster has a posterior of its own, which must integrate to one.",
            "Use `axis=-1, keepdims=True`.",
        ),
        Suspect(
            "mean_times_step",
            _with(
                mean=lambda p, grid, right: right["mean"] * (grid[1] - grid[0]),
                std=lambda p, grid, right: jnp.sqrt(
                    right["std"] ** 2 + (right["mean"] * (1.0 - grid[1] + grid[0])) ** 2
                ),
            ),
            "The mean is multiplied by the grid's step once too often.",
            "A `softmax` sums to one: it holds the step already, a density does not.",
            "With probabilities that sum to one leave the step out everywhere.",
        ),
        Suspect(
            "quantiles_times_step",
            _with(median=_first_point, low=_first_point, high=_first_point),
            "The median and the ends are the first point of the grid: your cumulative sum never "
            "reaches the level.",
            "It must end at 1. A `softmax` sums to one without the step, a density with it.",
            "Print the last column of your cumulative sum.",
        ),
        Suspect(
            "step_missing",
            lambda log_p, grid: _summaries(jax.nn.softmax(log_p, axis=-1), grid),
            "p sums to one but does not integrate to one: the grid's step is missing.",
            "A later product with the step then makes every average too small.",
            "Divide by the sum times the step.",
        ),
        Suspect(
            "two_sigma",
            _with(
                low=lambda p, grid, right: _quantile(p, grid, 0.025),
                high=lambda p, grid, right: _quantile(p, grid, 0.975),
            ),
            "The ends are those of the central 95 % interval.",
            "68 % leave 16 % on either side.",
            "Use the levels 0.16 and 0.84.",
        ),
        Suspect(
            "mode_interval",
            _with(
                low=lambda p, grid, right: right["mode"] - right["std"],
                high=lambda p, grid, right: right["mode"] + right["std"],
            ),
            "The interval is mode ± std.",
            "That holds 68 % for a normal law only; these posteriors are skewed.",
            "Use the points where the cumulative probability crosses 0.16 and 0.84.",
        ),
        Suspect(
            "ends_swapped",
            _with(
                low=lambda p, grid, right: right["high"],
                high=lambda p, grid, right: right["low"],
            ),
            "low and high are swapped.",
            "The interval would have a negative width.",
            "low is where the cumulative probability crosses 0.16, high where it crosses 0.84.",
        ),
        Suspect(
            "half_widths",
            _with(
                low=lambda p, grid, right: right["median"] - right["low"],
                high=lambda p, grid, right: right["high"] - right["median"],
            ),
            "low and high are distances from the median, not masses.",
            "The figures draw them as ends of the interval.",
            "Return the points of the grid themselves.",
        ),
        Suspect(
            "central_second_moment",
            _with(std=lambda p, grid, right: jnp.sqrt(right["std"] ** 2 + right["mean"] ** 2)),
            "The std is the root of the mean square: the mean was not subtracted.",
            "It measures the distance from zero, not from the mean.",
            "Average the square of grid minus mean.",
        ),
    ),
)

# --- 01.6 change the prior -------------------------------------------------------------------


def _prior_cases(rng):
    grid = np.linspace(12.0, 16.0, 801)

    def normal(mean, std):
        return -0.5 * ((grid - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))

    def case(n):
        log_p = np.stack([normal(rng.uniform(13.6, 14.4), 0.2) for _ in range(n)])
        old = normal(14.0, rng.uniform(0.5, 0.7))
        new = np.stack([normal(rng.uniform(13.5, 13.8), 0.4) for _ in range(n)])
        return tuple(jnp.float32(x) for x in (log_p, old, new, grid))

    def beyond(n):
        """Clusters where the old prior is next to nothing: the quotient is far above e^88."""
        log_p = np.stack([normal(rng.uniform(12.4, 12.6), 0.03) for _ in range(n)])
        flat = np.full((n, len(grid)), -np.log(4.0))
        return tuple(
            jnp.float32(x) for x in (np.logaddexp(log_p, -300.0), normal(14.0, 0.1), flat, grid)
        )

    return {"3 clusters": case(3), "1 cluster": case(1), "beyond the old prior": beyond(2)}


def _normalised(log_p, grid):
    return log_p - logsumexp(log_p, axis=-1, keepdims=True) - jnp.log(grid[1] - grid[0])


def _scaled_product(p, old, new):
    product = p - old[None, :] + new
    return product - product.max(axis=-1, keepdims=True)


def _integral(log_p, grid):
    return jnp.trapezoid(jnp.exp(log_p), grid, axis=-1)[:, None]


def _no_maximum(p, old, new, grid):
    product = p - old[None, :] + new
    return product - jnp.log(_integral(product, grid))


def _mean_integral(p, old, new, grid):
    product = p - old[None, :] + new
    product -= product.max()
    return product - jnp.log(_integral(product, grid).mean())


def _log10_of_integral(p, old, new, grid):
    product = _scaled_product(p, old, new)
    return product - jnp.log10(_integral(product, grid))


def _over_the_integral(p, old, new, grid):
    product = _scaled_product(p, old, new)
    return product / _integral(product, grid)


def _logs_as_densities(p, old, new, grid):
    product = p * new / old[None, :]
    product -= product.max(axis=-1, keepdims=True)
    return product - jnp.log(_integral(product, grid))


def _divided_densities(log_p, old, new, grid):
    return _normalised(log_p - jnp.exp(old)[None, :] + jnp.exp(new), grid)


_PRIOR = Spec(
    id="01.6",
    name="change_prior",
    cases=_prior_cases,
    example="Try it with the same prior as old and new, `log_old_prior[None, :]`: what comes out "
    "must be `log_p`, normalised.",
    atol=2e-3,
    rtol=2e-5,
    insight="What is divided out must have been there: where the training prior is zero, nothing "
    "can be recovered.",
    suspects=(
        Suspect(
            "multiplied",
            lambda p, old, new, grid: _normalised(p + old[None, :] + new, grid),
            "The old prior is multiplied in, not divided out.",
            "It now counts twice, and the new one on top.",
            "Subtract `log_old_prior`.",
        ),
        Suspect(
            "swapped",
            lambda p, old, new, grid: _normalised(p + old[None, :] - new, grid),
            "The priors are swapped: the new one is divided out.",
            "The network was trained under the old prior, so that one is in its answer.",
            "Subtract the old, add the new.",
        ),
        Suspect(
            "old_kept",
            lambda p, old, new, grid: _normalised(p + new, grid),
            "The old prior is still in.",
            "The result belongs to the product of two priors, which nobody believes in.",
            "Subtract `log_old_prior` as well.",
        ),
        Suspect(
            "new_missing",
            lambda p, old, new, grid: _normalised(p - old[None, :], grid),
            "The new prior is missing.",
            "This is the likelihood, normalised over the grid: the posterior under a flat prior.",
            "Add `log_new_prior`.",
        ),
        Suspect(
            "not_normalised",
            lambda p, old, new, grid: p - old[None, :] + new,
            "The result is not normalised.",
            "A density that does not integrate to one has no meaning in nats.",
            "Subtract the logarithm of its integral over the grid, row by row.",
        ),
        Suspect(
            "step_missing",
            lambda p, old, new, grid: (
                p - old[None, :] + new - logsumexp(p - old[None, :] + new, axis=-1, keepdims=True)
            ),
            "The values sum to one but do not integrate to one: the grid's step is missing.",
            "A density has the unit 1/dex; a sum over the grid depends on how fine it is.",
            "Subtract each row's maximum, then the logarithm of its integral by the trapezoid "
            "rule: `jnp.log(jnp.trapezoid(jnp.exp(r), grid, axis=-1))[:, None]`.",
        ),
        Suspect(
            "no_maximum",
            _no_maximum,
            "`exp` overflows where the old prior is next to nothing.",
            "Dividing by a number near zero makes a large one; in single precision `exp` ends at "
            "88, and the figures below would be empty.",
            "Subtract each row's maximum before `exp`: the normalisation takes it out again.",
        ),
        Suspect(
            "mean_integral",
            _mean_integral,
            "All rows are normalised with one integral, the mean of theirs.",
            "Each cluster has a posterior of its own, which must integrate to one.",
            "Subtract each row's own: `jnp.log(integral)[:, None]`.",
        ),
        Suspect(
            "log10_of_integral",
            _log10_of_integral,
            "The logarithm of the integral is to base 10.",
            "All the others here are natural, and `jnp.exp` undoes the natural one only.",
            "Use `jnp.log`.",
        ),
        Suspect(
            "over_the_integral",
            _over_the_integral,
            "You divided the logarithm by the integral.",
            "Dividing a density by its integral is subtracting the logarithm of the integral.",
            "Subtract `jnp.log(integral)[:, None]`.",
        ),
        Suspect(
            "logs_as_densities",
            _logs_as_densities,
            "You multiplied and divided the logarithms.",
            "A product of densities is a sum of their logarithms, a quotient a difference.",
            "Subtract `log_old_prior`, add `log_new_prior`.",
        ),
        Suspect(
            "integral_for_log",
            lambda p, old, new, grid: (
                p
                - old[None, :]
                + new
                - jnp.exp(logsumexp(p - old[None, :] + new, axis=-1, keepdims=True))
                * (grid[1] - grid[0])
            ),
            "You subtracted the integral, not its logarithm.",
            "Dividing a density by its integral is subtracting the logarithm of the integral.",
            "Take `jnp.log` of the integral.",
        ),
        Suspect(
            "normalised_over_batch",
            lambda p, old, new, grid: (
                p
                - old[None, :]
                + new
                - logsumexp(p - old[None, :] + new)
                - jnp.log(grid[1] - grid[0])
            ),
            "The normalisation runs over all clusters together.",
            "Each cluster has a posterior of its own, which must integrate to one.",
            "Use `axis=-1, keepdims=True`.",
        ),
        Suspect(
            "densities_for_logs",
            _divided_densities,
            "You took `exp` of the priors before adding them to a logarithm.",
            "A product of densities is a sum of logarithms: all three terms must be logarithms.",
            "Leave the priors as they come: they are logarithms.",
        ),
        Suspect(
            "density_returned",
            lambda p, old, new, grid: jnp.exp(_normalised(p - old[None, :] + new, grid)),
            "You return the density, not its logarithm.",
            "The next cells take `exp` of it.",
            "Leave out the last `jnp.exp`.",
        ),
    ),
)

# --- 01.7 coverage ---------------------------------------------------------------------------


def _coverage_cases(rng):
    def case(n, level, power):
        pit = rng.uniform(size=n) ** power
        # No value within rounding of an end of the interval: < and <= must agree.
        ends = np.array([0.5 - level / 2, 0.5 + level / 2])
        near = np.abs(pit[:, None] - ends[None, :]).min(axis=1) < 1e-4
        return jnp.float32(np.where(near, 0.5, pit)), level

    return {
        # Below one half no wrong interval covers everything, which would make several look alike.
        "uniform, 68 %": case(500, 0.68, 1.0),
        "tilted, 30 %": case(300, 0.30, 1.6),
        "tilted, 45 %": case(400, 0.45, 0.6),
    }


_COVERAGE = Spec(
    id="01.7",
    name="coverage",
    cases=_coverage_cases,
    atol=1e-5,
    insight="Of 20,000 clusters the fraction is known to 0.3 points: more than enough to tell 68 % "
    "from 66 %.",
    suspects=(
        Suspect(
            "one_sided",
            lambda u, level: jnp.mean(u <= level),
            "You counted the values below the level: an interval that starts at zero.",
            "A shift changes it, but posteriors that are too wide or too narrow can pass.",
            "Leave (1 - level)/2 on either side.",
        ),
        Suspect(
            "half_width",
            lambda u, level: jnp.mean(jnp.abs(u - 0.5) <= level),
            "The interval reaches the full level to either side.",
            "It is twice as wide as it should be, and covers almost everything.",
            "Compare with `level / 2`.",
        ),
        Suspect(
            "outside",
            lambda u, level: jnp.mean(jnp.abs(u - 0.5) > level / 2),
            "You counted the clusters outside of the interval.",
            "Coverage is the fraction inside.",
            "Turn the comparison around.",
        ),
        Suspect(
            "count",
            lambda u, level: jnp.sum(jnp.abs(u - 0.5) <= level / 2),
            "This is a number of clusters, not a fraction.",
            "Only a fraction can be compared with the level.",
            "Use `jnp.mean`.",
        ),
        Suspect(
            "percent",
            lambda u, level: 100 * jnp.mean(jnp.abs(u - 0.5) <= level / 2),
            "This is in percent.",
            "The level is a fraction, and so is what is compared with it.",
            "Leave out the factor 100.",
        ),
        Suspect(
            "tails_of_level",
            lambda u, level: jnp.mean((u >= 1 - level) & (u <= level)),
            "The ends are 1 - level and level, which hold 2 level - 1.",
            "A 68 % interval leaves 16 % on either side, not 32 %.",
            "Use the ends (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "upper_end_only",
            lambda u, level: jnp.mean(u <= 0.5 + level / 2),
            "Only the upper end of the interval is tested.",
            "Masses below the interval count as covered.",
            "Test both ends: `jnp.abs(pit - 0.5) <= level / 2`.",
        ),
        Suspect(
            "lower_end_only",
            lambda u, level: jnp.mean(u >= 0.5 - level / 2),
            "Only the lower end of the interval is tested.",
            "Masses above the interval count as covered.",
            "Test both ends: `jnp.abs(pit - 0.5) <= level / 2`.",
        ),
        Suspect(
            "level_returned",
            lambda u, level: level,
            "You return the level itself.",
            "That is what the coverage should be. Whether it is so, only the clusters can tell.",
            "Count the values of `pit` inside the interval.",
        ),
        Suspect(
            "width_of_the_rest",
            lambda u, level: jnp.mean(jnp.abs(u - 0.5) <= (1 - level) / 2),
            "The interval has the width 1 - level, not level.",
            "(1 - level)/2 is what is left on either side, not what is held.",
            "Compare with `level / 2`.",
        ),
        Suspect(
            "upper_tail",
            lambda u, level: jnp.mean(u >= 1 - level),
            "You counted the values above 1 - level: an interval that ends at one.",
            "A shift changes it, but posteriors that are too wide or too narrow can pass.",
            "Leave (1 - level)/2 on either side.",
        ),
        Suspect(
            "always_68",
            lambda u, level: jnp.mean((u >= 0.16) & (u <= 0.84)),
            "The interval is that of 68 %, whatever the level.",
            "The next cell asks for 50 % and 95 % too.",
            "Use the ends (1 - level)/2 and (1 + level)/2.",
        ),
        Suspect(
            "mean_distance",
            lambda u, level: jnp.mean(jnp.abs(u - 0.5)),
            "You averaged the distance from one half, without comparing it with the level.",
            "Coverage counts clusters.",
            "Compare with `level / 2`, then take the mean.",
        ),
    ),
)

SPECS = (_M_SIGMA, _MSE, _MIXTURE, _NLL, _SUMMARISE, _PRIOR, _COVERAGE)
