"""Torch parameters as Pyro ``param`` sites that live in their module, not in Pyro's global store."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful  # pyright: ignore[reportPrivateUsage] - has no public name
from torch import Tensor, nn

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


def emit_param_sites(prefix: str, module: nn.Module) -> None:
    """Tell the enclosing Pyro handlers which parameters a module uses.

    ``SVI`` learns from ``param`` sites what to optimise. ``pyro.module`` would announce the parameters too, but also
    put them into the global parameter store, where two modules with one name silently share them. Outside of any
    handler this does nothing.

    Args:
        prefix: Start of the site names.
        module: Its parameters that require a gradient are announced as ``prefix.name``.

    Example:
        >>> from pyro import poutine
        >>> trace = poutine.trace(lambda: emit_param_sites("net", nn.Linear(2, 1))).get_trace()
        >>> list(trace.param_nodes)
        ['net.weight', 'net.bias']
    """
    if not _PYRO_STACK:
        return
    known = any(isinstance(handler, ParamCapture) and handler.known for handler in _PYRO_STACK)
    for name, param in module.named_parameters():
        if param.requires_grad:
            _param_site(f"{prefix}.{name}", param)
            if known:
                return


def _param_site(name: str, param: nn.Parameter) -> None:
    def value(*_: Any, **__: Any) -> Tensor:
        # A view carries the back-reference: an attribute on the parameter itself would break its pickling.
        view = param.detach()
        view.unconstrained = lambda: param  # pyright: ignore[reportAttributeAccessIssue]
        return view

    effectful(value, type="param")(name, event_dim=param.dim(), name=name)
