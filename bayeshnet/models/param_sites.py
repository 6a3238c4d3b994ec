"""Torch parameters as Pyro ``param`` sites that live in their module, not in Pyro's global store."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pyro.contrib.autoname.scoping import ScopeMessenger
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful  # pyright: ignore[reportPrivateUsage] - has no public name
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from bayeshnet.errors import UsageError

__all__ = ["ParamCapture", "emit_param_sites"]


class ParamCapture(Messenger):
    """Records the unconstrained parameters that a Pyro program uses.

    Like ``poutine.trace(param_only=True)``, at a fraction of its time. With ``known=True`` it tells the modules of this
    package that their parameters were captured before, so that each announces no more than one: an ELBO looks for one
    to decide whether there is anything to differentiate.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with ParamCapture() as capture:
        ...     emit_param_sites("net", net)
        >>> [p.shape for p in capture.params.values()]
        [torch.Size([1, 2]), torch.Size([1])]
    """

    def __init__(self, *, known: bool = False) -> None:
        super().__init__()
        self.known = known
        self.params: dict[int, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        param = msg["value"].unconstrained()
        self.params[id(param)] = param

    def current(self) -> dict[int, Tensor]:
        """The parameters by identity, without those that a module has made parameters of its own meanwhile.

        One of Pyro's modules puts a tensor into the parameter store when it is first called, and then a ``Parameter``
        of the same memory in its place, which is the one that gets the gradients.
        """
        own = {param.data_ptr() for param in self.params.values() if isinstance(param, nn.Parameter)}
        return {
            key: param
            for key, param in self.params.items()
            if isinstance(param, nn.Parameter) or param.data_ptr() not in own
        }


def emit_param_sites(prefix: str, module: nn.Module) -> None:
    """Tell the enclosing Pyro handlers which parameters a module uses.

    ``SVI`` learns from ``param`` sites what to optimise. ``pyro.module`` would announce the parameters too, but also
    put them into the global parameter store, where two modules with one name silently share them. Outside of any
    handler this does nothing.

    Args:
        prefix: Start of the site names; within ``pyro.contrib.autoname.scope`` that of the scope is in front, which two
            models in one program need: Pyro keeps one of two parameters with one name.
        module: Its parameters that require a gradient are announced as ``prefix.name``.

    Raises:
        UsageError: If Pyro is about to compile a step with ``torch.jit``, for which they would have to be in its store.

    Example:
        >>> from pyro import poutine
        >>> trace = poutine.trace(lambda: emit_param_sites("net", nn.Linear(2, 1))).get_trace()
        >>> list(trace.param_nodes)
        ['net.weight', 'net.bias']
    """
    if not _PYRO_STACK:
        return
    if _captures_for_jit():
        raise UsageError(
            "loss: is one of Pyro's Jit*_ELBO, which looks for all parameters in Pyro's global store; those of this "
            "package's guides and models live in their modules, and a compiled step would not see them. Use the ELBO "
            "without Jit, such as Trace_ELBO(num_particles=16, vectorize_particles=True)."
        )
    scopes = [scope.prefix or "" for scope in _PYRO_STACK if isinstance(scope, ScopeMessenger)]
    prefix = "/".join([*scopes, prefix])
    known = any(isinstance(handler, ParamCapture) and handler.known for handler in _PYRO_STACK)
    for name, param in module.named_parameters():
        if param.requires_grad:
            _param_site(f"{prefix}.{name}", param)
            if known:
                return


def _captures_for_jit() -> bool:
    """Whether Pyro looks for the parameters of what it will compile: a capture of them alone, straight in a block."""
    return any(
        isinstance(inner, TraceMessenger) and inner.param_only and isinstance(outer, BlockMessenger)
        for outer, inner in pairwise(_PYRO_STACK)
    )


def _param_site(name: str, param: nn.Parameter) -> None:
    def value(*_: Any, **__: Any) -> Tensor:
        # A view carries the back-reference: an attribute on the parameter itself would break its pickling.
        view = param.detach()
        view.unconstrained = lambda: param  # pyright: ignore[reportAttributeAccessIssue]
        return view

    effectful(value, type="param")(name, event_dim=param.dim(), name=name)
