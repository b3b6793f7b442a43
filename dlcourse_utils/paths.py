"""Where the course keeps its files: in a checkout, in an installed wheel, and at the user's home.

Standard library and platformdirs only, so that every other module can stand on it.
"""

import os
from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parent


def repository_root() -> Path | None:
    """Root of the checkout that this package runs from, None when installed as a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def solutions_dir() -> Path:
    """Folder with the solved sources NN_name.py, the only hand-written form of a lesson."""
    root = repository_root()
    return root / "solutions" if root else _PACKAGE / "_solutions"


def data_dir() -> Path:
    """Folder with the data that ship with the course; may be read-only."""
    root = repository_root()
    return root / "data" if root else _PACKAGE / "_data"


def user_dir() -> Path:
    """The user's own folder (progress, fetched data); DLCOURSE_HOME moves it. Not created here."""
    home = os.environ.get("DLCOURSE_HOME")
    return Path(home).expanduser() if home else platformdirs.user_data_path("dlcourse")


def cache_dir() -> Path:
    """Folder for what can be thrown away (compiled code); moves with DLCOURSE_HOME. Not created."""
    if os.environ.get("DLCOURSE_HOME"):
        return user_dir() / "cache"
    return platformdirs.user_cache_path("dlcourse")
