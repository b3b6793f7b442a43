"""The stored coverage study: what a rank counts, and what the file holds."""

import jax
import numpy as np
import pytest

from dlcourse_utils import (
    diagnostics,
    galaxy_posteriors,
    galaxy_prior,
    registry,
    telescope,
    vi_coverage,
)
from dlcourse_utils.checks import engine


@pytest.mark.parametrize("level", [0.5, 0.68, 0.95])
def test_uniform_ranks_are_inside_as_often_as_the_level_says(level):
    every = np.arange(vi_coverage.SAMPLES + 1)
    assert vi_coverage.inside(every, level).mean() == pytest.approx(level, abs=1 / len(every))
    # The interval is central.
    np.testing.assert_array_equal(
        vi_coverage.inside(every, level), vi_coverage.inside(every, level)[::-1]
    )


def test_ranks_as_bytes_do_not_wrap():
    assert not vi_coverage.inside(np.array([0, 255], np.uint8), 0.9).any()
    assert vi_coverage.inside(np.array([127, 128], np.uint8), 0.02).all()


def test_groups_of_the_file():
    study = vi_coverage.load()
    assert {name: len(group.chi2) for name, group in study.items()} == {
        "prior": 104,
        "simulator": 64,
        "hubble": 12,
    }
    for name, group in study.items():
        for ranks in (group.guide, group.weighted):
            assert (ranks.latents is not None) == (name == "prior")
            assert ranks.pixels.shape == group.valid.shape == (len(group.chi2), 441)
        assert np.isfinite([group.chi2, group.pareto_k]).all()
        assert group.valid.all() == (name != "hubble")
    assert study["prior"].guide.latents.shape == (104, 33)


def test_the_claims_of_lesson_07():
    """Galaxies of the prior: latents 65 to 71 % and 93 to 97 %, pixels 62 to 74 %, chi^2 of 1."""
    own = vi_coverage.load()["prior"]
    assert 0.65 < vi_coverage.latents_inside(own.guide, 0.68).mean() < 0.71
    assert 0.93 < vi_coverage.latents_inside(own.guide, 0.95).mean() < 0.97
    assert 0.62 < vi_coverage.pixels_inside(own.guide, own.valid, 0.68).mean() < 0.74
    assert 0.95 < own.chi2.mean() < 1.05


def test_where_the_prior_is_wrong_intervals_hold_less():
    study = vi_coverage.load()
    share, error = zip(
        *(
            diagnostics.mean_with_error(vi_coverage.pixels_inside(group.guide, group.valid, 0.68))
            for group in (study["prior"], study["simulator"])
        ),
        strict=True,
    )
    assert share[0] - share[1] > 2 * np.hypot(*error)


def test_shares_count_known_pixels_only():
    pixels = np.array([[0, 128, 128, 255]], np.uint8)
    ranks = vi_coverage.Ranks(None, pixels)
    known = np.array([[True, True, False, False]])
    np.testing.assert_allclose(vi_coverage.pixels_inside(ranks, known, 0.5), [0.5])
    np.testing.assert_allclose(vi_coverage.pixels_inside(ranks, ~known, 0.9), [0.5])
    np.testing.assert_allclose(
        vi_coverage.latents_inside(vi_coverage.Ranks(pixels, pixels), 0.5), [0.5]
    )


@pytest.fixture(scope="module")
def lesson():
    return engine.namespace("07")


@pytest.mark.tfp_ranks
def test_the_gradient_of_the_bound_has_no_noise_where_the_guide_is_right(lesson, prior, operator):
    """Without data the posterior is the prior, and so is the guide at its start."""
    dim = galaxy_prior.DIM
    observe = jax.tree_util.Partial(telescope.apply, operator)
    blind = np.zeros((21, 21), np.float32), np.full((21, 21), np.inf, np.float32)
    data = *blind, (np.zeros(dim), np.eye(dim)), observe, prior
    params = {"flow": prior.params["flow"], "shift": np.zeros(dim), "scale": np.zeros((dim, dim))}

    def plain(params, key, y, variance, start, observe, prior):
        def joint(z):
            return lesson["log_joint"](z, y, variance, observe, prior)

        return lesson["elbo"](key, lesson["guide"](params, start), joint, (32, dim))

    def largest(bound):
        value, slope = jax.jit(jax.value_and_grad(bound))(params, jax.random.key(5), *data)
        return float(value), max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(slope))

    (value, slope), (of_plain, noisy) = largest(lesson["galaxy_elbo"]), largest(plain)
    assert abs(value) < 1e-4 and value == pytest.approx(of_plain, abs=1e-6)
    assert slope < 1e-3 < 0.1 < noisy  # single precision; one over the root of 32 samples


@pytest.mark.slow
@pytest.mark.tfp_ranks
def test_a_guide_trained_again_has_the_stored_ranks(lesson, prior, operator):
    """One galaxy of the prior, with the keys of the script; processors round in their own ways."""
    row, few = 3, 8
    observe = jax.tree_util.Partial(telescope.apply, operator)
    key = jax.random.key(vi_coverage.SEED)
    u, y = galaxy_posteriors.draw(key, 104, prior, operator, 3.0 * telescope.NOISE)
    variance = np.full((21, 21), 9.0 * telescope.NOISE**2, np.float32)
    start = galaxy_posteriors.laplace(y[:few], variance, operator, prior, starts=2)
    data = y[row], variance, (start.mode[row], start.factor[row]), observe, prior
    of_group = jax.random.fold_in(key, 1000)
    fit = lesson["fit_guide"](jax.random.fold_in(of_group, row), *data)
    z, *_ = lesson["draw"](fit.params, jax.random.fold_in(of_group, 5000 + row), *data)
    truth = np.asarray(prior.from_base(u[row : row + 1]))[0]
    rank = np.sum(np.asarray(z)[: vi_coverage.SAMPLES] < truth, axis=0)
    stored = vi_coverage.load()["prior"].guide.latents[row].astype(int)
    # The samples have the same noise, so that ranks differ only by what 600 steps make of rounding:
    # a tenth of sigma is at most 4 % of the ranks.
    assert np.abs(rank - stored).max() <= 0.04 * vi_coverage.SAMPLES


@pytest.fixture
def changed(tmp_path):
    """A copy of the file with one array put in place of another."""
    with np.load(registry.path("vi_coverage.npz")) as file:
        whole = {name: file[name] for name in file.files}

    def change(**arrays):
        path = tmp_path / "changed.npz"
        np.savez(path, **{k: v for k, v in (whole | arrays).items() if v is not None})
        return path

    return change


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"seed": 3}, "its seed is 3, not 207"),
        ({"prior_guide_latents": None}, r"must have shape \(104, 33\)"),
        ({"simulator_weighted_pixels": np.zeros((64, 21), np.uint8)}, r"shape \(64, 441\)"),
        ({"hubble_guide_pixels": np.zeros((12, 441))}, "must hold bytes"),
        ({"prior_valid": np.ones((2, 441), bool)}, "another shape than the ranks"),
        ({"prior_chi2": np.full(104, np.nan)}, "not finite"),
        ({"hubble_pareto_k": None}, "hubble_pareto_k"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed, arrays, said):
    with pytest.raises(vi_coverage.CoverageError, match=said):
        vi_coverage.load(changed(**arrays))


def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path):
    whole = registry.path("vi_coverage.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for name, content in {
        "flipped.npz": bytes(flipped),
        "cut.npz": whole[: len(whole) // 2],
        "empty.npz": b"",
        "text.npz": b"no archive",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(vi_coverage.CoverageError, match="fresh copy of the course"):
            vi_coverage.load(tmp_path / name)
    with pytest.raises(vi_coverage.CoverageError, match="fresh copy of the course"):
        vi_coverage.load(tmp_path / "missing.npz")
