"""Classifier two-sample tests: how often can samples be told from the truth?

A classifier that is shown some points of both kinds names the kind of the others. One half is right
by luck; samples of the very same law allow no more (Lopez-Paz & Oquab 2017,
doi:10.48550/arXiv.1610.06545).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import cKDTree

from dlcourse_utils.train import fit

_NEIGHBOURS = 50
_STEPS = 200


class Accuracy(NamedTuple):
    """Fraction of points whose kind each classifier names, on points that it was not shown."""

    neighbours: float
    network: float


class _Classifier(nn.Module):
    """Points (..., d) to the log odds that they are true ones (...)."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.silu(nn.Dense(64)(x))
        return nn.Dense(1)(x)[..., 0]


def accuracies(
    samples: Mapping[str, jax.Array], truth: jax.Array, *, key: jax.Array
) -> dict[str, Accuracy]:
    """Tell each set of ``samples`` (n, d) from ``truth`` (n, d), by two classifiers.

    One takes the vote of the 50 nearest points, the other is a network with two layers of 64. Each
    is trained on one half and asked about the other, then the other way round, so that all 2n
    points are judged: without any difference the accuracy is 0.5, with a standard deviation of
    0.5 / sqrt(2n) to 0.5 / sqrt(n), because both halves judge with each other's points. Raises
    ValueError for shapes that differ, for fewer than 100 points, for values that are not finite and
    for a coordinate in which the truth does not vary.
    """
    if not samples:
        raise ValueError("There are no samples: give at least one set, by name.")
    names, truth = list(samples), np.asarray(truth, dtype=np.float32)
    sets = np.stack([_checked(samples[name], truth, name) for name in names])
    half = len(truth) // 2
    sets, truth = sets[:, : 2 * half], truth[: 2 * half]
    # (set, kind, half, point, coordinate): true points are kind 1.
    both = np.stack([sets, np.broadcast_to(truth, sets.shape)], axis=1)
    both = both.reshape(len(names), 2, 2, half, truth.shape[1])
    both = (both - truth.mean(axis=0)) / truth.std(axis=0)
    by_network = _by_network(both, key)
    return {
        name: Accuracy(_by_neighbours(pair), float(network))
        for name, pair, network in zip(names, both, by_network, strict=True)
    }


def _checked(points: jax.Array, truth: np.ndarray, name: str) -> np.ndarray:
    points = np.asarray(points, dtype=np.float32)
    if points.shape != truth.shape or points.ndim != 2 or len(points) < 2 * _NEIGHBOURS:
        raise ValueError(
            f"{name} has shape {points.shape} and the truth {truth.shape}: give as many points of "
            f"both, as arrays (n, d), with n of at least {2 * _NEIGHBOURS}."
        )
    if not (np.isfinite(points).all() and np.isfinite(truth).all()):
        raise ValueError(f"{name} or the truth holds NaN or infinite values: remove those rows.")
    if not np.ptp(truth, axis=0).all():
        raise ValueError("The truth does not vary in one of its coordinates: leave it out.")
    return points


def _by_neighbours(pair: np.ndarray) -> float:
    """Accuracy on points (kind, half, point, coordinate)."""
    right = []
    for shown in (0, 1):
        known, asked = (pair[:, h].reshape(-1, pair.shape[-1]) for h in (shown, 1 - shown))
        kind = np.repeat([0.0, 1.0], pair.shape[2])
        nearest = cKDTree(known).query(asked, k=_NEIGHBOURS, workers=-1)[1]
        votes = kind[nearest].mean(axis=1)
        right.append(np.where(votes == 0.5, 0.5, (votes > 0.5) == (kind > 0.5)).mean())
    return float(np.mean(right))


def _by_network(both: np.ndarray, key: jax.Array) -> np.ndarray:
    """Accuracy for each set of (set, kind, half, point, coordinate); all networks in one fit."""
    n_sets, _, _, half, d = both.shape
    # Rows first, then one network for each set and half: (point, set and half, kind, coordinate).
    rows = jnp.asarray(both.transpose(3, 0, 2, 1, 4).reshape(half, 2 * n_sets, 2, d))
    classifier = _Classifier()
    start_key, fit_key = jax.random.split(key)
    # Drawn by NumPy, for flax would take a second to compile it. Biases too: the bends of units
    # that start at zero would all meet in the origin.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(start_key)))

    def drawn(leaf):
        scale = leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 0.5
        return scale * rng.standard_normal((2 * n_sets, *leaf.shape), dtype=np.float32)

    start = jax.tree.map(drawn, jax.eval_shape(classifier.init, start_key, jnp.zeros((1, d))))
    apply = jax.vmap(classifier.apply, in_axes=(0, 1), out_axes=1)

    def loss(params, x):
        log_odds = apply(params, x)
        # kinds along the last axis: 0 for samples, 1 for true points
        return jnp.mean(jax.nn.softplus(log_odds * jnp.array([1.0, -1.0])[None, None, :]))

    result = fit(
        loss,
        start,
        (rows,),
        key=fit_key,
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, _STEPS)),
        steps=_STEPS,
        batch_size=256,
        label="classifiers",
    )
    # Each network is asked about the half that it was not shown.
    asked = rows.reshape(half, n_sets, 2, 2, d)[:, :, ::-1].reshape(rows.shape)
    says_true = np.asarray(jax.jit(apply)(result.params, asked)) > 0.0
    right = np.mean(says_true == np.array([False, True])[None, None, :], axis=(0, 2))
    return right.reshape(n_sets, 2).mean(axis=1)
