"""Train the guide of lesson 07 on many galaxies and write data/vi_coverage.npz.

For each galaxy the rank of the truth among 255 samples of its guide, for every latent and for one
pixel in nine. On galaxies of the prior ranks would be uniform, were the guide the posterior. The
same for 255 samples that are drawn from 4,000 of the guide by their importance weights. Three
groups: galaxies drawn from the prior, galaxies of the simulator, and those of Hubble, which the
registry fetches. The guide, its training and the samples are those of the solution of lesson 07,
run from its source.

    python scripts/make_vi_coverage.py

takes 40 minutes on two cores. Without Hubble's files it says so, and ends.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import (
    diagnostics,
    env,
    galaxy_posteriors,
    galaxy_prior,
    telescope,
)
from dlcourse_utils.checks import engine
from dlcourse_utils.datasets import galaxies, real_galaxies
from dlcourse_utils.vi_coverage import SAMPLES, SEED

NOISE = 3.0 * telescope.NOISE  # nJy in a pixel of the survey
FROM_PRIOR, FROM_SIMULATOR = 104, 64
CATALOGUE = 4352  # galaxies of the simulator that are drawn, of which the first are taken
PARTS = 4  # of 1,000 samples, for the weights
NINTH = (slice(1, None, 3), slice(1, None, 3))  # the pixels of an image that are ranked
OUTPUT = Path(__file__).resolve().parents[1] / "data" / "vi_coverage.npz"


def ranks(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many of the samples (s, ...) lie below the truth (...)."""
    return np.sum(samples < truth[None], axis=0).astype(np.uint8)


def main() -> None:
    env.start()
    began = time.monotonic()
    lesson = engine.namespace("07")
    prior = galaxy_prior.load()
    kernel = telescope.difference_kernel(telescope.moffat())
    operator = telescope.operator(kernel)
    observe = jax.tree_util.Partial(telescope.apply, operator)
    decode = jax.jit(galaxy_prior.GalaxyPrior.decode)
    chi2_of = jax.jit(lesson["predictive_chi2"])

    key = jax.random.key(SEED)
    u, y_prior = galaxy_posteriors.draw(key, FROM_PRIOR, prior, operator, NOISE)
    z_prior = np.asarray(prior.from_base(jnp.asarray(u)))
    catalogue = galaxies.population(jax.random.fold_in(key, 1), CATALOGUE)
    x_simulator = galaxies.render(jax.tree.map(lambda a: a[:FROM_SIMULATOR], catalogue))
    hst = real_galaxies.load_hst(limit=23.5)
    groups = {
        "prior": (np.asarray(decode(prior, z_prior)), y_prior),
        "simulator": (np.asarray(x_simulator), None),
        "hubble": (np.asarray(hst.images), None),
    }
    out: dict[str, np.ndarray] = {}
    for group, (x, y) in groups.items():
        if y is None:
            seed = jax.random.fold_in(key, 2 + list(groups).index(group))
            y = np.asarray(telescope.observe_noisy(seed, x, kernel, NOISE**2))
        variance = np.full(y.shape[1:], NOISE**2, np.float32)
        starts = galaxy_posteriors.laplace(y, variance, operator, prior, starts=2)
        of_group = jax.random.fold_in(key, 1000 + list(groups).index(group))
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        for i in range(len(y)):
            start = starts.mode[i], starts.factor[i]
            data = (y[i], variance, start, observe, prior)
            fit = lesson["fit_guide"](jax.random.fold_in(of_group, i), *data)
            draws = [
                lesson["draw"](
                    fit.params, jax.random.fold_in(of_group, 5000 + 200 * part + i), *data
                )
                for part in range(PARTS)
            ]
            z, log_p, log_q = (np.concatenate(parts) for parts in zip(*draws, strict=True))
            weight = np.exp(log_p - log_q - np.max(log_p - log_q)).astype(float)
            rng, known = np.random.default_rng(i), np.ones(x[i].shape, bool)
            by_weight = z[rng.choice(len(z), SAMPLES, p=weight / weight.sum())]
            for kind, some_z in {"guide": z[:SAMPLES], "weighted": by_weight}.items():
                images = np.asarray(decode(prior, some_z))
                if group == "hubble":
                    # The image that stands for the truth has noise of its own. Where that is larger
                    # than the width of the posterior, intervals are nearly right, whatever it is.
                    if kind == "guide":
                        known = hst.valid[i] & (images.std(axis=0) > hst.noise[i])
                    eps = rng.standard_normal(images.shape, np.float32)
                    images = images + hst.noise[i] * eps
                if group == "prior":
                    found[f"{kind}_latents"].append(ranks(some_z, z_prior[i]))
                found[f"{kind}_pixels"].append(ranks(images[:, *NINTH], x[i][NINTH]).ravel())
            found["valid"].append(known[NINTH].ravel())
            chi2 = [chi2_of(part[0], y[i], variance, observe, prior) for part in draws]
            found["chi2"].append(np.mean(chi2))
            found["pareto_k"].append(diagnostics.pareto_k(log_p - log_q))
            print(
                f"{group} {i}: k {found['pareto_k'][-1]:.2f}, chi2 {found['chi2'][-1]:.3f}",
                flush=True,
            )
        for name, rows in found.items():
            stacked = np.stack(rows)
            one = stacked.dtype in (np.uint8, bool)
            out[f"{group}_{name}"] = stacked if one else stacked.astype(np.float32)
    np.savez_compressed(OUTPUT, seed=SEED, **out)
    size = OUTPUT.stat().st_size / 1e3
    print(f"{OUTPUT.name}: {size:.0f} kB, {(time.monotonic() - began) / 60:.0f} min")


if __name__ == "__main__":
    main()
