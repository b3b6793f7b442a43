"""Right answers to the exercises in other styles than the solution's: all must pass their check."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import flows

tfb, tfd = tfp.bijectors, tfp.distributions


def m_sigma_numpy(sigma, mass):
    u, v = np.log10(np.asarray(sigma, np.float64)), np.log10(np.asarray(mass, np.float64))
    slope = np.cov(u, v, bias=True)[0, 1] / np.var(u)
    intercept = v.mean() - slope * u.mean()
    return slope, intercept, np.sqrt(np.mean((v - slope * u - intercept) ** 2))


def m_sigma_lstsq(sigma, mass):
    u, v = jnp.log(sigma) / jnp.log(10.0), jnp.log(mass) / jnp.log(10.0)
    design = jnp.stack([u - 2.7, jnp.ones_like(u)], axis=1)
    (slope, height), *_ = jnp.linalg.lstsq(design, v)
    residual = v - design @ jnp.array([slope, height])
    return [slope, height - 2.7 * slope, jnp.linalg.norm(residual) / len(v) ** 0.5]


def m_sigma_polynomial(sigma, mass):
    u, v = np.log10(np.float64(sigma)), np.log10(np.float64(mass))
    intercept, slope = np.polynomial.Polynomial.fit(u, v, 1).convert().coef
    return np.array([slope, intercept, (v - slope * u - intercept).std(ddof=2)])


def mse_dot(prediction, target):
    difference = target - prediction.squeeze(-1)
    return difference @ difference / len(target)


def mse_column(prediction, target):
    return ((prediction - target[:, None]) ** 2).sum() / target.size


def mse_vmapped(prediction, target):
    return jax.vmap(lambda f, m: (f[0] - m) ** 2)(prediction, target).mean()


def mse_float64(prediction, target):
    # In double precision where it is switched on; a warning would fail the test.
    wide = jax.dtypes.canonicalize_dtype(jnp.float64)
    return jnp.mean(jnp.square(prediction.astype(wide).reshape(-1) - target.astype(wide)))


def mixture_slices(outputs):
    weights = jax.nn.softmax(outputs[:, :6], axis=-1)
    scale = 0.01 + 0.6 * jnp.log1p(jnp.exp(outputs[:, 12:]))
    components = tfd.Normal(loc=14.2 + 0.6 * outputs[:, 6:12], scale=scale)
    return tfd.MixtureSameFamily(tfd.Categorical(probs=weights), components)


def mixture_reshaped(outputs):
    a, b, c = jnp.moveaxis(outputs.reshape(-1, 3, 6), 1, 0)
    return tfd.MixtureSameFamily(
        mixture_distribution=tfd.Categorical(logits=jax.nn.log_softmax(a)),
        components_distribution=tfd.Normal(0.6 * b + 14.2, 0.6 * jax.nn.softplus(c) + 0.01),
    )


def mixture_arrays(outputs):
    a, b, c = (outputs[..., k * 6 : (k + 1) * 6] for k in range(3))
    logits = a - jnp.log(jnp.exp(a).sum(axis=-1, keepdims=True))
    scale = 0.01 + 0.6 * jnp.logaddexp(c, 0.0)
    return tfd.MixtureSameFamily(tfd.Categorical(logits), tfd.Normal(14.2 + 0.6 * b, scale))


def nll_sum(density, mass):
    return -density.log_prob(mass).sum() / mass.shape[0]


def nll_loop(density, mass):
    values = density.log_prob(mass)
    return -sum(values[k] for k in range(len(mass))) / len(mass)


def nll_vmapped(density, mass):
    return jax.vmap(lambda loc, scale, m: -tfd.Normal(loc, scale).log_prob(m))(
        density.loc, density.scale, mass
    ).mean()


def summarise_numpy(log_p, grid):
    log_p, grid = np.asarray(log_p, np.float64), np.asarray(grid, np.float64)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p /= np.trapezoid(p, grid, axis=1)[:, None]
    pieces = 0.5 * (p[:, 1:] + p[:, :-1]) * np.diff(grid)
    cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(pieces, axis=1)], axis=1)

    def quantile(level):
        return np.array([np.interp(level, row, grid) for row in cdf])

    mean = np.trapezoid(p * grid, grid, axis=1)
    std = np.sqrt(np.trapezoid(p * grid**2, grid, axis=1) - mean**2)
    mode = grid[p.argmax(axis=1)]
    return dict(
        mean=mean, std=std, median=quantile(0.5), mode=mode, low=quantile(0.16), high=quantile(0.84)
    )


def summarise_vmapped(log_p, grid):
    def one(row):
        w = jax.nn.softmax(row)
        cdf = jnp.cumsum(w)
        mean = w @ grid
        std = jnp.sqrt(w @ (grid - mean) ** 2)
        median, low, high = (grid[jnp.searchsorted(cdf, q)] for q in (0.5, 0.16, 0.84))
        return {
            "mean": mean,
            "std": std,
            "median": median,
            "mode": grid[row.argmax()],
            "low": low,
            "high": high,
        }

    return jax.vmap(one)(log_p)


def summarise_scipy(log_p, grid):
    w = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    mean = w @ grid
    cdf = w.cumsum(axis=1)
    low, median, high = (grid[(cdf < q).sum(axis=1)] for q in (0.16, 0.5, 0.84))
    std = np.sqrt(w @ grid**2 - mean**2)
    mode = grid[log_p.argmax(axis=1)]
    return dict(mean=mean, std=std, median=median, mode=mode, low=low, high=high, more=0)


def prior_sum(log_p, log_old, log_new, grid):
    product = log_p + (log_new - log_old[None, :])
    total = jax.nn.logsumexp(product, axis=1) + jnp.log(grid[1] - grid[0])
    return product - total[:, None]


def prior_densities(log_p, log_old, log_new, grid):
    p = np.exp(np.float64(log_p)) * np.exp(np.float64(log_new)) / np.exp(np.float64(log_old))
    return np.log(p / np.trapezoid(p, np.float64(grid), axis=1)[:, None])


def prior_vmapped(log_p, log_old, log_new, grid):
    def one(row, new):
        product = row + new - log_old
        product = product - product.max()
        return product - jnp.log(jnp.sum(jnp.exp(product)) * (grid[-1] - grid[0]) / (len(grid) - 1))

    return jax.vmap(one)(log_p, log_new)


def coverage_numpy(pit, level):
    low, high = (1 - level) / 2, (1 + level) / 2
    return np.mean((np.asarray(pit) >= low) & (np.asarray(pit) <= high))


def coverage_loop(pit, level):
    inside = [1.0 for u in np.asarray(pit) if (1 - level) / 2 < u < 1 - (1 - level) / 2]
    return sum(inside) / len(pit)


def coverage_vmapped(pit, level):
    return jax.vmap(lambda u: jnp.where(2 * jnp.abs(u - 0.5) < level, 1.0, 0.0))(pit).mean()


def flow_nll_sums(x, inverse):
    z, log_det = inverse(x)
    n, d = z.shape
    return 0.5 * jnp.sum(z * z) / n + 0.5 * d * jnp.log(2 * jnp.pi) - log_det.sum() / n


def flow_nll_normal(x, inverse):
    z, log_det = inverse(x)
    return -(jax.scipy.stats.norm.logpdf(z).sum(axis=1) + log_det).mean()


def flow_nll_independent(x, inverse):
    z, log_det = inverse(x)
    base = tfd.Sample(tfd.Normal(0.0, 1.0), sample_shape=x.shape[-1])
    return jnp.mean(-base.log_prob(z)) - jnp.mean(log_det)


def forward_tanh(x, net):
    k = x.shape[-1] // 2
    out = net(x[..., :k])
    s = jnp.tanh(out[..., k:])
    return jnp.concatenate([x[..., :k], jnp.exp(s) * x[..., k:] + out[..., :k]], -1), s.sum(-1)


def forward_masked(x, net):
    d = x.shape[-1]
    mask = jnp.arange(d) < d // 2
    t, r = jnp.split(net(x[..., : d // 2]), 2, axis=-1)
    zeros = jnp.zeros_like(t)
    s = jnp.concatenate([zeros, 5.0 * jnp.tanh(r / 5.0)], axis=-1)
    return jnp.where(mask, x, x * jnp.exp(s) + jnp.concatenate([zeros, t], axis=-1)), s.sum(-1)


def forward_softplus(x, net):
    x1, x2 = jnp.split(x, 2, axis=-1)
    t, r = jnp.split(net(x1), 2, axis=-1)
    scale = jax.nn.softplus(r) + 0.005
    return jnp.append(x1, x2 * scale + t, axis=-1), jnp.log(scale).sum(axis=-1)


def forward_sigmoid(x, net):
    x1, x2 = jnp.split(x, 2, axis=-1)
    t, r = jnp.split(net(x1), 2, axis=-1)
    scale = jax.nn.sigmoid(r + 2.0) + 0.01
    return [jnp.concatenate((x1, t + scale * x2), axis=-1), jnp.log(jnp.prod(scale, axis=-1))]


def forward_clipped(x, net):
    x = x.at[...].get()
    k = x.shape[-1] // 2
    t, s = net(x[..., :k])[..., :k], jnp.clip(net(x[..., :k])[..., k:], -4.0, 4.0)
    return x.at[..., k:].multiply(jnp.exp(s)).at[..., k:].add(t), jnp.einsum("...k->...", s)


def _realnvp(d, net):
    def second_half(x1, _units, **_):
        t, r = jnp.split(net(x1), 2, axis=-1)
        return tfb.Shift(t)(tfb.Scale(log_scale=2.0 * jnp.tanh(r / 2.0)))

    return tfb.RealNVP(num_masked=d // 2, bijector_fn=second_half)


def forward_realnvp(x, net):
    layer = _realnvp(x.shape[-1], net)
    return layer.forward(x), layer.forward_log_det_jacobian(x, event_ndims=1)


def inverse_realnvp(y, net):
    layer = _realnvp(y.shape[-1], net)
    return layer.inverse(y), layer.inverse_log_det_jacobian(y, event_ndims=1)


def inverse_arctan(y, net):
    y1, y2 = jnp.split(y, 2, axis=-1)
    t, r = jnp.split(net(y1), 2, axis=-1)
    s = 2.0 * jnp.arctan(r)
    return jnp.concatenate([y1, (y2 - t) / jnp.exp(s)], axis=-1), -s.sum(axis=-1)


def inverse_tanh(y, net):
    k = y.shape[-1] // 2
    out = net(y[..., :k])
    s = jnp.tanh(out[..., k:])
    return jnp.concatenate([y[..., :k], (y[..., k:] - out[..., :k]) / jnp.exp(s)], -1), -s.sum(-1)


def inverse_masked(y, net):
    d = y.shape[-1]
    mask = jnp.where(jnp.arange(d) < d // 2, 1.0, 0.0)
    t, r = jnp.split(net(y[..., : d // 2]), 2, axis=-1)
    zeros = jnp.zeros_like(t)
    s = jnp.concatenate([zeros, 5.0 * jnp.tanh(r / 5.0)], axis=-1)
    t = jnp.concatenate([zeros, t], axis=-1)
    return mask * y + (1 - mask) * (y - t) * jnp.exp(-s), -jnp.sum(s, axis=-1)


def inverse_softplus(y, net):
    y1, y2 = jnp.split(y, 2, axis=-1)
    t, r = jnp.split(net(y1), 2, axis=-1)
    scale = jax.nn.softplus(r) + 0.005
    return jnp.append(y1, (y2 - t) / scale, axis=-1), -jnp.log(scale).sum(axis=-1)


def inverse_sigmoid(y, net):
    y1, y2 = jnp.split(y, 2, axis=-1)
    t, r = jnp.split(net(y1), 2, axis=-1)
    scale = jax.nn.sigmoid(r + 2.0) + 0.01
    log_det = jnp.log(1.0 / jnp.prod(scale, axis=-1))
    return jnp.concatenate((y1, y2 / scale - t / scale), axis=-1), log_det


# The scale of the two moons, as in the lesson.
CENTRE, SPREAD = jnp.array([0.5, 0.25]), jnp.array([0.87, 0.50])


def stack_independent(nets, coupling):
    swap = tfb.Permute(jnp.array([1, 0]))
    layers = [layer for net in nets for layer in (coupling(net), swap)]
    base = tfd.Independent(tfd.Normal(jnp.zeros(2), jnp.ones(2)), 1)
    return tfd.TransformedDistribution(
        bijector=tfb.Chain([tfb.Shift(CENTRE), tfb.Scale(SPREAD), *layers]), distribution=base
    )


def stack_nested(nets, coupling):
    flow = tfb.Identity()
    for net in reversed(nets):
        flow = tfb.Chain([coupling(net), tfb.Permute([1, 0]), flow])
    base = tfd.MultivariateNormalDiag(loc=jnp.zeros(2), scale_diag=jnp.ones(2))
    return tfd.TransformedDistribution(base, tfb.Shift(CENTRE)(tfb.Scale(SPREAD)(flow)))


def stack_from_the_base(nets, coupling):
    flow = tfd.Sample(tfd.Normal(0.0, 1.0), 2)
    layers = [tfb.Shift(CENTRE), tfb.Scale(SPREAD)]
    for k in range(len(nets)):
        layers.append(coupling(nets[k])(tfb.Permute([1, 0])))
    return tfb.Chain(layers)(flow)


def stack_loop(nets, coupling):
    layers = [coupling(net) for net in nets]

    def forward(z):
        log_det = jnp.log(SPREAD).sum()
        for layer in layers[::-1]:
            z = z[..., ::-1]
            log_det += layer.forward_log_det_jacobian(z, event_ndims=1)
            z = layer.forward(z)
        return CENTRE + SPREAD * z, log_det

    def inverse(x):
        x = (x - CENTRE) / SPREAD
        log_det = -jnp.log(SPREAD).sum()
        for layer in layers:
            log_det += layer.inverse_log_det_jacobian(x, event_ndims=1)
            x = layer.inverse(x)[..., ::-1]
        return x, log_det

    base = tfd.MultivariateNormalDiag(jnp.zeros(2))
    return tfd.TransformedDistribution(base, flows.as_bijector(forward, inverse))


def given_def(net, y):
    def conditioned(x1):
        return net(jnp.hstack([x1, y]))

    return conditioned


def given_y_first(net, y):
    return lambda x1: net(jnp.append(y, x1, axis=-1))


def given_stacked(net, y):
    return lambda x1: net(jnp.stack([x1[:, 0], y[:, 0]], axis=1))


class _Given:
    def __init__(self, net, y):
        self.net, self.y = net, y

    def __call__(self, x1):
        return self.net(jnp.column_stack([x1, jnp.broadcast_to(self.y, x1.shape)]))


def given_object(net, y):
    return _Given(net, y)


def score_vmapped(log_prob, params, x, y, noise):
    def one(x, y):
        return log_prob(params, x) + tfd.Normal(x, noise).log_prob(y).sum()

    return jax.vmap(jax.grad(one))(x, y)


def score_by_hand(log_prob, params, x, y, noise):
    prior = jax.grad(lambda x: log_prob(params, x).sum())(x)
    return prior - (x - y) / noise**2


def score_mvn(log_prob, params, x, y, noise):
    def total(params, x):
        likelihood = tfd.MultivariateNormalDiag(x, noise * jnp.ones(2)).log_prob(y)
        return jnp.sum(log_prob(params, x)) + jnp.sum(likelihood)

    return jax.grad(total, argnums=1)(params, x)


def score_vjp(log_prob, params, x, y, noise):
    def log_posterior(x):
        return log_prob(params, x) - 0.5 * (((y - x) / noise) ** 2).sum(-1)

    values, pull = jax.vjp(log_posterior, x)
    return pull(jnp.ones_like(values))[0]


def denoise_by_noise(x, sigma, score):
    expected_noise = -sigma * score(x, sigma)
    return x - sigma * expected_noise


def denoise_broadcast(x, sigma, score):
    variance = jnp.broadcast_to(jnp.square(sigma), (x.shape[0], 1))
    return jnp.add(x, variance * score(x=x, sigma=sigma))


def denoise_einsum(x, sigma, score):
    columns = jnp.full(x.shape, sigma)
    return x + jnp.einsum("ij,ij,ij->ij", columns, columns, score(x, sigma))


def dsm_weight(denoiser, x, sigma, noise):
    clean = denoiser(noise * sigma + x, sigma)
    weight = 1.0 / sigma[:, 0] ** 2
    return (weight * jnp.sum((x - clean) ** 2, axis=1)).sum() / len(x)


def dsm_norm(denoiser, x, sigma, noise):
    distance = jnp.linalg.norm(denoiser(x + sigma * noise, sigma) - x, axis=-1, keepdims=True)
    return jnp.mean((distance / sigma) ** 2)


def dsm_twice_the_mean(denoiser, x, sigma, noise):
    error = denoiser(x=x + jnp.multiply(sigma, noise), sigma=sigma) - x
    return x.shape[-1] * jnp.mean(error**2 / sigma**2)


def dsm_vdot(denoiser, x, sigma, noise):
    error = (x - denoiser(x + sigma * noise, sigma)) / sigma
    return jnp.vdot(error, error) / x.shape[0]


def precondition_inverse(net, x, sigma):
    middle, size = jnp.array([0.5, 0.25]), 0.7
    c_in = (sigma**2 + size**2) ** -0.5
    skip, out = (size * c_in) ** 2, sigma * size * c_in
    return middle + skip * (x - middle) + out * net(c_in * (x - middle), 0.25 * jnp.log(sigma))


def precondition_ratio(net, x, sigma):
    middle, size = jnp.array([[0.5, 0.25]]), 0.7
    ratio = sigma / size
    output = net((x - middle) / (size * jnp.sqrt(1 + ratio**2)), t=jnp.log(sigma**0.25))
    return middle + (x - middle) / (1 + ratio**2) + sigma / jnp.sqrt(1 + ratio**2) * output


def precondition_hypot(net, x, sigma):
    total = jnp.hypot(sigma, 0.7)
    t = jnp.log(jnp.broadcast_to(sigma, (len(x), 1))) / 4.0
    offset = x - jnp.array([0.5, 0.25])[None, :]
    share = 1.0 - (sigma / total) ** 2
    return x - (1.0 - share) * offset + net(offset / total, t) * sigma * 0.7 / total


def langevin_normal(key, x, score, step):
    return tfd.Normal(x + step * score(x), jnp.sqrt(2 * step)).sample(seed=key)


def langevin_split(key, x, score, step):
    _, key = jax.random.split(key)
    noise = jax.random.normal(key, shape=x.shape, dtype=x.dtype)
    return x + score(x) * step + (2.0 * step) ** 0.5 * noise


def langevin_key_per_point(key, x, score, step):
    keys = jax.random.split(key, len(x))
    z = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return jnp.sqrt(2.0) * jnp.sqrt(step) * z + x + step * score(x)


def langevin_multivariate(key, x, score, step):
    z = jax.random.multivariate_normal(key, jnp.zeros(2), jnp.eye(2), shape=(x.shape[0],))
    return x + step * (score(x) + jnp.sqrt(2 / step) * z)


def langevin_columns(key, x, score, step):
    keys = (jax.random.fold_in(key, k) for k in range(2))
    z = jnp.stack([jax.random.normal(key, len(x)) for key in keys], axis=1)
    return x + step * score(x) - jnp.sqrt(2 * step) * z


def reverse_denoised(key, x, sigma, next_sigma, score):
    ratio = next_sigma / sigma
    clean = x + sigma**2 * score(x, sigma)
    kept = x + (1 - ratio**2) * (clean - x)
    return kept + sigma * jnp.sqrt(1 - ratio**2) * jax.random.normal(key, x.shape)


def reverse_factors(key, x, sigma, next_sigma, score):
    delta = (sigma - next_sigma) * (sigma + next_sigma)
    noise = jax.random.truncated_normal(jax.random.split(key)[0], -8.0, 8.0, x.shape)
    return x + delta * score(x=x, sigma=sigma) + delta**0.5 * noise


def reverse_normal(key, x, sigma, next_sigma, score):
    removed = jnp.square(sigma) - jnp.square(next_sigma)
    return tfd.Normal(x + removed * score(x, sigma), removed**0.5).sample(seed=key)


def reverse_column(key, x, sigma, next_sigma, score):
    sigma = jnp.full((len(x), 1), sigma)
    removed = sigma**2 - next_sigma**2
    z = jax.random.multivariate_normal(key, jnp.zeros(2), jnp.eye(2), (len(x),), method="svd")
    return x + removed * score(x, sigma) + jnp.sqrt(removed) * z


def flow_by_denoiser(sigma, x, score):
    return (x - (x + sigma**2 * score(x, sigma))) / sigma


def flow_derivative(sigma, x, score):
    rate = jax.grad(lambda s: s**2)(jnp.asarray(sigma))
    return -0.5 * rate * score(x, sigma)


def flow_column(sigma, x, score):
    levels = jnp.full((x.shape[0], 1), sigma)
    return jnp.negative(levels * score(x, levels))


def likelihood_where(x, y, mask, noise, sigma):
    return jnp.where(mask == 1, (y - x) / (noise**2 + sigma**2), 0.0)


def likelihood_grad(x, y, mask, noise, sigma):
    def log_likelihood(x):
        width = jnp.sqrt(jnp.square(noise) + jnp.square(sigma))
        return jnp.sum(mask * jax.scipy.stats.norm.logpdf(y, x, width))

    return jax.grad(log_likelihood)(x)


def likelihood_vmapped(x, y, mask, noise, sigma):
    y, mask = jnp.broadcast_to(y, x.shape), jnp.broadcast_to(mask, x.shape)

    def one(x, y, mask):
        return -0.5 * jnp.sum(mask * (x - y) ** 2) / (noise**2 + sigma**2)

    return jax.vmap(jax.grad(one))(x, y, mask)


def likelihood_hypot(x, y, mask, noise, sigma):
    width = jnp.hypot(noise, sigma)
    return (mask * y - mask * x) / width / width


def convolve_fft2(x, kernel):
    n, m = x.shape[-1], kernel.shape[-1]
    sides = (n + m, n + m)
    product = jnp.fft.fft2(x, s=sides) * jnp.fft.fft2(kernel, s=sides) / jnp.sum(kernel)
    return jnp.fft.ifft2(product).real[..., m // 2 : m // 2 + n, m // 2 : m // 2 + n]


def convolve_rolled(x, kernel):
    half, n = kernel.shape[0] // 2, x.shape[-1]
    room = n + half
    kernel = jnp.pad(kernel / kernel.sum(), (0, max(0, room - len(kernel))))
    kernel = jnp.roll(kernel, (-half, -half), axis=(0, 1))
    transfer = jnp.fft.rfft2(kernel)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, len(kernel) - n)] * 2)
    return jnp.fft.irfft2(jnp.fft.rfft2(padded) * transfer, s=kernel.shape)[..., :n, :n]


def convolve_scipy(x, kernel):
    def one(image):
        full = jax.scipy.signal.fftconvolve(image, kernel / kernel.sum(), mode="full")
        half, n = kernel.shape[0] // 2, image.shape[0]
        return full[half : half + n, half : half + n]

    return jnp.vectorize(one, signature="(n,n)->(n,n)")(x)


def convolve_lax(x, kernel):
    half, n = kernel.shape[-1] // 2, x.shape[-1]
    weights = (kernel / kernel.sum())[::-1, ::-1][None, None]
    images = x.reshape(-1, 1, n, n)
    blurred = jax.lax.conv_general_dilated(images, weights, (1, 1), [(half, half)] * 2)
    return blurred.reshape(x.shape)


def likelihood_logpdf(y, mean, variance):
    used = variance < jnp.inf
    width = jnp.sqrt(jnp.where(used, variance, 4.0))
    return jnp.where(used, jax.scipy.stats.norm.logpdf(y, mean, width), 0.0).sum((1, 2))


def likelihood_inverse_variance(y, mean, variance):
    weight = 1.0 / variance
    log_weight = jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), 0.0)
    count = jnp.sum(weight > 0, axis=(-1, -2))
    chi2 = jnp.einsum("nij,nij->n", weight, jnp.square(mean - y))
    return 0.5 * (log_weight.sum((-1, -2)) - chi2 - count * jnp.log(2 * jnp.pi))


def likelihood_one_by_one(y, mean, variance):
    def pixel(y, mean, variance):
        known = jnp.isfinite(variance)
        normal = tfd.Normal(mean, jnp.sqrt(jnp.where(known, variance, 1.0)))
        return jax.lax.select(known, normal.log_prob(y), jnp.zeros_like(y))

    image = jax.vmap(jax.vmap(pixel))
    return jax.vmap(lambda *maps: jnp.sum(image(*maps)))(y, mean, variance)


def wiener_cholesky(y, variance, prior):
    factor = jax.scipy.linalg.cho_factor(prior.cov_yy + jnp.diag(variance))
    return prior.mean_x + prior.cov_xy @ jax.scipy.linalg.cho_solve(factor, y - prior.mean_y)


def wiener_inverse(y, variance, prior):
    inverse = jnp.linalg.inv(prior.cov_yy + variance * jnp.eye(len(variance)))
    return prior.mean_x - jnp.einsum("pq,qr,r->p", prior.cov_xy, inverse, prior.mean_y - y)


def wiener_matrix(y, variance, prior):
    places = jnp.diag_indices(len(y))
    total = prior.cov_yy.at[places].add(variance)
    gain = jnp.linalg.solve(total.T, prior.cov_xy.T).T
    return gain @ y + (prior.mean_x - gain @ prior.mean_y)


def wiener_whitened(y, variance, prior):
    sigma = jnp.sqrt(variance)
    total = prior.cov_yy / jnp.outer(sigma, sigma) + jnp.eye(y.size)
    weights = jax.scipy.linalg.solve(total, (y - prior.mean_y) / sigma, assume_a="pos") / sigma
    return jnp.add(prior.mean_x, jnp.matmul(prior.cov_xy, weights))


def posterior_logpdf(z, y, variance, observe, prior):
    log_likelihood = likelihood_logpdf(y, observe(prior.decode(z)), variance)
    return -(prior.log_prob(z) + log_likelihood)


def posterior_constant_free(z, y, variance, observe, prior):
    chi2 = jnp.sum((y - observe(prior.decode(z))) ** 2 / variance, axis=(1, 2))
    return 0.5 * chi2 - prior.log_prob(z)


def posterior_one_by_one(z, y, variance, observe, prior):
    def one(z, y, variance):
        mean = observe(prior.decode(z[None]))
        fit = likelihood_inverse_variance(y[None], mean, variance[None])
        return -jnp.squeeze(fit + prior.log_prob(z[None]))

    return jax.vmap(one)(z, y, variance)


def gradient_one_by_one(z, y, variance, observe, prior):
    def one(z, y, variance):
        return posterior_logpdf(z[None], y[None], variance[None], observe, prior)[0]

    return jax.vmap(jax.grad(one))(z, y, variance)


def gradient_vjp(z, y, variance, observe, prior):
    def values(z):
        return posterior_constant_free(z, y, variance, observe, prior)

    heights, pull = jax.vjp(values, z)
    (slopes,) = pull(jnp.ones_like(heights))
    return slopes


def gradient_value_and_grad(z, y, variance, observe, prior):
    def loss(z, y):
        return len(z) * jnp.mean(posterior_logpdf(z, y, variance, observe, prior))

    return jax.value_and_grad(loss, argnums=0)(z, y)[1]


def gradient_two_parts(z, y, variance, observe, prior):
    images, pull = jax.vjp(lambda z: observe(prior.decode(z)), z)
    (fit,) = pull((images - y) / variance)
    return fit - jax.grad(lambda z: jnp.sum(prior.log_prob(z)))(z)


def gradient_diagonal(z, y, variance, observe, prior):
    every = jax.jacfwd(posterior_logpdf)(z, y, variance, observe, prior)
    return jnp.einsum("iid->id", every)


def surprise_where(y, mean, variance):
    used = jnp.isfinite(variance)
    squares = jnp.where(used, jnp.square(y - mean) / jnp.where(used, variance, 1.0), 0.0)
    nu = used.sum((1, 2))
    reduced = squares.sum((1, 2)) / nu
    return reduced, (reduced - 1.0) / jnp.sqrt(2.0 / nu)


def surprise_weights(y, mean, variance):
    weight = 1.0 / variance
    nu = jnp.count_nonzero(weight, axis=(-1, -2))
    chi2 = jnp.einsum("nij,nij,nij->n", weight, y - mean, y - mean)
    return jnp.stack([chi2 / nu, (chi2 - nu) * (2 * nu) ** -0.5])


def surprise_one_by_one(y, mean, variance):
    def image(y, mean, variance):
        pulls = ((mean - y) / jnp.sqrt(variance)).ravel()
        nu = jnp.sum(variance < jnp.inf)
        chi2 = pulls @ pulls
        return chi2 / nu, (chi2 - nu) / jnp.sqrt(nu) / jnp.sqrt(2.0)

    return jax.vmap(image)(y, mean, variance)


def sample_normal(eps, bijector):
    x, log_det = bijector.forward(eps), bijector.forward_log_det_jacobian(eps, 1)
    return x, jax.scipy.stats.norm.logpdf(eps).sum(axis=-1) - log_det


def sample_by_hand(eps, bijector):
    d = eps.shape[-1]
    log_base = -0.5 * (jnp.einsum("nd,nd->n", eps, eps) + d * np.log(2 * np.pi))
    return [bijector.forward(eps), log_base - bijector.forward_log_det_jacobian(eps, 1)]


def sample_from_the_inverse(eps, bijector):
    x = bijector.forward(eps)
    base = tfd.Independent(tfd.Normal(jnp.zeros_like(eps), 1.0), 1)
    return x, base.log_prob(eps) + bijector.inverse_log_det_jacobian(x, 1)


def sample_transformed(eps, bijector):
    x = bijector.forward(eps)
    guide = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(jnp.zeros(eps.shape[1])), bijector
    )
    return x, guide.log_prob(x)


def sample_one_by_one(eps, bijector):
    def one(eps):
        _, log_det = jnp.linalg.slogdet(jax.jacfwd(bijector.forward)(eps))
        return bijector.forward(eps), jnp.sum(tfd.Normal(0.0, 1.0).log_prob(eps)) - log_det

    return jax.vmap(one)(eps)


def elbo_two_means(key, bijector, log_joint, shape):
    x, log_q = sample_by_hand(jax.random.normal(key, shape), bijector)
    return log_joint(x).mean() - log_q.mean()


def elbo_split(key, bijector, log_joint, shape):
    _, key = jax.random.split(key)
    x, log_q = sample_normal(jax.random.normal(key, shape), bijector)
    return jnp.sum(log_joint(x) - log_q) / shape[0]


def elbo_key_per_sample(key, bijector, log_joint, shape):
    n, d = shape

    def one(key):
        x, log_q = sample_normal(jax.random.normal(key, (1, d)), bijector)
        return log_joint(x)[0] - log_q[0]

    return jnp.mean(jax.vmap(one)(jax.random.split(key, n)))


def elbo_multivariate(key, bijector, log_joint, shape):
    base = tfd.Sample(tfd.Normal(0.0, 1.0), shape[1])
    eps = base.sample(shape[0], seed=key)
    x = bijector.forward(eps)
    log_q = base.log_prob(eps) - bijector.forward_log_det_jacobian(eps, 1)
    return -jnp.mean(log_q - log_joint(x))


def elbo_antithetic(key, bijector, log_joint, shape):
    half = jax.random.normal(key, (shape[0] // 2, shape[1]))
    x, log_q = sample_by_hand(jnp.concatenate([half, -half]), bijector)
    return jnp.mean(log_joint(x) - log_q)


def elbo_without_score(key, bijector, log_joint, shape):
    # Roeder, Wu & Duvenaud (2017, arXiv:1703.09194): the gradient passes through the samples only.
    x = bijector.forward(jax.random.normal(key, shape))
    fixed = jax.tree.map(jax.lax.stop_gradient, bijector)
    eps = fixed.inverse(x)
    log_q = jax.scipy.stats.norm.logpdf(eps).sum(-1) - fixed.forward_log_det_jacobian(eps, 1)
    return jnp.mean(log_joint(x) - log_q)


def joint_logpdf(z, y, variance, observe, prior):
    used = variance < jnp.inf
    normal = tfd.Normal(observe(prior.decode(z)), jnp.sqrt(jnp.where(used, variance, 1.0))[None])
    pixels = jnp.where(used[None], normal.log_prob(y[None]), 0.0)
    return pixels.sum((1, 2)) + prior.log_prob(z)


def joint_of_lesson_06(z, y, variance, observe, prior):
    mean = observe(prior.decode(z))
    maps = jnp.broadcast_to(y, mean.shape), mean, jnp.broadcast_to(variance, mean.shape)
    return prior.log_prob(z) + likelihood_inverse_variance(*maps)


def joint_split_sums(z, y, variance, observe, prior):
    weight = (1.0 / variance).ravel()
    residual = (y[None] - observe(prior.decode(z))).reshape(len(z), -1)
    chi2 = residual**2 @ weight
    log_norm = jnp.where(
        weight > 0.0, jnp.log(2 * jnp.pi / jnp.where(weight > 0, weight, 1.0)), 0.0
    )
    return prior.log_prob(z) - 0.5 * (chi2 + log_norm.sum())


def joint_one_by_one(z, y, variance, observe, prior):
    return jax.lax.map(lambda z: joint_logpdf(z[None], y, variance, observe, prior)[0], z)


def predictive_weights(z, y, variance, observe, prior):
    weight = jnp.where(jnp.isinf(variance), 0.0, 1.0 / variance)
    residual = observe(prior.decode(z)) - y
    return jnp.einsum("ij,nij,nij->n", weight, residual, residual) / jnp.count_nonzero(weight)


def predictive_where(z, y, variance, observe, prior):
    used = jnp.isfinite(variance)[None]
    pulls = (y - observe(prior.decode(z))) / jnp.sqrt(variance)
    return jnp.mean(pulls**2, axis=(1, 2), where=used)


def predictive_one_by_one(z, y, variance, observe, prior):
    def one(z):
        pulls = ((observe(prior.decode(z[None]))[0] - y) / jnp.sqrt(variance)).ravel()
        return pulls @ pulls

    return jax.vmap(one)(z) / (variance < jnp.inf).sum()


def predictive_indexed(z, y, variance, observe, prior):
    used = jnp.isfinite(variance)
    residual = y[used] - observe(prior.decode(z))[:, used]
    return (residual**2 / variance[used]).mean(axis=1)


def predictive_nanmean(z, y, variance, observe, prior):
    mean = np.asarray(observe(prior.decode(z)))
    pulls = np.where(np.isfinite(variance), (y - mean) / np.sqrt(variance), np.nan)
    return np.nanmean(pulls**2, axis=(1, 2))


def predictive_list(z, y, variance, observe, prior):
    n_used = int(np.isfinite(variance).sum())
    return [float(jnp.sum((y - m) ** 2 / variance)) / n_used for m in observe(prior.decode(z))]


def importance_logsumexp(log_joint, log_q):
    log_w = log_joint - log_q
    log_w = log_w - jax.scipy.special.logsumexp(log_w)
    fraction = jnp.exp(-jax.scipy.special.logsumexp(2 * log_w)) / log_w.size
    return jnp.exp(log_w), fraction


def importance_peak(log_joint, log_q):
    ratio = log_joint - log_q
    raw = jnp.exp(ratio - ratio.max())
    return [raw / raw.sum(), raw.sum() ** 2 / (raw @ raw) / raw.shape[0]]


def importance_variance(log_joint, log_q):
    weights = jnp.exp(jax.nn.log_softmax(log_joint - log_q))
    scaled = weights * len(weights)
    return weights, 1.0 / (1.0 + jnp.var(scaled))


def importance_numpy(log_joint, log_q):
    ratio = np.asarray(log_joint) - np.asarray(log_q)
    weights = np.exp(ratio - ratio.max())
    weights /= weights.sum()
    return weights, 1 / (weights.size * (weights**2).sum())


def importance_float(log_joint, log_q):
    weights = jax.nn.softmax(log_joint - log_q)
    return weights, float(1 / jnp.sum(weights**2)) / len(weights)


def covered_percentile(samples, truth, level):
    low, high = jnp.percentile(samples, jnp.array([50 - 50 * level, 50 + 50 * level]), axis=1)
    return jnp.logical_and(truth > low, truth < high)


def covered_rank(samples, truth, level):
    below = jnp.mean(samples < truth[:, None, :], axis=1)
    return jnp.abs(below - 0.5) <= level / 2


def covered_sorted(samples, truth, level):
    ordered, s = jnp.sort(samples, axis=1), samples.shape[1]
    out = round(s * (1 - level) / 2)
    return (truth >= ordered[:, out]) & (truth <= ordered[:, s - 1 - out])


def covered_one_by_one(samples, truth, level):
    def one(samples, truth):
        low = jnp.quantile(samples, 0.5 - level / 2, method="lower")
        return ~((truth < low) | (truth > jnp.quantile(samples, 0.5 + level / 2, method="higher")))

    return jax.vmap(jax.vmap(one, in_axes=(1, 0)))(samples, truth)


def covered_numpy(samples, truth, level):
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return (low <= truth) & (truth <= high)


def covered_loop(samples, truth, level):
    n, _, d = samples.shape
    inside = np.zeros((n, d), bool)
    for i in range(n):
        for j in range(d):
            low, high = np.quantile(
                np.asarray(samples[i, :, j]), [0.5 - level / 2, 0.5 + level / 2]
            )
            inside[i, j] = low <= truth[i, j] <= high
    return inside


RIGHT = {
    "01.1": (m_sigma_numpy, m_sigma_lstsq, m_sigma_polynomial),
    "01.2": (mse_dot, mse_column, mse_vmapped, mse_float64),
    "01.3": (mixture_slices, mixture_reshaped, mixture_arrays),
    "01.4": (nll_sum, nll_loop, nll_vmapped),
    "01.5": (summarise_numpy, summarise_vmapped, summarise_scipy),
    "01.6": (prior_sum, prior_densities, prior_vmapped),
    "01.7": (coverage_numpy, coverage_loop, coverage_vmapped),
    "03.1": (flow_nll_sums, flow_nll_normal, flow_nll_independent),
    "03.2": (
        forward_tanh,
        forward_masked,
        forward_softplus,
        forward_sigmoid,
        forward_clipped,
        forward_realnvp,
    ),
    "03.3": (
        inverse_tanh,
        inverse_masked,
        inverse_softplus,
        inverse_sigmoid,
        inverse_arctan,
        inverse_realnvp,
    ),
    "03.4": (stack_independent, stack_nested, stack_from_the_base, stack_loop),
    "03.5": (given_def, given_y_first, given_stacked, given_object),
    "03.6": (score_vmapped, score_by_hand, score_mvn, score_vjp),
    "06.1": (convolve_fft2, convolve_rolled, convolve_scipy, convolve_lax),
    "06.2": (likelihood_logpdf, likelihood_inverse_variance, likelihood_one_by_one),
    "06.3": (wiener_cholesky, wiener_inverse, wiener_matrix, wiener_whitened),
    "06.4": (posterior_logpdf, posterior_constant_free, posterior_one_by_one),
    "06.5": (
        gradient_one_by_one,
        gradient_vjp,
        gradient_value_and_grad,
        gradient_two_parts,
        gradient_diagonal,
    ),
    "06.6": (surprise_where, surprise_weights, surprise_one_by_one),
    "07.1": (
        sample_normal,
        sample_by_hand,
        sample_from_the_inverse,
        sample_transformed,
        sample_one_by_one,
    ),
    "07.2": (
        elbo_two_means,
        elbo_split,
        elbo_key_per_sample,
        elbo_multivariate,
        elbo_antithetic,
        elbo_without_score,
    ),
    "07.3": (joint_logpdf, joint_of_lesson_06, joint_split_sums, joint_one_by_one),
    "07.4": (
        predictive_weights,
        predictive_where,
        predictive_one_by_one,
        predictive_indexed,
        predictive_nanmean,
        predictive_list,
    ),
    "07.5": (
        importance_logsumexp,
        importance_peak,
        importance_variance,
        importance_numpy,
        importance_float,
    ),
    "07.6": (
        covered_percentile,
        covered_rank,
        covered_sorted,
        covered_one_by_one,
        covered_numpy,
        covered_loop,
    ),
    "09.1": (denoise_by_noise, denoise_broadcast, denoise_einsum),
    "09.2": (dsm_weight, dsm_norm, dsm_twice_the_mean, dsm_vdot),
    "09.3": (precondition_inverse, precondition_ratio, precondition_hypot),
    "09.4": (
        langevin_normal,
        langevin_split,
        langevin_key_per_point,
        langevin_multivariate,
        langevin_columns,
    ),
    "09.5": (reverse_denoised, reverse_factors, reverse_normal, reverse_column),
    "09.6": (flow_by_denoiser, flow_derivative, flow_column),
    "09.7": (likelihood_where, likelihood_grad, likelihood_vmapped, likelihood_hypot),
}
