"""Progress bars: drawn for somebody who looks, and for nobody else; they change no number."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
import torch

import ppl_vae as pv
from ppl_vae import progress
from tests.pairs import ModuleVAE, binary_rows
from tests.training import fresh

SHOW_CURSOR = "\x1b[?25h"


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Called inside the test, after pytest has put its own stream in place: standard error becomes a terminal."""

    def begin() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(progress, "_INTERVAL", -1.0)
        return stream

    return begin


def test_a_fit_shows_its_steps_and_its_elbo(look):
    terminal = look()
    pv.fit(ModuleVAE(), binary_rows(12), epochs=3, batch_size=4, progress=True)
    assert "fit" in terminal.getvalue()
    assert "/9 " in terminal.getvalue()
    assert "step/s" in terminal.getvalue()
    assert "elbo" in terminal.getvalue().lower()
    assert SHOW_CURSOR in terminal.getvalue()


def test_a_log_likelihood_shows_its_data(look):
    terminal = look()
    pv.log_likelihood(ModuleVAE(), binary_rows(12), 50, progress=True)
    assert "log-likelihood" in terminal.getvalue()
    assert "12/12 " in terminal.getvalue()
    assert "data/s" in terminal.getvalue()


def test_drawing_entry_by_entry_shows_its_entries(look):
    terminal = look()
    pv.autoregressive.PixelCNN((1, 4, 4), channels=4, num_layers=2).sample(2)
    assert "sampling" in terminal.getvalue()
    assert "/16 " in terminal.getvalue()
    assert "entries/s" in terminal.getvalue()


def test_nothing_is_drawn_where_nobody_looks(look, monkeypatch):
    terminal = look()
    pv.fit(ModuleVAE(), binary_rows(12), epochs=1, progress=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    pv.fit(ModuleVAE(), binary_rows(12), epochs=1, progress=True)
    assert sys.stderr.getvalue() == ""
    assert terminal.getvalue() == ""


def test_without_standard_error_nobody_looks(monkeypatch):
    for stream in (None, io.TextIOWrapper(io.BytesIO())):
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        pv.fit(ModuleVAE(), binary_rows(12), epochs=1, compile=False, progress=True)
        pv.log_likelihood(ModuleVAE(), binary_rows(12), 5, progress=True)


def test_a_fit_under_a_bar_is_the_same_fit(look):
    look()
    quiet, shown = fresh(), fresh()
    pv.fit(quiet, binary_rows(12), epochs=2, progress=False)
    pv.fit(shown, binary_rows(12), epochs=2, progress=True)
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), shown.parameters(), strict=True))


def test_the_cursor_comes_back_after_an_error(look):
    terminal = look()
    with pytest.raises(RuntimeError, match="of the work"), progress.Progress("work", 3, True):
        raise RuntimeError("of the work")
    assert terminal.getvalue().rstrip().endswith(SHOW_CURSOR)


def test_drawing_is_due_five_times_a_second(look, monkeypatch):
    look()
    now = [100.0]
    monkeypatch.setattr(progress, "_INTERVAL", 0.2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("work", 100, True) as bar:
        drawn = []
        for step in range(100):
            now[0] += 0.05
            if bar.due:
                bar.update(step, "")
                drawn.append(now[0])
    assert 15 <= len(drawn) <= 25
