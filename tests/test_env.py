"""Known breakages get their sentence; `start` prints one line; the doctor names what to do."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import matplotlib as mpl
import numpy
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from dlcourse_utils import __version__, bootstrap, cli, doctor, env, registry
from dlcourse_utils.errors import CourseError

NIGHTLY = "`pip install 'tfp-nightly>=0.26.0.dev20261027'`"
MEND = (
    "run `pip uninstall -y tensorflow-probability tfp-nightly`, then "
    f"{NIGHTLY}, and restart the kernel."
)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch):
    """Pretend other installed versions: versions(numpy="1.24.4", jax=None)."""
    real = env.installed

    def pretend(**fake: str | None) -> None:
        names = {name.replace("_", "-"): found for name, found in fake.items()}
        monkeypatch.setattr(
            env, "installed", lambda name: names[name] if name in names else real(name)
        )

    return pretend


def state(name: str) -> tuple[str, str]:
    found = next(finding for finding in doctor.examine() if finding.name == name)
    return found.state, found.text


def test_nothing_is_wrong_here() -> None:
    troubles = (env.python_trouble, env.packages_trouble, env.tfp_trouble, env.loaded_trouble)
    assert [trouble() for trouble in troubles] == [None] * 4


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0), (2, 7, 18)])
def test_wrong_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    monkeypatch.setattr(env.sys, "version_info", version)
    monkeypatch.setattr(env.sys, "executable", "/usr/bin/python")
    sentence = (
        f"The course needs Python 3.11, 3.12 or 3.13 and /usr/bin/python is Python "
        f"{version[0]}.{version[1]}: install one of them and name it, for example "
        "`make lab PYTHON=python3.12`."
    )
    assert env.python_trouble() == sentence
    assert state("python") == ("broken", sentence)
    with pytest.raises(CourseError) as caught:
        env.start()
    assert str(caught.value) == sentence


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_python(version: tuple[int, int]) -> None:
    assert bootstrap.refusal(version, "python") is None


def test_stable_tfp(versions) -> None:
    versions(tensorflow_probability="0.25.0", tfp_nightly=None, jax="0.7.2")
    sentence = (
        "tensorflow-probability 0.25.0 is the stable release, which fails on jax 0.7.2: " + MEND
    )
    assert state("tfp") == ("broken", sentence)
    with pytest.raises(CourseError) as caught:
        env.start()
    assert str(caught.value) == sentence


def test_missing_tfp(versions) -> None:
    versions(tensorflow_probability=None, tfp_nightly=None)
    sentence = f"TensorFlow Probability is missing: run {NIGHTLY} and restart the kernel."
    assert state("tfp") == ("broken", sentence)


def test_spoilt_tfp(versions, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(tfp_nightly="0.26.0.dev20261027")
    monkeypatch.setattr(env, "import_module", raising(ModuleNotFoundError("No module named 'x'.")))
    assert env.tfp_trouble() == (
        "tfp-nightly 0.26.0.dev20261027 is spoilt "
        f"(ModuleNotFoundError: No module named 'x'): {MEND}"
    )


def test_nightly_over_stable_works_and_is_warned_of(versions) -> None:
    versions(tensorflow_probability="0.25.0")
    assert env.tfp_trouble() is None
    assert state("tfp") == (
        "warning",
        "tfp-nightly lies over a stable tensorflow-probability: it works, but uninstalling "
        "either spoils the other; if it breaks, uninstall both and install tfp-nightly.",
    )


def test_numpy_replaced_under_the_kernel(versions) -> None:
    versions(numpy="9.9.9")
    sentence = (
        f"numpy was replaced while this kernel runs ({numpy.__version__} is loaded, 9.9.9 is "
        "installed): restart the kernel and run the notebook from the top."
    )
    assert state("numpy") == ("broken", sentence)


def test_course_replaced_under_the_kernel(versions) -> None:
    assert env.course_trouble() is None
    versions(dlcourse="9.9.9")
    with pytest.raises(CourseError) as caught:
        env.start()
    assert str(caught.value) == (
        f"dlcourse was replaced while this kernel runs ({__version__} is loaded, 9.9.9 is "
        "installed): restart the kernel and run the notebook from the top."
    )


def test_numpy_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("numpy.core.multiarray failed to import")
    monkeypatch.setattr(env, "import_module", raising(error))
    assert env.loaded_trouble() == (
        "numpy does not load (ImportError: numpy.core.multiarray failed to import), which happens "
        "when pip replaces numpy or jax by one that the others do not fit: run `make clean`, then "
        "`make lab`."
    )
    monkeypatch.setattr(env.paths, "repository_root", lambda: None)
    assert env.loaded_trouble().endswith("install dlcourse in a fresh virtual environment.")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert "Runtime > Disconnect and delete runtime" in env.loaded_trouble()


def test_old_and_missing_packages(versions) -> None:
    versions(numpy="1.24.4")
    sentence = (
        "numpy 1.24.4 is too old, the course needs >=2.0: run `pip install 'numpy>=2.0'` "
        "and restart the kernel."
    )
    assert state("packages") == ("broken", sentence)
    versions(optax=None)
    assert env.packages_trouble().startswith("optax is missing: run `pip install 'optax>=")


def raising(error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_course_error_in_a_notebook_is_one_sentence() -> None:
    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell(
            "from dlcourse_utils.errors import CourseError\nraise CourseError('One sentence.')"
        )
    assert shown.stdout.strip() == "One sentence."


def run_start(home: Path, **variables: str) -> list[str]:
    code = """
from dlcourse_utils import env
env.start()
import jax, matplotlib
jax.jit(lambda x: x + 1)(1.0)
print(jax.config.jax_compilation_cache_dir, matplotlib.rcParams["figure.dpi"], sep="\\n")
assert jax.config.jax_default_matmul_precision == "highest"
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = kept | {"DLCOURSE_HOME": str(home), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_start_prints_one_line_and_keeps_compiled_code(tmp_path: Path) -> None:
    line, cache, dpi = run_start(tmp_path)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (
        line == f"dlcourse {__version__} · Python {python} · jax {jax.__version__} on cpu · ready"
    )
    assert cache == str(tmp_path / "cache" / "jax")
    assert list(Path(cache).iterdir())
    assert float(dpi) == env.STYLE["figure.dpi"]


def test_start_without_a_place_for_the_cache(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert run_start(occupied)[1] == "None"


def test_start_leaves_the_users_own_cache(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    assert run_start(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[1] == own


def test_style_is_told_apart_without_colour() -> None:
    with mpl.rc_context():
        env.use_style()
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()
    assert len(set(cycle["color"])) == len(set(map(str, cycle["linestyle"]))) == 7


def set_up_cell(
    monkeypatch: pytest.MonkeyPatch, exit_code: int = 0
) -> tuple[list[str], list[bool]]:
    """Run the set-up cell; the shell commands that it gives, and whether `start` was called."""
    text = env.colab_setup_lines("https://example.org/school/course", "v1.2.3")
    assert len(text.splitlines()) <= 6
    commands, started = [], []
    monkeypatch.setattr(env, "start", lambda: started.append(True))
    shell = SimpleNamespace(system=commands.append)
    names = {"get_ipython": lambda: shell, "_exit_code": exit_code}
    exec(TransformerManager().transform_cell(text), names)
    return commands, started


def test_set_up_cell_does_nothing_outside_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_up_cell(monkeypatch) == ([], [True])


def test_set_up_cell_on_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    (command,), started = set_up_cell(monkeypatch)
    assert started == [True]
    assert "pip uninstall -qqy tensorflow-probability" in command
    assert '"dlcourse @ git+https://example.org/school/course@v1.2.3"' in command
    assert "d.__version__ == '1.2.3'" in command


def test_set_up_cell_that_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    with pytest.raises(AssertionError, match=r"Python \(3\.11 to 3\.13, .* run this cell again\.$"):
        set_up_cell(monkeypatch, exit_code=1)


def test_doctor_prints_a_line_each(capsys: pytest.CaptureFixture, versions) -> None:
    assert doctor.doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[2] for line in lines]
    assert names == [
        "python",
        "packages",
        "tfp",
        "numpy",
        "device",
        "memory",
        "disk",
        "network",
        "data",
    ]
    versions(tfp_nightly=None)
    assert cli.main(["doctor"]) == 1
    assert "✗ broken  tfp" in capsys.readouterr().out


def test_doctor_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setattr(requests, "head", raising(requests.ConnectionError("no route")))
    assert state("network") == (
        "warning",
        "raw.githubusercontent.com does not answer: lessons run without network, only data that "
        "do not ship with the course cannot be fetched now.",
    )


def test_doctor_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    memory = SimpleNamespace(available=2**29)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    text = "0.5 GiB free, a lesson may need 2: close other programs."
    assert state("memory") == ("warning", text)


@pytest.mark.parametrize(("package", "name"), [("psutil", "memory"), ("requests", "network")])
def test_doctor_without_its_own_tools(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    text = f"not looked at, because {package} is missing: run `pip install {package}`."
    assert state(name) == ("warning", text)


def test_doctor_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("DLCOURSE_HOME", str(occupied))
    assert state("disk") == (
        "warning",
        f"{occupied} cannot be made (File exists), so progress and fetched data are not kept: "
        "set DLCOURSE_HOME to a folder of yours.",
    )


def test_doctor_with_a_gpu_that_jax_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(
        jax, "devices", lambda: [SimpleNamespace(platform="cpu", device_kind="cpu")]
    )
    found, text = state("device")
    assert found == "warning"
    assert text.endswith('to use it run `pip install "jax[cuda12]"`.')


def test_doctor_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", raising(RuntimeError("Unable to initialize\nbackend")))
    assert state("device") == (
        "broken",
        "jax finds no device (RuntimeError: Unable to initialize): "
        "set JAX_PLATFORMS=cpu and try again.",
    )


def test_doctor_with_damaged_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = registry.paths.data_dir() / "registry.toml"
    (tmp_path / "registry.toml").write_bytes(shipped.read_bytes())
    monkeypatch.setattr(registry.paths, "data_dir", lambda: tmp_path)
    found, text = state("data")
    sentence = "mass_function.npz, which ships with the course, is missing or damaged: "
    assert (found, text) == ("broken", f"{sentence}run `git checkout -- data`.")
    monkeypatch.setattr(doctor.paths, "repository_root", lambda: None)
    assert state("data") == ("broken", f"{sentence}install it again.")
    (tmp_path / "registry.toml").unlink()
    found, text = state("data")
    assert found == "broken"
    assert "install the course again" in text
