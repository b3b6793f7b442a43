"""One small training, for tests that compare it on one device, on several and after a break.

As a program, `python trainings.py FOLDER` trains on all devices, goes on with the checkpoint there
and is killed while it writes one; `python trainings.py FOLDER RANK PORT` is one of two processes.
"""

import os
import signal
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlcourse_utils import train
from dlcourse_utils.errors import CourseError

STEPS, KILLED_AT = 200, 160


def simulate(key, rows=48):
    """Three features (n, 3), and a number (n,) whose spread they decide too."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (rows, 3))
    noise = jnp.exp(x[:, 1]) * jax.random.normal(noise_key, (rows,))
    return x, jnp.sin(2.0 * x[:, 0]) + 0.2 * noise


def start(width=32):
    sizes = ((3, width), (width, width), (width, 2))
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return [
        {"w": jax.random.normal(key, size) / jnp.sqrt(size[0]), "b": jnp.zeros((1, size[1]))}
        for key, size in zip(keys, sizes, strict=True)
    ]


def loss(params, x, y):
    """Mean negative log-likelihood of a Gaussian, in nats, but for a constant."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    out = x @ params[-1]["w"] + params[-1]["b"]
    return jnp.mean(out[:, 1] + 0.5 * ((y - out[:, 0]) / jnp.exp(out[:, 1])) ** 2)


def fit(**changes):
    """The training, with some arguments of `fit` replaced."""
    arguments = {
        "loss": loss,
        "params": start(),
        "data": simulate(jax.random.key(1), 2_000),
        "key": jax.random.key(2),
        "optimizer": optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)),
        "steps": STEPS,
        "batch_size": 48,
        "held_out": simulate(jax.random.key(3), 600),
        "reports": 5,
    }
    return train.fit(**arguments | changes)


SIMULATED = {"data": simulate, "steps": 40, "reports": 2}
UNEVEN = {"batch_size": 50, "steps": 40, "reports": 2}


def numbers(result):
    """All that a training returns, in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])


def shares(**changes):
    """What `numbers` gives, and for each number of rows the parts into which they came, sorted."""
    parts = set()

    def watched(params, x, y):
        def note(sharding):
            # The number of devices would not do: an array is on all of them also as a copy.
            parts.add((x.shape[0], x.shape[0] // sharding.shard_shape(x.shape)[0]))

        jax.debug.inspect_array_sharding(x, callback=note)
        return loss(params, x, y)

    result = fit(loss=watched, **changes)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(result.params))
    return numbers(result), sorted(parts)


def told_steps():
    """From here on a training prints the steps that it reports, in the place of their losses."""
    return mock.patch.object(train._Line, "update", lambda _, done, *__: print(done, flush=True))


def killed_while_it_writes(step):
    """From here on this process is killed when the checkpoint of this step is all but renamed."""

    def rename(source, target, *more, **options):
        if Path(target).name == f"step_{step}":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target, *more, **options)

    real = os.rename
    return mock.patch("os.rename", rename)


def several(folder):
    """On all devices of this process."""
    found = {}
    found["data"], found["data_parts"] = shares()
    found["simulated"], found["simulated_parts"] = shares(**SIMULATED)
    found["uneven"], found["uneven_parts"] = shares(**UNEVEN)
    found["orbax_is_loaded"] = "orbax" in sys.modules
    np.savez(folder / "found.npz", **found)
    with killed_while_it_writes(KILLED_AT), told_steps():
        fit(checkpoint=folder / "checkpoint")


def one_of_two(folder, rank, port):
    """On the devices of two processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # On a busy machine a process can be still for long.
    jax.distributed.initialize(
        f"localhost:{port}", num_processes=2, process_id=rank, heartbeat_timeout_seconds=600
    )
    found = {"devices": jax.device_count()}
    found["data"] = numbers(fit(checkpoint=folder / "checkpoint"))
    try:
        fit(batch_size=47)
    except CourseError as error:
        found["uneven"] = str(error)
    np.savez(folder / f"found_{rank}.npz", **found)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        several(Path(sys.argv[1]))
    else:
        one_of_two(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
