"""Train the prior over galaxies and make data/galaxy_prior.npz.

    python scripts/train_galaxy_prior.py

takes about 25 minutes on two cores. The seed fixes everything but the rounding of the machine. The
sha256 printed at the end belongs in data/registry.toml.

First the auto-encoder: its loss is the negative ELBO of a galaxy of magnitude 21.5 at Hubble's
depth, whatever the galaxy's own magnitude, so that faint shapes are learned as well as bright ones.
Each batch is turned and mirrored at random. Then the flow, by maximum likelihood on draws of the
encoder and the magnitudes of the same galaxies.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from dlcourse_utils import galaxy_prior, photometry
from dlcourse_utils.datasets import galaxies
from dlcourse_utils.galaxy_prior import Decoder, Encoder, GalaxyPrior, Params

OUTPUT = Path(__file__).resolve().parents[1] / "data" / "galaxy_prior.npz"
SEED, HELD_OUT = 6, 4_096
VAE_STEPS, VAE_BATCH, VAE_RATE = 16_000, 128, 1e-3
FLOW_STEPS, FLOW_BATCH, FLOW_RATE = 10_000, 512, 1e-3

FLUX = float(galaxies.to_flux(21.5))  # nJy, of every galaxy in the loss

PROVENANCE = (
    "Prior over galaxies of dlcourse_utils/datasets/galaxies.py: auto-encoder and flow of "
    f"dlcourse_utils/galaxy_prior.py, trained by scripts/train_galaxy_prior.py with seed {SEED} in "
    f"{VAE_STEPS} and {FLOW_STEPS} steps. CC BY 4.0."
)


def turned(key: jax.Array, images: jax.Array) -> jax.Array:
    """All images (n, s, s) turned or mirrored in the same one of the eight ways."""
    down, right, swap = jax.random.bernoulli(key, shape=(3,))
    images = jnp.where(down, images[:, ::-1], images)
    images = jnp.where(right, images[:, :, ::-1], images)
    return jnp.where(swap, jnp.swapaxes(images, 1, 2), images)


def elbo_terms(params: Params, key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half of chi^2 of the decoded images, and KL of the shape's posterior; (n,) nats each."""
    shares = images.reshape(len(images), -1)
    shares = shares / shares.sum(axis=-1, keepdims=True)
    mean, std = Encoder().apply(params["encoder"], shares)
    z = mean + std * jax.random.normal(key, mean.shape)
    decoded = jnp.exp(Decoder().apply(params["decoder"], z))
    variance = galaxy_prior.hubble_variance(FLUX * shares) / FLUX**2
    misfit = 0.5 * jnp.sum((decoded - shares) ** 2 / variance, axis=-1)
    kl = 0.5 * jnp.sum(mean**2 + std**2 - 1.0 - 2.0 * jnp.log(std), axis=-1)
    return misfit, kl


def vae_loss(params: Params, key: jax.Array, images: jax.Array) -> jax.Array:
    """Negative ELBO, in nats, up to the constant of the noise."""
    turn_key, noise_key = jax.random.split(key)
    misfit, kl = elbo_terms(params, noise_key, turned(turn_key, images))
    return jnp.mean(misfit + kl)


def flow_loss(params: Params, key: jax.Array, means: jax.Array, stds: jax.Array) -> jax.Array:
    """Negative log density of one draw of each galaxy's latents, in nats."""
    z = means + stds * jax.random.normal(key, means.shape)
    return -jnp.mean(GalaxyPrior({"flow": params}).log_prob(z))


def minimise(
    loss: Callable[..., jax.Array],
    params: Params,
    data: tuple[jax.Array, ...],
    *,
    steps: int,
    batch: int,
    rate: float,
    clip: float,
    seed: int,
) -> Params:
    """Adam with a falling rate; the average of the parameters over the last steps."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 100, steps)),
    )
    key = jax.random.key(seed)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, average, index, *data):
        row_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(row_key, (batch,), 0, len(data[0]))
        value, grads = jax.value_and_grad(loss)(params, loss_key, *(array[rows] for array in data))
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        keep = jnp.minimum(0.998, (1.0 + index) / (10.0 + index))
        average = jax.tree.map(lambda a, p: keep * a + (1.0 - keep) * p, average, params)
        return params, state, average, value

    params = jax.tree.map(jnp.array, params)
    state, average = optimizer.init(params), jax.tree.map(jnp.array, params)
    start, total = time.perf_counter(), 0.0
    for index in range(steps):
        params, state, average, value = step(params, state, average, index, *data)
        total += value
        if (index + 1) % 1000 == 0:
            seconds = time.perf_counter() - start
            print(
                f"step {index + 1} of {steps}, {seconds:.0f} s: {total / 1000:.2f} nats", flush=True
            )
            total = 0.0
    return average


def encode_all(prior: GalaxyPrior, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Means and standard deviations (8 n, DIM) of the latents of images in all eight turns."""
    encode = jax.jit(GalaxyPrior.encode)
    found = []
    for swap in (False, True):
        both = images.swapaxes(1, 2) if swap else images
        for flipped in (both, both[:, ::-1], both[:, :, ::-1], both[:, ::-1, ::-1]):
            for block in np.split(flipped, len(flipped) // 1024):
                found.append(encode(prior, block))
    return tuple(jnp.concatenate(parts) for parts in zip(*found, strict=True))


def train(images: np.ndarray, vae_steps: int, flow_steps: int) -> Params:
    """Weights of encoder, decoder and flow."""
    params = jax.jit(galaxy_prior.init)(jax.random.key(SEED))
    networks = {name: params[name] for name in ("encoder", "decoder")}
    networks = minimise(
        vae_loss,
        networks,
        (jnp.asarray(images),),
        steps=vae_steps,
        batch=VAE_BATCH,
        rate=VAE_RATE,
        clip=300.0,
        seed=SEED + 1,
    )
    latents = encode_all(GalaxyPrior(networks), images)
    flow = minimise(
        flow_loss,
        params["flow"],
        latents,
        steps=flow_steps,
        batch=FLOW_BATCH,
        rate=FLOW_RATE,
        clip=10.0,
        seed=SEED + 2,
    )
    return {**networks, "flow": flow}


def judge(prior: GalaxyPrior, images: np.ndarray) -> None:
    """Print how well the prior knows held-out galaxies."""
    chi2, misfits, kls, logs = [], [], [], []

    @jax.jit
    def look(prior, key, block):
        mean, std = prior.encode(block)
        image = prior.decode(mean)
        variance = galaxy_prior.hubble_variance(block)
        z = mean + std * jax.random.normal(key, mean.shape)
        return (
            jnp.mean((image - block) ** 2 / variance, axis=(1, 2)),
            *elbo_terms(prior.params, key, block),
            prior.log_prob(z),
        )

    blocks = np.split(images, len(images) // 512)
    for key, block in zip(
        jax.random.split(jax.random.key(SEED + 3), len(blocks)), blocks, strict=True
    ):
        for found, value in zip((chi2, misfits, kls, logs), look(prior, key, block), strict=True):
            found.append(value)
    chi2, misfits, kls, logs = (np.concatenate(found) for found in (chi2, misfits, kls, logs))
    quantiles = np.quantile(chi2, [0.5, 0.9, 0.99])
    print(
        f"held-out: chi^2 per pixel at Hubble's depth 1 + {chi2.mean():.4f} (median, 90 %, 99 % "
        f"{quantiles.round(4)}); at magnitude 21.5 misfit {misfits.mean():.1f}, "
        f"KL {kls.mean():.1f}, -ELBO {np.mean(misfits + kls):.1f} nats; log p(z) {logs.mean():.2f}"
    )
    drawn = np.asarray(
        jax.jit(GalaxyPrior.sample, static_argnums=2)(prior, jax.random.key(1), len(images))
    )
    decode = jax.jit(GalaxyPrior.decode)
    samples = np.concatenate([decode(prior, block) for block in np.split(drawn, len(blocks))])
    ours, theirs = photometry.measure(samples), photometry.measure(images)
    for name in ("magnitude", "half_light_radius", "ellipticity", "concentration"):
        a, b = (getattr(found, name) for found in (ours, theirs))
        print(f"KS of {name}: {stats.ks_2samp(a[np.isfinite(a)], b).statistic:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the prior over galaxies.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--flow-steps", type=int, default=FLOW_STEPS)
    arguments = parser.parse_args()
    bank = np.asarray(galaxies.render(galaxy_prior.training_set()))
    held_out = np.asarray(galaxies.simulate(jax.random.key(SEED + 4), HELD_OUT)[1])
    params = train(bank, arguments.vae_steps, arguments.flow_steps)
    galaxy_prior.save(arguments.output, params, PROVENANCE)
    judge(galaxy_prior.load(arguments.output), held_out)
    content = arguments.output.read_bytes()
    size, digest = len(content), hashlib.sha256(content).hexdigest()
    print(f"{arguments.output}: size = {size}, sha256 = {digest}")


if __name__ == "__main__":
    main()
