"""The shipped halo mass function: what colossus gives now, in the units that it claims."""

import numpy as np
import pytest

from dlcourse_utils import registry

HUBBLE, OMEGA_M = 0.6766, 0.3111
CRITICAL = 2.77536627e11  # Msun / Mpc^3 for h = 1


@pytest.fixture(scope="module")
def stored():
    with np.load(registry.path("mass_function.npz"), allow_pickle=False) as file:
        return dict(file)


def test_shapes_and_provenance(stored):
    assert stored["log_mass"].shape == (151,) and stored["z"].shape == (16,)
    assert stored["dndlog10m"].shape == (16, 151)
    assert all(stored[name].dtype == np.float64 for name in ("log_mass", "z", "dndlog10m"))
    assert "Tinker et al. (2008" in str(stored["provenance"])


def test_colossus_gives_the_same(stored, load_script):
    pytest.importorskip("colossus", reason="colossus is not installed")
    script = load_script("make_mass_function")
    log_mass, z = script.grids()
    np.testing.assert_allclose(stored["log_mass"], log_mass, rtol=0, atol=1e-12)
    np.testing.assert_allclose(stored["z"], z, rtol=0, atol=1e-12)
    np.testing.assert_allclose(stored["dndlog10m"], script.compute(log_mass, z), rtol=1e-6)


def test_falls_with_mass_and_with_redshift(stored):
    assert (stored["dndlog10m"] > 0).all()
    assert (np.diff(stored["dndlog10m"], axis=1) < 0).all()
    # Haloes grow, so of the massive ones there are more today; of groups the number stands still.
    massive = stored["log_mass"] >= 13.5
    assert (np.diff(stored["dndlog10m"][:, massive], axis=0) < 0).all()


def test_units_by_the_mass_in_haloes(stored):
    """An eighth to a quarter of all matter is in haloes above 10^12.8 Msun today.

    In Msun/h and Mpc/h the numbers would be 3.2 = h^-3 times larger.
    """
    density = np.trapezoid(10 ** stored["log_mass"] * stored["dndlog10m"][0], stored["log_mass"])
    assert 0.125 < density / (OMEGA_M * CRITICAL * HUBBLE**2) < 0.25


def test_units_by_the_formula_in_msun_and_mpc(stored):
    """Equations 2 and 3 of Tinker et al. by hand, today, in Msun and Mpc throughout.

    200 times the critical density is 643 times the mean: their table 2 between 600 and 800,
    linear in log Delta where they have a spline, hence 3 %. Only sigma(R) is from colossus.
    """
    cosmology = pytest.importorskip("colossus.cosmology.cosmology", reason="needs colossus")
    model = cosmology.setCosmology("planck18", persistence="")
    log_delta = np.log10([600.0, 800.0])
    table = {"A": (0.218, 0.248), "a": (1.61, 1.87), "b": (1.87, 1.59), "c": (1.45, 1.58)}
    at = np.log10(200.0 / OMEGA_M)
    p = {name: np.interp(at, log_delta, pair) for name, pair in table.items()}
    mass = 10 ** stored["log_mass"]
    matter = OMEGA_M * CRITICAL * HUBBLE**2
    radius = (3.0 * mass / (4.0 * np.pi * matter)) ** (1.0 / 3.0)  # Mpc
    sigma = model.sigma(radius * HUBBLE, 0.0)
    f = p["A"] * ((sigma / p["b"]) ** -p["a"] + 1.0) * np.exp(-p["c"] / sigma**2)
    by_hand = f * matter / mass * -np.gradient(np.log(sigma), stored["log_mass"])
    inner = slice(1, -1)  # one-sided slopes at the ends are rough
    np.testing.assert_allclose(stored["dndlog10m"][0][inner], by_hand[inner], rtol=0.03)
