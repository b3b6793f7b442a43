"""The stored coverage study: what a rank counts, and what the file holds."""

import numpy as np
import pytest

from dlcourse_utils import registry, vi_coverage


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
    assert set(study) == set(vi_coverage.GROUPS)
    assert {name: len(group.pixels) for name, group in study.items()} == {
        "prior": 104,
        "simulator": 64,
        "hubble": 12,
    }
    for name, group in study.items():
        assert (group.latents is not None) == (name == "prior")
        assert group.pixels.shape == group.valid.shape == (len(group.chi2), 441)
        assert np.isfinite([group.chi2, group.pareto_k, group.seconds, group.flux]).all()
        assert group.valid.all() == (name != "hubble")
    assert study["prior"].latents.shape == (104, 33)


def test_latents_of_the_prior_are_covered():
    """The claim of lesson 07: 65 to 71 %, and 93 to 97 %."""
    latents = vi_coverage.load()["prior"].latents
    assert 0.65 < vi_coverage.inside(latents, 0.68).mean() < 0.71
    assert 0.93 < vi_coverage.inside(latents, 0.95).mean() < 0.97


def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path):
    whole = registry.path("vi_coverage.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    empty = tmp_path / "empty.npz"
    np.savez(empty, prior_pixels=np.zeros((2, 21, 21)))
    for path in (cut, empty, tmp_path / "missing.npz"):
        with pytest.raises(vi_coverage.CoverageError, match="fresh copy of the course"):
            vi_coverage.load(path)
