"""High-resolution images of galaxies: a population after real ones, drawn without noise.

An image has SIZE x SIZE pixels of PIXEL arcsec, row = y (north up), column = x, and holds nJy per
pixel (AB magnitudes, m = ZERO_POINT - 2.5 log10 F). It is never infinitely sharp: it shows the
galaxy convolved with a round Gaussian of full width RESOLUTION, sampled at the pixel centres and
multiplied with the area of a pixel.

**Population.** Magnitudes, sizes, Sersic indices and axis ratios follow fits to Hubble images of
the COSMOS field in F814W (Leauthaud et al. 2007, doi:10.1086/516598; the fits come with GalSim,
Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002). They are two smooth classes, discs and
spheroids, whose few numbers are in `_DISCS` and `_SPHEROIDS`. Real fits end at magnitude 22.5; the
relation of size and magnitude is extended to 23.5. Galaxies larger than 1 arcsec are left out,
so that those drawn fit in the stamp.

**Light.** A disc and a bulge whose sum is close to the Sersic profile of the galaxy's index n. Up
to n = 1 there is only a disc of that index, from n = 4 on only a spheroid of that index; between
them a disc of index 1 and a bulge of index 4, with shares and radii fitted to the profile of index
n: such a galaxy looks like one profile of an index and a radius within 15 % of its own. Each
profile is a mixture of concentric Gaussians (Hogg & Lang 2013, doi:10.1086/671228), so the
convolution is exact: it adds the resolution's variance to both axes of each. No such mixture has an
index below 0.5, so n is 0.5 at least.

**Structure.** Discs, galaxies with less than half their light in the bulge, may have spiral arms
(half of those that are not edge-on; Willett et al. 2013, doi:10.1093/mnras/stt1458), a bar (30 %;
65 % nearby and 20 % at redshift 0.8, Sheth et al. 2008, doi:10.1086/524980) and one to four
star-forming clumps (half of them; 60 % of low-mass galaxies and fewer of massive ones, Guo et al.
2015, doi:10.1088/0004-637X/800/1/39, each a few per cent of the light). The flux of bars and
clumps is taken from the disc, and arms move light around in it: the total stays to 1 %. Real
late-type galaxies are more irregular than that, and dust, tails and neighbours are missing.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares, nnls
from scipy.special import gamma, gammainc, gammaincinv

SIZE = 63  # pixels a side
PIXEL = 0.056  # arcsec, a third of Subaru/HSC's
RESOLUTION = 0.15  # arcsec, full width at half maximum, a bit wider than Hubble's PSF
ZERO_POINT = 31.4  # AB magnitude of 1 nJy

MAGNITUDES = (20.0, 23.5)
RADII = (0.1, 1.0)  # arcsec
SERSIC = (0.5, 6.0)

_SIGMA = RESOLUTION / np.sqrt(8.0 * np.log(2.0))  # arcsec
_BLOCK = 64  # galaxies drawn at once


class _Class(NamedTuple):
    """One of the two classes: log10 of radius in arcsec, natural logarithm of the index."""

    share: float
    index: float  # mean ln n
    index_spread: float
    radius: float  # mean log10 radius at magnitude 22, ln n as the mean, axis ratio 0.6
    radius_spread: float
    radius_index: float  # change of log10 radius with ln n


_DISCS = _Class(0.72, 0.0, 0.47, -0.26, 0.14, -0.10)
_SPHEROIDS = _Class(0.28, 1.42, 0.45, -0.42, 0.22, -0.10)
_RADIUS_MAGNITUDE = -0.09  # change of log10 radius with magnitude
_RADIUS_AXIS_RATIO = -0.15  # change of log10 radius with axis ratio, discs


class Galaxies(NamedTuple):
    """n galaxies, all arrays (n,) or, for the clumps, (n, 4); `jax.tree.map` takes a part of them.

    Whole galaxy: ``magnitude``: AB, total; ``radius``: half-light radius along the major axis,
    arcsec; ``sersic``: index n, 0.5 to 6; ``axis_ratio``: minor over major axis, of the flux in
    all components; ``angle``: of the major axis, radians, from x towards y; ``x``, ``y``: centre
    relative to that of the stamp, arcsec.

    Arms: ``arm_amplitude``: relative, 0 for none; ``arm_number``: how many; ``arm_pitch``:
    radians, its sign is the sense of winding; ``arm_phase``: radians.
    Bar: ``bar_fraction``: of the disc's flux, 0 for none; ``bar_length``: standard deviation of
    its Gaussian over the disc's half-light radius; ``bar_angle``: in the disc's plane from the
    major axis, radians.
    Clumps: ``clump_fraction``: of the galaxy's flux, taken from the disc, 0 for none; ``clump_x``,
    ``clump_y``: from the galaxy's centre, arcsec; ``clump_fwhm``: before convolution, arcsec.
    """

    magnitude: jax.Array
    radius: jax.Array
    sersic: jax.Array
    axis_ratio: jax.Array
    angle: jax.Array
    x: jax.Array
    y: jax.Array
    arm_amplitude: jax.Array
    arm_number: jax.Array
    arm_pitch: jax.Array
    arm_phase: jax.Array
    bar_fraction: jax.Array
    bar_length: jax.Array
    bar_angle: jax.Array
    clump_fraction: jax.Array
    clump_x: jax.Array
    clump_y: jax.Array
    clump_fwhm: jax.Array


class Components(NamedTuple):
    """Disc and bulge of galaxies; arrays of their shape.

    ``bulge_fraction``: of the flux; ``disc_radius``, ``bulge_radius``: half-light radius along the
    major axis, arcsec; ``disc_axis_ratio``, ``bulge_axis_ratio``: minor over major axis;
    ``disc_sersic``, ``bulge_sersic``: index, 0.5 to 1 and 4 to 6.
    """

    bulge_fraction: jax.Array
    disc_radius: jax.Array
    bulge_radius: jax.Array
    disc_axis_ratio: jax.Array
    bulge_axis_ratio: jax.Array
    disc_sersic: jax.Array
    bulge_sersic: jax.Array


# --- Sersic profiles as mixtures of Gaussians, and as discs with bulges -----------------------

# Widths in half-light radii. A profile of index 0.5 is a Gaussian, of the width in the first line.
_DISC_WIDTHS = 1.0 / np.sqrt(2.0 * np.log(2.0)) * 1.3 ** np.arange(-9.0, 6.0)
_BULGE_WIDTHS = np.geomspace(0.01, 20.0, 18)
_DISC_INDICES = np.linspace(SERSIC[0], 1.0, 21)
_BULGE_INDICES = np.linspace(4.0, SERSIC[1], 11)
_MIXED_INDICES = np.linspace(1.0, 4.0, 31)


def _brightness(n: float, r: np.ndarray) -> np.ndarray:
    """Sersic profile of total flux 1, r in half-light radii."""
    b = gammaincinv(2.0 * n, 0.5)
    return np.exp(-b * r ** (1.0 / n)) * b ** (2.0 * n) / (2.0 * np.pi * n * gamma(2.0 * n))


def _enclosed(n: float, r: np.ndarray) -> np.ndarray:
    """Share of the flux inside r, in half-light radii."""
    return gammainc(2.0 * n, gammaincinv(2.0 * n, 0.5) * r ** (1.0 / n))


def _mixture(n: float, widths: np.ndarray) -> np.ndarray:
    """Share of the flux in each Gaussian: brightness and enclosed flux fitted at many radii."""
    r = np.geomspace(widths[0] / 5.0, widths[-1] * 4.0, 300)[:, None]
    gaussians = np.exp(-0.5 * (r / widths) ** 2)
    a = [gaussians * r**2 / (2.0 * np.pi * widths**2), 1.0 - gaussians]
    b = [_brightness(n, r[:, 0]) * r[:, 0] ** 2, _enclosed(n, r[:, 0])]
    # The last row makes the sum 1: light outside the largest radius goes to the widest Gaussian.
    a, b = np.vstack([*a, np.full_like(widths, 100.0)]), np.hstack([*b, 100.0])
    shares, _ = nnls(a, b)
    return shares / shares.sum()


def _splits() -> np.ndarray:
    """Bulge fraction, ln of the radii of disc and bulge in radii of the galaxy, by index.

    What an image sees comes closest to the profile of index n: least squares over the area, at
    the resolution, for the galaxy of 0.5 arcsec that is typical.
    """
    soft, r = _SIGMA / 0.5, np.linspace(0.03, 5.0, 80)

    def seen(shares, radius):
        variance = (radius * _BULGE_WIDTHS) ** 2 + soft**2
        return np.exp(-0.5 * r[:, None] ** 2 / variance) @ (shares / variance)

    def miss(p, target):
        both = (1.0 - p[0]) * seen(disc, np.exp(p[1])) + p[0] * seen(bulge, np.exp(p[2]))
        return np.sqrt(r) * (both - target)

    disc, bulge = _mixture(1.0, _BULGE_WIDTHS), _mixture(4.0, _BULGE_WIDTHS)
    splits = []
    for n in _MIXED_INDICES[1:-1]:
        target = seen(_mixture(n, _BULGE_WIDTHS), 1.0)
        start = splits[-1] if splits else np.array([0.1, 0.0, 0.4])
        splits.append(least_squares(miss, start, args=(target,), x_scale=[0.1, 0.1, 0.1]).x)
    # Pure at both ends; the radius of what is not there goes on as it was.
    return np.array([[0.0, 0.0, splits[0][2]], *splits, [1.0, splits[-1][1], 0.0]])


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of disc and bulge Gaussians by index, and the splits; computed once."""
    discs = [_mixture(n, _DISC_WIDTHS) for n in _DISC_INDICES]
    bulges = [_mixture(n, _BULGE_WIDTHS) for n in _BULGE_INDICES]
    return tuple(np.array(t, dtype=np.float32) for t in (discs, bulges, _splits()))


def _interpolate(n: jax.Array, indices: np.ndarray, table: np.ndarray) -> jax.Array:
    """Rows of a table at n, linearly between its evenly spaced indices; n (...,)."""
    place = (n[..., None] - indices[0]) / (indices[1] - indices[0])
    steps = np.arange(len(indices), dtype=np.float32).reshape((1,) * n.ndim + (-1,))
    return jnp.maximum(1.0 - jnp.abs(place - steps), 0.0) @ table


def components(galaxies: Galaxies) -> Components:
    """Disc and bulge of ``galaxies``, before arms, bars and clumps take their part of the disc.

    The bulge is the rounder of the two: with e = (1 - q) / (1 + q) of the galaxy and a bulge
    fraction B, it has (3 + B) / 4 of e, and the disc what keeps the mean over the flux at e.
    """
    n = galaxies.sersic
    split = _interpolate(jnp.clip(n, 1.0, 4.0), _MIXED_INDICES, _tables()[2])
    fraction = split[..., 0]
    e = (1.0 - galaxies.axis_ratio) / (1.0 + galaxies.axis_ratio)
    disc_e = jnp.minimum((1.0 + 0.25 * fraction) * e, jnp.maximum(e, 0.75))
    # Without a bulge its shape does not count, but must be a number.
    bulge_e = (e - (1.0 - fraction) * disc_e) / jnp.maximum(fraction, 1e-3)
    disc_q, bulge_q = (1.0 - disc_e) / (1.0 + disc_e), (1.0 - bulge_e) / (1.0 + bulge_e)
    radius = galaxies.radius * jnp.sqrt(galaxies.axis_ratio)  # of the circle of the same area
    return Components(
        fraction,
        radius * jnp.exp(split[..., 1]) / jnp.sqrt(disc_q),
        radius * jnp.exp(split[..., 2]) / jnp.sqrt(bulge_q),
        disc_q,
        bulge_q,
        jnp.clip(n, SERSIC[0], 1.0),
        jnp.clip(n, 4.0, SERSIC[1]),
    )


# --- images -----------------------------------------------------------------------------------


def _ellipses(u, v, radius, axis_ratio, widths, shares):
    """Mixture of Gaussians, convolved: flux per arcsec^2 for a flux of 1; u along the major axis.

    A scan over the Gaussians is the fastest form on a CPU: no array larger than the images.
    """
    variance = jnp.square(widths.astype(np.float32) * radius)
    major, minor = variance + _SIGMA**2, variance * axis_ratio**2 + _SIGMA**2
    peak = shares / (2.0 * jnp.pi * jnp.sqrt(major * minor))

    def add(total, gaussian):
        major, minor, peak = gaussian
        return total + peak * jnp.exp(-0.5 * (u**2 / major + v**2 / minor)), None

    return jax.lax.scan(add, jnp.zeros_like(u), (major, minor, peak))[0]


def _arms(u, v, galaxy: Galaxies, radius, axis_ratio):
    """Relative change of the disc's light by logarithmic spirals in its plane.

    The Gaussian of the resolution damps a wave of wave number k by exp(-(k sigma)^2 / 2): so do we,
    with the spiral's own k = m / (R sin pitch), in the mean over directions as the tilted disc is
    seen; within 0.1 of the peak that is the convolved spiral. Towards the centre the wave is ever
    shorter and nothing is left of it. Further in than about 0.3 radii there are no arms anyway.
    """
    v = v / axis_ratio
    r2 = u**2 + v**2 + 1e-6
    angle = jnp.arctan2(v, jnp.where(r2 < 2e-6, 1e-3, u))
    log_r = 0.5 * jnp.log(r2 / radius**2)
    phase = galaxy.arm_number * (angle - log_r / jnp.tan(galaxy.arm_pitch)) - galaxy.arm_phase
    k2 = (galaxy.arm_number / jnp.sin(galaxy.arm_pitch)) ** 2 / r2
    k2 = k2 * 0.5 * (1.0 + 1.0 / axis_ratio**2)
    fade = -jnp.expm1(-r2 / (0.5 * radius) ** 2)
    return galaxy.arm_amplitude * fade * jnp.exp(-0.5 * _SIGMA**2 * k2) * jnp.cos(phase)


def _bar(u, v, galaxy: Galaxies, radius, axis_ratio):
    """A Gaussian of axis ratio 0.3 in the disc's plane, seen tilted and convolved; flux 1."""
    cos, sin = jnp.cos(galaxy.bar_angle), jnp.sin(galaxy.bar_angle)
    long = (galaxy.bar_length * radius) ** 2
    short = 0.09 * long
    uu = long * cos**2 + short * sin**2 + _SIGMA**2
    vv = (long * sin**2 + short * cos**2) * axis_ratio**2 + _SIGMA**2
    uv = (long - short) * cos * sin * axis_ratio
    det = uu * vv - uv**2
    exponent = (vv * u**2 - 2.0 * uv * u * v + uu * v**2) / det
    return jnp.exp(-0.5 * exponent) / (2.0 * jnp.pi * jnp.sqrt(det))


def _clumps(x, y, galaxy: Galaxies):
    """Round Gaussians, convolved; their fluxes are shares of the galaxy's."""
    total = 0.0
    for k in range(galaxy.clump_fraction.shape[-1]):
        variance = galaxy.clump_fwhm[k] ** 2 / (8.0 * np.log(2.0)) + _SIGMA**2
        r2 = (x - galaxy.clump_x[k]) ** 2 + (y - galaxy.clump_y[k]) ** 2
        peak = galaxy.clump_fraction[k] / (2.0 * jnp.pi * variance)
        total = total + peak * jnp.exp(-0.5 * r2 / variance)
    return total


def _render_one(galaxy: Galaxies) -> jax.Array:
    axis = (np.arange(SIZE, dtype=np.float32) - SIZE // 2) * PIXEL
    x, y = axis[None, :] - galaxy.x, axis[:, None] - galaxy.y
    cos, sin = jnp.cos(galaxy.angle), jnp.sin(galaxy.angle)
    u, v = x * cos + y * sin, y * cos - x * sin
    parts = components(galaxy)
    shares = _interpolate(parts.disc_sersic, _DISC_INDICES, _tables()[0])
    disc = parts.disc_radius, parts.disc_axis_ratio
    smooth = _ellipses(u, v, *disc, _DISC_WIDTHS, shares) * (1.0 + _arms(u, v, galaxy, *disc))
    shares = _interpolate(parts.bulge_sersic, _BULGE_INDICES, _tables()[1])
    bulge = parts.bulge_radius, parts.bulge_axis_ratio
    bulge = _ellipses(u, v, *bulge, _BULGE_WIDTHS, shares)
    in_disc = 1.0 - parts.bulge_fraction
    in_bar = in_disc * galaxy.bar_fraction
    light = (in_disc - in_bar - galaxy.clump_fraction.sum()) * smooth
    light += in_bar * _bar(u, v, galaxy, *disc) + _clumps(x, y, galaxy)
    light += parts.bulge_fraction * bulge
    return to_flux(galaxy.magnitude) * PIXEL**2 * light


@jax.jit
def _render(galaxies: Galaxies) -> jax.Array:
    n = galaxies.magnitude.shape[0]
    blocks = -(-n // _BLOCK)
    size = -(-n // blocks)
    # The last block is filled up with the last galaxy: one loop body to compile, not two.
    index = jnp.minimum(jnp.arange(blocks * size), n - 1).reshape(blocks, size)
    draw = jax.vmap(_render_one)
    images = jax.lax.map(lambda i: draw(jax.tree.map(lambda a: a[i], galaxies)), index)
    return images.reshape(-1, SIZE, SIZE)[:n]


def to_flux(magnitude: jax.Array) -> jax.Array:
    """Flux in nJy of an AB magnitude, any shape."""
    return 10.0 ** (0.4 * (ZERO_POINT - magnitude))


def render(galaxies: Galaxies) -> jax.Array:
    """Images of ``galaxies`` at the course's resolution, nJy per pixel; (n, 63, 63), float32.

    Light outside the stamp is lost: the sum of an image is a bit less than the galaxy's flux.
    Differentiable in all parameters. Raises ValueError for arrays that are not float32, have other
    shapes, or hold values that no galaxy has.
    """
    _check(galaxies)
    return _render(galaxies)


# What each parameter may be, ends included; the others may be any finite number.
_ALLOWED = {
    "radius": (1e-3, 10.0),
    "sersic": SERSIC,
    "axis_ratio": (0.05, 1.0),
    "arm_amplitude": (0.0, 1.0),
    "arm_number": (1.0, 10.0),
    "bar_fraction": (0.0, 1.0),
    "bar_length": (0.01, 10.0),
    "clump_fraction": (0.0, 1.0),
    "clump_fwhm": (0.0, 10.0),
}


def _check(galaxies: Galaxies) -> None:
    """Inside jit only shapes and types are seen."""
    if not isinstance(galaxies, Galaxies):
        kind = type(galaxies).__name__
        raise ValueError(f"galaxies must be Galaxies, as `population` gives them, got {kind}.")
    shape, clumps = np.shape(galaxies.magnitude), np.shape(galaxies.clump_fraction)[1:]
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"magnitude must have shape (n,), got {shape}: take a part of galaxies by "
            "jax.tree.map(lambda a: a[:1], galaxies)."
        )
    for name, values in galaxies._asdict().items():
        if not hasattr(values, "dtype") or values.dtype != np.float32:
            kind = getattr(values, "dtype", type(values).__name__)
            raise ValueError(f"{name} must be a float32 array, got {kind}.")
        expected = (*shape, *clumps) if name.startswith("clump") else shape
        if values.shape != expected:
            raise ValueError(f"{name} has shape {values.shape}, expected {expected}.")
        if isinstance(values, jax.core.Tracer):
            continue
        low, high = _ALLOWED.get(name, (-np.inf, np.inf))
        values = np.asarray(values)
        bad = ~(np.isfinite(values) & (values >= low) & (values <= high))
        if bad.any():
            found = values[bad][0]
            raise ValueError(f"{name} must be finite and from {low:g} to {high:g}, got {found:g}.")
        if name == "arm_pitch" and not values.all():
            raise ValueError("arm_pitch must not be 0: that would be a ring, not arms.")
    if not any(isinstance(values, jax.core.Tracer) for values in galaxies):
        _check_clumps(galaxies)


def _check_clumps(galaxies: Galaxies) -> None:
    """Their flux is taken from the disc, which must not end below zero."""
    with jax.ensure_compile_time_eval():
        disc = 1.0 - np.asarray(components(galaxies).bulge_fraction)
    disc = disc * (1.0 - np.asarray(galaxies.bar_fraction))
    clumps = np.asarray(galaxies.clump_fraction).sum(axis=-1)
    bad = clumps > disc + 1e-5  # which is rounding
    if bad.any():
        raise ValueError(
            f"The clumps of galaxy {bad.argmax()} have {clumps[bad][0]:.3g} of its flux, but its "
            f"disc without the bar has {disc[bad][0]:.3g}: clump_fraction is too large, or sersic, "
            "which sets the bulge."
        )


# --- population -------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=1)
def _population(key: jax.Array, n: int) -> Galaxies:
    keys = jax.random.split(key, 4)
    flat, clump = jax.random.uniform(keys[0], (15, n)), jax.random.uniform(keys[1], (4, n, 4))
    draws = {1: iter(flat), 2: iter(clump)}
    normal = iter(jax.random.normal(keys[2], (4, n)))

    def uniform(low=0.0, high=1.0, rank=1):
        return low + (high - low) * next(draws[rank])

    # Counts rise as 10^(0.4 m).
    low, high = (10.0 ** (0.4 * m) for m in MAGNITUDES)
    magnitude = jnp.log10(low + (high - low) * uniform()) / 0.4
    spheroid = uniform() < _SPHEROIDS.share
    law = _Class(*(jnp.where(spheroid, s, d) for s, d in zip(_SPHEROIDS, _DISCS, strict=True)))

    log_index = law.index + law.index_spread * next(normal)
    sersic = jnp.clip(jnp.exp(log_index), *SERSIC)
    # A disc of thickness 0.2, not quite round, seen from any direction; spheroids are rounder.
    tilted = 0.95 * jnp.sqrt(0.2**2 + (1.0 - 0.2**2) * uniform() ** 2)
    axis_ratio = jnp.where(spheroid, 0.3 + 0.65 * jax.nn.sigmoid(0.2 + 0.9 * next(normal)), tilted)

    mean = law.radius + _RADIUS_MAGNITUDE * (magnitude - 22.0)
    mean += law.radius_index * (log_index - law.index)
    mean += jnp.where(spheroid, 0.0, _RADIUS_AXIS_RATIO * (axis_ratio - 0.6))
    ends = [(np.log10(r) - mean) / law.radius_spread for r in RADII]
    spread = jax.random.truncated_normal(keys[3], *ends) * law.radius_spread
    radius = 10.0 ** (mean + spread)

    # Structure of discs. Arms are seen in half of those that are not edge-on.
    angle, turn = uniform(high=jnp.pi), uniform(high=2.0 * jnp.pi)
    zero = jnp.zeros((n,))
    parts = components(Galaxies(magnitude, radius, sersic, axis_ratio, *[zero] * 14))
    disc = parts.bulge_fraction < 0.5
    has_arms = disc & (parts.disc_axis_ratio > 0.35) & (uniform() < 0.5)
    arm_number = jnp.where(uniform() < 0.8, 2.0, 3.0)
    winding = jnp.where(uniform() < 0.5, 1.0, -1.0)
    arm_pitch = winding * jnp.deg2rad(uniform(10.0, 35.0))
    bar_length = uniform(0.25, 0.45)
    # Arms start at the ends of the bar, some two standard deviations out.
    arm_phase = arm_number * (turn - jnp.log(2.0 * bar_length) / jnp.tan(arm_pitch))

    # Clumps are where the disc's light is: a Gaussian disc's, cut at 1.65 of its radii.
    r = jnp.sqrt(-jnp.log2(uniform(0.15, 1.0, rank=2))) * parts.disc_radius[:, None]
    way = uniform(high=2.0 * jnp.pi, rank=2)
    u, v = r * jnp.cos(way), r * jnp.sin(way) * parts.disc_axis_ratio[:, None]
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    count = jnp.where(disc & (uniform() < 0.5), jnp.floor(uniform(1.0, 5.0)), 0.0)
    there = jnp.arange(4.0)[None, :] < count[:, None]
    return Galaxies(
        magnitude=magnitude,
        radius=radius,
        sersic=sersic,
        axis_ratio=axis_ratio,
        angle=angle,
        x=0.3 * PIXEL * next(normal),  # a stamp is cut around a measured centre
        y=0.3 * PIXEL * next(normal),
        arm_amplitude=jnp.where(has_arms, uniform(0.1, 0.5), 0.0),
        arm_number=arm_number,
        arm_pitch=arm_pitch,
        arm_phase=arm_phase,
        bar_fraction=jnp.where(disc & (uniform() < 0.3), uniform(0.05, 0.15), 0.0),
        bar_length=bar_length,
        bar_angle=turn,
        clump_fraction=jnp.where(there, uniform(0.01, 0.05, rank=2), 0.0),
        clump_x=u * cos - v * sin,
        clump_y=u * sin + v * cos,
        clump_fwhm=uniform(0.05, 0.3, rank=2),
    )


def population(key: jax.Array, n: int) -> Galaxies:
    """n galaxies drawn from the population; the same key gives the same galaxies.

    Raises ValueError for an n below 1.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n, how many galaxies to draw, must be 1, 2, ..., got {n!r}.")
    return _population(key, int(n))


def simulate(key: jax.Array, n: int) -> tuple[Galaxies, jax.Array]:
    """n galaxies and their images (n, 63, 63) in nJy per pixel: `population` and `render`."""
    galaxies = population(key, n)
    return galaxies, _render(galaxies)
