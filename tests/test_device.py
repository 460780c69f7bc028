"""The choice of a device: what there is, and one sentence for what there is not."""

from __future__ import annotations

import pytest
import torch

from ppl_vae.device import choose_device
from ppl_vae.errors import PplVaeError


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "found 0 that torch can use"), ("cuda:3", "'cuda:3'"), ("gpu", "expected auto, cpu or cuda")],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(PplVaeError, match=message):
        choose_device(name)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "vulkan"])
def test_a_device_of_another_type_is_refused(name: str):
    """On meta, which torch has everywhere, the numbers of parameters would be gone."""
    for device in (name, torch.device(name)):
        with pytest.raises(PplVaeError, match=f"expected auto, cpu or cuda, found '{name}'"):
            choose_device(device)


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
