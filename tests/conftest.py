"""What every test stands on: no network, no state shared with the user's own caches, reproducible draws.

Everything that reaches other processes is set in `os.environ`, before torch or Hugging Face libraries are imported.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.no_network import sitecustomize  # shuts off this process; PYTHONPATH below does it for its children

ROOT = Path(__file__).parents[1]
NO_NETWORK = Path(sitecustomize.__file__).parent
CACHES = tempfile.TemporaryDirectory(prefix="axial-tests-")

os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, [str(NO_NETWORK), str(ROOT), os.environ.get("PYTHONPATH")])),
    HF_HOME=CACHES.name,
    HF_MODULES_CACHE=str(Path(CACHES.name, "modules")),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)
# Tensors in the tests are small: a second thread costs more than it brings, and sums come out the same on any machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=5000)
settings.load_profile("ci")  # the other one: --hypothesis-profile nightly


def pytest_unconfigure(config):
    CACHES.cleanup()


def in_shard(items, shard):
    """Those of the tests that belong to a shard such as "2/4": every fourth file of them, from the second on."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise pytest.UsageError(f"TEST_SHARD is a number and how many there are, from 1/4 to 4/4 say, got {shard!r}")
    files = sorted({item.path for item in items})[int(number) - 1 :: int(count)]
    return [item for item in items if item.path in files]


def pytest_collection_modifyitems(items):
    items[:] = in_shard(items, os.environ.get("TEST_SHARD", "1/1"))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# Runs at the top of what run_python runs: proof that the fresh process is a stranger's.
WITHOUT_PACKAGE = """
try:
    import modeling_axial
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("modeling_axial can be imported here, so this run would prove nothing: " + modeling_axial.__file__)
"""


@pytest.fixture
def run_python(tmp_path_factory):
    """Runs Python code in a fresh process that has neither this package nor the network, as a stranger's machine would.

    `run_python(code, *arguments, cwd=None, env=None, check=True)` takes a string or the `Path` of a file and returns
    the `subprocess.CompletedProcess` with its output as text. The process starts in an empty folder (or `cwd`), finds
    no module of the checkout (`modeling_axial` and `configuration` are blocked even where the environment has them
    installed), and keeps remote code in a cache of its own, so that two runs share nothing but the files they are
    given. `env` adds to its environment. A run that fails fails the test, with the output, unless `check=False`.
    """

    def run(code, *arguments, cwd=None, env=None, check=True):
        folder = tmp_path_factory.mktemp("process")
        (folder / "cwd").mkdir()
        script = folder / "script.py"
        script.write_text(WITHOUT_PACKAGE + (code.read_text() if isinstance(code, Path) else code))
        environment = {
            **os.environ,
            "PYTHONPATH": str(NO_NETWORK),
            "BLOCKED_PACKAGES": "modeling_axial,configuration",
            "HF_MODULES_CACHE": str(folder / "modules"),
            **(env or {}),
        }
        done = subprocess.run(
            [sys.executable, "-P", str(script), *map(str, arguments)],
            cwd=cwd or folder / "cwd",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
