"""The servers that tests start are ended, and what ends them by itself is told."""

import os

import pytest

from tests import labs


def test_a_server_that_dies_is_told_with_its_last_words(tmp_path):
    command = ["sh", "-c", "echo out of luck; exit 3"]
    with (
        pytest.raises(pytest.fail.Exception, match="no address in: out of luck"),
        labs.serving(command, tmp_path, tmp_path / "log", dict(os.environ)),
    ):
        pass


def test_a_server_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(labs, "PATIENCE", 0.3)
    loop = "trap '' TERM; echo http://localhost:1/lab?$$ ; while :; do sleep 0.1; done"
    with labs.serving(["sh", "-c", loop], tmp_path, tmp_path / "log", dict(os.environ)) as address:
        process = int(address.rpartition("?")[2])
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
