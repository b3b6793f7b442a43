"""The loader of the S-PLUS clusters: made-up files here, the real ones where they are at hand.

``tests/data`` holds four made-up clusters: 1 near and rich, on both sides of RA = 0, with a galaxy
listed twice; 2 far, so that its count is scaled; 3 with too few bright members; 4 with too few
velocities. Each has a bright galaxy in front or behind.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from dlcourse_utils import registry
from dlcourse_utils.datasets import splus

DATA = Path(__file__).parent / "data"
CLUSTERS, MEMBERS = DATA / "splus_clusters_small.dat", DATA / "splus_members_small.dat"


@pytest.fixture(scope="module")
def small():
    return splus.load_splus(CLUSTERS, MEMBERS)


def test_features_and_units(small):
    assert list(small.id) == ["00001", "00002", "00003", "00004"]
    np.testing.assert_allclose(10**small.log_sigma, [500, 400, 300, 200])
    np.testing.assert_allclose(10**small.log_n, [9, 7, 6, 4])
    np.testing.assert_allclose(small.z, [0.05, 0.15, 0.12, 0.06])
    np.testing.assert_allclose(10 ** (small.log_mass - 14), [1.5, 0.8, 0.4, 0.1])
    np.testing.assert_allclose(small.log_mass_low, 0.3 / np.log(10))
    np.testing.assert_allclose(small.log_mass_high, 0.36 / np.log(10))
    np.testing.assert_allclose(small.r200, [1.0, 0.8, 0.6, 0.4])
    assert small.features.shape == (4, 4)
    np.testing.assert_array_equal(small.features[:, 0], small.log_richness)
    np.testing.assert_array_equal(small.features[:, 3], small.z)


def test_richness_counts_each_bright_member_once_and_corrects_for_depth(small):
    # Cluster 1 is complete to -20: six members, the second entry of the first one left out.
    # Cluster 2, at DM = 39.27, is complete to -21.5, cluster 3 to -20.96 (DM = 38.73).
    assert list(small.counted) == [6, 4, 2, 3]
    assert small.depth_factor[0] == small.depth_factor[3] == 1.0
    assert 2.0 < small.depth_factor[2] < small.depth_factor[1] < 5.0
    np.testing.assert_allclose(10**small.log_richness, small.counted * small.depth_factor)


def test_unusable_clusters_stay_and_say_why(small):
    assert list(small.usable) == [True, True, False, False]
    assert small.reason[:2] == ("", "")
    assert small.reason[2] == "members brighter than M_r = -21.0: 2, at least 3 needed"
    assert small.reason[3] == "members with a velocity: 4, at least 5 needed"


def test_no_bright_member_gives_nan_and_no_warning(tmp_path):
    text = MEMBERS.read_text()
    lines = [line for line in text.splitlines() if line.startswith("#") or _is_faint(line)]
    faint = tmp_path / "members.dat"
    faint.write_text("\n".join(lines) + "\n")
    clusters = splus.load_splus(CLUSTERS, faint)
    assert clusters.counted[0] == 0 and np.isnan(clusters.log_richness[0])
    assert not clusters.usable[0]


def _is_faint(line: str) -> bool:
    fields = line.split()
    return fields[38] != "00001" or fields[21] == "1" or float(fields[25]) > -20.0


def test_galaxies_for_the_phase_space_figure(small):
    g = small.galaxies
    assert len({len(getattr(g, f.name)) for f in dataclasses.fields(g)}) == 1
    assert np.bincount(g.cluster).tolist() == [10, 7, 5, 5]
    assert (~g.member).sum() == 4 and (g.velocity[~g.member] == 15000.0).all()
    first = (g.cluster == 0) & g.member
    assert g.radius[first].max() == pytest.approx(0.45)
    assert np.abs(g.velocity[first]).max() < 2000.0


def test_loading_twice_gives_the_same(small):
    again = splus.load_splus(str(CLUSTERS), str(MEMBERS))
    np.testing.assert_array_equal(small.features, again.features)


def test_distance_modulus_for_the_catalogue_cosmology():
    from scipy.integrate import quad

    z = np.array([0.02, 0.1, 0.2])
    comoving = [quad(lambda x: (0.3 * (1 + x) ** 3 + 0.7) ** -0.5, 0, end)[0] for end in z]
    expected = 5 * np.log10(299792.458 / 70 * np.array(comoving) * (1 + z) * 1e5)
    np.testing.assert_allclose(splus.distance_modulus(z), expected, atol=1e-6)


def test_schechter_integral():
    from scipy.integrate import quad

    for limit in (-20.0, -22.0, -24.0):
        x = 10 ** (0.4 * (-22.05 - limit))
        exact = quad(lambda t: t**-1.15 * np.exp(-t), x, 60)[0]
        assert splus.schechter_integral(limit) == pytest.approx(exact, rel=1e-4)


# --- damaged files ----------------------------------------------------------------------------


def _damaged(tmp_path, source: Path, change) -> tuple[str, Path]:
    """The sentence for a copy of ``source`` after ``change(lines)``, and the copy."""
    lines = source.read_text().splitlines(keepends=True)
    copy = tmp_path / source.name
    copy.write_text("".join(change(lines)))
    given = (copy, MEMBERS) if source == CLUSTERS else (CLUSTERS, copy)
    before = copy.read_bytes()
    with pytest.raises(splus.DataFileError) as caught:
        splus.load_splus(*given)
    assert copy.read_bytes() == before and list(tmp_path.iterdir()) == [copy]
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text, copy


def _set(number: int, column: int, value: str):
    """Replace one field; line and column counted from 1."""

    def change(lines: list[str]) -> list[str]:
        fields = lines[number - 1].split()
        fields[column - 1 : column] = [value] if value else []
        lines[number - 1] = " ".join(fields) + "\n"
        return lines

    return change


CLUSTER_FAULTS = {
    "nan": (_set(4, 9, "nan"), 4, "'nan' in column 9, expected a finite number"),
    "inf": (_set(4, 21, "inf"), 4, "'inf' in column 21, expected a finite number"),
    "word": (_set(3, 12, "0.9x"), 3, "'0.9x' in column 12, expected a finite number"),
    "few columns": (_set(5, 28, ""), 5, "27 columns, expected 28"),
    "many columns": (_set(5, 28, "1 2"), 5, "29 columns, expected 28"),
    "sigma": (_set(3, 9, "0.0"), 3, "velocity dispersion 0.0, expected above 0"),
    "redshift": (_set(6, 4, "1.2"), 6, "redshift 1.2, expected 0 to 1"),
    "negative redshift": (_set(6, 4, "-0.1"), 6, "redshift -0.1, expected 0 to 1"),
    "mass": (_set(4, 21, "-2"), 4, "M200 -2, expected above 0"),
    "radius": (_set(4, 18, "0"), 4, "R200 0, expected above 0"),
    "number": (_set(4, 27, "2.5"), 4, "number of members 2.5, expected 2, 3, ..."),
    "twice": (_set(4, 1, "00001"), 4, "cluster 00001 is listed twice"),
    "header": (_set(2, 2, "M500_lo"), 1, "the header is not that of"),
    "no header": (lambda lines: lines[2:], 1, "the header is not that of"),
    "only header": (lambda lines: lines[:2], 2, "no cluster after the header"),
    "empty": (lambda lines: [], 1, "the file is empty"),
    "blank line": (lambda lines: [*lines, "\n"], 7, "0 columns, expected 28"),
    "cut": (lambda lines: [*lines[:-1], lines[-1][:60]], 6, "the last line is cut off"),
    "cut in the last number": (
        lambda lines: [*lines[:-1], lines[-1][:-2]],
        6,
        "the last line is cut off",
    ),
}
MEMBER_FAULTS = {
    "nan": (_set(4, 20, "NaN"), 4, "'NaN' in column 20, expected a finite number"),
    "overflow": (_set(4, 21, "1e999"), 4, "'1e999' in column 21, expected a finite number"),
    "word": (_set(2, 26, "--"), 2, "'--' in column 26, expected a finite number"),
    "columns": (_set(28, 44, ""), 28, "43 columns, expected 44"),
    "flag": (_set(3, 22, "2"), 3, "member flag 2, expected 0 or 1"),
    "radius": (_set(3, 20, "-1"), 3, "radius -1, expected 0 or more"),
    "magnitude": (_set(3, 26, "99.0"), 3, "M_r 99.0, expected -30 to -5"),
    "cluster": (_set(9, 39, "00009"), 9, "cluster 00009 is not in the list of clusters"),
    "empty": (lambda lines: [], 1, "the file is empty"),
    "only header": (lambda lines: lines[:1], 1, "without galaxies of cluster 00001"),
    "cut at a line": (lambda lines: lines[:20], 20, "without galaxies of cluster 00004"),
    "cut": (lambda lines: [*lines[:-1], lines[-1].rstrip()], 28, "the last line is cut off"),
}


@pytest.mark.parametrize("fault", CLUSTER_FAULTS)
def test_damaged_clusters(tmp_path, fault):
    change, line, says = CLUSTER_FAULTS[fault]
    text, copy = _damaged(tmp_path, CLUSTERS, change)
    assert text.startswith(f"{copy}:{line}: ") and says in text


@pytest.mark.parametrize("fault", MEMBER_FAULTS)
def test_damaged_members(tmp_path, fault):
    change, line, says = MEMBER_FAULTS[fault]
    text, copy = _damaged(tmp_path, MEMBERS, change)
    assert text.startswith(f"{copy}:{line}: ") and says in text


def test_bytes_that_are_no_text(tmp_path):
    copy = tmp_path / "clusters.dat"
    copy.write_bytes(CLUSTERS.read_bytes()[:700] + b"\xff\xfe")
    with pytest.raises(splus.DataFileError, match=r"clusters.dat:4: a byte that is not text"):
        splus.load_splus(copy, MEMBERS)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(splus.DataFileError, match="cannot be read"):
        splus.load_splus(tmp_path / "none.dat", MEMBERS)


@pytest.mark.usefixtures("offline")
def test_offline_is_one_sentence():
    with pytest.raises(registry.OfflineError, match="the lesson goes on without it"):
        splus.load_splus()


# --- the real files ---------------------------------------------------------------------------

real = pytest.mark.skipif(
    not os.environ.get("DLCOURSE_DATA"), reason="DLCOURSE_DATA is not set: no real data here"
)


@pytest.fixture(scope="module")
def clusters():
    return splus.load_splus()


@real
def test_real_clusters(clusters):
    assert len(clusters.id) == 101 and len(clusters.galaxies.radius) == 1838
    assert clusters.galaxies.member.sum() == 1078
    assert clusters.usable.sum() == 61
    assert np.isfinite(clusters.features[clusters.usable]).all()
    assert (clusters.counted == 0).sum() == 2
    assert 0.02 < clusters.z.min() < clusters.z.max() < 0.19
    assert np.median(clusters.depth_factor) == pytest.approx(1.75, abs=0.01)
    assert clusters.depth_factor.max() == pytest.approx(8.1, abs=0.1)


@real
def test_real_number_of_velocities_is_that_inside_r200(clusters):
    """Why ``log_n`` is column 27: its galaxies give the dispersion of the catalogue."""
    counts = np.loadtxt(registry.path("splus_clusters.dat"), usecols=(7, 26), skiprows=2)
    g = clusters.galaxies
    ratio = []
    for i, (wide, inside) in enumerate(counts):
        velocity = np.sort(g.velocity[(g.cluster == i) & g.member])
        if len(velocity) == inside and wide >= 1.5 * inside:
            k = np.arange(1, len(velocity))
            gaps = k * (len(velocity) - k) * np.diff(velocity)
            gapper = np.sqrt(np.pi) * gaps.sum() / (len(velocity) * (len(velocity) - 1))
            ratio.append(np.log10(gapper) - clusters.log_sigma[i])
    assert len(ratio) == 24 and np.std(ratio) < 0.02


@real
def test_real_luminosity_function(clusters):
    """The Schechter function of the depth correction is the most likely one for these members."""
    from scipy.optimize import minimize

    g = clusters.galaxies
    depth = splus.SPECTROSCOPIC_LIMIT - splus.distance_modulus(clusters.z)[g.cluster]
    lines = registry.path("splus_members.dat").read_text().splitlines()[1:]
    sky = np.array([[float(line.split()[c]) for c in (0, 1, 14)] for line in lines])
    used = g.member & (g.abs_mag < depth) & ~splus._repeated(g.cluster, sky, g)
    assert used.sum() == 743

    def surprise(parameters):
        log_x = 0.4 * np.log(10) * (parameters[0] - g.abs_mag[used])
        above = splus.schechter_integral(depth[used], tuple(parameters))
        return -np.sum((parameters[1] + 1) * log_x - np.exp(log_x) - np.log(above))

    best = minimize(surprise, (-21.5, -1.0), method="Nelder-Mead").x
    np.testing.assert_allclose(best, splus.SCHECHTER, atol=0.02)


@real
def test_real_richness_beside_the_mock_relation(clusters):
    above = clusters.usable & (clusters.log_mass > 13.5)
    expected = np.log10(19.0) + 0.92 * (clusters.log_mass - 14.0)
    difference = (clusters.log_richness - expected)[above]
    assert above.sum() == 39
    assert np.median(difference) == pytest.approx(-0.092, abs=0.01)
    assert difference.std() == pytest.approx(0.28, abs=0.01)
