"""Shared by all tests: a compile cache, the real recordings, and subprocesses with a given number of devices."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything imports jax. Small steps compile again and again across tests and subprocesses: keep them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"lsm_jax-compiled-{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Workers of pytest-xdist keep to a core each, or their compilers' threads would wait for each other.
if os.environ.get("PYTEST_XDIST_WORKER") and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

# A failure must come back on the next run, and a busy machine must not look like one.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Lets go of a module's compiled programs: each takes memory maps, and Linux gives a process 65,530."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts `tests/train` first: its files take longest, and a long file at the end would leave a worker idle."""
    items.sort(key=lambda item: (REPOSITORY / "tests" / "train") not in item.path.parents)


SHARED_DATA = Path(os.environ.get("LSM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real recordings unpacked; the test is skipped where they are not beside the checkout."""
    folder = SHARED_DATA
    unpack = folder / "unpack"
    if not unpack.is_file():
        pytest.skip(f"no real recordings: {unpack} does not exist (LSM_SHARED_DATA names their folder)")
    finished = subprocess.run([unpack], capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        pytest.skip(f"the real recordings do not unpack: {finished.stderr.strip()[-300:]}")
    return Path(finished.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def run_with_devices() -> Callable[..., str]:
    """`run_with_devices(code, devices=8)` runs Python code in a process of its own that sees that many CPU devices.

    Returns what it printed. The number of devices is fixed when JAX starts, and splitting the CPU slows every other
    test down, so it is never set for the whole session.
    """

    def run(code: str, *arguments: str, devices: int = 8, timeout: float = 300.0) -> str:
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        finished = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, check=False, timeout=timeout, env=environment, cwd=REPOSITORY,
        )  # fmt: skip
        assert finished.returncode == 0, (
            f"exit {finished.returncode}\n{finished.stdout[-2000:]}\n{finished.stderr[-6000:]}"
        )
        return finished.stdout

    return run
