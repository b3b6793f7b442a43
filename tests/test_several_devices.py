"""`fit` on several devices, on two processes and after a break gives the curve of one device.

Four devices are simulated on the CPU, which must be said before JAX starts: in another process.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trainings
from jax.sharding import PartitionSpec as P

from dlcourse_utils import checkpoints, several_devices, train
from dlcourse_utils.checkpoints import CheckpointError, Checkpoints
from dlcourse_utils.train import FitError

TESTS = Path(__file__).resolve().parent
ATOL = 1e-5  # of sums in another order, after 200 steps; measured: 2.4e-7


def begin(devices, *arguments):
    """`trainings.py` in a process of its own, with so many devices; warnings are errors there."""
    strict = ("-W", "error", "-W", "ignore:jax.core.pytype_aval_mappings")
    strict += ("-W", "ignore:Error reading persistent compilation cache entry")
    # On a busy machine a device can wait long for the others: by default it gives up after 40 s.
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    # XLA's threads. With one for each device, as on two cores, all of them may come to wait for a
    # device whose turn no thread is left to take.
    environment["NPROC"] = "16"
    environment["PYTHONPATH"] = str(TESTS.parent)
    command = [sys.executable, *strict, TESTS / "trainings.py", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(*processes):
    """What each of them printed, and its trouble; none is left behind."""
    try:
        return [process.communicate(timeout=700) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def alone():
    """The training on one device, without a break."""
    return trainings.numbers(trainings.fit())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the checkpoints of steps 40 and 80; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped") / "checkpoint"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupted(monkeypatch, folder, 120)
    return folder


@pytest.fixture(scope="module")
def four(stopped, tmp_path_factory):
    """What four devices found; the folder of `stopped` that they went on with until they were
    killed, and the steps that they reported then."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(stopped, folder / "checkpoint")
    with begin(4, folder) as process:
        ((printed, trouble),) = ended(process)
    assert process.returncode == -signal.SIGKILL, trouble
    steps = [int(line) for line in printed.splitlines() if line.isdigit()]
    return np.load(folder / "found.npz"), folder / "checkpoint", steps


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with begin(1, folder, 0, port) as first, begin(1, folder, 1, port) as second:
        for process, (_, trouble) in zip((first, second), ended(first, second), strict=True):
            assert process.returncode == 0, trouble
    return [np.load(folder / f"found_{rank}.npz") for rank in range(2)], folder / "checkpoint"


# --- devices -----------------------------------------------------------------------------------


def test_four_devices_give_the_curve_of_one(four, alone):
    found, *_ = four
    assert found["data_parts"].tolist() == [[48, 4], [600, 4]]  # rows of a batch, and held out
    np.testing.assert_allclose(found["data"], alone, rtol=0, atol=ATOL)


def test_four_devices_simulate_the_batches_of_one(four):
    found, *_ = four
    assert found["simulated_parts"].tolist() == [[48, 4], [600, 4]]
    one = trainings.numbers(trainings.fit(**trainings.SIMULATED))
    np.testing.assert_allclose(found["simulated"], one, rtol=0, atol=ATOL)


def test_fifty_rows_are_shared_out_to_two_of_four_devices(four):
    found, *_ = four
    assert found["uneven_parts"].tolist() == [[50, 2], [600, 2]]
    one = trainings.numbers(trainings.fit(**trainings.UNEVEN))
    np.testing.assert_allclose(found["uneven"], one, rtol=0, atol=ATOL)


def test_orbax_is_loaded_only_for_a_checkpoint(four):
    found, *_ = four
    assert not found["orbax_is_loaded"]


def test_two_processes_give_the_curve_of_one(two, alone):
    for found in two[0]:
        assert found["devices"] == 2
        np.testing.assert_allclose(found["data"], alone, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(two[0][0]["data"], two[0][1]["data"])


def test_two_processes_refuse_a_batch_that_leaves_one_without_work(two):
    for found in two[0]:
        assert "47 rows of a batch cannot be shared out evenly to the 2 devices" in str(
            found["uneven"]
        )


@pytest.mark.parametrize(
    ("shapes", "devices", "count"),
    [
        ([(512, 3), (512,)], 4, 4),
        ([(512, 3), (512,)], 3, 2),
        ([(510,), (7,)], 4, 3),
        ([(509,)], 4, None),
        ([(), (512, 3)], 4, 4),  # a number, and one array of rows
        ([(2,), (512, 3)], 4, 4),  # a key of the old style first
        ([(10_001,), (512, 3), (512,)], 4, 4),  # a table
        ([(512, 3), (10_001,)], 4, 4),
        ([()], 4, None),
        ([], 4, None),
    ],
)
def test_as_many_devices_as_divide_the_rows(monkeypatch, shapes, devices, count):
    one = jax.devices()[0]
    monkeypatch.setattr(jax, "devices", lambda: [one] * devices)
    monkeypatch.setattr(several_devices, "Mesh", lambda devices, names: len(devices))
    batch = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    assert several_devices.mesh_for(batch) == count
    with jax.default_device(one):  # chosen by the caller, who gets no other
        assert several_devices.mesh_for(batch) is None


def test_what_has_no_rows_is_whole_on_each_device(monkeypatch):
    monkeypatch.setattr(jax.lax, "with_sharding_constraint", lambda _, sharding: sharding.spec)
    mesh = several_devices.Mesh(jax.devices()[:1], ("rows",))
    x, y, table = jnp.ones((512, 3)), jnp.ones(512), jnp.ones((1024, 2))
    found = several_devices.split((0.5, jax.random.PRNGKey(0), x, {"y": y, "table": table}), mesh)
    whole, shared = P(), P("rows")
    assert found == (whole, whole, shared, {"y": shared, "table": whole})


# --- checkpoints -------------------------------------------------------------------------------


def interrupted(monkeypatch, folder, step, **changes):
    """The training until somebody presses the stop button, as this step is reported."""
    update = train._Line.update

    def stop(line, done, *losses):
        update(line, done, *losses)
        if done == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train._Line, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            trainings.fit(checkpoint=folder, **changes)


def untrained():
    """The optimizer of the training, for where a step would be one too many."""

    def no_step(*_):
        raise AssertionError("there is nothing left to train")

    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, trainings.STEPS))
    return optax.GradientTransformation(optimizer.init, no_step)


def steps_in(folder):
    """Steps of the whole checkpoints in a folder."""
    return sorted(int(path.name[5:]) for path in folder.iterdir() if path.name[5:].isdigit())


@pytest.fixture
def folder(stopped, tmp_path):
    """A copy of `stopped`, to be changed."""
    return shutil.copytree(stopped, tmp_path / "checkpoint")


def test_training_goes_on_to_the_same_numbers(folder, alone):
    """To the last bit, as if nothing had been."""
    assert steps_in(folder) == [40, 80]
    np.testing.assert_array_equal(trainings.numbers(trainings.fit(checkpoint=folder)), alone)


def test_four_devices_go_on_with_what_one_began(four):
    _, killed, steps = four
    assert steps == [80, 120, 160]
    assert steps_in(killed) == [80, 120]


def test_killed_in_a_write_on_four_devices_it_goes_on_on_one(four, alone, tmp_path, capsys):
    _, killed, _ = four
    assert any(path.name.startswith("step_160.") for path in killed.iterdir())
    folder = shutil.copytree(killed, tmp_path / "checkpoint")
    with trainings.told_steps():
        result = trainings.numbers(trainings.fit(checkpoint=folder))
    np.testing.assert_allclose(result, alone, rtol=0, atol=ATOL)
    assert sorted(path.name for path in folder.iterdir()) == ["step_160", "step_200"]
    printed, trouble = capsys.readouterr()
    assert printed.split()[:3] == ["120", "160", "200"] and trouble == ""


def test_what_two_processes_have_trained_is_read_by_one(two, alone):
    _, folder = two
    result = trainings.fit(checkpoint=folder, optimizer=untrained())
    np.testing.assert_allclose(trainings.numbers(result), alone, rtol=0, atol=ATOL)


def test_early_stopping_goes_on_with_what_it_knew(monkeypatch, tmp_path):
    """Few rows, so that the held-out loss rises soon: the best parameters are not the last."""
    data = trainings.simulate(jax.random.key(4), 30)
    changes = {"data": data, "patience": 4, "reports": 10}
    whole = trainings.fit(**changes)
    lowest = whole.history.step[whole.history.held_out.argmin()]
    interrupted(monkeypatch, tmp_path, lowest + 40, **changes)
    for _ in range(2):  # goes on; then has nothing to do
        result = trainings.fit(checkpoint=tmp_path, **changes)
        np.testing.assert_array_equal(trainings.numbers(result), trainings.numbers(whole))
    assert result.history.step[-1] == lowest + 80 < trainings.STEPS


def test_a_loss_that_diverges_after_a_break_keeps_what_was_good(folder):
    def until_now(params, x, y):
        return jnp.nan * trainings.loss(params, x, y)

    with pytest.raises(FitError, match="is nan at step 120") as caught:
        trainings.fit(checkpoint=folder, loss=until_now)
    assert caught.value.last_good.history.step.tolist() == [40, 80]
    assert np.isfinite(trainings.numbers(caught.value.last_good)).all()
    assert steps_in(folder) == [40, 80]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 400}, "`steps` is 200 there and 400 here"),
        ({"batch_size": 64}, "`batch_size` is 48 there and 64 here"),
        ({"label": "the other"}, "`label` is fit there and the other here"),
        ({"patience": 3}, "`patience` is None there and 3 here"),
        ({"key": jax.random.key(7)}, r"`key` is \[0, 2\] there and \[0, 7\] here"),
        (
            {"data": trainings.simulate(jax.random.key(9), 2_000)},
            r"`data` is float32\[2000,3\], float32\[2000\] with checksum \w+ there and float32\[20",
        ),
        ({"held_out": None}, r"`held_out` is float32\[600,3\], .* here"),
        (
            {"params": trainings.start(width=16)},
            r"`params\[0\]\['b'\]` is float32\[1,32\] there and float32\[1,16\] here",
        ),
        (
            {"params": trainings.start()[:2]},
            r"`params\[2\]\['b'\]` is float32\[1,2\] there and None here",
        ),
        (
            {"params": jax.tree.map(lambda array: array + 0.1, trainings.start())},
            r"`starting params` is numbers with the sum -?\d\.\d{3}e[+-]\d\d there and numbers",
        ),
        ({"optimizer": optax.sgd(1e-3)}, r"`opt_state\[0\].count` is int32\[\] there and None"),
    ],
)
def test_another_training_does_not_go_on(stopped, changes, sentence):
    with pytest.raises(CheckpointError, match=f"is of another training: {sentence}.*"):
        trainings.fit(checkpoint=stopped, **changes)


def test_starting_parameters_may_differ_in_their_last_bits():
    """As those of one key do on another kind of device."""
    params = trainings.start()
    other = jax.tree.map(lambda array: jnp.nextafter(array, jnp.inf), params)
    assert checkpoints.checksum(params) != checkpoints.checksum(other)
    assert checkpoints.sum_of(params) == checkpoints.sum_of(other)
    half = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    assert checkpoints.sum_of(half) == checkpoints.sum_of(half) != checkpoints.sum_of(params)


def spoil_the_note(step):
    (step / "note" / "metadata").write_text("{", encoding="utf-8")


def spoil_the_note_unnoticed(step):
    """As an interruption between the writing of a checkpoint and of its checksum may."""
    (step / "checksum.txt").unlink()
    spoil_the_note(step)


def flip_a_byte(step):
    largest = max(step.glob("arrays/**/d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)


def cut_in_half(step):
    largest = max(step.glob("arrays/**/d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def lose_the_arrays(step):
    shutil.rmtree(step / "arrays")


def spoil_the_checksum(step):
    (step / "checksum.txt").write_bytes(b"\xff\xfe")  # no text


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_the_note,
        spoil_the_note_unnoticed,
        flip_a_byte,
        cut_in_half,
        lose_the_arrays,
        spoil_the_checksum,
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_does(monkeypatch, folder, spoil):
    newest = folder / "step_80"
    spoil(newest)
    with pytest.raises(CheckpointError, match=f"{newest} is damaged: delete it"):
        trainings.fit(checkpoint=folder)
    shutil.rmtree(newest)
    interrupted(monkeypatch, folder, 40, optimizer=untrained())  # as soon as it is read


def test_a_whole_checkpoint_that_cannot_be_read_is_to_be_kept(monkeypatch, stopped):
    """The files are as they were written: what fails is the machine, or another orbax."""

    def restore(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", restore)
    sentence = r"step_80 cannot be read here \(RuntimeError: RESOURCE_EXHAUSTED: Out of memory\); "
    with pytest.raises(CheckpointError, match=f"{sentence}its files are whole: keep it, mend that"):
        trainings.fit(checkpoint=stopped)


def test_a_checkpoint_without_permission_is_to_be_kept(monkeypatch, stopped):
    """A superuser, as in a container, is let in all the same: the answer is put in."""

    def read_bytes(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", read_bytes)
    with pytest.raises(CheckpointError, match=r"cannot be read here \(Perm.*denied.*\): keep it"):
        trainings.fit(checkpoint=stopped)


def test_a_folder_at_home_is_meant_so(monkeypatch, tmp_path):
    """In a folder of this name below course/, it would be taken for a part of the course."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Checkpoints("~/runs/first", {}).folder == tmp_path / "runs" / "first"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*file.*name a folder"):
        trainings.fit(checkpoint=tmp_path / "file" / "checkpoint", steps=1)


def test_a_missing_orbax_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(CheckpointError, match="run `pip install orbax-checkpoint`, or leave"):
        trainings.fit(checkpoint=tmp_path, steps=1)


def test_numbers_of_numpy_and_a_path_as_label_are_written_as_they_are_compared(tmp_path):
    """After one report without a better loss it ends: nothing is learned at this rate."""
    numbers = {"steps": 40, "batch_size": 8, "reports": 4, "patience": 1}
    changes = {name: np.int64(number) for name, number in numbers.items()}
    changes |= {"label": Path("one"), "checkpoint": tmp_path}
    changes |= {"optimizer": optax.sgd(1e-30)}
    whole = trainings.fit(**changes)
    assert whole.history.step.tolist() == [10, 20]
    again = trainings.fit(**changes | numbers | {"label": "one"})
    np.testing.assert_array_equal(trainings.numbers(again), trainings.numbers(whole))


def test_other_things_in_the_folder_stay(tmp_path):
    """Orbax deletes old steps, which are folders with a number."""
    for year in range(2020, 2025):
        (tmp_path / str(year)).mkdir()
    for step in range(4):
        Checkpoints(tmp_path, {}).save(step, (jnp.ones(3),), None)
    assert steps_in(tmp_path) == [2, 3] and len(list(tmp_path.iterdir())) == 5 + 2


def test_arrays_of_all_kinds_come_back(tmp_path):
    """The state of an optimizer holds whatever its author chose: halves, counts, keys."""
    kept = Checkpoints(tmp_path, {})
    arrays = {"half": jnp.full(3, 0.1, jnp.bfloat16), "count": jnp.int32(7), "flag": jnp.bool(True)}
    arrays |= {"old key": jax.random.PRNGKey(1), "key": jax.random.key(1)}
    record = {"history": [[1, 0.1, float("nan")]], "best": float("inf")}
    kept.save(1, arrays, record)
    found, noted = kept.restore(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(_plain(found[name]), _plain(array))
    assert str(noted) == str(record)  # NaN is not equal to itself


def _plain(array):
    """The numbers of an array or of a key."""
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array
