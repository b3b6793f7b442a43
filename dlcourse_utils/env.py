"""The environment of a notebook: known breakages, compile cache, plot style, one verdict line.

A notebook calls `start()` in its first cell. Importing this module sets nothing and loads nothing
heavy, so that even a broken environment gets a sentence instead of a traceback.
"""

import platform
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from dlcourse_utils import __version__, paths
from dlcourse_utils.bootstrap import SUPPORTED, refusal
from dlcourse_utils.errors import CourseError

# Okabe and Ito's colours, told apart by all common kinds of colour vision, and a line style for
# each so that a figure also reads in grey. https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))

STYLE = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "image.origin": "lower",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def start() -> None:
    """Make this notebook ready, and say so in one line.

    Sets JAX's compile cache, full precision on a GPU, and matplotlib's style. Raises CourseError,
    with what to do, for a known breakage.
    """
    for trouble in (python_trouble, course_trouble, packages_trouble, tfp_trouble, loaded_trouble):
        sentence = trouble()
        if sentence:
            raise CourseError(sentence)
    import jax

    _use_compile_cache()
    if jax.config.jax_default_matmul_precision is None:
        # A recent GPU otherwise multiplies float32 matrices with ten bits, too few for a log-det.
        jax.config.update("jax_default_matmul_precision", "highest")
    use_style()
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    where = f"jax {jax.__version__} on {jax.default_backend()}"
    print(f"dlcourse {__version__} · {python} · {where} · ready")


def use_style() -> None:
    """Set the plot style of the course."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(STYLE)
    mpl.rcParams["axes.prop_cycle"] = cycler(color=_COLOURS) + cycler(linestyle=_LINES)


def python_trouble() -> str | None:
    """The sentence for a Python that the course does not run on, None for one that it does."""
    return refusal(sys.version_info, sys.executable or platform.python_implementation())


def course_trouble() -> str | None:
    """The sentence for a course that another version has replaced under a running kernel."""
    found = installed("dlcourse")
    return _replaced("dlcourse", __version__, found) if found not in (None, __version__) else None


def packages_trouble() -> str | None:
    """The sentence for the first package that is missing or too old, TFP aside; None when none."""
    for requirement in _requirements():
        found = installed(requirement.name)
        wanted = f"`pip install '{requirement.name}{requirement.specifier}'`"
        if requirement.name == "tfp-nightly":
            continue
        if found is None:
            return f"{requirement.name} is missing: run {wanted} and restart the kernel."
        if not requirement.specifier.contains(found, prereleases=True):
            return (
                f"{requirement.name} {found} is too old, the course needs "
                f"{requirement.specifier}: run {wanted} and restart the kernel."
            )
    return None


def tfp_trouble() -> str | None:
    """The sentence for a TensorFlow Probability that is missing, stable or spoilt, None if sound.

    The stable release fails on jax 0.7 and later. The nightly works, but the two share their
    files, so uninstalling one of them spoils the other.
    """
    stable, nightly = installed("tensorflow-probability"), installed("tfp-nightly")
    install = next(f"`pip install '{r}'`" for r in _requirements() if r.name == "tfp-nightly")
    mend = (
        "run `pip uninstall -y tensorflow-probability tfp-nightly`, then "
        f"{install}, and restart the kernel."
    )
    if nightly is None and stable is None:
        return f"TensorFlow Probability is missing: run {install} and restart the kernel."
    if nightly is None:
        return (
            f"tensorflow-probability {stable} is the stable release, which fails on "
            f"jax {installed('jax')}: {mend}"
        )
    try:
        import_module("tensorflow_probability.substrates.jax.distributions")
    except Exception as error:  # whatever a half-overwritten package raises
        return f"tfp-nightly {nightly} is spoilt ({first_line(error)}): {mend}"
    return None


def loaded_trouble() -> str | None:
    """The sentence for numpy or jax replaced under a running kernel or unfit for the rest."""
    for name in ("numpy", "scipy.linalg", "jax"):
        try:
            module = import_module(name)
        except Exception as error:  # a mismatched binary raises ImportError, ValueError, ...
            return (
                f"{name.partition('.')[0]} does not load ({first_line(error)}), which happens "
                "when pip replaces numpy or jax by one that the others do not fit: " + _anew()
            )
        loaded, found = getattr(module, "__version__", None), installed(name)
        if loaded and found and loaded != found:
            return _replaced(name, loaded, found)
    return None


def colab_setup_lines(repository: str, tag: str) -> str:
    """The set-up cell that the build writes into each notebook; it adds nothing outside Colab.

    On Colab it installs the notebook's own version, in place of another where a runtime has one. It
    takes the stable TFP away before the nightly comes, because they share files, and leaves the
    runtime's own jax and numpy, which satisfy the course's bounds. An installation that stops half
    way is done again at the next run, because the course itself comes last.
    """
    number = tag.removeprefix("v")
    there = f"import dlcourse_utils as d; assert d.__version__ == '{number}'"
    remove = "pip uninstall -qqy tensorflow-probability tfp-nightly"
    install = f'pip install -qq "dlcourse @ git+{repository}@{tag}"'
    low, high = ("{}.{}".format(*python) for python in SUPPORTED)
    failed = (
        "The course was not installed: read the message above, look at the network and at Python "
        f"({low} to {high}, see Runtime > Change runtime type), and run this cell again."
    )
    return "\n".join(
        [
            "import sys",
            'if "google.colab" in sys.modules:  # on Colab only: adds the course, once',
            f'    !python -c "{there}" 2> /dev/null || ({remove}; {install})',
            f'    assert _exit_code == 0, "{failed}"',
            "from dlcourse_utils import env",
            "env.start()",
        ]
    )


def installed(name: str) -> str | None:
    """Version of an installed package as its metadata say, without importing it; None if absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def first_line(error: Exception) -> str:
    """An exception in one line: its type and the beginning of what it says."""
    text = f"{type(error).__name__}: {error}"
    return text.splitlines()[0].rstrip(".:")


def _requirements() -> list[Requirement]:
    """What the course itself needs, extras aside, as its metadata say."""
    return [r for r in map(Requirement, requires("dlcourse") or []) if r.marker is None]


def _replaced(name: str, loaded: str, found: str) -> str:
    return (
        f"{name} was replaced while this kernel runs ({loaded} is loaded, {found} is "
        "installed): restart the kernel and run the notebook from the top."
    )


def _anew() -> str:
    if "google.colab" in sys.modules:
        return "choose Runtime > Disconnect and delete runtime, and run the first cell again."
    if paths.repository_root():
        return "run `make clean`, then `make lab`."
    return "install dlcourse in a fresh virtual environment."


def _use_compile_cache() -> None:
    """Keep compiled code between kernels; not where the user chose a cache or none can be kept."""
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    folder = paths.cache_dir() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
