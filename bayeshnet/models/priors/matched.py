"""Scales of weights from what is known of functions: their range and their length scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count, require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import number, with_error
from bayeshnet.mnets import batched_forward
from bayeshnet.mnets.functional import functional_copy
from bayeshnet.models.priors.normal import Normal
from bayeshnet.models.priors.scales import matches, scale_of_rule
from bayeshnet.models.standardization import Standardization
from bayeshnet.models.units import Standardize, standardization_from

__all__ = ["MatchedPrior", "matching"]

_STEP = 1e-3  # of a difference quotient, in units of the inputs' spread
_FAR = 8.0  # logarithm of the largest factor that is tried, and of the smallest
_HALVINGS, _CLOSE = 20, 1e-3
_BLOCKS = 10
_SPREAD = 1.5  # of the first layer's biases, in units of the spread of what they are added to


@dataclass(frozen=True, repr=False)
class MatchedPrior:
    """A prior whose functions vary as asked, and what they do in a simulation with draws that were not used to find it.

    Attributes:
        prior: The prior, for a model of the network.
        wanted: What was asked for, by name: ``"std"`` and ``"length_scale"``.
        achieved: What fresh draws of functions have.
        error: Monte Carlo standard error of each.
        factors: What the ``"fan_in"`` scales were multiplied by: ``"first weight"``, ``"first bias"``, ``"last"``.

    Example:
        >>> MatchedPrior(Normal(), {"std": 2.0}, {"std": 2.02}, {"std": 0.03}, {"last": 2.1})
        MatchedPrior(std: wanted 2, achieved 2.020 ± 0.030)
    """

    prior: Normal
    wanted: Mapping[str, float]
    achieved: Mapping[str, float]
    error: Mapping[str, float]
    factors: Mapping[str, float]

    def __repr__(self) -> str:
        parts = [
            f"{name}: wanted {number(value, digits=3)}, achieved {with_error(self.achieved[name], self.error[name])}"
            for name, value in self.wanted.items()
        ]
        return f"MatchedPrior({'; '.join(parts)})"


def matching(
    net: nn.Module,
    x: Tensor,
    *,
    std: float | None = None,
    output_range: tuple[float, float] | None = None,
    length_scale: float | None = None,
    standardize: Standardize = None,
    last: str | None = None,
    num_draws: int = 1000,
    num_rows: int = 32,
    generator: torch.Generator | None = None,
) -> MatchedPrior:
    r"""Find scales of Gaussian weights for which functions have a given spread and length scale.

    The spread is the root of the variance of a function value over the prior, averaged over the inputs:
    :math:`s^2 = E_x \mathrm{Var}_w f(x; w)`. The length scale is

    .. math:: \ell = \sqrt{s^2 \,/\, E_{x, u, w} (\partial_u f(x; w))^2}

    with random unit directions u: that of a Gaussian process with a squared-exponential kernel, whose draws cross their
    mean :math:`1 / (\pi \ell)` times per unit of length (Rice's formula). Of several outputs the squares are averaged.

    Weights start from ``"fan_in"``, and have mean 0. Three numbers are found by simulation with one set of random
    numbers: the last layer is multiplied by what gives the spread; it does not change the length scale, for which the
    first layer's weights and biases are multiplied together where that does it (tanh), otherwise the weights alone
    (ReLU, where only their ratio matters); its biases start at 1.5 times the spread of what they are added to, so that
    units bend all over the inputs. Fresh draws then say what was achieved.

    Args:
        net: The network, with at least two layers; its first and last weights of two or more dimensions, in the order
            of registration, are those of the first and last layer.
        x: Inputs ``[B, ...]`` where the functions are wanted, in the units of the data.
        std: The spread, a positive number.
        output_range: ``(low, high)`` in place of it: 90 % of function values, over functions and inputs, lie between;
            the bias of the last layer has its mean in the middle.
        length_scale: The length scale in units of the inputs; None leaves it as it is.
        standardize: What the model will be given: training data ``(x, y)``, batches of them, or a
            :class:`~bayeshnet.models.Standardization`. Spread and range are then in the units of the targets, and the
            length scale in those of the input; of several columns, which have units of their own, in their standard
            deviations. With ``std`` functions are centred at the mean of the targets.
        last: Pattern of the parameters of the last layer, if it is not the one registered last.
        num_draws: Number of functions, 20 or more.
        num_rows: At most so many of the inputs are used, evenly spaced.
        generator: Where random numbers come from; the global one by default.

    Returns:
        The prior with the report.

    Raises:
        ArgumentError: If neither or both of ``std`` and ``output_range`` are given, a number is not positive, the
            network has one layer, or no scales give the length scale; the message says what is possible.
        ArgumentTypeError: If inputs are no floating-point tensor.

    Example:
        >>> from bayeshnet import priors
        >>> net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1))
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.linspace(-2, 2, 50)[:, None]
        >>> found = priors.matching(net, x, std=2.0, length_scale=0.5, generator=generator)
        >>> found.prior.loc is None, abs(found.achieved["std"] - 2.0) < 4 * found.error["std"]
        (True, True)
    """
    if (std is None) == (output_range is None):
        raise ArgumentError("std, output_range: pass one of the two.")
    for name, value in (("std", std), ("length_scale", length_scale)):
        if value is not None:
            require_positive(name, value)
    require_count("num_draws", num_draws, least=20)
    require_count("num_rows", num_rows)
    low, high = _range(output_range)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) < 2:
        raise ArgumentTypeError(f"x: is {kind_of(x)}; pass a floating-point tensor of inputs [B, ...] with B > 1.")
    seen = x[torch.linspace(0, len(x) - 1, min(len(x), num_rows)).round().long()].detach().double()
    functions = _Functions(net, seen, standardization_from(standardize, targets=True), last)

    def simulation() -> Callable[..., _Moments]:
        noise, directions = functions.random(num_draws, generator)
        return lambda logs, factor=1.0: functions.moments(logs, factor, noise, directions)

    simulate = simulation()
    logs = (0.0, 0.0) if length_scale is None else _solved(simulate, length_scale, functions.bias)
    moments = simulate(logs)
    if not moments.std() > 0.0:
        raise ArgumentError("net: its functions do not vary for random weights; nothing can be matched.")
    if std is None:
        reach = float(torch.quantile(moments.values.abs().flatten()[:10_000_000], 0.9))
        factor = 0.5 * (high - low) / reach
    else:
        factor = std / moments.std()
    prior = functions.prior(logs, factor, 0.5 * (low + high) if std is None else None)
    fresh = simulation()(logs, factor)
    quantile = None if std is not None else fresh.values.abs().flatten(1)
    wanted, achieved, error = {}, {}, {}
    if quantile is None:
        wanted["std"], achieved["std"] = float(std or 0.0), fresh.std()
        error["std"] = _jackknife(lambda part: fresh.of(part).std(), num_draws)
    else:
        share = (quantile <= 0.5 * (high - low)).double().mean(1)
        wanted["share in range"], achieved["share in range"] = 0.9, float(share.mean())
        error["share in range"] = float(share.std()) / math.sqrt(num_draws)
    if length_scale is not None:
        wanted["length_scale"], achieved["length_scale"] = float(length_scale), fresh.length()
        error["length_scale"] = _jackknife(lambda part: fresh.of(part).length(), num_draws)
    for name, value in wanted.items():
        if abs(achieved[name] - value) > 8.0 * error[name] + 0.02 * value:
            raise ArgumentError(
                f"net: fresh draws have the {name} {achieved[name]:.3g} +- {error[name]:.2g} in place of {value:g}; "
                "the network is not linear in its last layer (last= says which it is), or its moments are too "
                "heavy-tailed for num_draws."
            )
    found = {"first weight": math.exp(logs[0]), "first bias": math.exp(logs[1]), "last": factor}
    return MatchedPrior(prior, wanted, achieved, error, found)


def _range(given: Any) -> tuple[float, float]:
    if given is None:
        return 0.0, 0.0
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"output_range: is {given!r}; pass two numbers, such as (-2., 2.).") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"output_range: is {given!r}; pass two finite numbers, the smaller one first.")
    return low, high


class _Moments:
    """Function values ``[S, B, ...]`` and their derivatives along random directions."""

    def __init__(self, values: Tensor, slopes: Tensor) -> None:
        self.values, self.slopes = values, slopes

    def of(self, chosen: Tensor) -> _Moments:
        return _Moments(self.values[chosen], self.slopes[chosen])

    def std(self) -> float:
        return float(self.values.square().mean().sqrt())

    def length(self) -> float:
        return float((self.values.square().mean() / self.slopes.square().mean()).sqrt())


def _jackknife(statistic: Callable[[Tensor], float], num: int) -> float:
    """Standard error of a statistic of independent draws, by leaving out one block of them after the other."""
    block = torch.arange(num) % _BLOCKS
    parts = torch.tensor([statistic(block != i) for i in range(_BLOCKS)], dtype=torch.float64)
    return math.sqrt((_BLOCKS - 1) * float(parts.var(correction=0)))


class _Functions:
    """Draws of a network's functions with Gaussian weights, centred at 0, for factors on the first layer's scales."""

    def __init__(self, net: nn.Module, x: Tensor, standardize: Standardization | None, last: str | None) -> None:
        copied = functional_copy(net).double()
        self.net, self.targets = copied, None if standardize is None else standardize.targets
        parts = {} if standardize is None else standardize.inputs_by_name
        if len(parts) > 1:
            raise ArgumentError(
                f"standardize: has statistics of the inputs {list(parts)}; functions are matched for networks of one."
            )
        inputs = next(iter(parts.values()), None)
        self.x = x if inputs is None else (x - inputs.loc.double()) / inputs.scale.double()
        # Of one input the length scale is in its own units.
        self.unit = 1.0 if inputs is None or x[0].numel() != 1 else float(inputs.scale)
        names, table = list(copied.param_names), list(copied.param_table)
        self.records = dict(zip(names, table, strict=True))
        layers = [name for name, record in self.records.items() if record.name == "weight" and len(record.shape) >= 2]
        final = layers[-1:] if last is None else [name for name in names if matches((last,), name)]
        if len(layers) < 2 or not final or layers[0] in final:
            raise ArgumentError(
                f"net: has the weights {layers}; functions are matched by those of a first and another last layer "
                "(last= says which that is)."
            )
        self.first = layers[0], _bias_of(layers[0])
        self.last = (final[0], _bias_of(final[0])) if last is None else tuple(final)
        # Biases as large as what they are added to, so that units bend all over the inputs and not at 0 alone.
        size = float(self.x.flatten(1).square().mean().sqrt())
        self.bias = math.log(_SPREAD * max(size, 1e-6))
        self.scales = {
            name: scale_of_rule("fan_in", record) if record.name == "weight" else 1.0
            for name, record in self.records.items()
        }
        self.fixed = {name: record.name in ("bn_scale", "cm_scale") for name, record in self.records.items()}

    def random(self, num: int, generator: torch.Generator | None) -> tuple[dict[str, Tensor], Tensor]:
        noise = {
            name: torch.randn((num, *record.shape), generator=generator, dtype=torch.float64)
            for name, record in self.records.items()
        }
        directions = torch.randn(self.x.shape, generator=generator, dtype=torch.float64).flatten(1)
        return noise, (directions / directions.norm(dim=1, keepdim=True)).reshape(self.x.shape)

    def _factor(self, name: str, logs: tuple[float, float]) -> float:
        return math.exp(logs[self.first.index(name)]) if name in self.first else 1.0

    @torch.no_grad()
    def moments(
        self, logs: tuple[float, float], factor: float, noise: Mapping[str, Tensor], directions: Tensor
    ) -> _Moments:
        scales = self._scales(logs, factor)
        weights = {name: e * scales[name] + (1.0 if self.fixed[name] else 0.0) for name, e in noise.items()}
        step = _STEP * float(self.x.std().clamp(min=1e-12))
        values = self._run(weights, self.x)
        ahead, behind = (self._run(weights, self.x + sign * step * directions) for sign in (1.0, -1.0))
        scale = 1.0 if self.targets is None else self.targets.scale.double()
        return _Moments(values * scale, (ahead - behind) / (2.0 * step * self.unit) * scale)

    def _run(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        out = batched_forward(self.net, list(weights.values()), x)
        if not isinstance(out, Tensor):
            raise ArgumentTypeError(f"net: returns {kind_of(out)}; functions are matched for one tensor of outputs.")
        return out

    def _scales(self, logs: tuple[float, float], factor: float) -> dict[str, float]:
        return {
            name: scale * self._factor(name, logs) * (factor if name in self.last else 1.0)
            for name, scale in self.scales.items()
        }

    def prior(self, logs: tuple[float, float], factor: float, centre: float | None) -> Normal:
        scales = self._scales(logs, factor)
        # Without a range functions stay where the model has its zero: at the mean of standardised targets.
        if centre is None or (centre == 0.0 and self.targets is None):
            return Normal(scales)
        bias = [name for name in self.last if name in self.records and len(self.records[name].shape) == 1]
        if not bias:
            raise ArgumentError("output_range: its middle is not 0, and the last layer has no bias; pass std.")
        if self.targets is None:
            return Normal(scales, loc={bias[-1]: centre})
        return Normal(scales, loc={bias[-1]: (centre - self.targets.loc) / self.targets.scale})


def _bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _solved(simulate: Callable[[tuple[float, float]], _Moments], wanted: float, bias: float) -> tuple[float, float]:
    """Logarithms of the factors on the first layer's weights and biases that give a length scale, by bisection."""
    tried: list[float] = []
    paths: tuple[Callable[[float], tuple[float, float]], ...] = (lambda t: (t, t + bias), lambda t: (t, bias))
    grid = torch.linspace(-_FAR, _FAR, 17).tolist()
    for path in paths:
        lengths: dict[int, float] = {}
        # From the factors that change least.
        for i in sorted(range(len(grid) - 1), key=lambda i: abs(grid[i] + grid[i + 1])):
            for k in (i, i + 1):
                if k not in lengths:
                    lengths[k] = simulate(path(grid[k])).length()
            if (lengths[i] - wanted) * (lengths[i + 1] - wanted) <= 0.0:
                return path(_bisected(simulate, path, wanted, grid[i], grid[i + 1]))
        tried += [length for length in lengths.values() if math.isfinite(length)]
    low, high = min(tried, default=math.nan), max(tried, default=math.nan)
    raise ArgumentError(
        f"length_scale: {wanted:g} is not possible for this network at these inputs, only {low:.3g} to {high:.3g}; "
        "pass one of these. (ReLU networks are about as smooth as the inputs are spread: take tanh for shorter ones.)"
    )


def _bisected(
    simulate: Callable[[tuple[float, float]], _Moments],
    path: Callable[[float], tuple[float, float]],
    wanted: float,
    low: float,
    high: float,
) -> float:
    above = simulate(path(low)).length() > wanted
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (simulate(path(middle)).length() > wanted) == above else (low, middle)
        if high - low < _CLOSE:
            break
    return 0.5 * (low + high)
