"""Make data/galsim_reference.npz: fifty galaxies behind five PSFs, drawn by GalSim.

    DLCOURSE_DATA=FOLDER python scripts/make_galsim_reference.py

needs GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002) and, in FOLDER, the file
``galaxies/hsc_cosmos_35.npz`` of scarlet's repository (Melchior et al. 2018,
doi:10.1016/j.ascom.2018.07.001; MIT licence), whose PSF in the i band is the measured one. It takes
some ten seconds. Arrays in the file:

- ``magnitude``, ``radius``, ``sersic``, ``axis_ratio``, ``angle``, ``x``, ``y`` (50,): the
  galaxies, as `dlcourse_utils.datasets.galaxies.Galaxies` has them;
- ``moffat`` (4, 4): fwhm in arcsec, beta, e1, e2 of four PSFs; ``hsc_psf`` (43, 43): the fifth, at
  0.168 arcsec. Ten galaxies in a row are behind each;
- ``images`` (50, 21, 21): nJy per pixel of 0.168 arcsec;
- ``provenance``: a text.

How a galaxy is made of a disc and a bulge, GalSim is told by `galaxies.components`: whoever changes
that makes this file again. The sha256 printed at the end belongs in data/registry.toml.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlcourse_utils import registry
from dlcourse_utils.datasets import galaxies
from dlcourse_utils.datasets.galsim_reference import smooth
from dlcourse_utils.telescope import SURVEY_PIXEL, SURVEY_SIZE

OUTPUT = Path(__file__).resolve().parents[1] / "data" / "galsim_reference.npz"
SEED = 6
COUNT, PSFS = 50, 5
PROVENANCE = (
    "Fifty galaxies of dlcourse_utils.datasets.galaxies behind five PSFs, drawn with GalSim (Rowe "
    "et al. 2015, doi:10.1016/j.ascom.2015.02.002) by scripts/make_galsim_reference.py. hsc_psf is "
    "the i-band PSF of hsc_cosmos_35.npz of scarlet (Melchior et al. 2018, "
    "doi:10.1016/j.ascom.2018.07.001; Copyright 2018 the scarlet developers, MIT licence)."
)


def cases(hsc_psf: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of galaxies and PSFs, from a seed: over the ranges, not from the population."""
    rng = np.random.default_rng(SEED)
    e, angle = rng.uniform(0.0, 0.1, PSFS - 1), rng.uniform(0.0, np.pi, PSFS - 1)
    fwhm, beta = np.array([0.5, 0.6, 0.7, 1.0]), np.array([4.0, 2.5, 3.0, 3.0])
    drawn = {
        "magnitude": rng.uniform(20.0, 24.0, COUNT),
        "radius": rng.uniform(0.15, 0.8, COUNT),
        "sersic": rng.uniform(0.5, 4.0, COUNT),
        "axis_ratio": rng.uniform(0.3, 1.0, COUNT),
        "angle": rng.uniform(0.0, np.pi, COUNT),
        "x": rng.uniform(-0.2, 0.2, COUNT),
        "y": rng.uniform(-0.2, 0.2, COUNT),
        "moffat": np.stack([fwhm, beta, e * np.cos(2 * angle), e * np.sin(2 * angle)], axis=1),
        "hsc_psf": hsc_psf,
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def draw(case: dict[str, np.ndarray], numbers: Sequence[int]) -> np.ndarray:
    """GalSim's images (n, 21, 21) of n of the 50: each galaxy a Sersic disc and a Sersic bulge."""
    import galsim

    # Finer than GalSim's defaults, which aim at 5e-3 of the flux.
    fine = galsim.GSParams(folding_threshold=1e-3, kvalue_accuracy=1e-6, maxk_threshold=1e-4)
    psfs = [
        galsim.Moffat(beta, fwhm=fwhm).shear(g1=g1, g2=g2)
        for fwhm, beta, g1, g2 in case["moffat"].astype(float)
    ]
    # Nearly band limited between its pixels, as we take it: GalSim's default gives images that are
    # 3e-3 of the peak different. The integration over a pixel is in it already.
    measured = galsim.Image(case["hsc_psf"].astype(float), scale=SURVEY_PIXEL)
    psfs.append(galsim.InterpolatedImage(measured, x_interpolant="lanczos15", flux=1.0))

    sample = smooth(case)
    parts = galaxies.components(sample)
    flux = np.asarray(galaxies.to_flux(sample.magnitude), dtype=float)
    images = []
    for i in numbers:
        bulge = float(parts.bulge_fraction[i])
        angle = float(sample.angle[i]) * galsim.radians

        def profile(share, index, radius, axis_ratio, angle=angle, total=flux[i]):
            # Ours is the radius along the major axis, GalSim's that of the circle of equal area.
            # It tabulates each index: five digits of it save a table and change nothing.
            round_one = galsim.Sersic(
                round(float(index), 5), half_light_radius=float(radius * axis_ratio**0.5)
            )
            return share * total * round_one.shear(q=float(axis_ratio), beta=angle)

        disc = (parts.disc_sersic[i], parts.disc_radius[i], parts.disc_axis_ratio[i])
        light = [profile(1.0 - bulge, *disc)]
        if bulge > 0.0:
            bulge_shape = (parts.bulge_sersic[i], parts.bulge_radius[i], parts.bulge_axis_ratio[i])
            light.append(profile(bulge, *bulge_shape))
        galaxy = galsim.Add(light).shift(float(sample.x[i]), float(sample.y[i]))
        which = i * PSFS // COUNT
        seen = galsim.Convolve(galaxy, psfs[which], gsparams=fine)
        method = "auto" if which < PSFS - 1 else "no_pixel"
        size = {"nx": SURVEY_SIZE, "ny": SURVEY_SIZE, "scale": SURVEY_PIXEL}
        images.append(seen.drawImage(method=method, dtype=float, **size).array)
    return np.array(images, dtype=np.float32)


def main() -> None:
    with np.load(registry.path("hsc_cosmos_35.npz"), allow_pickle=False) as file:
        case = cases(file["psfs"][list(file["filters"]).index("i")])
    images = draw(case, range(COUNT))
    np.savez(OUTPUT, **case, images=images, provenance=np.array(PROVENANCE))
    content = OUTPUT.read_bytes()
    print(f"{OUTPUT}: size = {len(content)}, sha256 = {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
