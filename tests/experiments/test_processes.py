import os
import sys

import pytest

from experiments import processes
from experiments.config_files import ConfigError

PART = """
import os, sys
flags = dict(flag.split("=") for flag in sys.argv[1:])
print("share", os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
print(sorted(flags.items()))
sys.exit("it is too hot" if flags["--config.way"] == "20" else 0)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """This process looks as if it ran a script that prints its flags and fails at 20 ways."""
    script = tmp_path / "part.py"
    script.write_text(PART)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(script), "--config.processes=2"])
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    return tmp_path / "work"


def test_parts_run_apart_with_flags_and_a_share_of_the_memory(command):
    """Faults: a part does the work of another, starts processes of its own, writes into another
    folder, or takes the whole of the device's memory."""
    parts = {f"5w{shot}s/maml": processes.flags_of(way=5, shot=shot) for shot in (1, 5, 10)}
    processes.in_processes(parts, command, 2)
    for shot in (1, 5, 10):
        log = (command / f"5w{shot}s" / "maml" / processes.LOG).read_text().splitlines()
        expected = {"config.processes": "1", "config.way": "5", "config.shot": str(shot)}
        expected["workdir"] = str(command)
        flags = sorted((f"--{name}", value) for name, value in expected.items())
        assert log == ["share 0.450", str(flags)]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ


def test_a_part_that_fails_is_named_and_the_others_are_done(command):
    """Faults: one failure ends all, or passes for success; its reason is lost."""
    parts = {f"{way}w1s/maml": processes.flags_of(way=way) for way in (20, 5)}
    with pytest.raises(ConfigError, match=r"1 of 2 parts failed: 20w1s/maml \(it is too hot\)"):
        processes.in_processes(parts, command, 1)
    assert "share" in (command / "5w1s" / "maml" / processes.LOG).read_text()
