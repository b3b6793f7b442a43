"""Make data/mass_function.npz: the halo mass function of Tinker et al. (2008) on a grid.

    python scripts/make_mass_function.py

needs colossus (Diemer 2018, ApJS 239, 35, doi:10.3847/1538-4365/aaee8c). Arrays in the file:

- ``log_mass`` (151,): log10 M200c in Msun, not Msun/h;
- ``z`` (16,): redshift;
- ``dndlog10m`` (16, 151): comoving number density per dex of mass, 1 / (Mpc^3 dex), no h;
- ``provenance``: a text.

The sha256 printed at the end belongs in data/registry.toml.
"""

import hashlib
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "data" / "mass_function.npz"
PROVENANCE = (
    "Halo mass function of Tinker et al. (2008, ApJ 688, 709, doi:10.1086/591439), M200c, "
    "Planck 2018 cosmology of colossus (planck18: h = 0.6766, Om0 = 0.3111, sigma8 = 0.8102), "
    "computed with colossus by scripts/make_mass_function.py. Msun and comoving Mpc, without h."
)


def grids() -> tuple[np.ndarray, np.ndarray]:
    """The grids of log10 M200c / Msun, (151,), and redshift, (16,)."""
    return np.linspace(12.8, 15.8, 151), np.linspace(0.0, 0.30, 16)


def compute(log_mass: np.ndarray, z: np.ndarray) -> np.ndarray:
    """dn/dlog10M200c in 1 / (Mpc^3 dex), comoving; shape (len(z), len(log_mass))."""
    from colossus.cosmology import cosmology
    from colossus.lss import mass_function

    # persistence="" keeps colossus from writing a cache into the home folder.
    h = cosmology.setCosmology("planck18", persistence="").h
    rows = [
        mass_function.massFunction(
            10.0**log_mass * h,  # colossus takes Msun/h: M = 1 Msun is h Msun/h
            redshift,
            mdef="200c",
            model="tinker08",
            q_in="M",
            q_out="dndlnM",
        )
        for redshift in z
    ]
    # It answers per ln M and (Mpc/h)^3; one (Mpc/h)^-3 is h^3 Mpc^-3.
    return np.stack(rows) * np.log(10.0) * h**3


def main() -> None:
    log_mass, z = grids()
    np.savez(
        OUTPUT,
        log_mass=log_mass,
        z=z,
        dndlog10m=compute(log_mass, z),
        provenance=np.array(PROVENANCE),
    )
    content = OUTPUT.read_bytes()
    print(f"{OUTPUT}: size = {len(content)}, sha256 = {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
