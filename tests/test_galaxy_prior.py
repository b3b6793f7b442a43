"""The learned prior over galaxies: its mathematics with any weights, what the shipped ones know.

Weights of the first part are random, so that every term counts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import galaxy_prior, photometry, registry, telescope, weights
from dlcourse_utils.datasets import galaxies
from dlcourse_utils.datasets.galaxies import SIZE, ZERO_POINT
from dlcourse_utils.galaxy_prior import DIM, SHAPE, GalaxyPrior, GalaxyPriorError
from dlcourse_utils.telescope import TelescopeError
from dlcourse_utils.weights import WeightsError

KEY = jax.random.key(33)

to_base, from_base, log_prob, decode, encode = (
    jax.jit(getattr(GalaxyPrior, name))
    for name in ("to_base", "from_base", "log_prob", "decode", "encode")
)
sample = jax.jit(GalaxyPrior.sample, static_argnums=2)


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(jax.jit(galaxy_prior.init)(KEY))
    rng = np.random.default_rng(33)
    noisy = [leaf + 0.03 * rng.normal(size=leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(tree, [leaf.astype(np.float32) for leaf in noisy])


@pytest.fixture(scope="module")
def prior(params):
    return GalaxyPrior(jax.tree.map(jnp.asarray, params))


@pytest.fixture(scope="module")
def z(prior):
    return sample(prior, KEY, 6)


# --- the density ------------------------------------------------------------------------------


def test_flow_there_and_back(prior):
    u = jax.random.normal(KEY, (6, DIM))
    z = from_base(prior, u)
    np.testing.assert_allclose(to_base(prior, z)[0], u, atol=1e-4)
    # It does something, and not the same to every number of every row.
    moved = np.abs(z - u)
    assert np.all(moved.max(axis=0) > 0.01) and np.ptp(moved) > 0.5


def test_log_det_and_density_by_the_whole_jacobian(prior, z):
    """Automatic differentiation and NumPy's determinant in place of sums over couplings."""
    one = jax.jit(jax.vmap(jax.jacfwd(lambda z: prior.to_base(z[None])[0][0])))
    sign, expected = np.linalg.slogdet(np.asarray(one(z), dtype=float))
    u, log_det = to_base(prior, z)
    np.testing.assert_allclose(log_det, expected, atol=2e-3)
    assert np.ptp(expected) > 0.1 and np.all(sign != 0)
    density = stats.norm.logpdf(np.asarray(u, dtype=float)).sum(axis=1) + expected
    np.testing.assert_allclose(log_prob(prior, z), density, atol=2e-3)


def test_samples_are_those_of_their_key(prior):
    drawn = sample(prior, KEY, 6)
    np.testing.assert_array_equal(drawn, sample(prior, KEY, 6))
    np.testing.assert_allclose(
        drawn, from_base(prior, jax.random.normal(KEY, (6, DIM))), rtol=1e-5, atol=1e-5
    )
    assert np.all(np.abs(drawn - sample(prior, jax.random.key(1), 6)).max(axis=1) > 0.1)


# --- images -----------------------------------------------------------------------------------


def test_images_are_positive_and_sum_to_the_flux(prior, z):
    images = np.asarray(decode(prior, z), dtype=float)
    assert images.shape == (6, SIZE, SIZE) and images.min() > 0.0
    magnitude = 22.75 + 0.75 * np.asarray(z[:, -1], dtype=float)
    flux = 10 ** (0.4 * (ZERO_POINT - magnitude))
    np.testing.assert_allclose(images.sum(axis=(1, 2)), flux, rtol=1e-4)
    np.testing.assert_allclose(flux, galaxies.to_flux(magnitude), rtol=1e-5)


def test_the_magnitude_is_a_factor_and_all_else_is_shape(prior, z):
    images = np.asarray(decode(prior, z))
    brighter = np.asarray(decode(prior, z.at[:, -1].add(-1.0)))
    np.testing.assert_allclose(brighter, images * 10 ** (0.4 * 0.75), rtol=1e-4)
    for latent in (0, SHAPE - 1):
        other = np.asarray(decode(prior, z.at[:, latent].add(1.0)))
        assert np.abs(other / images - 1.0).max(axis=(1, 2)).min() > 1e-3
        np.testing.assert_allclose(other.sum(axis=(1, 2)), images.sum(axis=(1, 2)), rtol=1e-4)


def test_encoding_knows_the_flux_and_looks_at_the_shares(prior, z):
    images = decode(prior, z)
    mean, std = encode(prior, images)
    assert mean.shape == std.shape == (6, DIM)
    np.testing.assert_allclose(mean[:, -1], z[:, -1], atol=1e-3)
    assert np.all(np.asarray(std[:, -1]) == 0.0) and np.all(np.asarray(std[:, :-1]) > 0.0)
    brighter, same = encode(prior, 5.0 * images)
    np.testing.assert_allclose(brighter[:, :-1], mean[:, :-1], atol=1e-3)
    np.testing.assert_allclose(same, std, rtol=1e-3)
    np.testing.assert_allclose(mean[:, -1] - brighter[:, -1], 2.5 * np.log10(5) / 0.75, atol=1e-3)
    assert np.ptp(np.asarray(mean[:, :-1]), axis=0).min() > 0.0


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("decode", (DIM,), r"z must have shape \(n, 33\), got \(33,\): give a batch, z\[None\]"),
        ("log_prob", (2, SHAPE), r"z must have shape \(n, 33\), got \(2, 32\)"),
        ("to_base", (2, 3, DIM), r"z must have shape \(n, 33\), got \(2, 3, 33\)"),
        ("from_base", (DIM,), r"u must have shape \(n, 33\), got \(33,\): give a batch, u\[None\]"),
        ("encode", (SIZE, SIZE), r"images must have shape \(n, 63, 63\), got \(63, 63\)"),
        ("encode", (2, 21, 21), r"images must have shape \(n, 63, 63\), got \(2, 21, 21\)"),
    ],
)
def test_other_shapes_are_told_in_a_sentence(prior, name, shape, sentence):
    with pytest.raises(GalaxyPriorError, match=sentence):
        getattr(prior, name)(jnp.zeros(shape))


def test_noise_of_hubble_is_that_of_counted_electrons():
    """Electrons are counted for 2028 s; zero points 25.94 of a count in a second, and 31.4."""
    nano = 10 ** (0.4 * (ZERO_POINT - 25.94)) / 2028.0  # nJy of one electron
    rng, n = np.random.default_rng(36), 40_000
    image = np.array([[0.0, 3.0], [30.0, 500.0]])
    counts = rng.poisson(image / nano, (n, 2, 2)) * nano
    seen = counts + rng.normal(0.0, galaxy_prior.HUBBLE_SKY, (n, 2, 2))
    found = galaxy_prior.hubble_variance(image)
    # A variance of nearly Gaussian numbers: sqrt(2 / n), of which four are allowed.
    np.testing.assert_allclose(found, seen.var(axis=0), rtol=4 * (2 / n) ** 0.5)


# --- the most probable galaxy -----------------------------------------------------------------


@pytest.fixture(scope="module")
def observed(prior, operator):
    """A galaxy of the prior, with noise and some pixels masked, in one of them a wild number."""
    x = decode(prior, jnp.zeros((1, DIM)).at[0, -1].set(-2.0))
    variance = np.full((21, 21), telescope.NOISE**2, np.float32)
    variance[:4, 15:] = np.inf
    y = np.asarray(telescope.apply(operator, x)[0])
    y = y + telescope.NOISE * np.random.default_rng(37).normal(size=y.shape).astype(np.float32)
    return np.where(np.isfinite(variance), y, 0.0), variance


def minus_log_posterior(prior, z, y, variance, operator):
    """Of latents (n, DIM), in our own words: SciPy's density of the used pixels, less constants."""
    used = np.isfinite(variance)
    mean = np.asarray(telescope.apply(operator, decode(prior, z)), dtype=float)[:, used]
    data, sigma = np.asarray(y, dtype=float)[used], np.sqrt(variance[used].astype(float))
    terms = stats.norm.logpdf(data, mean, sigma) - stats.norm.logpdf(0.0, 0.0, sigma)
    return -terms.sum(axis=1) - np.asarray(log_prob(prior, z), dtype=float)


def test_most_probable_is_a_minimum(prior, observed, operator):
    y, variance = observed
    start = galaxy_prior.rough_start(jnp.asarray(y)[None])[0]
    z, value = galaxy_prior.most_probable(prior, y, variance, operator, start)
    assert z.shape == (DIM,) and z.dtype == np.float32
    # Steps along each latent, both ways.
    steps = 0.05 * np.concatenate([np.eye(DIM), -np.eye(DIM)]).astype(np.float32)
    around = np.concatenate([np.stack([start, z]), z + steps])
    before, after, *others = minus_log_posterior(prior, around, y, variance, operator)
    assert value == pytest.approx(after, rel=1e-4) and after < before - 1.0
    assert min(others) > after - 2e-3  # which rounding may hide
    _, at_start = galaxy_prior._minus_log_posterior(start, prior, y, variance, operator)
    _, at_end = galaxy_prior._minus_log_posterior(jnp.asarray(z), prior, y, variance, operator)
    assert np.linalg.norm(at_end) < 1e-2 * np.linalg.norm(at_start)


def test_masked_pixels_do_not_count(prior, observed, operator):
    y, variance = observed
    start = galaxy_prior.rough_start(jnp.asarray(y)[None])[0]
    wild = np.where(np.isfinite(variance), y, 1e4).astype(np.float32)
    one = galaxy_prior.most_probable(prior, y, variance, operator, start)
    two = galaxy_prior.most_probable(prior, wild, variance, operator, start)
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"y": np.zeros((20, 21))}, r"y must have shape \(\.\.\., 21, 21\)"),
        ({"variance": np.zeros((21, 21))}, "The variance holds 441 values that are not positive"),
        ({"variance": np.full((21, 21), np.inf)}, "All pixels of an image are masked"),
        ({"y": np.full((21, 21), np.nan)}, "y holds 417 values that are not finite"),
    ],
)
def test_observations_that_cannot_be_fitted(prior, observed, operator, change, sentence):
    data = {"y": observed[0], "variance": observed[1]} | change
    with pytest.raises(TelescopeError, match=sentence):
        galaxy_prior.most_probable(prior, **data, operator=operator, start=np.zeros(DIM))


def test_a_rough_start_has_the_flux_of_the_image(prior):
    y = jnp.stack([jnp.full((21, 21), 2.0), jnp.full((21, 21), -1.0)])
    start = galaxy_prior.rough_start(y)
    assert start.shape == (2, DIM) and np.all(np.asarray(start[:, :-1]) == 0.0)
    np.testing.assert_allclose(decode(prior, start).sum(axis=(1, 2)), [882.0, 1.0], rtol=1e-3)


@pytest.fixture(scope="module")
def stamps(operator):
    """Eight galaxies of the simulator as the telescope sees them, brighter than 22.5, no noise."""
    bank, images = galaxies.simulate(jax.random.key(39), 60)
    bright = np.flatnonzero(np.asarray(bank.magnitude) < 22.5)[:8]
    return np.asarray(telescope.apply(operator, images[bright]))


def test_a_rough_start_does_not_count_masked_pixels(stamps):
    """Their light is made good: 0.75 is the unit of the last latent, in mag."""
    expected = galaxy_prior.rough_start(stamps)[:, -1]
    variance = np.ones_like(stamps)
    variance[:, 11:18, 9:16] = np.inf
    zeroed, wild = (np.where(np.isfinite(variance), stamps, value) for value in (0.0, 1e4))
    without = galaxy_prior.rough_start(zeroed)[:, -1]
    assert np.all(0.75 * (without - expected) > 0.1)
    found = galaxy_prior.rough_start(zeroed, variance)
    assert np.abs(0.75 * (found[:, -1] - expected)).max() < 0.15
    np.testing.assert_array_equal(galaxy_prior.rough_start(wild, variance), found)
    empty = np.where(np.isfinite(variance), stamps, np.nan)
    np.testing.assert_array_equal(galaxy_prior.rough_start(empty), found)
    # The first alone is masked: the others are as without a mask, to the last bit.
    variance[1:] = 1.0
    mixed = galaxy_prior.rough_start(np.where(np.isfinite(variance), stamps, 1e4), variance)
    np.testing.assert_array_equal(mixed[1:, -1], expected[1:])
    np.testing.assert_array_equal(mixed[0], found[0])


def test_a_rough_start_where_all_is_masked_is_finite(stamps):
    found = galaxy_prior.rough_start(stamps[:1], np.full((21, 21), np.inf))
    nothing = galaxy_prior.rough_start(np.zeros((1, 21, 21), np.float32))
    np.testing.assert_array_equal(found, nothing)


# --- the script -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_galaxy_prior")


@pytest.fixture(scope="module")
def held_out():
    return np.asarray(galaxies.simulate(jax.random.key(38), 2048)[1])


def test_training_set_is_as_large_as_documented_and_stays_the_same():
    """Means over its first galaxies, as they were when the shipped weights were made."""
    bank = galaxy_prior.training_set()
    assert all(len(values) == 40_960 for values in bank)
    first = jax.tree.map(lambda values: np.asarray(values[:1000], dtype=float), bank)
    found = [first.magnitude.mean(), np.log(first.radius).mean(), first.axis_ratio.mean()]
    np.testing.assert_allclose(found, [22.55687, -0.82824, 0.55224], atol=1e-4)


def test_terms_of_the_elbo(script, prior, held_out):
    """KL by TFP; the misfit by way of decoded images at magnitude 21.5."""
    images = jnp.asarray(held_out[:5])
    misfit, kl = jax.jit(script.elbo_terms)(prior.params, KEY, images)
    mean, std = (values[:, :SHAPE] for values in encode(prior, images))
    normal = tfp.distributions.Normal
    theirs = tfp.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(axis=1)
    np.testing.assert_allclose(kl, theirs, rtol=1e-4)
    z = mean + std * jax.random.normal(KEY, mean.shape)
    z = jnp.concatenate([z, jnp.full((5, 1), (21.5 - 22.75) / 0.75)], axis=1)
    bright = images * (galaxies.to_flux(21.5) / images.sum(axis=(1, 2), keepdims=True))
    difference = (decode(prior, z) - bright) ** 2 / galaxy_prior.hubble_variance(bright)
    np.testing.assert_allclose(misfit, 0.5 * difference.sum(axis=(1, 2)), rtol=1e-3)


def test_batches_are_turned_in_all_eight_ways(script):
    image = np.arange(9.0).reshape(3, 3)
    found = {
        np.asarray(script.turned(key, image[None])[0]).tobytes()
        for key in jax.random.split(KEY, 60)
    }
    turns = [np.rot90(i, k) for i in (image, image.T) for k in range(4)]
    assert found == {np.ascontiguousarray(t, dtype=np.float32).tobytes() for t in turns}


def test_script_trains(script, held_out):
    """A few steps, on few galaxies: the loss of others falls, of both networks."""
    bank, others = held_out[:1024], jnp.asarray(held_out[1024:1280])
    start = jax.jit(galaxy_prior.init)(jax.random.key(script.SEED))
    trained = script.train(bank, 30, 30)

    @jax.jit
    def losses(params):
        mean, std = GalaxyPrior(params).encode(others)
        return script.vae_loss(params, KEY, others), script.flow_loss(
            params["flow"], KEY, mean, std
        )

    before, after = losses(start), losses(trained)
    assert after[0] < 0.5 * before[0]
    assert after[1] < losses({**trained, "flow": start["flow"]})[1] - 1.0


# --- the file ---------------------------------------------------------------------------------


def test_saved_weights_come_back_in_half_precision(params, z, tmp_path):
    path = tmp_path / "mine.npz"
    galaxy_prior.save(path, params, "a test")
    found = galaxy_prior.load(path)
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), params)
    jax.tree.map(np.testing.assert_array_equal, found.params, half)
    assert decode(found, z).dtype == jnp.float32


def test_a_file_of_another_version_names_the_script(params, tmp_path):
    path = tmp_path / "old.npz"
    weights.save(path, params, galaxy_prior.VERSION + 1, "a test")
    with pytest.raises(WeightsError, match=r"make the file with scripts/train_galaxy_prior\.py"):
        galaxy_prior.load(path)


def test_file_says_what_it_is():
    with np.load(registry.path("galaxy_prior.npz"), allow_pickle=False) as stored:
        assert stored["version"] == galaxy_prior.VERSION
        text = str(stored["provenance"])
    assert "scripts/train_galaxy_prior.py" in text and "seed" in text


# --- what the shipped weights know ------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return galaxy_prior.load()


@pytest.fixture(scope="module")
def drawn(shipped):
    return np.asarray(decode(shipped, sample(shipped, jax.random.key(39), 2048)))


def test_galaxies_come_back_at_the_depth_of_hubble(shipped, held_out):
    """chi^2 per pixel of a galaxy with Hubble's noise: 1, and what the prior gets wrong."""
    images = jnp.asarray(held_out[:1024])
    found = decode(shipped, encode(shipped, images)[0])
    wrong = (found - images) ** 2 / galaxy_prior.hubble_variance(images)
    assert 1.0 + wrong.mean() <= 1.1


def test_encoded_latents_are_probable(shipped, held_out):
    """Of galaxies and of samples they have the same log density; medians are known to 0.35."""
    mean, std = encode(shipped, jnp.asarray(held_out))
    z = mean + std * jax.random.normal(KEY, mean.shape)
    own = np.asarray(log_prob(shipped, sample(shipped, jax.random.key(40), 2048)), dtype=float)
    of_galaxies = np.asarray(log_prob(shipped, z), dtype=float)
    assert np.median(of_galaxies) == pytest.approx(np.median(own), abs=1.0)


@pytest.mark.parametrize("name", ["half_light_radius", "ellipticity", "concentration", "magnitude"])
def test_samples_are_distributed_as_galaxies(numbers, name):
    """The band of the lesson; by chance alone, one test in 100 would reach 0.05."""
    ours, theirs = (getattr(found, name) for found in numbers)
    assert np.isfinite(ours).mean() > 0.999 and np.isfinite(theirs).all()
    assert stats.ks_2samp(ours, theirs, nan_policy="omit").statistic <= 0.08


@pytest.fixture(scope="module")
def numbers(drawn, held_out):
    return photometry.measure(drawn), photometry.measure(held_out)


def coarse(images):
    """Shares of the flux in 21 x 21 squares, (n, 441)."""
    images = np.asarray(images).reshape(-1, 21, 3, 21, 3).sum(axis=(2, 4)).reshape(-1, 441)
    return images / images.sum(axis=1, keepdims=True)


def distance_to_nearest(bank, images):
    """Of each image to the nearest of the bank, in any of eight turns, over the image's norm."""
    square = np.sum(bank**2, axis=1)
    found = np.full(len(images), np.inf)
    for one in (images, images.swapaxes(1, 2)):
        for turn in (one, one[:, ::-1], one[:, :, ::-1], one[:, ::-1, ::-1]):
            flat = coarse(turn)
            gap = square[None] - 2 * flat @ bank.T + np.sum(flat**2, axis=1)[:, None]
            found = np.minimum(found, np.maximum(gap.min(axis=1), 0.0) / np.sum(flat**2, axis=1))
    return np.sqrt(found)


@pytest.mark.slow
def test_samples_are_not_training_galaxies(shipped, drawn, held_out):
    """Samples are as far from all of the training set as new galaxies are."""
    every = galaxy_prior.training_set()
    pieces = [jax.tree.map(lambda a, i=i: a[i : i + 2048], every) for i in range(0, 40_960, 2048)]
    bank = np.concatenate([coarse(galaxies.render(piece)) for piece in pieces])
    trained = galaxies.render(pieces[0])[:128]
    learned = np.asarray(decode(shipped, encode(shipped, trained)[0]))
    samples, new, known = (
        distance_to_nearest(bank, images) for images in (drawn[:128], held_out[:128], learned)
    )
    # What comes from the training set is found in it.
    assert np.median(known) < 0.5 * np.median(new)
    assert np.median(samples) == pytest.approx(np.median(new), rel=0.25)
    assert np.mean(samples < np.quantile(new, 0.05)) < 0.15
