"""How a model is printed: what a person wants to know of it, on a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bayeshnet.formatting import array, number, span, value
from bayeshnet.models.output import output_repr

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["model_repr", "positive"]

_MOST = 6  # entries of a list


def positive(t: Tensor) -> str:
    """Positive numbers: a few of them in full, of more the smallest and the largest.

    Example:
        >>> import torch
        >>> positive(torch.tensor(0.1)), positive(torch.tensor([0.1, 0.25])), positive(torch.linspace(1.0, 3.0, 20))
        ('0.1', '[0.1, 0.25]', 'f32[20] of 1..3')
    """
    t = t.detach()
    if t.dim() == 0:
        return number(t)
    return f"[{', '.join(map(number, t))}]" if t.dim() == 1 and len(t) <= _MOST else f"{array(t)} of {span(t)}"


def model_repr(model: BayesianModel) -> str:
    """Network, prior, likelihood and size of the data set of a model, and what is no weight.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> print(BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), dataset_size=500))
        BayesianModel(
          net: Sequential(Linear, ReLU, Linear), 21 weights in 4 tensors
          prior: Normal(scale='fan_in')
          likelihood: Normal(scale=0.1)
          dataset_size=500
        )
    """
    net: Any = model.net
    num = len(net.param_shapes)
    lines = [
        f"net: {_network(net)}, {net.num_params} weights in {num} tensor{'s' * (num != 1)}{', flat' * model.flat}",
        f"prior: {getattr(model.prior, '__name__', value(model.prior))}",
        f"likelihood: {model.likelihood}",
    ]
    if model.bayesian is not None:
        lines.insert(1, f"parts: {model.points.described()}")
    if model.output is not None:
        lines.append(f"output: {output_repr(model.output)}")
    if model.inputs_taken.num > 1 or model.inputs_taken.chosen:
        lines.append(f"inputs: {model.inputs_taken}")
    if model.columns is not None:
        lines.append(f"columns: {model.columns}")
    if model.dataset_size is not None:
        lines.append(f"dataset_size={model.dataset_size}")
    if model.target_shape is not None:
        lines.append(f"target_shape={model.target_shape}")
    if model.missing != "refuse":
        lines.append(f"missing={model.missing!r}")
    if model.kl_weight != 1.0:
        lines.append(f"kl_weight={number(model.kl_weight)}")
    if (units := model.units.standardization) is not None:
        lines.append(f"standardize: {units}")
    if model.batch_norm.layers or model.batch_norm.fixed:
        lines.append(f"batch_norm: {model.batch_norm}")
    if frozen := getattr(net, "frozen_names", ()):
        lines.append(f"frozen={_elided(frozen)}")
    if rows := getattr(net, "fixed_rows", {}):
        lines.append(f"fixed_rows={rows}")
    inner = "\n".join(lines).replace("\n", "\n  ")
    return f"{type(model).__name__}(\n  {inner}\n)"


def _network(net: Any) -> str:
    """The class of the network that a user passed, with those of its parts if it is a sequence."""
    inner: Any = getattr(net, "module", None) or (net.net if hasattr(net, "frozen_names") else net)
    name = type(inner).__name__
    if not isinstance(inner, nn.Sequential):
        return name
    parts = [type(part).__name__ for part in inner]
    if len(parts) > 2 * _MOST:
        parts = [*parts[:_MOST], "...", parts[-1]]
    return f"{name}({', '.join(parts)})"


def _elided(names: tuple[str, ...]) -> str:
    return f"{list(names)}" if len(names) <= _MOST else f"{list(names[:_MOST])} and {len(names) - _MOST} more"
