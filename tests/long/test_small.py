"""What a server costs: the size of what it installs, and the time it takes to start."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests import bundles
from tests.compose.test_compose import INSTALLED, INSTALLED_MEGABYTES

ROOT = Path(__file__).parents[2]
STARTED_SECONDS = 3
DEMO_MODELS = ROOT / "models"


@pytest.mark.long
def test_a_bare_installation_of_the_server_is_small_and_has_no_torch(tmp_path: Path) -> None:
    """A fresh virtual environment with `polyhead[server]` and nothing else, as a person would install it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--constraint", "constraints.txt", ".[server]"], cwd=ROOT, check=True)

    installed = json.loads(subprocess.check_output([python, "-c", INSTALLED], cwd=tmp_path))
    helped = subprocess.run([python.with_name("polyhead"), "serve", "--help"], capture_output=True, text=True)

    print(f"{installed['bytes'] / 1e6:.0f} MB installed")
    assert installed["there"] == []
    assert 50 < installed["bytes"] / 1e6 < INSTALLED_MEGABYTES
    assert (helped.returncode, "--models" in helped.stdout) == (0, True)


@pytest.mark.long
def test_the_server_is_ready_in_under_three_seconds() -> None:
    """With the models of `make demo` where they have been made, else with tiny ones."""
    models = DEMO_MODELS if DEMO_MODELS.is_dir() else bundles.models_folder()
    arguments = ["--models", str(models), "--port", "0", "--metrics-port", "off", "--log-format", "json"]
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "polyhead.server", *arguments], stderr=subprocess.PIPE) as server:
        assert server.stderr
        try:
            events = [json.loads(line)["event"] for line in up_to(server.stderr, b'"serving"')]
            seconds = time.monotonic() - began
        finally:
            server.terminate()
            server.stderr.read()
    print(f"ready after {seconds:.2f} s")
    assert events[-1] == "serving"
    assert seconds < STARTED_SECONDS
    assert server.returncode == 0


def up_to(lines: Iterable[bytes], last: bytes) -> Iterator[bytes]:
    """Lines up to the first one that contains `last`, with it."""
    for line in lines:
        yield line
        if last in line:
            return
