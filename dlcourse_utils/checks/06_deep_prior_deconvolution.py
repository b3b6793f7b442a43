"""The checks of lesson 06: for each exercise its cases, and the wrong answers it can name.

Wrong answers are in NumPy where they can be, since eager JAX compiles each new operation. What a
mistake does in many variants, as a mask that is ignored, is measured, and told by 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .engine import Misfit, Spec, Suspect, namespace
from .tools import (
    Prior,
    compiled,
    in_numpy,
    is_array,
    judged_alone,
    ours,
    slope,
    through_blur,
    to_compile,
)


def _reference(name: str) -> Callable:
    return namespace("06")[name]


# --- 06.1 convolve ---------------------------------------------------------------------------

_SIDE = 7  # of image and kernel: a product of the two must not fail


def _convolve_cases(rng):
    # Pixels of both signs, as with noise; the kernel has no symmetry, and its sum is far from 1.
    x = rng.normal(0.3, 1.0, (_SIDE, _SIDE))
    kernel = rng.uniform(0.1, 1.0, (_SIDE, _SIDE)) * np.geomspace(1.0, 3.0, _SIDE)
    kernel[_SIDE // 2, _SIDE // 2] = rng.uniform(3.0, 4.0)
    return {"one image": (jnp.float32(x), jnp.float32(kernel))}


def _blurs(function, arguments):
    """One image; and if it is right, whether other sizes and leading axes are."""
    function = compiled("convolve", function)
    image = function(*arguments)
    if not is_array(image):
        return image
    image = np.asarray(image)
    x, kernel = map(np.asarray, arguments)
    wide = many = True
    if _blurred_well(image, x, kernel):
        corner = x[: _SIDE // 2 + 1, : _SIDE // 2 + 1]
        images = np.stack([x, -x, x.T, x[::-1], 2 * x, 1 - x]).reshape(2, 3, *x.shape)
        wide, many = (_blurs_well(function, x, kernel) for x in (corner, images))
    return image.real, float(np.isrealobj(image)), float(wide), float(many)


def _blurred_well(image, x, kernel):
    right = _blur()(x, kernel)
    return image.shape == right.shape and np.allclose(image.real, right, 1e-4, 1e-4)


def _blurs_well(function, x, kernel):
    try:
        image = np.asarray(function(jnp.asarray(x), jnp.asarray(kernel)))
    except Exception:
        return False
    return _blurred_well(image, x, kernel)


def _to_one(kernel):
    return kernel / kernel.sum()


def _as_it_is(x):
    return x


def _from(start, stop):
    """Cut pixels start to stop in both directions; both are functions of n and m."""

    def cut(full, n, m):
        inside = slice(start(n, m), stop(n, m))
        return full[..., inside, inside]

    return cut


_CENTRED = _from(lambda n, m: m // 2, lambda n, m: m // 2 + n)


def _on_ring(x, kernel, size):
    size = (size, size)
    return np.fft.irfft2(np.fft.rfft2(x, s=size) * np.fft.rfft2(kernel, s=size), s=size)


def _blur(*, light=_to_one, room=lambda n, m: n + m - 1, shift=_as_it_is, cut=_CENTRED):
    """The convolution with mistakes: each argument is one part of it."""

    @in_numpy
    def wrong(x, kernel):
        n, m = x.shape[-1], kernel.shape[-1]
        return cut(shift(_on_ring(x, light(kernel), room(n, m))), n, m)

    return wrong


def _centred_on_ring(room):
    """The kernel's middle at the origin of a ring of too few pixels."""

    @in_numpy
    def wrong(x, kernel):
        n, half = x.shape[-1], kernel.shape[-1] // 2
        ring = _on_ring(x, _to_one(kernel), room(n, half))
        return np.roll(ring, (-half, -half), axis=(-2, -1))[..., :n, :n]

    return wrong


@in_numpy
def _size_not_given_back(x, kernel):
    """The inverse transform fills an even number of columns, one fewer than there were."""
    n, m = x.shape[-1], kernel.shape[-1]
    size = (n + m - 1, n + m - 1)
    product = np.fft.rfft2(x, s=size) * np.fft.rfft2(_to_one(kernel), s=size)
    return _CENTRED(np.fft.irfft2(product), n, m)


def _after_blur(change):
    return in_numpy(lambda x, kernel: change(_blur()(x, kernel), x))


def _fftshift(image):
    return np.fft.fftshift(image, axes=(-2, -1))


_CONVOLVE = Spec(
    id="06.1",
    name="convolve",
    cases=_convolve_cases,
    evaluate=_blurs,
    labels=(
        "blurred image",
        "real numbers",
        "right with a kernel larger than the image",
        "right with leading axes",
    ),
    atol=1e-5,
    rtol=1e-4,
    insight="Two transforms and a product blur any number of galaxies, and JAX differentiates "
    "through them. Light that left the stamp is lost, as it is in the survey.",
    suspects=(
        Suspect(
            "not_centred",
            _blur(cut=_from(lambda n, m: 0, lambda n, m: n)),
            "The galaxy has moved by m // 2 pixels, to higher rows and columns.",
            "The transform takes the kernel's corner for its centre. A shifted model leaves a "
            "residual at every galaxy that no prior can explain.",
            "Cut the n x n pixels that start at m // 2, not at 0.",
        ),
        Suspect(
            "one_too_late",
            _blur(cut=_from(lambda n, m: m // 2 + 1, lambda n, m: m // 2 + 1 + n)),
            "The cut starts one pixel too late: the galaxy has moved to lower rows and columns.",
            "For an odd m, as 7, the middle pixel has the index m // 2 = 3. One fine pixel is far "
            "more than the position of a bright galaxy is uncertain by.",
            "Start at m // 2.",
        ),
        Suspect(
            "fftshift_of_the_result",
            _blur(shift=_fftshift),
            "`fftshift` has exchanged the halves of the padded result before the cut.",
            "It moves by half of the *padded* size; the kernel moved the image by m // 2.",
            "Leave `fftshift` out and cut at m // 2.",
        ),
        Suspect(
            "fftshift_on_the_ring",
            _blur(room=lambda n, m: n, shift=_fftshift, cut=lambda image, n, m: image),
            "There is no room around the image, and `fftshift` moved the result by n // 2.",
            "Light that leaves at one edge comes back at the other, and the galaxy is not where it "
            "was.",
            "Give both transforms `s=(n + m - 1, n + m - 1)` and cut at m // 2.",
        ),
        Suspect(
            "wraps_around",
            _centred_on_ring(lambda n, half: n),
            "Light that leaves at one edge comes back at the other.",
            "A product of transforms is a convolution on a ring. A galaxy at the edge of the stamp "
            "would shine at the opposite one.",
            "Give both transforms `s=(n + m - 1, n + m - 1)`: zeros are filled in.",
        ),
        Suspect(
            "wraps_and_moves",
            _blur(room=lambda n, m: n, cut=lambda image, n, m: image),
            "The image wraps around its edges, and it has moved by m // 2 pixels.",
            "Without padding the transforms work on a ring, and they take the kernel's corner for "
            "its centre.",
            "Pad both to n + m - 1, then cut n x n pixels from m // 2 on.",
        ),
        Suspect(
            "cut_without_room",
            _blur(room=lambda n, m: n),
            "The transforms have no room: there are only n pixels, and the cut takes some away.",
            "The convolution of n with m pixels has n + m - 1; on fewer, its ends overlap.",
            "Give both transforms `s=(n + m - 1, n + m - 1)`.",
        ),
        Suspect(
            "size_not_given_back",
            _size_not_given_back,
            "The inverse transform does not know that the size was odd: give it `s` too.",
            "`rfft2` keeps half of the frequencies, as many for 12 columns as for 13. `irfft2` "
            "takes the even number, and the image is squeezed along its rows.",
            "Use `jnp.fft.irfft2(product, s=(n + m - 1, n + m - 1))`.",
        ),
        Suspect(
            "one_pixel_short",
            _centred_on_ring(lambda n, half: n + half - 1),
            "The padding is one pixel too small.",
            "The kernel's outermost pixels reach m // 2 beyond the edge, and come back at the "
            "other.",
            "Pad to n + m - 1 pixels, or to n + m // 2 at the least.",
        ),
        Suspect(
            "not_normalised",
            _blur(light=_as_it_is),
            "The kernel is used as it is, and its counts multiply the flux.",
            "A star's image has the counts of that star. A blur moves light; it makes none.",
            "Divide the kernel by its sum.",
        ),
        Suspect(
            "peak_to_one",
            _blur(light=lambda kernel: kernel / kernel.max()),
            "The kernel is scaled to a peak of 1, not to a sum of 1.",
            "Each pixel's light is spread over all of the kernel: the parts must add up to one.",
            "Divide by `kernel.sum()`.",
        ),
        Suspect(
            "flux_put_back",
            _after_blur(
                lambda blurred, x: (
                    blurred * (x.sum((-2, -1)) / blurred.sum((-2, -1)))[..., None, None]
                )
            ),
            "The result is scaled to the flux of the image.",
            "Light that leaves the stamp is gone. And the kernel, not the image, is to sum to 1.",
            "Divide the kernel by its sum, and leave the result alone.",
        ),
        Suspect(
            "correlation",
            _blur(light=lambda kernel: _to_one(kernel)[::-1, ::-1]),
            "The kernel is upside down: this is a correlation, not a convolution.",
            "Deep-learning libraries call a correlation convolution. With a lopsided PSF light "
            "goes to the wrong side.",
            "Use the product of the transforms, without a conjugate or a reversal; with "
            "`lax.conv_general_dilated`, flip the kernel.",
        ),
        Suspect(
            "kernel_transposed",
            _blur(light=lambda kernel: _to_one(kernel).T),
            "Rows and columns of the kernel are exchanged.",
            "An elongated PSF would point in the wrong direction, and galaxies would be given the "
            "shape that makes up for it.",
            "Rows are y and columns are x, in image and kernel alike.",
        ),
        Suspect(
            "result_transposed",
            _after_blur(lambda blurred, x: np.swapaxes(blurred, -2, -1)),
            "Rows and columns of the result are exchanged.",
            "Rows are y and columns are x, in all images of the lesson.",
            "Look for a transpose, or exchanged indices.",
        ),
        Suspect(
            "complex",
            _after_blur(lambda blurred, x: blurred + 0j),
            "The result is complex, with an imaginary part of zero.",
            "`ifft2` knows nothing of real images. A gradient through complex pixels is refused "
            "later, far from here.",
            "Use `rfft2` and `irfft2`, or take `.real` at the end.",
        ),
        Suspect(
            "full",
            _blur(cut=lambda image, n, m: image),
            "You return all n + m - 1 pixels, with what lies outside of the image.",
            "The result is compared with an image of n x n pixels.",
            "Cut the n x n pixels that start at m // 2.",
        ),
        Suspect(
            "valid",
            _blur(cut=_from(lambda n, m: min(n, m) - 1, lambda n, m: max(n, m))),
            "You keep only pixels where the kernel lies inside the image: `valid`, not `same`.",
            "With a kernel as large as the image one pixel is left.",
            "Count what is outside as dark, and keep n x n pixels.",
        ),
        Suspect(
            "product",
            in_numpy(lambda x, kernel: _times(x, _to_one(kernel))),
            "Image and kernel are multiplied pixel by pixel.",
            "A convolution is a product of their *transforms*; this only dims the edges.",
            "Transform both, multiply, and transform back.",
        ),
        Suspect(
            "one_image",
            _blur(cut=lambda full, n, m: full[m // 2 : m // 2 + n, m // 2 : m // 2 + n]),
            "One image is right, but with leading axes it goes wrong.",
            "Later cells blur hundreds of galaxies in one call.",
            "Transform and cut the last two axes: `[..., rows, columns]`.",
        ),
        Suspect(
            "extra_axis",
            _after_blur(lambda blurred, x: blurred.reshape(-1, *x.shape[-2:])),
            "The result has another number of axes than the images.",
            "x may be one image (n, n), or have any leading axes, (..., n, n): they stay.",
            "Take the sizes from the last two axes, and reshape back to the shape of x.",
        ),
        Suspect(
            "large_kernel",
            in_numpy(lambda x, kernel: _blur()(x, kernel) * (kernel.shape[-1] <= x.shape[-1])),
            "It goes wrong where the kernel is larger than the image.",
            "The lesson's kernel has 125 pixels a side, its images 63: light goes from any pixel "
            "to any other.",
            "Pad both to n + m - 1, and cut from m // 2 on; do not cut the kernel.",
        ),
    ),
)


def _times(x, kernel):
    """x kernel; zero where the sizes differ, which is as wrong."""
    return x * kernel if x.shape[-1] == kernel.shape[-1] else 0.0 * x


# --- 06.2 log_likelihood ---------------------------------------------------------------------

_IMAGES, _PIXELS = 3, 5


def _likelihood_cases(rng):
    def case(masked):
        shape = (_IMAGES, _PIXELS, _PIXELS)
        # Below one and above: a square makes them smaller, or larger.
        variance = rng.permuted(np.geomspace(0.3, 6.0, np.prod(shape))).reshape(shape)
        variance = variance * rng.uniform(0.9, 1.1, shape)
        mean = rng.uniform(0.5, 3.0, shape)
        y = mean + np.sqrt(variance) * rng.uniform(0.3, 1.8, shape) * rng.choice([-1, 1], shape)
        for image in range(_IMAGES if masked else 0):  # 1, 2 and 4 pixels
            pixels = rng.choice(_PIXELS**2, 2**image, replace=False)
            variance.reshape(_IMAGES, -1)[image, pixels] = np.inf
            y.reshape(_IMAGES, -1)[image, pixels] = 0.0
        return jnp.float32(y), jnp.float32(mean), jnp.float32(variance)

    return {"3 images": case(False), "3 images, some pixels masked": case(True)}


def _likelihoods(function, arguments):
    """The log density, and what masked pixels do to it, which has one right value: nothing.

    Where they count, the log density may have any value: the right one stands for it.
    """
    y, mean, variance = arguments
    answer = compiled("log_likelihood", function)
    value = answer(y, mean, variance)
    if not is_array(value):
        return value
    value = np.asarray(value)
    masked = np.isinf(variance)
    if not masked.any() or value.shape != (_IMAGES,):
        return value, 0.0, 0.0, 0.0, 1.0
    changed = ((y + 1.5 * masked, mean, variance), (y, mean + 1.5 * masked, variance))
    data, model = (float(not np.allclose(answer(*c), value, 1e-5, 1e-5)) for c in changed)
    with np.errstate(invalid="ignore"):
        right = np.float64(_reference("log_likelihood")(*arguments))
        offset = (value - right) / masked.sum((-2, -1))
        same = np.isfinite(offset).all() and np.allclose(offset, offset[0], 1e-3)
    constant = float(same and abs(offset[0]) > 1e-3 and not (data or model))
    if np.isfinite(value).all() and (data or model or constant):
        return right, data, model, constant, 1.0
    gradient = 0.0
    if np.allclose(value, right) and (not ours(function) or function is _log_of_density):
        with suppress(Exception):  # of what cannot be differentiated the engine tells
            gradient = slope(to_compile(function), 1, *arguments)
    return value, data, model, constant, float(np.isfinite(gradient).all())


def _gradient_of_likelihood(function, arguments):
    return slope(to_compile(function), 1, *arguments)


class _Pixels(NamedTuple):
    """What the log density is made of, in each pixel; the variance is 1 where it is infinite."""

    y: Any
    mean: Any
    variance: Any
    used: Any

    def misfit(self, variance=None):
        return (self.y - self.mean) ** 2 / (self.variance if variance is None else variance)

    def norm(self, variance=None):
        return np.log(2 * np.pi * (self.variance if variance is None else variance))


def _density(terms, *, total=lambda terms, used: np.sum(terms, (-2, -1)), factor=-0.5, mask=True):
    """The log density with mistakes: other terms, another sum, a mask that is not applied."""

    @in_numpy
    def wrong(y, mean, variance):
        used = np.isfinite(variance)
        found = terms(_Pixels(y, mean, np.where(used, variance, 1.0), used))
        return factor * total(np.where(used, found, 0.0) if mask else found, used)

    return wrong


def _right_terms(p):
    return p.misfit() + p.norm()


@in_numpy
def _unmasked(y, mean, variance):
    return -0.5 * np.sum((y - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=(-2, -1))


@in_numpy
def _mask_times_infinity(y, mean, variance):
    terms = (y - mean) ** 2 / variance + np.log(2 * np.pi * variance)
    return -0.5 * np.sum(np.isfinite(variance) * terms, axis=(-2, -1))


def _log_of_density(y, mean, variance):
    density = jnp.exp(-0.5 * (y - mean) ** 2 / variance) / jnp.sqrt(2 * jnp.pi * variance)
    return jnp.sum(jnp.where(jnp.isfinite(variance), jnp.log(density), 0.0), axis=(-2, -1))


_LIKELIHOOD = Spec(
    id="06.2",
    name="log_likelihood",
    cases=_likelihood_cases,
    evaluate=_likelihoods,
    labels=(
        "log density",
        "the data in masked pixels count (0 no, 1 yes)",
        "the model in masked pixels counts (0 no, 1 yes)",
        "each masked pixel adds a constant (0 no, 1 yes)",
        "finite gradient",
    ),
    gradient=_gradient_of_likelihood,
    atol=1e-3,
    rtol=1e-4,
    insight="The variance map says how much each pixel knows. A masked pixel knows nothing, and "
    "its gradient is zero as well.",
    suspects=(
        Suspect(
            "variance_as_sigma",
            _density(lambda p: p.misfit(p.variance**2) + p.norm(p.variance**2)),
            "`variance` is squared once more: it was taken for σ.",
            "Bright pixels with much noise would hardly count, and χ² would depend on the unit.",
            "`variance` is σ² already. `norm.logpdf` wants its square root.",
        ),
        Suspect(
            "misfit_over_fourth_power",
            _density(lambda p: p.misfit(p.variance**2) + p.norm()),
            "The squared difference is divided by the square of the variance.",
            "`variance` is σ² already; divided by σ⁴ the misfit is no pure number.",
            "Divide by `variance` as it is.",
        ),
        Suspect(
            "root_of_variance",
            _density(lambda p: p.misfit(np.sqrt(p.variance)) + p.norm(np.sqrt(p.variance))),
            "A root is taken of the variance, and then used in its place.",
            "The formula has σ² in both terms, and σ² is what `variance` holds.",
            "Use `variance` as it is.",
        ),
        Suspect(
            "misfit_over_sigma",
            _density(lambda p: p.misfit(np.sqrt(p.variance)) + p.norm()),
            "The squared difference is divided by σ, not by σ².",
            "A square in nJy² over σ² is a pure number; over σ it changes with the unit.",
            "Divide by `variance`, or square after dividing by σ.",
        ),
        Suspect(
            "mean_over_pixels",
            _density(_right_terms, total=lambda terms, used: np.mean(terms, (-2, -1))),
            "This is the mean over the pixels, not the sum.",
            "The likelihood is a product over independent pixels. With the mean, hundreds of "
            "pixels would weigh no more than one, and the prior would always win.",
            "Sum over the last two axes.",
        ),
        Suspect(
            "mean_over_used_pixels",
            _density(
                _right_terms,
                total=lambda terms, used: np.sum(terms, (-2, -1)) / np.sum(used, (-2, -1)),
            ),
            "The sum is divided by the number of used pixels.",
            "Each pixel is a measurement of its own: more pixels must say more.",
            "Leave out the division.",
        ),
        Suspect(
            "one_number",
            _density(_right_terms, total=lambda terms, used: np.sum(terms)),
            "You return one number for the whole batch.",
            "Each galaxy has a posterior of its own, with a prior (n,) that is added to this.",
            "Sum over the last two axes only, `axis=(-2, -1)`.",
        ),
        Suspect(
            "per_pixel",
            _density(_right_terms, total=lambda terms, used: terms),
            "You return a value for each pixel.",
            "The pixels are independent: the logarithms add up to that of the image.",
            "Sum over the last two axes.",
        ),
        Suspect(
            "infinite",
            _unmasked,
            "The log density is infinite: the logarithm of the masked pixels is counted.",
            "Their variance is infinite, and so is its logarithm.",
            "Set the terms of these pixels to zero with `jnp.where`.",
        ),
        Suspect(
            "nan",
            _mask_times_infinity,
            "The log density is NaN where pixels are masked: 0 times infinity.",
            "Multiplying by the mask removes finite numbers only; one NaN spoils every gradient.",
            "Replace the infinite variance by 1 first, and choose the terms with `jnp.where`.",
        ),
        Suspect(
            "masked_counted",
            _density(_right_terms, mask=False),
            "Masked pixels count with a made-up variance.",
            "What they hold is no measurement: a dead pixel or a neighbour would pull on the "
            "galaxy.",
            "After replacing the infinite variance, set the terms of these pixels to zero too.",
        ),
        Suspect(
            "data_zeroed",
            _density(lambda p: (p.y * p.used - p.mean) ** 2 / p.variance + p.norm(), mask=False),
            "The data are set to zero in masked pixels, but the model's light there still counts.",
            "That asks for a galaxy that is dark behind the mask.",
            "Set the *terms* to zero, after the difference is taken.",
        ),
        Suspect(
            "masked_logarithm",
            _density(lambda p: p.misfit() * p.used + p.norm(), mask=False),
            "Each masked pixel still adds a constant: its logarithm is counted.",
            "Two masks of the same image could then not be compared.",
            "Set the whole term to zero there, not only the misfit.",
        ),
        Suspect(
            "no_logarithm",
            _density(lambda p: p.misfit()),
            "The logarithm is left out: this is -χ²/2.",
            "It is the same for every model, but without it this is no density, and variances "
            "could not be compared.",
            "Add ln(2π σ²) in each pixel.",
        ),
        Suspect(
            "log_sigma",
            _density(lambda p: p.misfit() + 0.5 * p.norm()),
            "The logarithm counts half: you have the root in ln √(2π σ²) and the 1/2 outside.",
            "The 1/2 before the bracket is this root already.",
            "Inside the bracket use ln(2π σ²).",
        ),
        Suspect(
            "no_two_pi",
            _density(lambda p: p.misfit() + np.log(p.variance)),
            "2π is missing in the logarithm.",
            "The density would not integrate to one.",
            "Use ln(2π σ²).",
        ),
        Suspect(
            "sign",
            _density(_right_terms, factor=0.5),
            "The sign is wrong: this grows with the misfit.",
            "The best model would be the worst one.",
            "Put the minus of the formula first.",
        ),
        Suspect(
            "no_half",
            _density(_right_terms, factor=-1.0),
            "The factor 1/2 is missing.",
            "The data would count twice, and the posterior would be too narrow.",
            "Multiply the sum by -1/2.",
        ),
        Suspect(
            "half_of_misfit",
            _density(lambda p: 2 * p.misfit() + p.norm()),
            "The factor 1/2 is missing before the misfit.",
            "A Gaussian is exp(-r²/2σ²): without the 1/2 the noise is taken for smaller than it "
            "is.",
            "Put both terms in the bracket with the 1/2.",
        ),
        Suspect(
            "log_of_zero",
            _log_of_density,
            "The value is right, but its gradient is NaN where pixels are masked.",
            "The density of a masked pixel is zero, its logarithm infinite. `jnp.where` hides that "
            "from the value; the gradient still has 0 times infinity, and the optimiser stops.",
            "Replace the infinite variance by 1 *before* the logarithm, not only after it.",
        ),
    ),
)


# --- 06.3 wiener -----------------------------------------------------------------------------


def _wiener_cases(rng):
    def case():
        p = 5  # pixels of the image and of the observation alike: a transpose must not fail
        factor = np.tril(rng.uniform(0.2, 0.6, (p, p)), -1) + np.diag(rng.uniform(0.8, 1.6, p))
        covariance = factor @ factor.T
        blur = np.eye(p) + np.triu(rng.uniform(0.1, 0.4, (p, p)), 1)
        mean = rng.uniform(0.5, 1.5, p) * rng.choice([-1.0, 1.0], p)
        variance = rng.permutation(np.geomspace(0.25, 2.5, p)) * rng.uniform(0.9, 1.1, p)
        prior = (mean, blur @ mean, covariance @ blur.T, blur @ covariance @ blur.T)
        y = blur @ mean + rng.uniform(0.7, 2.0, p) * rng.choice([-1.0, 1.0], p)
        return (
            jnp.float32(y),
            jnp.float32(variance),
            _reference("Gaussian")(*map(jnp.float32, prior)),
        )

    return {"5 pixels": case(), "5 other pixels": case()}


def _filtered(function, arguments):
    """The image; and if it is right, whether it is with fewer pixels in y than in the image."""
    function = compiled("wiener", function)
    image = function(*arguments)
    if image is None or image is ...:
        return image
    fewer = True
    if _filtered_well(image, arguments):
        y, variance, g = arguments
        observed = g._replace(
            mean_y=g.mean_y[:-1], cov_xy=g.cov_xy[:, :-1], cov_yy=g.cov_yy[:-1, :-1]
        )
        less = (y[:-1], variance[:-1], observed)
        try:
            fewer = _filtered_well(function(*less), less)
        except Exception:
            fewer = False
    return image, float(fewer)


def _filtered_well(image, arguments):
    right = np.asarray(_reference("wiener")(*arguments))
    return np.shape(image) == right.shape and np.allclose(image, right, 1e-3, 1e-3)


def _filter(
    *,
    noise=np.diag,
    total=lambda cov, noise: cov + noise,
    mean_x=lambda g: g.mean_x,
    mean_y=lambda g: g.mean_y,
    cov_xy=lambda g: g.cov_xy,
    solve=np.linalg.solve,
    sign=1.0,
):
    """The Wiener filter with mistakes: each argument is one part of it."""

    @in_numpy
    def wrong(y, variance, prior):
        weights = solve(total(prior.cov_yy, noise(variance)), y - mean_y(prior))
        return mean_x(prior) + sign * cov_xy(prior) @ weights

    return wrong


@in_numpy
def _other_order(y, variance, prior):
    weights = prior.cov_xy @ (y - prior.mean_y)
    return prior.mean_x + np.linalg.solve(prior.cov_yy + np.diag(variance), weights)


@in_numpy
def _size_of_x(y, variance, prior):
    matrix = prior.cov_yy + variance * np.eye(len(prior.mean_x))
    return prior.mean_x + prior.cov_xy @ np.linalg.solve(matrix, y - prior.mean_y)


@in_numpy
def _only_pixel_noise(y, variance, prior):
    return prior.mean_x + prior.cov_xy @ ((y - prior.mean_y) / variance)


_WIENER = Spec(
    id="06.3",
    name="wiener",
    cases=_wiener_cases,
    evaluate=_filtered,
    labels=("image", "right where the observation has fewer pixels"),
    atol=2e-4,
    rtol=2e-4,
    insight="Where the prior's power is above the noise the filter undoes the blur; where it is "
    "below, the answer is the mean of all galaxies.",
    suspects=(
        Suspect(
            "sigma",
            _filter(noise=lambda v: np.diag(np.sqrt(v))),
            "σ is on the diagonal, not σ².",
            "Covariances add up to covariances: cov_yy is in nJy², and so must the noise be.",
            "Use `jnp.diag(variance)` without a root.",
        ),
        Suspect(
            "variance_squared",
            _filter(noise=lambda v: np.diag(v**2)),
            "The variance is squared on the diagonal.",
            "`variance` is σ² already.",
            "Use `jnp.diag(variance)` as it is.",
        ),
        Suspect(
            "inverse_variance",
            _filter(noise=lambda v: np.diag(1.0 / v)),
            "The diagonal holds 1 / variance: the noisiest pixels would be trusted the most.",
            "Inverse variances add where *information* is added; here it is covariances.",
            "Add `jnp.diag(variance)`.",
        ),
        Suspect(
            "no_noise",
            _filter(noise=lambda v: 0.0),
            "The noise is left out: the matrix is cov_yy alone.",
            "That undoes the blur exactly, and multiplies the noise by whatever it takes.",
            "Add `jnp.diag(variance)` to cov_yy.",
        ),
        Suspect(
            "mean_variance",
            _filter(noise=lambda v: np.mean(v) * np.eye(len(v))),
            "All pixels have the same noise here: the mean of the variances.",
            "The map is there because pixels differ: near a bright star they know less.",
            "Put the variances themselves on the diagonal.",
        ),
        Suspect(
            "added_to_rows",
            _filter(noise=lambda v: v[None, :]),
            "The variances are added to every row of cov_yy, not to its diagonal.",
            "Numbers away from the diagonal say that the noise of two pixels is linked. A matrix "
            "plus a vector broadcasts without an error.",
            "Make a diagonal matrix first: `jnp.diag(variance)`.",
        ),
        Suspect(
            "no_mean_of_x",
            _filter(mean_x=lambda g: 0.0),
            "The mean of x is not added at the end.",
            "You return by how much the galaxy differs from the mean of all galaxies.",
            "Add `prior.mean_x`.",
        ),
        Suspect(
            "no_mean_of_y",
            _filter(mean_y=lambda g: 0.0),
            "The mean of y is not subtracted.",
            "An observation equal to its mean holds no news: the answer must be the mean of x.",
            "Use the difference y - prior.mean_y.",
        ),
        Suspect(
            "no_means",
            _filter(mean_x=lambda g: 0.0, mean_y=lambda g: 0.0),
            "Both means are left out.",
            "This is the filter for a prior around zero. Without signal it gives darkness, where "
            "the mean galaxy is a better guess.",
            "Take mean_y off y first, and add mean_x at the end.",
        ),
        Suspect(
            "mean_of_x_in_y",
            _filter(mean_y=lambda g: g.mean_x),
            "`prior.mean_x` is subtracted from y, not `prior.mean_y`.",
            "The observation has been blurred: it is A x̄ that it is expected to be.",
            "Use the difference y - prior.mean_y.",
        ),
        Suspect(
            "mean_of_y_added",
            _filter(mean_x=lambda g: g.mean_y),
            "`prior.mean_y` is added at the end, not `prior.mean_x`.",
            "The answer is a sharp image, and so is the mean that belongs to it.",
            "Add `prior.mean_x`.",
        ),
        Suspect(
            "transposed",
            _filter(cov_xy=lambda g: g.cov_xy.T),
            "cov_xy is transposed.",
            "It has the shape (p, q) and takes what is known of q observed pixels to the p of the "
            "image.",
            "Use `prior.cov_xy @ weights` as it is.",
        ),
        Suspect(
            "cov_yy_for_cov_xy",
            _filter(cov_xy=lambda g: g.cov_yy),
            "cov_yy stands where cov_xy belongs.",
            "What comes out is the blurred galaxy without noise, moved by the sharp mean.",
            "Multiply the weights with `prior.cov_xy`.",
        ),
        Suspect(
            "sign",
            _filter(sign=-1.0),
            "The difference has the wrong sign: the answer moves away from the data.",
            "A pixel brighter than expected says that the galaxy is brighter.",
            "Use y - prior.mean_y, and add.",
        ),
        Suspect(
            "not_solved",
            _filter(solve=lambda matrix, difference: matrix @ difference),
            "You multiply by the covariance, where its inverse belongs.",
            "The more noise, the more the data would count.",
            "Use `jnp.linalg.solve(matrix, difference)`.",
        ),
        Suspect(
            "elements_inverted",
            _filter(solve=lambda matrix, difference: (1.0 / matrix) @ difference),
            "1 / matrix takes the inverse of each number, not of the matrix.",
            "No error is raised, and the result has the right shape.",
            "Use `jnp.linalg.solve(matrix, difference)`.",
        ),
        Suspect(
            "diagonal_only",
            _filter(solve=lambda matrix, difference: difference / np.diag(matrix)),
            "Only the diagonal of the covariance is used.",
            "Neighbouring pixels of a blurred galaxy say nearly the same: each would be counted as "
            "new.",
            "Solve with the whole matrix.",
        ),
        Suspect(
            "divided_by_noise",
            _only_pixel_noise,
            "The difference is divided by the variance of the noise alone.",
            "Without cov_yy in the matrix the filter overshoots: less noise, larger answers "
            "without limit.",
            "Solve with cov_yy + diag(variance).",
        ),
        Suspect(
            "other_order",
            _other_order,
            "The inverse and cov_xy are applied in the wrong order.",
            "The matrix that is inverted belongs to the q pixels of y, and cov_xy leads from them "
            "to the p of the image. Only for p = q does this run at all.",
            "Solve for the weights of y - prior.mean_y first, then multiply with `prior.cov_xy`.",
        ),
        Suspect(
            "size_of_x",
            _size_of_x,
            "It goes wrong where image and observation differ in their number of pixels.",
            "The lesson's image has 3,969 pixels, and 441 are observed: the noise belongs to "
            "those.",
            "Take the size from y or `variance`, as `jnp.diag(variance)` does, not from the image.",
        ),
    ),
)


# --- 06.4 and 06.5: the posterior of a latent ------------------------------------------------


def _latent_cases(rng):
    n, d, k = 3, 2, 5
    pattern = rng.uniform(0.3, 1.0, (d, k, k)) * rng.choice([-1.0, 1.0], (d, k, k))
    place = rng.uniform(0.6, 1.0, d) * rng.choice([-1.0, 1.0], d)
    prior = Prior(*map(jnp.float32, (pattern, place, rng.uniform(0.25, 0.5, d))))
    # Images keep their size, so that an answer without `observe` does not fail.
    blur = 0.3 * np.eye(k) + 0.35 * np.eye(k, k=1) + 0.2 * np.eye(k, k=-1)
    # z is far from the truth, zero is near it: no difference between the two vanishes by chance.
    true = rng.uniform(-0.3, 0.3, (n, d))
    z = true + rng.uniform(1.0, 1.4, (n, d)) * rng.choice([-1.0, 1.0], (n, d))
    variance = rng.uniform(0.04, 0.2, (n, k, k))
    mean = np.exp(0.4 * np.tensordot(true, pattern, 1))
    y = blur @ mean @ blur.T + np.sqrt(variance) * rng.normal(size=(n, k, k))
    masked = np.argsort(rng.uniform(size=(n, k * k))).reshape(n, k, k) < 6
    variance[masked], y[masked] = np.inf, 0.0
    observe = jax.tree_util.Partial(through_blur, jnp.float32(blur))
    maps = map(jnp.float32, (z, y, variance))
    return {"3 galaxies, some pixels masked": (*maps, observe, prior)}


def _posterior_cases(rng):
    ((name, (z, y, variance, *rest)),) = _latent_cases(rng).items()
    measured = jnp.where(jnp.isinf(variance), 0.1, variance)
    return {name: (z, y, variance, *rest), "3 galaxies": (z, y, measured, *rest)}


class _Terms(NamedTuple):
    """What answers to 06.4, right and wrong, are made of, for each galaxy."""

    likelihood: Any  # (n,) log density of the data
    prior: Any
    standard: Any  # log density of a standard Gaussian
    log_volume: Any  # of the decoder: half of ln det of J^T J
    unblurred: Any
    sigma: Any  # with the root of the variance in place of the variance
    used: Any  # pixels, of how many
    pixels: Any


@jax.jit
def _terms(z, y, variance, observe, prior):
    log_likelihood = _reference("log_likelihood")
    x = prior.decode(z)
    jacobian = jax.vmap(jax.jacfwd(lambda z: prior.decode(z[None]).ravel()))(z)
    volume = jnp.linalg.det(jnp.einsum("nij,nik->njk", jacobian, jacobian))
    return _Terms(
        log_likelihood(y, observe(x), variance),
        prior.log_prob(z),
        -0.5 * jnp.sum(z**2, axis=-1),
        0.5 * jnp.log(volume),
        log_likelihood(y, x, variance),
        log_likelihood(y, observe(x), jnp.sqrt(variance)),
        jnp.sum(jnp.isfinite(variance), axis=(-2, -1)),
        y[0].size,
    )


def _from_terms(combine):
    """A wrong posterior made of the terms t."""
    return lambda *arguments: combine(_Terms(*map(np.float64, _terms(*arguments))))


def _posteriors(function, arguments):
    """The value less that of a latent zero: constants are free."""
    z, *rest = arguments
    answer = compiled("negative_log_posterior", function)
    with judged_alone(function, "06", "log_likelihood"):
        value, zero = answer(z, *rest), answer(jnp.zeros_like(z), *rest)
    if not (is_array(value) and is_array(zero)):
        return value
    with np.errstate(invalid="ignore"):  # infinite less infinite
        return np.asarray(value) - np.asarray(zero)


def _gradient_of_posterior(function, arguments):
    with judged_alone(function, "06", "log_likelihood"):
        return slope(to_compile(function), 0, *arguments)


_POSTERIOR = Spec(
    id="06.4",
    name="negative_log_posterior",
    cases=_posterior_cases,
    evaluate=_posteriors,
    labels=("difference to z = 0",),
    gradient=_gradient_of_posterior,
    atol=1e-3,
    rtol=1e-4,
    insight="One number for each galaxy: how badly its latent fits the data, and how odd a galaxy "
    "it would be.",
    suspects=(
        Suspect(
            "no_prior",
            _from_terms(lambda t: -t.likelihood),
            "The prior is missing: this is the likelihood alone.",
            "Its best latent is whatever reproduces the noise, galaxy or not.",
            "Subtract `prior.log_prob(z)`.",
        ),
        Suspect(
            "no_likelihood",
            _from_terms(lambda t: -t.prior),
            "The likelihood is missing: this is the prior alone.",
            "Every observation would give the same galaxy.",
            "Subtract the log-likelihood of y too.",
        ),
        Suspect(
            "prior_sign",
            _from_terms(lambda t: -t.likelihood + t.prior),
            "The prior has the wrong sign: the odder a galaxy, the better.",
            "The minus stands before both logarithms.",
            "Subtract `prior.log_prob(z)` as well.",
        ),
        Suspect(
            "likelihood_sign",
            _from_terms(lambda t: t.likelihood - t.prior),
            "The likelihood has the wrong sign: the minimum would be the worst fit.",
            "The minus stands before both logarithms.",
            "Subtract the log-likelihood as well.",
        ),
        Suspect(
            "no_minus",
            _from_terms(lambda t: t.likelihood + t.prior),
            "This is the log posterior; its negative is asked for.",
            "The optimiser goes down: it would look for the least probable galaxy.",
            "Put a minus before the sum.",
        ),
        Suspect(
            "mean_over_pixels",
            _from_terms(lambda t: -t.likelihood / t.pixels - t.prior),
            "The likelihood is averaged over the pixels, and the prior is not.",
            "The prior is then far too strong: every galaxy looks like the most common one.",
            "Use the sum over the pixels, as `log_likelihood` gives it.",
        ),
        Suspect(
            "mean_over_used_pixels",
            _from_terms(lambda t: -t.likelihood / t.used - t.prior),
            "The likelihood is divided by the number of used pixels, and the prior is not.",
            "Each pixel is a measurement of its own; the prior would count as much as all of them "
            "together, hundreds of times too much.",
            "Use the sum over the pixels, as `log_likelihood` gives it.",
        ),
        Suspect(
            "mean_over_galaxies",
            _from_terms(lambda t: np.mean(-t.likelihood - t.prior)),
            "You return one number, the mean over the galaxies.",
            "Each galaxy has its own posterior, and its own best start among several.",
            "Return (n,), one for each galaxy.",
        ),
        Suspect(
            "sum_over_galaxies",
            _from_terms(lambda t: np.sum(-t.likelihood - t.prior)),
            "You return one number, the sum over the galaxies.",
            "Each galaxy has its own posterior, and its own best start among several.",
            "Return (n,); the sum comes in the next exercise.",
        ),
        Suspect(
            "likelihood_of_all",
            _from_terms(lambda t: -np.sum(t.likelihood) - t.prior),
            "Every galaxy gets the likelihood of the whole batch.",
            "It would be judged by the residuals of its neighbours in the list.",
            "Sum over pixels only.",
        ),
        Suspect(
            "prior_of_all",
            _from_terms(lambda t: -t.likelihood - np.sum(t.prior)),
            "Every galaxy gets the prior of the whole batch.",
            "How odd one galaxy is says nothing of another.",
            "Use `prior.log_prob(z)` as it is, (n,).",
        ),
        Suspect(
            "not_observed",
            _from_terms(lambda t: -t.unblurred - t.prior),
            "`observe` is left out: the sharp image is compared with the blurred data.",
            "The best latent would then be a galaxy as blurred as its picture.",
            "Compare y with `observe(prior.decode(z))`.",
        ),
        Suspect(
            "standard_gaussian",
            _from_terms(lambda t: -t.likelihood - t.standard),
            "The prior is a standard Gaussian, not `prior.log_prob`.",
            "Real galaxies do not fill the latent space that way: much of it decodes to nothing "
            "that exists.",
            "Use `prior.log_prob(z)`, the density that was learned.",
        ),
        Suspect(
            "volume_of_decoder",
            _from_terms(lambda t: -t.likelihood - t.prior + t.log_volume),
            "The decoder's Jacobian is added, as for a density of images.",
            "Here the density of the latent z is asked for: nothing changes variables.",
            "Leave out the determinant.",
        ),
        Suspect(
            "no_half",
            _from_terms(lambda t: -2.0 * t.likelihood - t.prior),
            "The likelihood counts twice: this is χ², not χ²/2.",
            "A Gaussian has exp(-χ²/2). Without the 1/2 the data look better than they are.",
            "Use `log_likelihood` from exercise 06.2.",
        ),
        Suspect(
            "sigma",
            _from_terms(lambda t: -t.sigma - t.prior),
            "The likelihood was given σ in place of the variance.",
            "`log_likelihood` takes σ², and `variance` is that.",
            "Pass `variance` as it comes.",
        ),
        Suspect(
            "mask_ignored",
            _from_terms(
                lambda t: np.where(t.used < t.pixels, np.inf, -t.likelihood - t.prior),
            ),
            "It is not finite where pixels are masked.",
            "Their variance is infinite, and so is its logarithm: exercise 06.2 took care of that.",
            "Use `log_likelihood` from exercise 06.2.",
        ),
    ),
)


# --- 06.5 ------------------------------------------------------------------------------------


class _Slopes(NamedTuple):
    """Gradients of the terms by z (n, d), and those that nobody asked for."""

    likelihood: Any
    prior: Any
    unblurred: Any
    by_image: Any  # of the negative log posterior by the decoded image (n, k, k)
    value: Any  # the negative log posterior itself (n,)
    z: Any


@jax.jit
def _slopes(z, y, variance, observe, prior):
    log_likelihood = _reference("log_likelihood")

    def by_z(term):
        return jax.grad(lambda z: jnp.sum(term(z)))(z)

    def fit(x):
        return jnp.sum(log_likelihood(y, observe(x), variance))

    by_image = jax.grad(fit)(prior.decode(z))
    return _Slopes(
        by_z(lambda z: log_likelihood(y, observe(prior.decode(z)), variance)),
        by_z(prior.log_prob),
        by_z(lambda z: log_likelihood(y, prior.decode(z), variance)),
        -by_image,
        -log_likelihood(y, observe(prior.decode(z)), variance) - prior.log_prob(z),
        z,
    )


def _from_slopes(combine):
    """A wrong gradient made of the slopes s and the right one g."""

    def wrong(*arguments):
        s = _Slopes(*map(np.float64, _slopes(*arguments)))
        return combine(s, -s.likelihood - s.prior)

    return wrong


def _gradients(function, arguments):
    """The gradient, and of how many arrays the result is made."""
    z = arguments[0]
    with judged_alone(function, "06", "log_likelihood", "negative_log_posterior"):
        result = compiled("gradient", function)(*arguments)
    if callable(result):
        raise Misfit("`gradient` returns a function, not an array: call it with z.")
    parts = jax.tree.leaves(result)
    if len(parts) < 2 or not all(map(is_array, parts)):
        return result if result is None else (result, 1)
    # A value and its gradient, or a tree of weights, whose numbers are as they may be.
    mine = parts[1] if len(parts) == 2 and np.shape(parts[1]) == z.shape else 0.0 * z
    return mine, len(parts)


def _alone(g, rows):
    kept = np.zeros_like(g)
    kept[rows] = g[rows]
    return kept


_GRADIENT = Spec(
    id="06.5",
    name="gradient",
    cases=_latent_cases,
    evaluate=_gradients,
    labels=("gradient", "number of arrays"),
    atol=2e-3,
    rtol=2e-4,
    insight="Networks are trained by the gradient of their weights. Here the weights rest, and the "
    "same machine asks the network which galaxy it was.",
    suspects=(
        Suspect(
            "by_weights",
            lambda z, y, variance, observe, prior: prior,  # a tree like it
            "You differentiated by the weights of the prior, not by z.",
            "That would train the decoder on one noisy galaxy. The prior has been learned; now the "
            "latent is looked for.",
            "Differentiate a function of z alone, which closes over the rest.",
        ),
        Suspect(
            "value_and_gradient",
            _from_slopes(lambda s, g: (np.sum(s.value), g)),
            "You return the value together with the gradient.",
            "The optimiser takes one array of the shape of z.",
            "Use `jax.grad`, or take the second part of `jax.value_and_grad`.",
        ),
        Suspect(
            "mean_over_galaxies",
            _from_slopes(lambda s, g: g / len(g)),
            "The gradient is too small by the number of galaxies: you took the mean.",
            "How fast a galaxy moves would depend on how many others are in the batch.",
            "Differentiate the sum over galaxies.",
        ),
        Suspect(
            "uphill",
            _from_slopes(lambda s, g: -g),
            "The gradient has the wrong sign: it is that of the log posterior.",
            "An optimiser goes against the gradient: it would run away from the data.",
            "Differentiate `negative_log_posterior` as it is.",
        ),
        Suspect(
            "by_image",
            _from_slopes(lambda s, g: s.by_image),
            "You differentiated by the decoded image, not by its latent.",
            "In pixels, every image is allowed; the decoder allows only galaxies.",
            "Decode inside the function that you differentiate.",
        ),
        Suspect(
            "likelihood_only",
            _from_slopes(lambda s, g: -s.likelihood),
            "The gradient of the prior is missing.",
            "Nothing keeps the latent where galaxies are: it follows the noise.",
            "Differentiate `negative_log_posterior`, which has both terms.",
        ),
        Suspect(
            "prior_only",
            _from_slopes(lambda s, g: -s.prior),
            "This is the gradient of the prior alone.",
            "The data are not felt: every galaxy goes to the most common one.",
            "Decode inside the function that you differentiate, without `stop_gradient`.",
        ),
        Suspect(
            "not_observed",
            _from_slopes(lambda s, g: -s.unblurred - s.prior),
            "`observe` is left out: the sharp image is fitted to the blurred data.",
            "The result would be a galaxy as blurred as its picture.",
            "Differentiate `negative_log_posterior`.",
        ),
        Suspect(
            "jacobian",
            _from_slopes(lambda s, g: np.einsum("ij,jd->ijd", np.eye(len(g)), g)),
            "You return the full Jacobian (n, n, d).",
            "Almost all of it is zero: galaxy i does not depend on the latent of galaxy j. For "
            "200 galaxies it takes 200 times the work.",
            "Differentiate the sum: its gradient has the shape of z.",
        ),
        Suspect(
            "normalised",
            _from_slopes(lambda s, g: g / np.linalg.norm(g, axis=-1, keepdims=True)),
            "The gradient of each galaxy is scaled to length 1.",
            "It must fade at the minimum, or the optimiser never comes to rest.",
            "Return the gradient as it is.",
        ),
        Suspect(
            "first_galaxy",
            _from_slopes(lambda s, g: _alone(g, 0)),
            "Only the first galaxy has a gradient.",
            "All others would stay where they started.",
            "Differentiate the sum over galaxies, not the first one's value.",
        ),
        Suspect(
            "row_of_first_galaxy",
            _from_slopes(lambda s, g: g[0]),
            "You return the gradient of the first galaxy, (d,).",
            "Each galaxy has a row of its own.",
            "Differentiate the sum, and return all rows, (n, d).",
        ),
        Suspect(
            "summed_over_galaxies",
            _from_slopes(lambda s, g: g.sum(0)),
            "The gradients of all galaxies are added up.",
            "Each latent has its own way down; the sum of them is nobody's.",
            "Sum the *values* before you differentiate, not the gradients after it.",
        ),
        Suspect(
            "value",
            _from_slopes(lambda s, g: s.value),
            "You return the negative log posterior itself.",
            "It says how high a latent is, not which way is down.",
            "Differentiate its sum with `jax.grad`.",
        ),
        Suspect(
            "step",
            _from_slopes(lambda s, g: s.z - g),
            "You return the latents after a step, not the gradient.",
            "How far to go is for the optimiser to decide.",
            "Return the gradient alone.",
        ),
    ),
)


# --- 06.6 surprise ---------------------------------------------------------------------------


def _surprise_cases(rng):
    cases = _likelihood_cases(rng)

    def with_misfits(y, mean, variance):
        # Three images that fit better than noise, as noise does, and much worse.
        scale = jnp.float32([[[0.5]], [[1.0]], [[2.5]]])
        return jnp.where(jnp.isinf(variance), 0.0, mean + scale * (y - mean)), mean, variance

    return {name: with_misfits(*arguments) for name, arguments in cases.items()}


def _surprises(function, arguments):
    return compiled("surprise", function)(*arguments)


class _Chi(NamedTuple):
    """chi^2 of each image (n,), how many pixels are used (n,), and of how many."""

    chi2: Any
    used: Any
    pixels: int


def _from_chi(combine, *, residual=lambda r, variance: r**2 / variance):
    """Two wrong numbers, or one of them, made of chi^2 and the number of pixels."""

    @in_numpy
    def wrong(y, mean, variance):
        used = np.isfinite(variance)
        terms = np.where(used, residual(y - mean, np.where(used, variance, 1.0)), 0.0)
        pixels = variance.shape[-1] * variance.shape[-2]
        return combine(_Chi(terms.sum((-2, -1)), used.sum((-2, -1)), pixels))

    return wrong


def _both(c):
    return c.chi2 / c.used, (c.chi2 - c.used) / np.sqrt(2 * c.used)


def _other_excess(excess):
    return _from_chi(lambda c: (c.chi2 / c.used, excess(c)))


def _other_chi2(chi2):
    return _from_chi(lambda c: (chi2(c), (c.chi2 - c.used) / np.sqrt(2 * c.used)))


_SURPRISE = Spec(
    id="06.6",
    name="surprise",
    cases=_surprise_cases,
    evaluate=_surprises,
    labels=("chi^2 per pixel", "excess"),
    atol=1e-3,
    rtol=1e-4,
    insight="Near 1 and within a few standard deviations, the residuals look like noise. That "
    "shows that the model can explain the data, not that it is the only one that can.",
    suspects=(
        Suspect(
            "masked_counted",
            _from_chi(lambda c: _both(c._replace(used=np.full_like(c.used, c.pixels)))),
            "Masked pixels are counted in ν.",
            "They add nothing to χ², so the fit looks better the more of them there are.",
            "Count the pixels with a finite variance in each image.",
        ),
        Suspect(
            "masked_counted_in_excess",
            _other_excess(lambda c: (c.chi2 - c.pixels) / np.sqrt(2 * c.pixels)),
            "The excess counts masked pixels in ν.",
            "They add nothing to χ², but its expected value would grow with them.",
            "Use the number of used pixels here too.",
        ),
        Suspect(
            "mean_over_all_pixels",
            _other_chi2(lambda c: c.chi2 / c.pixels),
            "χ² is divided by the number of all pixels: the masked ones are averaged in.",
            "They add nothing to χ², so the fit looks better the more of them there are.",
            "Divide the sum by the number of used pixels, in place of `jnp.mean`.",
        ),
        Suspect(
            "variance_as_sigma",
            _from_chi(_both, residual=lambda r, v: (r / v) ** 2),
            "`variance` is squared: it was taken for σ.",
            "Residuals are then not in units of the noise, and 1 has no meaning.",
            "Divide the squared difference by `variance` as it is.",
        ),
        Suspect(
            "sigma",
            _from_chi(_both, residual=lambda r, v: r**2 / np.sqrt(v)),
            "The squared difference is divided by σ, not by σ².",
            "A square in nJy² over σ² is a pure number; over σ it changes with the unit.",
            "Divide by `variance`.",
        ),
        Suspect(
            "not_squared",
            _from_chi(_both, residual=lambda r, v: np.abs(r) / np.sqrt(v)),
            "The residuals are not squared: these are absolute values.",
            "ν and 2ν are the mean and the variance of a sum of *squares* of Gaussian numbers.",
            "Square the differences.",
        ),
        Suspect(
            "root",
            _other_chi2(lambda c: np.sqrt(c.chi2 / c.used)),
            "You return the root of χ² per pixel.",
            "That is the typical residual in σ. It is also 1 for pure noise, but not what is asked "
            "for.",
            "Leave out the root.",
        ),
        Suspect(
            "not_per_pixel",
            _other_chi2(lambda c: c.chi2),
            "You return χ² itself, not χ² per used pixel.",
            "Without ν beside it nobody can say whether 400 is much.",
            "Divide by the number of used pixels.",
        ),
        Suspect(
            "one_degree_less",
            _from_chi(lambda c: _both(c._replace(used=c.used - 1))),
            "ν is one too small.",
            "A degree of freedom is taken off for what was fitted to these data; here the model is "
            "given.",
            "Use the number of used pixels itself.",
        ),
        Suspect(
            "latents_subtracted",
            _from_chi(lambda c: _both(c._replace(used=c.used - 33))),
            "The 33 latents are taken off ν.",
            "That is right for a best fit to these data, if each latent were free. Here any model "
            "may come, also one that was never fitted.",
            "Use the number of used pixels itself.",
        ),
        Suspect(
            "root_of_nu",
            _other_excess(lambda c: (c.chi2 - c.used) / np.sqrt(c.used)),
            "The excess is divided by √ν, not by √(2ν).",
            "The square of a Gaussian number has the variance 2. Harmless residuals would look "
            "1.4 times as surprising.",
            "Divide by the root of 2ν.",
        ),
        Suspect(
            "no_root",
            _other_excess(lambda c: (c.chi2 - c.used) / (2 * c.used)),
            "The excess is divided by the variance 2ν, not by its root.",
            "It is asked for in standard deviations.",
            "Take the square root of 2ν.",
        ),
        Suspect(
            "nu_not_subtracted",
            _other_excess(lambda c: c.chi2 / np.sqrt(2 * c.used)),
            "ν is not subtracted: pure noise would have a large excess.",
            "The excess is how far χ² is above its mean, ν.",
            "Subtract ν from χ² before you divide.",
        ),
        Suspect(
            "relative",
            _other_excess(lambda c: c.chi2 / c.used - 1),
            "The excess is χ²/ν - 1, not in standard deviations.",
            "2 % more than expected is nothing for 100 pixels, and much for a million.",
            "Divide χ² - ν by √(2ν).",
        ),
        Suspect(
            "not_divided",
            _other_excess(lambda c: c.chi2 - c.used),
            "The excess is not divided by a standard deviation.",
            "χ² scatters by √(2ν) with noise alone: without it nobody can say whether 20 is much.",
            "Divide by √(2ν).",
        ),
        Suspect(
            "mixed_scales",
            _other_excess(lambda c: (c.chi2 / c.used - 1) / np.sqrt(2 * c.used)),
            "χ² *per pixel* is divided by the scatter of χ² itself.",
            "χ²/ν scatters by √(2/ν). Every residual would look harmless.",
            "Use (χ² - ν) / √(2ν).",
        ),
        Suspect(
            "sign",
            _other_excess(lambda c: (c.used - c.chi2) / np.sqrt(2 * c.used)),
            "The excess has the wrong sign.",
            "It is positive where residuals are larger than noise.",
            "Subtract ν from χ², not χ² from ν.",
        ),
        Suspect(
            "exchanged",
            _from_chi(lambda c: _both(c)[::-1]),
            "The two results are exchanged.",
            "The next cells take the first for χ² per pixel.",
            "Return χ² per pixel first, then its excess.",
        ),
        Suspect(
            "mean_over_images",
            _from_chi(lambda c: tuple(np.mean(part) for part in _both(c))),
            "The images are averaged.",
            "One bad restoration would hide among the good ones.",
            "Return one value for each image, (n,).",
        ),
        Suspect(
            "all_images",
            _from_chi(lambda c: _both(c._replace(chi2=c.chi2.sum(), used=c.used.sum()))),
            "You return one χ² for the whole batch.",
            "One bad restoration would hide among the good ones.",
            "Sum over the last two axes only, `axis=(-2, -1)`.",
        ),
    ),
)


SPECS = (_CONVOLVE, _LIKELIHOOD, _WIENER, _POSTERIOR, _GRADIENT, _SURPRISE)
