"""A network with random weights as a function in a Pyro program of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from pyro.poutine.messenger import Messenger
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.broadcast import broadcast_forward, row_dims
from bayeshnet.models.bayesian_model import BayesianModel, PriorLike
from bayeshnet.models.likelihoods import Likelihood
from bayeshnet.models.parts import Bayesian, Others
from bayeshnet.models.weight_sites import split_flat, stacked_values

__all__ = ["DrawnModule", "RandomModule"]

EventDim: TypeAlias = "int | Sequence[int] | None"


class RandomModule(Configured, nn.Module):
    """A network whose weights are drawn from a prior, as a function inside of a Pyro program: ``f(x)``, no likelihood.

    :meth:`sample` draws the weights at the sites ``NAME.0.weight``, ... and returns the network with these weights, a
    function that can be called as often as needed; ``f(x)`` is short for ``f.sample()(x)``, for a program that calls it
    once. The network is copied, as by :class:`~bayeshnet.BayesianModel`, and the network given stays as it is.

    **Shapes.** Inputs are ``[*batch, *row]`` and outputs ``[*batch, *out]``. The batch dimensions of weights and inputs
    broadcast, as those of the parameters of a distribution: particles, draws of ``Predictive`` and enumerated values
    are where Pyro puts them, to the left of the plates, so ``with pyro.plate("data", N): pyro.sample("obs",
    dist.Normal(f(x).squeeze(-1), s), obs=y)`` is right under each of them. Inputs may be latents; drawn inside of a
    plate, there is a network for each of its members. All is one call of the network, or a loop where a network cannot
    be vectorised, with the same numbers.

    Args:
        net: Any ``nn.Module``, or a main network of this package.
        prior: As for :class:`~bayeshnet.BayesianModel`: ``priors.Normal(scale="fan_in")`` by default.
        name: Start of the names of its sites. Two networks in one program need two.
        event_dim: Number of dimensions of one row of the inputs: 1 for vectors, 3 for images ``[C, H, W]``, 0 for
            single numbers or labels; a list of one number for each argument of the network. By default 1 for chains of
            linear layers, and for inputs that are matrices; others are refused until it is said.
        flat: Draw all weights as one site ``NAME.weights`` of shape ``[D]``.
        bayesian: Which parameters are weights, as for :class:`~bayeshnet.BayesianModel`.
        others: What the other parameters are, as there.

    Raises:
        ArgumentTypeError: As :class:`~bayeshnet.BayesianModel`; if ``name`` is no string, or ``event_dim`` no number.
        ArgumentError: As :class:`~bayeshnet.BayesianModel`; if the network has batch norm that follows the batch,
            ``name`` is empty, or ``event_dim`` is negative.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from bayeshnet import AutoHypernet, fit, predict
        >>> f = RandomModule(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), name="f")
        >>> def model(x, y=None):
        ...     scale = pyro.sample("scale", dist.Gamma(2.0, 4.0))
        ...     mean = f(x).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("obs", dist.StudentT(4.0, mean, scale), obs=y)
        >>> x, y = torch.linspace(-1.0, 1.0, 20).unsqueeze(-1), torch.linspace(-1.0, 1.0, 20).sin()
        >>> guide = AutoHypernet(model, example=(x, y))
        >>> [site.name for site in guide.sites]
        ['scale', 'f.0.weight', 'f.0.bias', 'f.2.weight', 'f.2.bias']
        >>> history = fit(model, guide, (x, y), steps=20, progress=False)
        >>> predict(model, guide, (x,), num_samples=50, sites=("obs",))["obs"].mean.shape
        torch.Size([20])
    """

    configured_as = "random module"
    unrecorded = frozenset({"net", "prior"})

    def __init__(
        self,
        net: nn.Module,
        prior: PriorLike | None = None,
        *,
        name: str = "f",
        event_dim: EventDim = None,
        flat: bool = False,
        bayesian: Bayesian = None,
        others: Others | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name: is {kind_of(name)}; pass a string, with which names of sites begin.")
        if not name:
            raise ArgumentError("name: is empty; pass a string, with which names of sites begin, such as 'f'.")
        self.name = name
        self.event_dim = _checked(event_dim)
        options: Any = {"flat": flat, "bayesian": bayesian, "others": others}
        self.model = BayesianModel(net, prior, _Unobserved(), batch_norm="running", **options)
        if layers := self.model.batch_norm.layers:
            names = [layer.removeprefix("module.") for layer in layers]
            raise ArgumentError(
                f"net: its batch norm {names} takes statistics of the rows that it is called with, which are "
                "not those of one data set in a larger model; use nn.LayerNorm or nn.GroupNorm, or put these layers "
                "into evaluation mode, layer.eval(), to keep the statistics that they have."
            )

    def __repr__(self) -> str:
        lines = [line.strip() for line in repr(self.model).splitlines()[1:-1]]
        own = [line for line in lines if not line.startswith("likelihood: ")]
        event = [] if self.event_dim is None else [f"event_dim={self.event_dim}"]
        inner = "".join(f"  {line}\n" for line in [*own, f"sites: {self.name}.*", *event])
        return f"RandomModule(\n{inner})"

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.configuration`."""
        return {**super().configuration(), "net": self.model.net, "prior": self.model.prior}

    def facts(self) -> Mapping[str, Any]:
        """See :meth:`~bayeshnet.configuration.Configured.facts`."""
        return self.model.facts()

    @property
    def latent_names(self) -> list[str]:
        """Names of its sites, in the order in which they are drawn."""
        return [f"{self.name}.{name}" for name in self.model.latent_shapes]

    @property
    def scale_factors(self) -> dict[str, Tensor]:
        """What prior scales were multiplied by in learning; see :attr:`bayeshnet.BayesianModel.scale_factors`."""
        return self.model.scale_factors

    def sample(self) -> DrawnModule:
        """Draw the weights, as Pyro sites, and return the network with these weights.

        Raises:
            UsageError: If they are drawn already in this run of the program.

        Example:
            >>> import torch
            >>> g = RandomModule(nn.Linear(2, 1)).sample()
            >>> g(torch.ones(5, 2)).shape, g(torch.ones(3, 2)).shape
            (torch.Size([5, 1]), torch.Size([3, 1]))
        """
        try:
            with _Named(self.name):
                draws, _ = self.model.sample_latents()
        except RuntimeError as error:
            _refuse_second_draw(self.name, error)
        return DrawnModule(self, draws)

    def forward(self, *inputs: Any) -> Tensor:
        """Draw the weights and evaluate the network; :meth:`sample` to evaluate it more than once.

        Args:
            inputs: Arguments of the network, each ``[*batch, *row]``.

        Returns:
            Outputs ``[*batch, *out]``.
        """
        return self.sample()(*inputs)


class DrawnModule:
    """A network with weights that were drawn: a function whose batch dimensions broadcast.

    Attributes:
        weights: The draws ``[*batch, *shape]``, by the parameter's name; ``"weights"`` alone of a flat one.

    Example:
        >>> import torch
        >>> g = RandomModule(nn.Linear(2, 1), name="slope").sample()
        >>> g, list(g.weights), g(torch.ones(5, 2)).shape
        (DrawnModule('slope', batch_shape=()), ['weight', 'bias'], torch.Size([5, 1]))
    """

    def __init__(self, module: RandomModule, weights: Mapping[str, Tensor]) -> None:
        self._module = module
        self.weights = dict(weights)
        model = module.model
        self._stacked, self._samples = stacked_values(self.weights, model.net, flat=model.flat)
        if model.flat:
            self._stacked = split_flat(self._stacked[0], model.net)

    def __repr__(self) -> str:
        return f"DrawnModule({self._module.name!r}, batch_shape={tuple(self.batch_shape)})"

    @property
    def batch_shape(self) -> Size:
        """Batch dimensions of the weights: particles to the left, then the plates that they were drawn in."""
        return self._samples

    def __call__(self, *inputs: Any) -> Tensor:
        """Outputs ``[*batch, *out]`` of the network for inputs ``[*batch, *row]``, which broadcast.

        Raises:
            ArgumentError: If batches do not broadcast, the dimensions of a row are not known, or the network does not
                give one tensor with an output for each row.
            ArgumentTypeError: If there are no inputs, or of another dtype.
        """
        model, name = self._module.model, self._module.name
        if not any(isinstance(part, Tensor) for part in inputs):
            given = ", ".join(kind_of(part) for part in inputs)
            raise ArgumentTypeError(f"x: {name} was called with ({given}); pass tensors [*batch, *row].")
        for part in inputs:
            model.check_inputs(part)
        event_dims = _event_dims(self._module, inputs)
        return broadcast_forward(model.net, self._stacked, self._samples, inputs, event_dims)


class _Named(Messenger):
    """Lets names of sites and parameters begin with that of the network."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._start = f"{name}."

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = self._start + msg["name"]

    def _pyro_param(self, msg: Any) -> None:
        msg["name"] = self._start + msg["name"]


class _Unobserved(Likelihood):
    """No likelihood: what is observed is a matter of the program that the network is in."""

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> NoReturn:
        raise UsageError("RandomModule: has no likelihood; the program around it observes something, obs=y.")


def _checked(event_dim: Any) -> int | list[int] | None:
    if event_dim is None:
        return None
    several = isinstance(event_dim, list | tuple)
    numbers: list[Any] = list(event_dim) if several else [event_dim]
    if not numbers or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise ArgumentTypeError(
            f"event_dim: is {event_dim!r}; pass the number of dimensions of one row, 1 for vectors, or a list of one "
            "for each input."
        )
    if min(numbers) < 0:
        raise ArgumentError(f"event_dim: is {event_dim!r}; pass numbers of dimensions, 0 or more.")
    return numbers if several else numbers[0]


def _event_dims(module: RandomModule, inputs: Sequence[Any]) -> list[int]:
    given = module.event_dim
    if isinstance(given, list) and len(given) != len(inputs):
        raise ArgumentError(f"event_dim: has {len(given)} numbers, and {module.name} has {len(inputs)} inputs.")
    found: list[int] = []
    for i, part in enumerate(inputs):
        number = given[i] if isinstance(given, list) else given
        if number is None and isinstance(part, Tensor):
            number = row_dims(module.model.net, part)
            if number is None:
                raise ArgumentError(
                    f"event_dim: x has shape {list(part.shape)}, of which some dimensions are those of one row, and "
                    "the network does not tell how many; say it, RandomModule(..., event_dim=3) for images [C, H, W]."
                )
        if isinstance(part, Tensor) and number is not None and part.dim() < number:
            raise ArgumentError(
                f"x: has shape {list(part.shape)}, and one row has {number} dimension{'s' * (number != 1)} (event_dim)."
            )
        found.append(number or 0)
    return found


def _refuse_second_draw(name: str, error: RuntimeError) -> NoReturn:
    """Raise what Pyro says of a site that is there already in the words of networks, and other errors as they are."""
    if "Multiple" not in str(error) or "sites named" not in str(error):
        raise error
    raise UsageError(
        f"RandomModule: the weights of {name!r} are drawn twice in one run of the program. Draw them once and use them "
        f"as often as needed, g = {name}.sample(), g(x1), g(x2); give another network another name=."
    ) from error
