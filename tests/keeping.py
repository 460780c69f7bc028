"""Pairs whose programs keep values outside parameters and buffers, of every kind a user may keep."""

from __future__ import annotations

import queue
from collections import OrderedDict, UserDict, deque

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.pairs import ModuleVAE

HIGH, LOW = chr(0xD800), chr(0xDFFF)  # halves of a character, which UTF-8 does not encode


class Keeper(ModuleVAE):
    """A pair whose likelihood depends on what it keeps, which every run in training changes."""

    def __init__(self, kept, change, look) -> None:
        super().__init__()
        self.kept, self.change, self.look = kept, change, look

    def model(self, x):
        if self.training:
            self.change(self)
        mood = 1.0 + 0.1 * float(self.look(self)) if self.training else 1.0
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=mood * self.decoder(z)).to_event(1), obs=x)


class Slotted:
    """Keeps a number without a dictionary."""

    __slots__ = ("number",)

    def __init__(self):
        self.number = 1.0


def keep(own, value):
    own.kept = value


def function():
    """A function with an attribute of its own."""

    def counted():
        pass

    counted.number = 1.0
    return counted


def queued():
    """A queue of the standard library."""
    held = queue.Queue()
    for number in (0.5, 2.0, 1.0):
        held.put(number)
    return held


def grow(own):
    """Numbers and tensors in turn, whose order counts."""
    own.kept[f"{len(own.kept)}"] = 1.1 if len(own.kept) % 2 else torch.ones(()) * len(own.kept)


def by_place(own):
    return sum(place * float(value) for place, value in enumerate(own.kept.values()))


def first(own):
    return own.kept[0]


def size(own):
    return len(own.kept)


KINDS = {
    "a number": (lambda: 1.0, lambda own: keep(own, own.kept * 1.1), lambda own: own.kept),
    "a number that stays": (lambda: 1.0, lambda own: keep(own, min(own.kept * 1.1, 1.3)), lambda own: own.kept),
    "a tensor in place": (lambda: torch.ones(1), lambda own: own.kept.mul_(1.1), first),
    "a parameter in a list": (
        lambda: [nn.Parameter(torch.ones(1), requires_grad=False)],
        lambda own: own.kept[0].mul_(1.1),
        first,
    ),
    "a module in a list": (
        lambda: [nn.Linear(1, 1).requires_grad_(False)],
        lambda own: own.kept[0].weight.mul_(1.1),
        lambda own: own.kept[0].weight,
    ),
    "a buffer of a module in a list": (
        lambda: [nn.BatchNorm1d(1)],
        lambda own: setattr(own.kept[0], "running_mean", own.kept[0].running_mean + 0.3),
        lambda own: own.kept[0].running_mean,
    ),
    "other numbers of a module in a dictionary": (
        lambda: {"slow": nn.Linear(1, 1).requires_grad_(False)},
        lambda own: setattr(own.kept["slow"].bias, "data", own.kept["slow"].bias.data + 0.1),
        lambda own: own.kept["slow"].bias,
    ),
    "a tensor in a tuple": (lambda: (torch.ones(1), 0), lambda own: own.kept[0].mul_(1.1), first),
    "another tensor": (lambda: torch.ones(1), lambda own: keep(own, 0.9 * own.kept + 0.3), first),
    "a tensor of another shape": (lambda: torch.ones(1), lambda own: keep(own, torch.cat([own.kept, own.kept])), size),
    "a tensor where none was": (
        lambda: None,
        lambda own: keep(own, torch.ones(()) if own.kept is None else own.kept * 1.1),
        lambda own: own.kept,
    ),
    "an array in place": (lambda: np.ones(1), lambda own: own.kept.__imul__(1.1), first),
    "another array": (lambda: np.ones(1, np.float32), lambda own: keep(own, own.kept * np.float32(1.1)), first),
    "a list that grows": (list, lambda own: own.kept.append(1.1), size),
    "another list": (list, lambda own: keep(own, [*own.kept, 1.1 * len(own.kept)][-3:]), lambda own: sum(own.kept)),
    "a list that shrinks": (lambda: [0.5] * 20, lambda own: own.kept.pop(), size),
    "a list of tensors": (list, lambda own: own.kept.append(torch.ones(1) * len(own.kept)), lambda own: sum(own.kept)),
    "a queue": (lambda: deque([1.0], 3), lambda own: own.kept.append(own.kept[-1] * 1.1), lambda own: sum(own.kept)),
    "a set": (set, lambda own: own.kept.add(len(own.kept)), size),
    "a dictionary that grows": (dict, lambda own: own.kept.update({f"{len(own.kept)}": 1.1}), size),
    "a dictionary that shrinks": (lambda: dict.fromkeys("abcdefghijklmno", 1), lambda own: own.kept.popitem(), size),
    "a dictionary in another order": (
        lambda: OrderedDict(a=1.0, b=2.0, c=5.0, d=4.0, e=7.0),
        lambda own: own.kept.move_to_end(next(iter(own.kept))),
        by_place,
    ),
    "a dictionary of numbers and tensors": (dict, grow, by_place),
    "a dictionary of the standard library": (
        lambda: UserDict(number=1.0),
        lambda own: own.kept.update(number=own.kept["number"] * 1.1),
        lambda own: own.kept["number"],
    ),
    "a queue of the standard library": (
        queued,
        lambda own: own.kept.put(own.kept.get() * 1.1),
        lambda own: own.kept.queue[0],
    ),
    "an attribute of a function": (
        function,
        lambda own: setattr(own.kept, "number", own.kept.number * 1.1),
        lambda own: own.kept.number,
    ),
    "a whole number of thousands of digits": (
        lambda: 10**5000,
        lambda own: keep(own, own.kept * 10**1500 + 1),
        lambda own: own.kept % 97,
    ),
    "halves of characters": (lambda: HIGH, lambda own: keep(own, own.kept + LOW + HIGH), size),
    "a set of thousands of digits": (set, lambda own: own.kept.add(10 ** (5000 + len(own.kept))), size),
    "slots": (Slotted, lambda own: setattr(own.kept, "number", own.kept.number * 1.1), lambda own: own.kept.number),
    "an attribute that comes": (
        lambda: None,
        lambda own: setattr(own, "come", getattr(own, "come", 1.0) * 1.1),
        lambda own: getattr(own, "come", 1.0),
    ),
}


def keeper(kind: str) -> Keeper:
    make, change, look = KINDS[kind]
    return Keeper(make(), change, look)
