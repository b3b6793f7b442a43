"""A runtime like Colab's: its packages, its kernel, and a git that finds the course's repository.

Cells run as they stand in the notebooks. When the kernel starts, `google.colab` is loaded; `!` is
Colab's way of running a shell, which finds the runtime's Python first; git takes the course's
public address from this machine.
"""

import json
import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync

from tests.environments import clean_environment, make_environment, uv

NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
CELL_TIMEOUT = 600  # seconds; only a cell that hangs takes longer
# etils, on which jax and flax stand, takes `output` where it sees Colab. IPython's own `!` would
# fork the kernel, and Python warns of that where jax is loaded; Colab's starts a process.
_STARTUP = """
import subprocess, sys, types
from IPython import get_ipython

def _system(command):
    shell = get_ipython()
    line = shell.var_expand(command, depth=1)
    ways = {"shell": True, "executable": "/bin/bash", "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, **ways) as process:
        for line in process.stdout:
            print(line, end="")
    shell.user_ns["_exit_code"] = process.returncode

sys.modules["google.colab"] = types.SimpleNamespace(output=None)
get_ipython().system = _system
"""


class Ran(NamedTuple):
    """What a cell gave, and the seconds that it took."""

    outputs: list[dict]
    seconds: float

    @property
    def text(self) -> str:
        """What it printed."""
        return "".join(o["text"] for o in self.outputs if o["output_type"] == "stream")

    @property
    def error(self) -> str | None:
        """What the exception that ended it says."""
        return next((o["evalue"] for o in self.outputs if o["output_type"] == "error"), None)


class Runtime:
    """A virtual environment with the packages of Colab, or with those that are named."""

    def __init__(self, folder: Path, python: str, *packages: object):
        self.folder = folder
        self.python = make_environment(folder / "python", python)
        uv("pip", "install", "--python", self.python, *packages)
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-colab.py").write_text(_STARTUP)

    def packages(self) -> dict[str, str]:
        """The version of each package."""
        listing = uv("pip", "list", "--python", self.python, "--format", "json")
        return {package["name"]: package["version"] for package in json.loads(listing)}

    def settings(self) -> dict[str, str]:
        """The kernel's variables: pip starts without what it has fetched before, as on Colab."""
        path = os.pathsep.join([str(self.python.parent), os.environ["PATH"]])
        pip = {"PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}
        return clean_environment(PATH=path, IPYTHONDIR=str(self.folder / "ipython"), **pip)


class Session:
    """A kernel of a runtime, to run cells in; used as a context, it ends with it."""

    def __init__(self, runtime: Runtime, home: Path, **settings: str):
        class Kernel(AsyncKernelManager):
            @property
            def kernel_spec(self) -> KernelSpec:
                command = [str(runtime.python), "-m", "ipykernel_launcher"]
                command += ["-f", "{connection_file}", "--log-level=CRITICAL"]
                return KernelSpec(argv=command, display_name="Python 3", language="python")

        self._client = NotebookClient(
            nbformat.v4.new_notebook(),
            kernel_manager_class=Kernel,
            timeout=CELL_TIMEOUT,
            startup_timeout=CELL_TIMEOUT,
            allow_errors=True,
            coalesce_streams=True,
            record_timing=False,
        )
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._settings = runtime.settings() | {"DLCOURSE_HOME": str(home)} | settings
        self._open = ExitStack()

    def __enter__(self) -> "Session":
        kernel = self._client.setup_kernel(cwd=str(self._home), env=self._settings)
        self._open.enter_context(kernel)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, source: str) -> Ran:
        """Run one cell; an error is among its outputs."""
        cells = self._client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        begun = time.perf_counter()
        self._client.execute_cell(cells[-1], len(cells) - 1)
        seconds = time.perf_counter() - begun
        return Ran(json.loads(json.dumps(cells[-1].outputs)), seconds)

    def forget(self, *variables: str) -> None:
        """Take variables away from the living kernel."""
        ran = self.run(f"import os\nfor name in {variables!r}:\n    del os.environ[name]")
        assert not ran.outputs, ran.outputs

    def sliders(self) -> list[str]:
        """The models of all sliders that the notebook has made."""
        states = self._client.widget_state.items()
        return [
            model for model, state in states if state.get("_model_name", "").endswith("SliderModel")
        ]

    def move(self, model: str) -> list[dict]:
        """Move a slider to its upper end as a browser does; the messages that come back."""
        client = self._client.kc
        update = {"method": "update", "buffer_paths": []}
        update["state"] = {"value": self._client.widget_state[model]["max"]}
        message = client.session.msg("comm_msg", {"comm_id": model, "data": update})
        client.shell_channel.send(message)
        answers = []
        while True:
            answer = run_sync(client.get_iopub_msg)(timeout=CELL_TIMEOUT)
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            answers.append(answer)
            if answer["content"].get("execution_state") == "idle":
                return answers


class Repository:
    """A git repository of this machine that stands for a public one."""

    def __init__(self, tree: Path, address: str):
        self.tree, self.address = tree, address
        self._git("init", "--quiet")

    def tag(self, name: str) -> None:
        """Commit all files, and give the commit a tag."""
        self._git("add", "--all")
        who = ["-c", "user.name=course", "-c", "user.email=course@example.org"]
        self._git(*who, "commit", "--quiet", "--no-verify", "--message", name)
        self._git("tag", name)

    def settings(self) -> dict[str, str]:
        """Variables with which git takes the public address from here."""
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.tree.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": self.address,
        }

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.tree, check=True)
