"""One training loop for every lesson: a jitted step, a held-out loss, a history.

`fit` knows nothing of the model: the loss is a function of the parameters and of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from numbers import Integral
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from IPython.core.getipython import get_ipython
from IPython.display import display
from jax.sharding import Mesh

from dlcourse_utils import several_devices
from dlcourse_utils.checkpoints import Checkpoints, fingerprint, sum_of
from dlcourse_utils.errors import CourseError

Params = Any
Loss = Callable[..., jax.Array]
Batch = tuple[jax.Array, ...]
Report = tuple[int, float, float]  # step, training loss, held-out loss


class History(NamedTuple):
    """What `fit` measured: at ``step`` (k,) the mean training loss since the last report and the
    loss of the held-out data (NaN where there is none), both (k,)."""

    step: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


class FitResult(NamedTuple):
    """Trained parameters and the history of the training."""

    params: Params
    history: History


class _State(NamedTuple):
    """The arrays that a checkpoint keeps."""

    params: Params
    opt_state: optax.OptState
    best_params: Params


class FitError(CourseError):
    """Training cannot start or cannot go on.

    ``last_good`` is what had been trained at the last report before the loss left the finite
    numbers; None where there was no report.
    """

    def __init__(self, sentence: str, last_good: FitResult | None = None):
        super().__init__(sentence)
        self.last_good = last_good


def fit(
    loss: Loss,
    params: Params,
    data: Batch | Callable[[jax.Array], Batch],
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int = 512,
    held_out: Batch | None = None,
    reports: int = 20,
    patience: int | None = None,
    label: str = "fit",
    checkpoint: str | PathLike | None = None,
) -> FitResult:
    """Minimise ``loss(params, *batch)``, a scalar, by ``steps`` steps of ``optimizer``.

    ``data`` is a tuple of arrays with the same leading length; a batch draws ``batch_size`` rows of
    each, with replacement. Where each batch is simulated anew, ``data`` is a function of a key that
    returns one, and ``batch_size`` is not used. ``held_out``, a tuple of arrays like a batch, is
    evaluated at each of the ``reports`` reports; with ``patience`` training stops after that many
    reports without a better held-out loss and returns the best parameters.

    With ``checkpoint``, a folder of this training alone, the state is kept there at each report,
    and a call with the same arguments goes on from it. Not compared are ``loss``, ``optimizer`` and
    a function ``data``: who changes one of them names another folder. All devices share out a
    batch; what is returned is on the first.

    Raises `FitError` if the data do not fit together or the loss stops being a finite number; the
    error keeps the last good parameters. Raises `CheckpointError` if the folder cannot be written
    or read, is damaged or of another training.
    """
    steps, reports = _whole("steps", steps), _whole("reports", reports)
    batch_size = _whole("batch_size", batch_size)
    patience = None if patience is None else _whole("patience", patience)
    draw = _simulator(data) if callable(data) else _sampler(batch_size)
    data = () if callable(data) else _checked(data, "data", None)
    if held_out is not None:
        held_out = _checked(held_out, "held_out", len(data) or None)
    elif patience is not None:
        raise FitError("`patience` needs `held_out` data: pass some, or leave patience out.")
    every = -(-steps // reports)
    kept = None
    if checkpoint is not None:
        settings = {"label": str(label), "key": jax.random.key_data(key).tolist()}
        settings |= {"steps": steps, "batch_size": batch_size, "reports": reports}
        settings |= {"patience": patience, "starting params": sum_of(params)}
        settings |= {"data": fingerprint(data), "held_out": fingerprint(held_out or ())}
        kept = Checkpoints(checkpoint, settings)

    mesh = None  # of one device: what `several_devices` does then changes nothing
    if jax.device_count() > 1:
        mesh = several_devices.mesh_for(jax.eval_shape(draw, key, data))
    everywhere = several_devices.everywhere(mesh)
    # The first step donates its arguments: work on a copy, the caller's parameters stay valid.
    params = several_devices.copy(_copied(params), mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=everywhere)(params)
    data, held_out, zero = several_devices.copy((data, held_out, jnp.zeros(())), mesh)

    @partial(jax.jit, donate_argnums=(0, 1, 2), out_shardings=everywhere)
    def train_step(params, opt_state, total, index, data):
        batch = several_devices.split(draw(jax.random.fold_in(key, index), data), mesh)
        value, grads = jax.value_and_grad(_scalar(loss))(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, total + value

    @jax.jit
    def held_out_loss(params, *batch):
        return loss(params, *several_devices.split(batch, mesh))

    line = _Line(label, steps)
    history: list[Report] = []
    best, best_params, waited, start = np.inf, _copied(params), 0, 0
    last_good: FitResult | None = None
    if kept and (found := kept.restore(_State(params, opt_state, best_params))):
        (params, opt_state, best_params), record = found
        history = [tuple(report) for report in record["history"]]
        best, waited, start = record["best"], record["waited"], record["start"]
        last_good = _result(_copied(params), history, mesh)
        line.update(*history[-1])
    total = jnp.array(zero)
    for index in range(start, steps):
        params, opt_state, total = train_step(params, opt_state, total, np.int32(index), data)
        done = index + 1
        if done % every and done != steps:
            continue
        # The only place where the host waits for the device.
        since = done - (history[-1][0] if history else 0)
        train_loss = float(total) / since
        total = jnp.array(zero)
        test_loss = float(held_out_loss(params, *held_out)) if held_out is not None else np.nan
        if not np.isfinite(train_loss) or (held_out is not None and not np.isfinite(test_loss)):
            raise FitError(
                f"The loss of {label} is {train_loss:.3g} at step {done}"
                + (f" ({test_loss:.3g} on held-out data)" if held_out is not None else "")
                + ": it has left the finite numbers. Check the sign of the loss and "
                "the scales of the model, then try a smaller learning rate."
                + (" The error's `last_good` keeps the last good parameters." * bool(last_good)),
                last_good,
            )
        history.append((done, train_loss, test_loss))
        line.update(*history[-1])
        if test_loss < best:  # never true without held-out data
            best, best_params, waited = test_loss, _copied(params), 0
        else:
            waited += 1
        stop = patience is not None and waited >= patience
        # The last step may have spoilt them: its loss was that of the parameters before it.
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            last_good = _result(_copied(params), history, mesh)
            if kept:
                record = {"history": history, "best": best, "waited": waited}
                record |= {"start": steps if stop else done}
                kept.save(done, _State(params, opt_state, best_params), record)
        if stop:
            break
    line.close()
    return _result(best_params if patience is not None else params, history, mesh)


def _whole(name: str, number: Any) -> int:
    """The number as one of Python's own, if it is whole and at least 1."""
    if not isinstance(number, Integral) or number < 1:
        raise FitError(f"`{name}` must be a whole number of at least 1; got {number!r}.")
    return int(number)


def _sampler(batch_size: int) -> Callable[[jax.Array, Batch], Batch]:
    """Draw rows of the data, with replacement."""

    def draw(key, data):
        rows = jax.random.randint(key, (batch_size,), 0, data[0].shape[0])
        return tuple(array[rows] for array in data)

    return draw


def _simulator(simulate: Callable[[jax.Array], Batch]) -> Callable[[jax.Array, Batch], Batch]:
    """Draw a batch that is simulated, if it is one."""

    def draw(key, _):
        batch = simulate(key)
        if not isinstance(batch, tuple):
            raise FitError(
                "`data`, a function of a key, must return a batch: a tuple of arrays, such as "
                f"(x, y); it returned {type(batch).__name__}."
            )
        return batch

    return draw


def _scalar(loss: Loss) -> Loss:
    """The loss, if it is one number."""

    def scalar_loss(params, *batch):
        value = loss(params, *batch)
        if jnp.shape(value) != ():
            shape = jnp.shape(value)
            raise FitError(f"The loss must return one number; it has shape {shape}: take its mean.")
        return value

    return scalar_loss


def _copied(params: Params) -> Params:
    """Arrays that the next step does not overwrite."""
    return jax.tree.map(jnp.array, params)


def _result(params: Params, history: list[Report], mesh: Mesh | None) -> FitResult:
    columns = (np.array(column) for column in zip(*history, strict=True))
    return FitResult(several_devices.first_copy(params, mesh), History(*columns))


def _checked(data: Any, name: str, count: int | None) -> Batch:
    """The data as arrays on the device, if they fit together."""
    if not isinstance(data, tuple) or not data or count not in (None, len(data)):
        wanted = "arrays" if count is None else f"{count} arrays"
        raise FitError(f"`{name}` must be a tuple of {wanted}, such as (x, y).")
    arrays = tuple(jnp.asarray(array) for array in data)
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise FitError(f"The arrays of `{name}` need one common, non-zero length; got {shapes}.")
    for array in arrays:
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise FitError(f"`{name}` holds NaN or infinite values: remove those rows first.")
    return arrays


class _Line:
    """One line of text, updated in place in a notebook, printed once elsewhere."""

    def __init__(self, label: str, steps: int):
        self.label, self.steps, self.start = label, steps, time.perf_counter()
        self.text = f"{label}: compiling"
        self.handle = display(_Text(self.text), display_id=True) if get_ipython() else None

    def update(self, done: int, train: float, held_out: float) -> None:
        seconds = time.perf_counter() - self.start
        tail = "" if np.isnan(held_out) else f" · held-out {held_out:.4f}"
        self.text = (
            f"{self.label}: step {done:,} of {self.steps:,} · {seconds:.0f} s"
            f" · training loss {train:.4f}{tail}"
        )
        if self.handle:
            self.handle.update(_Text(self.text))

    def close(self) -> None:
        if not self.handle:
            print(self.text)


class _Text:
    """Text without quotation marks around it."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text
