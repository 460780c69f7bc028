"""What a pair is: two Pyro programs on the same batch, and the parameters that belong to them."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.parameter import is_lazy

from ppl_vae.attributes import Attributes
from ppl_vae.contents import give, same_numbers
from ppl_vae.discovery import Program, reachable
from ppl_vae.errors import PairError
from ppl_vae.rng import own_noise, seeded

__all__ = ["Pair", "Program", "as_pair", "frozen_modes", "kept_buffers", "kept_state", "misfit", "on_device"]


class Pair(nn.Module):
    r"""A generative program p(x, z) and an amortised guide q(z | x), with everything in them that trains.

    Both programs take the same batch and mark its rows by `pyro.plate("data", ...)`. Parameters are found wherever
    Pyro lets users keep them: attributes of an `nn.Module` or `PyroModule`, modules in a closure, in a global or in a
    plain object, `pyro.module`, `pyro.param` with constraints. They stay the user's own tensors and train in place.
    `pyro.param` is resolved inside the pair, so that Pyro's global store stays empty and two pairs with equal names
    never meet. `state_dict()` holds all of it (constrained parameters in their unconstrained form).

    Args:
        model: The generative program, `model(*batch)`.
        guide: The amortised guide, `guide(*batch)`.

    Raises:
        PairError: If a program is not callable.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, scale), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.3))
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.7))
        >>> pair = Pair(model, guide)
        >>> pair.prepare(torch.zeros(4))
        >>> sorted(pair.state_dict())
        ['store.param:scale', 'store.param:slope']
    """

    model: Program
    guide: Program

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        for role, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise PairError(f"{role}: expected a Pyro program (a callable), found {type(program).__name__}")
        # Past nn.Module.__setattr__: a program that is itself a module is registered once, under `programs`.
        self.__dict__.update(model=model, guide=guide)
        self.programs = nn.Module()
        self.store = nn.Module()
        self._constraints: dict[str, constraints.Constraint] = {}
        self._aliases: dict[str, nn.Parameter] = {}
        known: set[int] = set()
        for role, program in (("model", model), ("guide", guide)):
            for name, found in reachable(role, program, Pair):
                if id(found) not in known:
                    known.add(id(found))
                    _register(self.programs, name, found)

    def forward(self, program: Program, *batch: Any) -> Any:
        """Runs `program(*batch)` with `pyro.param` resolved inside this pair."""
        with self.scope(*batch):
            return program(*batch)

    @contextmanager
    def scope(self, *batch: Any) -> Iterator[None]:
        """Context in which `pyro.param`, `pyro.module` and PyroModules read and write this pair only.

        PyroModules write to the store directly: they get an empty one that is thrown away, since their parameters are
        attributes and found as such. Tensors that programs make without naming a device, such as `torch.zeros(2)`, are
        made where the pair is; where it has no tensors, where those of the batch are.
        """
        with pyro.get_param_store().scope(), _LocalParams(self), _making_on(_place(chain(self._tensors(), batch))):
            yield

    @property
    def device(self) -> torch.device:
        """Where parameters and buffers are; the CPU if there are none."""
        return _place(self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    @property
    def dtype(self) -> torch.dtype | None:
        """The one floating dtype of parameters and buffers, or None where there is none or several."""
        dtypes = {t.dtype for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def prepare(self, *batch: Tensor) -> None:
        """Runs both programs once without gradients, so that parameters made on first use exist."""
        with seeded(0, self.device), torch.no_grad(), frozen_modes(self), kept_state(self):
            self(self.guide, *batch)
            self(self.model, *batch)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads a state; `pyro.param` values not yet made by a first run are created from it.

        Raises:
            PairError: The state is that of another pair, or in another dtype; the first entry in which they differ is
                named.
        """
        if strict and (found := misfit(self.state_dict(), state_dict)):
            raise PairError(f"load_state_dict: {found}; give the pair the state of a pair of the same programs")
        for key, value in state_dict.items():
            name = key.removeprefix("store.")
            if name != key and name not in self.store._parameters:
                self.store.register_parameter(name, nn.Parameter(value.detach().clone()))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def param(self, name: str, init: Any = None, constraint: constraints.Constraint | None = None) -> Tensor:
        """Returns the constrained value of `pyro.param(name, init, constraint)`, made on first use.

        An `init` that is a function draws from torch's own random state, whatever seed the run has, and moves it on.
        After training, `pair.param("scale")` reads the value.
        """
        alias = self._aliases.get(name)
        if alias is not None and alias is init:
            return alias
        key = _key(name)
        constraint = self._constraints.setdefault(name, constraints.real if constraint is None else constraint)
        unconstrained = self.store._parameters.get(key)
        if unconstrained is None:
            if init is None:
                raise PairError(f"pyro.param({name!r}): expected an initial value on first use, found none")
            with own_noise():
                initial = init() if callable(init) else init
            if isinstance(initial, nn.Parameter) and constraint is constraints.real:
                if any(initial is known for known in self.parameters()):
                    self._aliases[name] = initial
                    return initial
                unconstrained = initial
            else:
                with torch.no_grad():
                    unconstrained = nn.Parameter(transform_to(constraint).inv(initial.detach()).clone())
            self.store.register_parameter(key, unconstrained)
        value = transform_to(constraint)(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)  # as Pyro has it; PyroModules ask for it
        return value


def _key(name: str) -> str:
    """Where the store keeps a parameter: a name of its own, without dots, for each name that Pyro takes."""
    if "/" not in name:
        return "param:" + name.replace(".", "/")
    return "path:" + name.replace("%", "%25").replace(".", "%2E")


def as_pair(pair: Any) -> Pair:
    """Returns `pair` itself, or the pair of `pair.model` and `pair.guide`, kept on the object so that it is made once.

    Raises:
        PairError: If there is no `.model` and `.guide`, it is a class, or the object cannot carry its pair.
    """
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, type):
        raise PairError(f"expected a pair (an object with .model and .guide), found the class {pair.__name__}: call it")
    if not (hasattr(pair, "model") and hasattr(pair, "guide")):
        raise PairError(
            f"expected a pair (an object with .model and .guide), found {type(pair).__name__}: "
            "wrap the two programs as ppl_vae.Pair(model, guide)"
        )
    known = getattr(pair, "__dict__", {}).get("_ppl_vae_pair")
    if known is not None and known.model == pair.model and known.guide == pair.guide:
        return known
    made = Pair(pair.model, pair.guide)
    try:
        # Past nn.Module.__setattr__: the pair must not become a submodule of its own object.
        object.__setattr__(pair, "_ppl_vae_pair", made)
    except AttributeError:
        raise PairError(
            f"{type(pair).__name__} cannot carry the state of its pair: "
            "wrap it once as ppl_vae.Pair(it.model, it.guide)"
        ) from None
    return made


def misfit(own_state: Mapping[str, Any], state: Mapping[str, Any], apart: Collection[str] = ()) -> str:
    """The first entry, but for some, in which a state differs from that of the pair, in words; empty if none does."""
    expected, found = ({n: _form(value) for n, value in entries.items()} for entries in (own_state, state))
    for name in sorted((expected.keys() | found.keys()) - {*apart}):
        own, other = expected.get(name), found.get(name)
        # What `pyro.param` makes on first use may be missing in a pair that has not run.
        if own == other or (own is None and name.startswith("store.")):
            continue
        if own is None or other is None or own.shape != other.shape:
            return f"expected {_entry(name, own)}, found {_entry(name, other)}"
        mend = _OF_DTYPE.get(other.dtype, f"pair.to({other.dtype})")
        return f"expected {name} in {own.dtype}, found {other.dtype}, which would be rounded: call {mend} first"
    return ""


class _Form(NamedTuple):
    """What entries of a state must have in common."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


_OF_DTYPE: dict[Any, str] = {
    torch.float64: "pair.double()",
    torch.float32: "pair.float()",
    torch.float16: "pair.half()",
}


def _form(value: Any) -> _Form:
    return _Form(tuple(getattr(value, "shape", ())), getattr(value, "dtype", None))


def _entry(name: str, form: _Form | None) -> str:
    return f"no {name}" if form is None else f"{name} of shape {form.shape}"


def _place(tensors: Iterable[Any]) -> torch.device:
    return next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))


def _making_on(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which tensors are made on a device; entering one costs each operation some microseconds."""
    return nullcontext() if torch.get_default_device() == device else device


@contextmanager
def on_device(pair: Pair, device: torch.device) -> Iterator[None]:
    """Puts the pair on a device and back where it was."""
    before = pair.device
    pair.to(device)
    try:
        yield
    finally:
        pair.to(before)


@contextmanager
def frozen_modes(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Puts every submodule in evaluation (or training) mode and restores each one's own mode."""
    modes = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def kept_buffers(module: nn.Module, unseen: bool = False) -> Iterator[None]:
    """Context after which every buffer is the tensor that it was, with the numbers it had.

    Args:
        module: The module.
        unseen: Also where torch does not see a write, as through `buffer.data`.
    """
    homes = [(m._buffers, dict(m._buffers)) for m in module.modules() if m._buffers]
    before = [(b, b._version, b.clone()) for b in module.buffers() if not is_lazy(b)]
    # A batch norm in training moves its statistics without a new version: autograd has no use for them.
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    silent = {id(b) for m in norms for b in m.buffers()}
    try:
        yield
    finally:
        for home, buffers in homes:
            home.update(buffers)
        with torch.no_grad():
            for buffer, version, value in before:
                if (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                    give(buffer, value)
                elif buffer._version != version:  # autograd may hold one that did not move
                    buffer.copy_(value)
                elif id(buffer) in silent or (unseen and _differ(buffer, value)):
                    with torch.autograd._unsafe_preserve_version_counter(buffer):
                        buffer.copy_(value)


def _differ(buffer: Tensor, value: Tensor) -> bool:
    return value.layout is torch.strided and not same_numbers(buffer, value)


@contextmanager
def kept_state(module: nn.Module) -> Iterator[None]:
    """Context after which buffers, and numbers, text, tensors and arrays that Python keeps, are what they were.

    Those are the attributes of modules and plain objects, entries of containers, and variables that the module and its
    programs reach by name. What a first run makes and what is added to containers stays.
    """
    attributes = Attributes(module)
    with kept_buffers(module, unseen=True):
        try:
            yield
        finally:
            attributes.restore_plain()


class _LocalParams(Messenger):
    """Resolves `pyro.param` from a pair instead of Pyro's global store."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._pair = pair

    def _pyro_param(self, msg: Any) -> None:
        # PyroModules announce their own parameters by statements of the same type, and have put or carry the value.
        store = pyro.get_param_store()
        if msg["done"] or msg["name"] in store or getattr(msg["fn"], "__self__", None) is not store:
            return
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        constraint = msg["kwargs"].get("constraint") if init is not None else None
        msg["value"] = self._pair.param(msg["name"], init, constraint)
        msg["done"] = True


def _register(home: nn.Module, name: str, found: nn.Module | nn.Parameter) -> None:
    name = name.replace(".", "/") or "value"
    while hasattr(home, name):
        name += "_"
    if isinstance(found, nn.Module):
        home.add_module(name, found)
    else:
        home.register_parameter(name, found)
