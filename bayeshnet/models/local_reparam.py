"""Gradients of lower variance: noise of its own for every row, instead of one weight sample for all of them.

The gradient of an ELBO averages over rows that share one draw of the weights, and so are correlated. If the guide's
weights are independent Gaussians, each row can have its own randomness at the price of a second matrix product.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK  # pyright: ignore[reportPrivateUsage] - has no public name
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.forms import num_rows
from bayeshnet.models.per_row import Moments, PerRowNoise, SharedWeightError

__all__ = ["flipout", "local_reparameterisation"]

_LOGGER = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=BayesianModel)
Method: TypeAlias = Literal["local", "independent", "flipout"]


def local_reparameterisation(
    model: BayesianModel, *, positions: Literal["flipout", "independent"] = "flipout"
) -> BayesianModel:
    r"""The same model, trained on samples of pre-activations instead of weights (Kingma, Salimans & Welling 2015).

    A linear layer with weights :math:`w_{ij} \sim N(\mu_{ij}, \sigma_{ij}^2)` has, for each row x, the pre-activations

    .. math:: a_i = \sum_j \mu_{ij} x_j + \Big(\sum_j \sigma_{ij}^2 x_j^2\Big)^{1/2} e_i, \quad e_i \sim N(0, 1)

    drawn independently for every row. What is seen of a row is distributed as before, so the ELBO has the same value;
    its gradient has a lower variance.

    Where one weight meets several positions of a row (convolutions, linear layers on sequences) the pre-activations of
    the row are correlated. By default such layers are treated by :func:`flipout`, which keeps the correlations;
    ``"independent"`` draws every position by itself, which is usual for convolutions and biased for a network.

    It acts where a guide's draws are scored against observations, as in ``SVI``, and where the guide has plain Normal
    sites, as :class:`~bayeshnet.AutoHypernetNormal` and Pyro's ``AutoNormal`` have; with any number of particles,
    vectorised or not. Everything else, predictions in particular, is that of the model given. Weights that are no
    Gaussians, or are used otherwise than once in a linear or (transposed) convolutional layer with the rows in the
    first dimension, are drawn once for all rows, as without it.

    Use it with ``TraceMeanField_ELBO`` or ``Trace_ELBO``. It does not go with bounds that weigh whole weight samples
    (``RenyiELBO``) or with diagnostics of that kind: rows no longer belong to one network.

    Args:
        model: The model; the result shares everything with it.
        positions: What to do where one weight meets several positions of a row.

    Raises:
        ArgumentTypeError: If ``model`` is no :class:`~bayeshnet.BayesianModel`, or of a class derived from it.
        ArgumentError: If ``positions`` is unknown.

    Example:
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from bayeshnet import AutoHypernetNormal, fit, likelihoods
        >>> x, y = torch.randn(20, 2), torch.randn(20)
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernetNormal(model, example=(x, y))
        >>> loss = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True)
        >>> history = fit(local_reparameterisation(model), guide, (x, y), steps=20, loss=loss, progress=False)
    """
    if positions not in ("flipout", "independent"):
        raise ArgumentError(f"positions: is {positions!r}; pass 'flipout' or 'independent'.")
    return _view(model, _LocalModel if positions == "flipout" else _IndependentModel)


def flipout(model: BayesianModel) -> BayesianModel:
    r"""The same model, trained on weight samples whose signs differ from row to row (Wen et al. 2018).

    For each row the layer is given the weights :math:`\mu + r s^T \cdot (w - \mu)` with the guide's draw w and random
    signs r of the outputs (channels) and s of the inputs. As Gaussians are symmetric, what is seen of a row is
    distributed as before, also for convolutions and sequences; rows are less correlated than with one weight sample.

    Where it acts and what it goes with: see :func:`local_reparameterisation`. The variance is lower than without it
    and, for plain linear layers, higher than with local reparameterisation.

    Args:
        model: The model; the result shares everything with it.

    Raises:
        ArgumentTypeError: If ``model`` is no :class:`~bayeshnet.BayesianModel`, or of a class derived from it.

    Example:
        >>> from bayeshnet import AutoHypernetNormal, fit, likelihoods
        >>> x, y = torch.randn(20, 1, 6), torch.randn(20, 2, 4)
        >>> model = BayesianModel(nn.Conv1d(1, 2, 3), likelihood=likelihoods.Normal(scale=0.5))
        >>> guide = AutoHypernetNormal(model, example=(x, y))
        >>> history = fit(flipout(model), guide, (x, y), steps=20, num_particles=4, progress=False)
    """
    return _view(model, _FlipoutModel)


# ---------------------------------------------------------------------- models


class _PerRowModel(BayesianModel):
    """A model that evaluates its network with noise of its own for each row, where the weights' moments are known."""

    _method: ClassVar[Method] = "local"
    _shared: frozenset[str] = frozenset()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = self.in_order(*args, **kwargs)
        if given[1] is None:  # new observations belong to one network
            return _view(self, BayesianModel).forward(*given)
        return super().forward(*given)

    def evaluate(self, x: Any, weights: Mapping[str, Tensor], **options: bool) -> tuple[Tensor, Size]:
        rows = num_rows(x)
        while True:
            moments = self._moments(weights)
            if not any(moments) or not rows:
                return super().evaluate(x, weights, **options)
            net = _PerRowNet(self.net, moments, rows, self._method)
            twin = BayesianModel.__new__(BayesianModel)
            twin.__dict__ = {**self.__dict__, "_modules": {**self._modules, "net": net}}
            try:
                return twin.evaluate(x, weights, **options)
            except SharedWeightError as error:
                name = self.net.param_names[error.index]
                self._shared |= {name}
                _LOGGER.info(
                    "The weight %r is used several times or not in a linear layer alone; it is drawn for all rows.",
                    name,
                )

    def _moments(self, weights: Mapping[str, Tensor]) -> list[Moments | None]:
        """Mean and standard deviation of each parameter of the network, None where it is no Gaussian."""
        names = self.net.param_names
        found = [_gaussian(name, value) for name, value in weights.items()]
        if self.flat:
            flat = found[0]
            if flat is None:
                return [None] * len(names)
            sizes = [torch.Size(shape).numel() for shape in self.net.param_shapes]
            parts = zip(flat.loc.split(sizes), flat.scale.split(sizes), self.net.param_shapes, strict=True)
            found = [Moments(loc.reshape(shape), scale.reshape(shape)) for loc, scale, shape in parts]
        return [None if name in self._shared else m for name, m in zip(names, found, strict=True)]


class _LocalModel(_PerRowModel):
    _method: ClassVar[Method] = "local"


class _IndependentModel(_PerRowModel):
    _method: ClassVar[Method] = "independent"


class _FlipoutModel(_PerRowModel):
    _method: ClassVar[Method] = "flipout"


def _view(model: BayesianModel, cls: type[_Model]) -> _Model:
    """The same object seen as of another class: both have one ``__dict__``, so that they never differ."""
    if type(model) is not BayesianModel and not isinstance(model, _PerRowModel):
        raise ArgumentTypeError(
            f"model: is {kind_of(model)}; pass a BayesianModel itself, as the Pyro program of another class is "
            "not known."
        )
    made = cls.__new__(cls)
    object.__setattr__(made, "__dict__", model.__dict__)
    return made


def _gaussian(name: str, value: Tensor) -> Moments | None:
    """The moments of a guide's site, if the guide drew this value from a Normal that is the same for all particles."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, ReplayMessenger) and handler.trace is not None and name in handler.trace:
            nodes: dict[str, Any] = dict(handler.trace.nodes)
            break
    else:
        return None
    if nodes[name]["value"] is not value:
        return None
    # Pyro's AutoNormal draws an auxiliary site and puts a Delta at it.
    for key in (name, f"{name}_unconstrained"):
        site = nodes.get(key)
        fn = None if site is None else site["fn"]
        while isinstance(fn, torch.distributions.Independent):
            fn = fn.base_dist
        if site is None or not isinstance(fn, torch.distributions.Normal):
            continue
        drawn = site["value"]
        if drawn is not value and (drawn.shape != value.shape or drawn.data_ptr() != value.data_ptr()):
            continue
        dims = len(nodes[name]["fn"].event_shape)
        loc, scale = _without_particles(fn.loc, value, dims), _without_particles(fn.scale, value, dims)
        return None if loc is None or scale is None else Moments(loc, scale)
    return None


def _without_particles(param: Tensor, value: Tensor, dims: int) -> Tensor | None:
    """A Normal's parameter ``[*event]``; None if it differs between particles."""
    param = param.expand(value.shape)
    lead = value.dim() - dims
    if any(param.shape[i] > 1 and param.stride(i) != 0 for i in range(lead)):
        return None
    return param[(0,) * lead]


class _PerRowNet(nn.Module, MainNetInterface):
    """A network that keeps no weights, evaluated with noise of its own for each row."""

    def __init__(self, net: Any, moments: Sequence[Moments | None], rows: int, method: Method) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.net = net
        self.training = net.training
        self._records = net.param_table
        self._moments, self._rows = moments, rows
        self._method: Method = method

    @property
    def built_around(self) -> Any:
        """The network itself, by which :func:`~bayeshnet.mnets.batched_forward` remembers what it does."""
        return self.net

    def distillation_targets(self) -> None:
        return

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        with PerRowNoise(weights, self._moments, rows=self._rows, method=self._method):
            return self.net(x, weights=weights)
