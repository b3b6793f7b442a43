"""Real galaxy clusters: 101 of the S-PLUS survey, with the features of the mock catalogue.

Werner et al. (2023, "S-PLUS DR1 galaxy clusters and groups catalogue using PzWav", MNRAS,
arXiv:2211.04243) list the clusters and the galaxies with spectra inside R200 of each. The files
have no stated licence, so they are fetched (`dlcourse_utils.registry`), not shipped. Distances and
magnitudes there are for H0 = 70 km/s/Mpc, Omega_m = 0.3.

What was measured on these files, and what follows from it:

- **Dispersion and number of velocities.** Column 9 is the dispersion of the members inside R200,
  whose number is column 27, not of the larger number in column 8: in the 24 clusters whose list of
  members is complete and where the two numbers differ by half or more, the gapper estimate from
  the members inside R200 gives column 9 to 0.02 dex. So ``log_n`` is from column 27.
- **Double detections.** 15 members appear twice: same redshift, less than 1 arcsec apart. They
  are counted once in the richness.
- **Depth.** Galaxies are listed to r = 19, but of the members there are 112 in the quarter of a
  magnitude before r = 17.75 and 59 in the one before 18.75, where a luminosity function would
  still rise: the spectra come mostly from the SDSS main galaxy sample, r < 17.77 (Strauss et al.
  2002, AJ 124, 1810, doi:10.1086/342343). We count members brighter than M_lim = 17.77 - DM(z),
  or -20 where that is brighter (z < 0.079), and scale the count by the ratio of two integrals of
  a Schechter function, down to -20 and down to M_lim. The factor is 1.75 at the median, and 8.1
  at most, at z = 0.19. No K correction: r - M_r - DM has the median 0.02.
- **Luminosity function.** M* = -22.05, alpha = -1.15, a maximum-likelihood fit to the 743 members
  above the limit (Sandage, Tammann & Yahil 1979, ApJ 232, 352, doi:10.1086/157295). Spectra in
  rich clusters give M*_R - 5 log h = -21.14 +- 0.17, so -21.9 in R for h = 0.7, and
  alpha = -1.21 +- 0.08 (Christlein & Zabludoff 2003, ApJ 591, 764, doi:10.1086/375529). The fit to
  these files is used because brightest galaxies and the errors of M_r, which both make the bright
  end shallower, are in it. M* = -21.6, alpha = -1.2 would add 0.04 dex to the richness at
  z = 0.10 and 0.16 dex at z = 0.15.
- **Incompleteness.** Not corrected: fibres cannot be closer than 55 arcsec, so that SDSS misses
  galaxies where they crowd. Above 10^13.5 Msun the richness is 0.09 dex below the relation
  19 (M200 / 1e14 Msun)^0.92 of the mock catalogue (median), with a scatter of 0.28 dex.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcourse_utils import registry
from dlcourse_utils.errors import CourseError

SPECTROSCOPIC_LIMIT = 17.77  # apparent r
RICHNESS_LIMIT = -20.0  # M_r, h = 0.7
SCHECHTER = (-22.05, -1.15)  # M*, alpha
MIN_COUNTED = 3  # galaxies: a richness from fewer is known to worse than 60 %
MIN_VELOCITIES = 5  # the fewest in the mock catalogue

_SPEED_OF_LIGHT = 299792.458  # km/s
_HUBBLE, _OMEGA_M = 70.0, 0.3  # of the catalogue
_SAME_GALAXY = 1.0 / 3600.0  # degrees

_CLUSTER_HEADER = (
    "# id ra dec z_spec Veli Velf Nwcls Nmemb Vdisp Vdisp_lo Vdisp_hi R500 R500_lo R500_hi "
    "M500 M500_lo M500_hi R200 R200_lo R200_hi M200 M200_lo M200_hi znew znew-err Rap Nmemb-wR200 "
    "SN"
)
_CLUSTER_COLUMNS, _MEMBER_COLUMNS = 28, 44
_MEMBER_ID = 43  # the only column that is not a number


class DataFileError(CourseError):
    """A data file does not read as it should; the text names the file and the line."""


@dataclass(frozen=True)
class Galaxies:
    """The g galaxies with spectra inside R200 of some cluster, all arrays (g,).

    ``cluster``: index of the cluster in `SplusClusters`; ``radius``: projected distance from its
    centre, Mpc; ``velocity``: line-of-sight velocity relative to it, km/s; ``member``: True for a
    member, False for a galaxy before or behind it (velocities up to 140,000 km/s);
    ``abs_mag``: M_r, mag.
    """

    cluster: np.ndarray
    radius: np.ndarray
    velocity: np.ndarray
    member: np.ndarray
    abs_mag: np.ndarray


@dataclass(frozen=True)
class SplusClusters:
    """The n = 101 clusters in the order of the catalogue; all arrays are (n,).

    ``log_richness``: log10 of the number of members with M_r < -20 inside R200, corrected for the
    survey's depth; NaN where no member is bright enough to be counted. ``log_sigma``: log10 of
    the line-of-sight velocity dispersion in km/s. ``log_n``: log10 of the number of velocities
    behind it. ``z``: redshift. ``log_mass``: log10 of the virial M200 in Msun, made from
    the dispersion and so a comparison, not a truth; ``log_mass_low``, ``log_mass_high``: its
    errors in dex, both positive, as M200's own errors over M200 ln 10. ``r200``: Mpc.

    ``counted``: how many galaxies the richness is made from; ``depth_factor``: what their number
    was multiplied by. ``usable``: True where at least 3 galaxies were counted and 5 velocities
    measured; ``reason``: why not, in words, empty where usable. ``id``: the catalogue's, a text.
    """

    id: np.ndarray
    log_richness: np.ndarray
    log_sigma: np.ndarray
    log_n: np.ndarray
    z: np.ndarray
    log_mass: np.ndarray
    log_mass_low: np.ndarray
    log_mass_high: np.ndarray
    r200: np.ndarray
    counted: np.ndarray
    depth_factor: np.ndarray
    usable: np.ndarray
    reason: tuple[str, ...]
    galaxies: Galaxies

    @property
    def features(self) -> np.ndarray:
        """(n, 4): log_richness, log_sigma, log_n, z, as in the mock catalogue."""
        return np.stack([self.log_richness, self.log_sigma, self.log_n, self.z], axis=-1)


def load_splus(
    clusters_path: str | Path | None = None, members_path: str | Path | None = None
) -> SplusClusters:
    """Read the clusters and their galaxies, and make the features of the mock catalogue.

    Without paths the files come from the registry, which may fetch them (`OfflineError` if that
    fails). Raises `DataFileError` naming file and line if a file is damaged or unphysical.
    """
    clusters_path = Path(clusters_path or registry.path("splus_clusters.dat"))
    members_path = Path(members_path or registry.path("splus_members.dat"))
    ids, table = _read_clusters(clusters_path)
    cluster, sky, galaxies = _read_members(members_path, ids)

    z, mass = table[:, 3], table[:, 20]
    limit = np.minimum(SPECTROSCOPIC_LIMIT - distance_modulus(z), RICHNESS_LIMIT)
    bright = galaxies.member & (galaxies.abs_mag < limit[cluster])
    bright &= ~_repeated(cluster, sky, galaxies)
    counted = np.bincount(cluster[bright], minlength=len(ids))
    depth_factor = schechter_integral(RICHNESS_LIMIT) / schechter_integral(limit)
    with np.errstate(divide="ignore"):
        log_richness = np.where(counted > 0, np.log10(counted * depth_factor), np.nan)

    velocities = table[:, 26]
    reason = tuple(map(_reason, counted, limit, velocities))
    error = np.abs(table[:, 21:23]) / (mass[:, None] * np.log(10.0))
    return SplusClusters(
        id=np.array(ids),
        log_richness=log_richness,
        log_sigma=np.log10(table[:, 8]),
        log_n=np.log10(velocities),
        z=z,
        log_mass=np.log10(mass) + 14.0,
        log_mass_low=error[:, 0],
        log_mass_high=error[:, 1],
        r200=table[:, 17],
        counted=counted,
        depth_factor=depth_factor,
        usable=np.array([not text for text in reason]),
        reason=reason,
        galaxies=galaxies,
    )


def distance_modulus(z: np.ndarray) -> np.ndarray:
    """m - M in mag at redshift z, (n,), for H0 = 70 km/s/Mpc and Omega_m = 0.3, flat."""
    steps = np.linspace(0.0, 1.0, 201)
    rate = np.sqrt(_OMEGA_M * (1.0 + z[:, None] * steps) ** 3 + 1.0 - _OMEGA_M)
    comoving = _SPEED_OF_LIGHT / _HUBBLE * z * np.trapezoid(1.0 / rate, steps, axis=1)
    return 5.0 * np.log10(comoving * (1.0 + z) * 1e5)  # Mpc in units of 10 pc


def schechter_integral(
    magnitude: np.ndarray | float, schechter: tuple[float, float] = SCHECHTER
) -> np.ndarray:
    """Number of galaxies brighter than ``magnitude`` (any shape), in units of phi*.

    The integral of x^alpha exp(-x) over luminosity x = L / L*, ``schechter`` = (M*, alpha)
    (Schechter 1976, ApJ 203, 297, doi:10.1086/154079).
    """
    bright, alpha = schechter
    log_x = np.linspace(np.log(1e-4), np.log(60.0), 4001)
    rate = np.exp((alpha + 1.0) * log_x - np.exp(log_x))
    pieces = 0.5 * (rate[1:] + rate[:-1]) * np.diff(log_x)
    above = np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
    return np.interp(0.4 * np.log(10.0) * (bright - np.asarray(magnitude)), log_x, above)


def _reason(counted: int, limit: float, velocities: float) -> str:
    if counted < MIN_COUNTED:
        return f"members brighter than M_r = {limit:.1f}: {counted}, at least {MIN_COUNTED} needed"
    if velocities < MIN_VELOCITIES:
        return f"members with a velocity: {velocities:.0f}, at least {MIN_VELOCITIES} needed"
    return ""


def _repeated(cluster: np.ndarray, sky: np.ndarray, galaxies: Galaxies) -> np.ndarray:
    """True for the fainter of two entries of one galaxy: same cluster and redshift, same place.

    ``sky`` (g, 3) holds RA and Dec in degrees and the redshift.
    """
    repeated = np.zeros(len(cluster), dtype=bool)
    order = np.lexsort((galaxies.abs_mag, sky[:, 2], cluster))
    for position, a in enumerate(order):
        for b in order[position + 1 :]:
            if cluster[a] != cluster[b] or sky[a, 2] != sky[b, 2]:
                break
            east = (sky[a, 0] - sky[b, 0] + 180.0) % 360.0 - 180.0
            east *= np.cos(np.deg2rad(sky[a, 1]))
            if np.hypot(east, sky[a, 1] - sky[b, 1]) < _SAME_GALAXY:
                repeated[b] = True
    return repeated


# --- reading ----------------------------------------------------------------------------------


def _read_clusters(path: Path) -> tuple[list[str], np.ndarray]:
    lines = _lines(path)
    # The header of the published file is broken inside a name: "M2", new line, "00".
    for start in (1, 2):
        if "".join(lines[:start]).split() == _CLUSTER_HEADER.split():
            break
    else:
        raise _damaged(path, 1, "the header is not that of the S-PLUS cluster list")
    ids, rows = [], []
    for number, line in enumerate(lines[start:], start + 1):
        fields = _fields(path, number, line, _CLUSTER_COLUMNS)
        row = _numbers(path, number, fields)
        _demand(path, number, 0.0 < row[3] < 1.0, f"redshift {fields[3]}, expected 0 to 1")
        _demand(path, number, row[8] > 0.0, f"velocity dispersion {fields[8]}, expected above 0")
        _demand(path, number, row[17] > 0.0, f"R200 {fields[17]}, expected above 0")
        _demand(path, number, row[20] > 0.0, f"M200 {fields[20]}, expected above 0")
        whole = row[26] == int(row[26]) and row[26] >= 2
        _demand(path, number, whole, f"number of members {fields[26]}, expected 2, 3, ...")
        _demand(path, number, fields[0] not in ids, f"cluster {fields[0]} is listed twice")
        ids.append(fields[0])
        rows.append(row)
    if not rows:
        raise _damaged(path, len(lines), "no cluster after the header")
    return ids, np.array(rows)


def _read_members(path: Path, ids: list[str]) -> tuple[np.ndarray, np.ndarray, Galaxies]:
    lines = _lines(path)
    index = {name: i for i, name in enumerate(ids)}
    cluster, rows = [], []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            continue
        fields = _fields(path, number, line, _MEMBER_COLUMNS)
        row = _numbers(path, number, fields[:_MEMBER_ID])
        _demand(path, number, row[19] >= 0.0, f"radius {fields[19]}, expected 0 or more")
        _demand(path, number, row[21] in (0.0, 1.0), f"member flag {fields[21]}, expected 0 or 1")
        sensible = -30.0 < row[25] < -5.0
        _demand(path, number, sensible, f"M_r {fields[25]}, expected -30 to -5")
        known = fields[38] in index
        _demand(path, number, known, f"cluster {fields[38]} is not in the list of clusters")
        cluster.append(index[fields[38]])
        rows.append(row)
    if lacking := sorted(set(ids) - {ids[i] for i in cluster}):
        raise _damaged(path, len(lines), f"the file ends without galaxies of cluster {lacking[0]}")
    table = np.array(rows)
    where = np.array(cluster)
    galaxies = Galaxies(where, table[:, 19], table[:, 20], table[:, 21] == 0.0, table[:, 25])
    return where, table[:, [0, 1, 14]], galaxies


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise _damaged(path, number, "a byte that is not text") from None
    except OSError as error:
        raise DataFileError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions."
        ) from None
    lines = text.splitlines()
    if not lines:
        raise _damaged(path, 1, "the file is empty")
    if not text.endswith("\n"):
        raise _damaged(path, len(lines), "the last line is cut off")
    return lines


def _fields(path: Path, number: int, line: str, expected: int) -> list[str]:
    fields = line.split()
    _demand(path, number, len(fields) == expected, f"{len(fields)} columns, expected {expected}")
    return fields


def _numbers(path: Path, number: int, fields: list[str]) -> list[float]:
    row = []
    for column, field in enumerate(fields, 1):
        try:
            value = float(field)
        except ValueError:
            value = None
        finite = value is not None and np.isfinite(value)
        _demand(path, number, finite, f"{field!r} in column {column}, expected a finite number")
        row.append(value)
    return row


def _demand(path: Path, number: int, holds: bool, what: str) -> None:
    if not holds:
        raise _damaged(path, number, what)


def _damaged(path: Path, number: int, what: str) -> DataFileError:
    return DataFileError(
        f"{path}:{number}: {what}; the file is damaged: delete it and fetch it again."
    )
