"""Fixtures that set what a test may rely on and restore it afterwards."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

MOST_WORKERS = 8  # of `-n auto`: each takes the memory of torch, and all of them one GPU
# A checkout beside a folder of real data finds it; an explicit PPL_VAE_DATA wins.
NEIGHBOURING_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vary-seed", action="store_true", help="draw a new base seed; it is printed at the end")
    parser.addoption("--base-seed", type=int, default=0, help="base seed, to repeat a run that --vary-seed drew")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # matrices as small as these only wait for more threads
    config.base_seed = base_seed(config)
    if NEIGHBOURING_DATA.is_dir():
        os.environ.setdefault("PPL_VAE_DATA", str(NEIGHBOURING_DATA))
    # A plugin rather than plain fixtures: the doctests of the library live outside this folder and need the same care.
    config.pluginmanager.register(Isolation(), "ppl_vae_isolation")


def base_seed(config: pytest.Config) -> int:
    """That of the command line, or one that is drawn once: processes of pytest-xdist take that of the first."""
    if hasattr(config, "workerinput"):
        return config.workerinput["base_seed"]
    return secrets.randbelow(2**31) if config.getoption("--vary-seed") else config.getoption("--base-seed")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["base_seed"] = node.config.base_seed


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid}: expected a name that is the same in every process, found an address"
            )


def pytest_report_header(config: pytest.Config) -> str:
    cuda = "yes" if torch.cuda.is_available() else "no"
    return f"base seed: {config.base_seed}, CUDA: {cuda}, real data: {os.environ.get('PPL_VAE_DATA', 'none')}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--vary-seed"):  # `make test` shows no header
        terminalreporter.write_line(f"base seed: {config.base_seed}; --base-seed {config.base_seed} repeats this run")


class Isolation:
    """Global settings are the defaults before every test, and are again what they were after it."""

    @pytest.fixture(autouse=True)
    def isolation(self, seed: int) -> Iterator[None]:
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        grad, deterministic = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
        validation = torch.distributions.Distribution._validate_args
        states = pyro.util.get_rng_state()
        torch.set_default_dtype(torch.float32)
        torch.distributions.Distribution.set_default_validate_args(True)  # the import of zuko turns it off
        pyro.set_rng_seed(seed)
        yield
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call itself takes seconds
            torch.use_deterministic_algorithms(deterministic)
        torch.distributions.Distribution.set_default_validate_args(validation)
        torch.random.set_rng_state(states["torch"])
        random.setstate(states["random"])
        np.random.set_state(states["numpy"])  # noqa: NPY002 (Pyro seeds this one)
        left = sorted(pyro.get_param_store().keys())
        pyro.clear_param_store()
        assert not left, f"parameters left in Pyro's global store: {left}; wrap Pyro's SVI in get_param_store().scope()"

    @pytest.fixture
    def seed(self, request: pytest.FixtureRequest) -> int:
        """The base seed: 0, that of --base-seed, or a new one with --vary-seed."""
        return request.config.base_seed


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A generator of the test's own: no other test moves it."""
    return torch.Generator().manual_seed(seed)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device in turn; CUDA is skipped where the machine has none."""
    return torch.device(request.param)


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A folder in memory, where the machine has one: thousands of syncs there cost nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def float64(isolation: None) -> None:
    """Double precision by default, for identities that hold to 1e-10; `isolation` restores what was."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and proved, and run as they are: what stands around the compiler needs none of its time."""
    from ppl_vae.compile import build

    monkeypatch.setattr(build, "_build", lambda captured, _: captured.graph)


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that a command leaves are one pixel: drawing takes half of its time, and test_cli_pictures.py sees it."""
    from PIL import Image

    from ppl_vae import figures

    monkeypatch.setattr(figures, "save", lambda figure, file: Image.new("L", (1, 1)).save(file, "PNG"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """No warning of steps that are not finite, where they are meant not to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* not finite|step .*made parameters that are not")
        yield


@pytest.fixture
def data_dir() -> Path:
    """The user's folder of real data (MNIST, Fashion-MNIST, Omniglot)."""
    folder = os.environ.get("PPL_VAE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: set PPL_VAE_DATA to a folder with mnist/, fashion-mnist/, omniglot/")
    return Path(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a small VAE on the digits, trained and evaluated by the command."""
    from tests.commands import SMALL_VAE, TINY, succeed

    root = tmp_path_factory.mktemp("runs") / "first"
    succeed("fit", *SMALL_VAE, *TINY, "--device", "cpu", "--run-dir", root)
    return root


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of that run, for a test to change."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    """A file with pairs of a user's own."""
    from tests.commands import USERS_PAIR

    path = tmp_path / "users_pair.py"
    path.write_text(USERS_PAIR)
    return path
