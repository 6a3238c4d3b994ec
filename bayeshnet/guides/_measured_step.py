"""One training step, made to see what it takes, and undone."""

# A storage is told from others by its address.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bayeshnet.models.capabilities import plate_nesting, vectorises
from bayeshnet.models.param_sites import ParamCapture
from bayeshnet.sites.kept_state import KeptBuffers, restored, tensors_of

__all__ = ["MeasuredStep", "measured_step", "saved_bytes"]


class MeasuredStep(NamedTuple):
    """What a training step took.

    Attributes:
        seconds: Wall-clock time.
        memory: Bytes of all tensors at the peak, those of model and guide included.
    """

    seconds: float
    memory: int


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made in a block, while they are alive.

    What an operation needs for itself and gives back is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchDispatchMode``."""
        given = {self._key(part) for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)}
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, Tensor) and self._key(part) not in given:
                self._add(part)
        return out

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


@contextlib.contextmanager
def _undone(model: Any, guide: Any) -> Generator[None]:
    """Leave parameters, gradients, buffers, random numbers and Pyro's store as they were."""
    store = pyro.get_param_store()
    modules = [part for part in (model, guide) if isinstance(part, nn.Module)]
    params = [param for module in modules for param in module.parameters()]
    gradients = [param.grad for param in params]
    devices = sorted({param.device.index for param in tensors_of(*modules) if param.is_cuda})
    buffers = KeptBuffers(*modules)
    buffers.keep()
    with torch.random.fork_rng(devices=devices), store.scope(_copied(store.get_state())), restored(params):
        try:
            for param in params:
                param.grad = None
            yield
        finally:
            buffers.restore()
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient


def _copied(state: Any) -> Any:
    """The state of Pyro's store with parameters of its own, which a step may write to."""
    params = {
        name: param.detach().clone().requires_grad_(param.requires_grad) for name, param in state["params"].items()
    }
    return {**state, "params": params}


def measured_step(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], num: int
) -> MeasuredStep:
    """Make two steps of SVI with Adam, and undo them: the first counts bytes, the second is timed.

    Args:
        model: The model.
        guide: Its guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        num: Number of particles; in one call if the model says that it vectorises, and in turn otherwise.

    Returns:
        What the step took.
    """
    together = num > 1 and vectorises(model)
    elbo: Any = Trace_ELBO(num_particles=num, vectorize_particles=together, max_plate_nesting=plate_nesting(model))
    own = sum(_size(tensor) for tensor in tensors_of(model, guide))
    with _undone(model, guide), torch.enable_grad(), pyro.validation_enabled(False):
        optimizer: torch.optim.Optimizer | None = None
        counter = _Allocations()

        def step() -> None:
            nonlocal optimizer
            with ParamCapture() as capture:
                elbo.loss_and_grads(model, guide, *args, **kwargs)
            if optimizer is None:
                params = [param for param in capture.current().values() if param.requires_grad]
                optimizer = torch.optim.Adam(params, lr=1e-3) if params else None
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

        with counter:
            step()
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
    return MeasuredStep(seconds, own + counter.peak)


def saved_bytes(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int:
    """Bytes that one draw of the model's latents keeps for its backward pass, found by one evaluation without any.

    Args:
        model: The model.
        guide: Its guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model, guide)}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    elbo: Any = Trace_ELBO(max_plate_nesting=plate_nesting(model))
    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with _undone(model, guide), torch.enable_grad(), pyro.validation_enabled(False), noting:
        elbo.differentiable_loss(model, guide, *args, **kwargs)
    return sum(seen.values())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
