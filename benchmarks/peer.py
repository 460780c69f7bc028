"""Libraries that live in an environment of their own (`make bench` makes it), each in a process kept alive for a case.

The process sleeps on a pipe while it is not asked, so that sides alternate here as they do within one process. It sees
as many threads as torch does.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Unavailable

__all__ = ["NUMPYRO", "PEERS_PYTHON", "PYTHAE", "Peer", "start_peer"]

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
NUMPYRO, PYTHAE = (Path(__file__).parent / "peers" / f"{name}_worker.py" for name in ("numpyro", "pythae"))


class Peer:
    """A process that answers each line of JSON with another one.

    Args:
        python: Interpreter of its environment.
        script: What it runs.
        options: Its argument, as JSON.

    Raises:
        Unavailable: The environment does not exist, or the process does not start.
    """

    def __init__(self, python: Path, script: Path, options: dict[str, Any]) -> None:
        if not python.exists():
            raise Unavailable(f"no environment of the peers at {python.parents[1]}: `make bench` makes it")
        threads = str(torch.get_num_threads())
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")  # the last one is XLA's
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(names, threads), "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"},
        )
        try:
            self.ready = self._answer()
        except RuntimeError as error:
            self.close()
            raise Unavailable(f"{script.name} does not start in {python.parents[1]}: {error}") from error

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # there is no answer either, and that says more
        return self._answer()

    def close(self) -> None:
        """End the process, as the end of its input asks it to."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer ended with exit code {self._process.wait()}; its last words are above")
        return json.loads(line)


def start_peer(script: Path, stack: ExitStack, x: Tensor, batch_size: int, binarize: bool = False) -> Peer:
    """Start a peer on some data; the end of the stack ends it.

    Raises:
        Unavailable: There is no environment of the peers, or the library is not in it, or the case runs on a GPU.
    """
    if x.device.type != "cpu":
        raise Unavailable("the peers are installed for the CPU only")
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "x.npy"
    np.save(path, x.numpy())
    peer = Peer(PEERS_PYTHON, script, {"path": str(path), "batch_size": batch_size, "binarize": binarize})
    stack.callback(peer.close)
    return peer
