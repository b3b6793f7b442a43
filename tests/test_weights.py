"""Files of weights: what is saved comes back, and anything else is refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlcourse_utils import weights
from dlcourse_utils.errors import CourseError
from dlcourse_utils.weights import WeightsError

SCRIPT, VERSION = "scripts/train_it.py", 3


def init():
    """Names at two depths, and a leaf beside a branch."""
    keys = jax.random.split(jax.random.key(8), 3)
    return {
        "params": {
            "dense": {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jnp.zeros(3)},
            "rings": jax.random.normal(keys[1], (8, 8)),
        },
        "flow": {"scale": jax.random.normal(keys[2], (2,))},
    }


@pytest.fixture(scope="module")
def params():
    return init()


def load(path, init=init, version=VERSION):
    return weights.load(path, init, version, SCRIPT)


def test_saved_weights_come_back(params, tmp_path):
    path = tmp_path / "mine.npz"
    weights.save(path, params, VERSION, "a test")
    found = load(path)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    with np.load(path, allow_pickle=False) as stored:
        assert stored["version"] == VERSION and stored["provenance"] == "a test"


def test_half_precision_halves_the_file_and_comes_back_rounded(params, tmp_path):
    path = tmp_path / "half.npz"
    weights.save(path, params, VERSION, "a test", np.float16)
    found = load(path)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    assert np.any(np.asarray(found["params"]["rings"]) != np.asarray(params["params"]["rings"]))
    with np.load(path, allow_pickle=False) as stored:
        assert stored["params/rings"].dtype == np.float16


def test_a_weight_too_large_for_half_precision_is_refused_when_it_is_read(params, tmp_path):
    path = tmp_path / "large.npz"
    large = {**params, "flow": {"scale": jnp.array([1.0, 1e5])}}
    with np.errstate(over="ignore"):
        weights.save(path, large, VERSION, "a test", np.float16)
    with pytest.raises(WeightsError, match="it holds values that are not finite"):
        load(path)


def test_init_is_only_traced(params, tmp_path):
    path = tmp_path / "mine.npz"
    weights.save(path, params, VERSION, "a test")
    seen = []

    def watched():
        made = init()
        seen.append(isinstance(made["flow"]["scale"], jax.core.Tracer))
        return made

    load(path, watched)
    assert seen == [True]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": np.array(2)}, "its version is 2, and this course reads 3"),
        ({"version": None}, "its version is None"),
        ({"version": np.array([3, 3])}, "its version is [3 3]"),
        ({"params/rings": None}, "its arrays are not those of this network"),
        ({"params/more": np.zeros(2)}, "its arrays are not those of this network"),
        ({"params/rings": np.zeros((8, 7))}, "its arrays are not those of this network"),
        ({"params/rings": np.full((8, 8), np.nan)}, "it holds values that are not finite"),
        ({"flow/scale": np.array([1.0, np.inf])}, "it holds values that are not finite"),
        ({"params/rings": np.full((8, 8), "a")}, "it holds values that are not finite numbers"),
        ({"provenance": np.array([{}], dtype=object)}, "it is not a complete .npz file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(params, tmp_path, changes, why):
    path = tmp_path / "wrong.npz"
    weights.save(path, params, VERSION, "a test")
    load(path)  # the file is right but for the change
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(WeightsError) as error:
        load(path)
    text = str(error.value)
    assert text.startswith(f"{path} cannot be used ({why}") and "\n" not in text
    assert text.endswith(f"install the course again, or make the file with {SCRIPT}.")
    assert isinstance(error.value, CourseError)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "absent", "folder", "npy"])
def test_a_damaged_file_is_refused_in_one_sentence(params, tmp_path, damage):
    path = tmp_path / "damaged.npz"
    weights.save(path, params, VERSION, "a test")
    content = path.read_bytes()
    with np.load(path, allow_pickle=False) as stored:  # a byte of the largest array
        place = content.index(stored["params/rings"].tobytes()[:64])
    path.unlink()
    if damage == "npy":
        with path.open("wb") as out:
            np.save(out, np.zeros(3))
    elif damage == "folder":
        path.mkdir()
    elif damage != "absent":
        flipped = bytes([content[place] ^ 255])
        path.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "flipped": content[:place] + flipped + content[place + 1 :],
                "text": b"not found",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(WeightsError, match=r"it is not a complete \.npz file"):
        load(path)
