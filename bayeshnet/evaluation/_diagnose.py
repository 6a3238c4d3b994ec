"""How good a fitted guide is: everything that can be checked, in one report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.entropy.protocol import Diagnosis
from bayeshnet.errors import ArgumentError, DensityError
from bayeshnet.evaluation._meanings import MEANING
from bayeshnet.evaluation._predict import posterior_draws, predict
from bayeshnet.evaluation.importance import importance_sample
from bayeshnet.evaluation.psis import WeightedDraws
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.likelihoods import Normal
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["Report", "diagnose"]

# A chain of so many latents still takes minutes.
_MAX_LATENTS = 2000
# Functions are compared at so many rows at most, and residuals taken at so many: 2000 draws of them fit into memory.
_FUNCTION_ROWS, _RESIDUAL_ROWS = 200, 2000
_CHAIN_LENGTH = 200
# At most 2^6 - 1 gradients a step.
_TREE_DEPTH = 6
_FEW_DRAWS = 100


@dataclass(frozen=True)
class Report:
    """What a diagnosis found; ``print(report)`` shows it as a table.

    Attributes:
        title: What was diagnosed.
        values: Numbers by name; ``NAME_error`` is the standard error of ``NAME``.
        advice: One sentence or two per problem: what was found and what to do; empty if none was found.

    Example:
        >>> print(Report("guide", {"elbo": -3.25, "elbo_error": 0.01}, ["Train longer."]))
        guide
          elbo  -3.250 ± 0.010  evidence lower bound, nats
        advice
          - Train longer.
    """

    title: str
    values: dict[str, float]
    advice: list[str] = field(default_factory=list[str])

    @property
    def healthy(self) -> bool:
        """Whether no problem was found."""
        return not self.advice

    def __str__(self) -> str:
        rows: list[tuple[str, str, str]] = []
        for name, value in self.values.items():
            if name.endswith("_error") and name.removesuffix("_error") in self.values:
                continue
            error = self.values.get(f"{name}_error")
            rows.append((name, _shown(value, error), MEANING.get(name, "")))
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [f"  {name:<{widths[0]}}  {shown:<{widths[1]}}  {what}".rstrip() for name, shown, what in rows]
        found = [f"  - {sentence}" for sentence in self.advice] or ["  none: no problem was found"]
        return "\n".join([self.title, *lines, "advice", *found])


@torch.no_grad()
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    num_samples: int = 2000,
    nuts: bool | int = False,
    thorough: bool = True,
) -> Report:
    """Check a fitted guide against its model.

    - The guide's own diagnosis where it has one: folding, entropy gap, weight of the own noise.
    - ELBO, log evidence by Pareto-smoothed importance weights and the gap between the two, k-hat, effective sample
      size.
    - For a :class:`~bayeshnet.BayesianModel` with inferred Gaussian noise: the noise under the guide against the
      residuals of the predicted mean on the training data (importance-corrected, if the weights can be trusted).
    - With ``nuts``, for a BayesianModel with at most 2000 latents: the spread of the functions at (up to 200) training
      inputs against a short NUTS chain, the geometric mean of the ratios of standard deviations; and the noise against
      that of the chain. The chain starts at the guide's draw of the largest weight and stays near the mode it
      starts in. It takes at most 63 gradients a step, of some milliseconds each: a minute or two for 200 steps. Its
      r-hat and effective sample size are in the report.

    What the names mean, and what to make of them, is in ``docs/diagnostics.md``. The random number generator of the CPU
    is left as it was.

    Args:
        model: Any Pyro model.
        guide: Any guide for it: of this package, of Pyro, or a function.
        data: The arguments of the model, with all observations; no minibatch.
        num_samples: Number of draws of the guide.
        nuts: Run a chain: its length, after as many steps of warm-up; True for 200.
        thorough: Search for folds and importance-sample the entropy; False leaves out what takes longest there.

    Raises:
        ValueError: If a number is too small, ``nuts`` is not possible for this model, or for the reasons of
            :func:`~bayeshnet.importance_sample`.
        TypeError: If an argument is of another type.
        RuntimeError: If the guide is a point, or a weight is NaN or +inf.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(0.5, 0.1))
        >>> report = diagnose(model, guide, torch.tensor([1.0, 2.0, 0.0]))
        >>> report.values["k_hat"] > 0.7, len(report.advice)
        (True, 1)
    """
    require_count("num_samples", num_samples, least=_FEW_DRAWS)
    length = _chain_length(model, nuts)
    title = str(guide) if isinstance(guide, torch.nn.Module) and hasattr(guide, "diagnose") else _name(guide)
    report = Report(f"{title}, {num_samples} draws", {})
    with one_thread("diagnose"), torch.random.fork_rng(devices=[]):
        own: Callable[..., Diagnosis] | None = getattr(guide, "diagnose", None)
        if own is not None:
            found = own(thorough=thorough)
            report.values.update(found.values)
            report.advice.extend(found.advice)
        weighted = _weigh(report, model, guide, data, num_samples)
        if isinstance(model, BayesianModel):
            args, kwargs = call_arguments(data, "data")
            x, y = inputs_and_targets(args, kwargs)
            draws = posterior_draws(model, guide, x, num_samples) if weighted is None else weighted.draws
            _check_noise(report, model, draws, weighted, x, y)
            if length:
                _check_spread(report, model, draws, _chain(model, draws, weighted, args, kwargs, length), x)
    return report


# ---------------------------------------------------------------------- importance weights


def _weigh(
    report: Report, model: Callable[..., Any], guide: Callable[..., Any], data: Any, num_samples: int
) -> WeightedDraws | None:
    """ELBO, evidence and k-hat; None where the guide has no density."""
    try:
        weighted = importance_sample(model, guide, data, num_samples)
    except DensityError as error:
        report.advice.append(f"There are no ELBO, k-hat and log evidence. {error}")
        return None
    smoothed, (elbo, elbo_error), (evidence, error) = weighted.smoothed, weighted.elbo, weighted.log_evidence
    report.values.update(
        elbo=elbo,
        elbo_error=elbo_error,
        log_evidence=evidence,
        log_evidence_error=error,
        evidence_gap=evidence - elbo,
        k_hat=smoothed.k_hat,
        ess=smoothed.ess,
    )
    if not smoothed.reliable:
        report.advice.append(
            f"k-hat is {smoothed.k_hat:.2f}, above {smoothed.threshold:.2f}: the guide leaves out parts of the "
            "posterior that carry weight, so importance weights cannot correct it, and log_evidence and evidence_gap "
            "are too small by an unknown amount. For up to some dozens of latents train longer or use a richer guide; "
            "for hundreds of weights this is to be expected: judge the guide by its spread, diagnose(..., nuts=True)."
        )
    elif smoothed.ess < _FEW_DRAWS:
        report.advice.append(
            f"The weighted draws are worth {smoothed.ess:.0f} draws of the posterior; raise num_samples, or use a "
            "guide closer to it."
        )
    return weighted


# ---------------------------------------------------------------------- noise


def _noise(model: BayesianModel, draws: Mapping[str, Tensor]) -> Tensor | None:
    """Standard deviation of the observation noise in each draw ``[S, 1 or out]``; None unless it is inferred."""
    for name in ("scale", "precision") if isinstance(model.likelihood, Normal) else ():
        if name in model.likelihood.priors():
            value = draws[f"likelihood.{name}"].double()
            return (value if name == "scale" else value.rsqrt()).reshape(len(value), -1)
    return None


def _check_noise(
    report: Report,
    model: BayesianModel,
    draws: Mapping[str, Tensor],
    weighted: WeightedDraws | None,
    x: Any,
    y: Tensor,
) -> None:
    """Compare the noise with the residuals of the mean prediction, of the output where they differ most."""
    noise = _noise(model, draws)
    if noise is None:
        return
    corrected = weighted is not None and weighted.smoothed.reliable
    if isinstance(x, Tensor):
        x, y = _some_rows(x, _RESIDUAL_ROWS), _some_rows(y, _RESIDUAL_ROWS)
    f = predict(model, draws, x).draws.double()
    if weighted is not None and corrected:
        mean = torch.tensordot(weighted.smoothed.normalised.to(f.device), f, dims=1)
    else:
        mean = f.mean(0)
    squares = (y.double() - mean).square()
    # One residual per noise: over all outputs if they share it.
    squares = squares.reshape(-1, noise.shape[1]) if noise.shape[1] > 1 else squares.reshape(-1, 1)
    residual = squares.mean(0).sqrt()
    level = noise.mean(0)
    ratio = level / residual.clamp(min=torch.finfo(torch.double).tiny)
    worst = int(ratio.argmax())
    report.values.update(
        noise=float(level[worst]), residual_std=float(residual[worst]), noise_ratio=float(ratio[worst])
    )
    # Parameters as many as a half of the rows explain a ratio of 1.4.
    if report.values["noise_ratio"] > 1.5:
        report.advice.append(
            f"The observation noise is {float(level[worst]):.3g} under the guide, {float(ratio[worst]):.2g} times the "
            f"residuals of its mean prediction ({'importance-corrected' if corrected else 'plain'}): the draws "
            "scatter, and what they cannot fit goes into the noise. Use conditional layers with more inducing points "
            "(num_inducing), or train longer; with about as many rows as the network has effective parameters a high "
            "ratio is right."
        )


# ---------------------------------------------------------------------- a short chain


def _chain_length(model: Any, nuts: bool | int) -> int:
    length = _CHAIN_LENGTH if nuts is True else int(nuts)
    if length == 0:
        return 0
    if length < 20:
        raise ArgumentError(f"nuts: is {nuts}; pass True, False, or at least 20 steps.")
    if not isinstance(model, BayesianModel):
        raise ArgumentError(
            f"nuts: the spread is that of a network's functions, and model is a {type(model).__name__}; pass a "
            "BayesianModel, or nuts=False."
        )
    size = sum(math.prod(shape) for shape in model.latent_shapes.values())
    if size > _MAX_LATENTS:
        raise ArgumentError(
            f"nuts: the model has {size} latents, a chain would take too long; pass nuts=False, or diagnose a smaller "
            f"network (up to {_MAX_LATENTS}) on the same data."
        )
    return length


def _chain(
    model: BayesianModel,
    draws: Mapping[str, Tensor],
    weighted: WeightedDraws | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    length: int,
) -> dict[str, Tensor]:
    """Draws of a NUTS chain that starts at the guide's draw with the largest weight."""
    best = 0 if weighted is None else int(weighted.log_weights.argmax())
    start = {name: value[best].clone() for name, value in draws.items()}
    with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pyro")
        kernel = NUTS(model, max_tree_depth=_TREE_DEPTH, init_strategy=init_to_value(values=start))
        chain = MCMC(kernel, num_samples=length, warmup_steps=length, disable_progbar=True)
        chain.run(*args, **kwargs)
        return chain.get_samples()


def _check_spread(
    report: Report, model: BayesianModel, draws: Mapping[str, Tensor], chain: Mapping[str, Tensor], x: Any
) -> None:
    x = _some_rows(x, _FUNCTION_ROWS)
    of_guide, of_chain = _functions(model, draws, x), _functions(model, chain, x)
    floor = 1e-6 * of_chain.std(0).max().clamp(min=torch.finfo(torch.double).tiny)
    log_ratio = _mean_log_std(of_guide, floor) - _mean_log_std(of_chain, floor)
    ratio = math.exp(log_ratio)
    error = math.hypot(*(_jackknife_error(lambda f: _mean_log_std(f, floor), f) for f in (of_guide, of_chain)))
    rhat = split_gelman_rubin(of_chain.unsqueeze(0), chain_dim=0, sample_dim=1)
    report.values.update(
        spread_ratio=ratio,
        spread_ratio_error=ratio * error,
        chain_rhat=float(torch.nanquantile(rhat, 0.9)),
        chain_ess=float(effective_sample_size(of_chain.unsqueeze(0), chain_dim=0, sample_dim=1).nanmedian()),
    )
    if report.values["chain_rhat"] > 1.1:
        report.advice.append(
            f"The chain has not settled (r-hat {report.values['chain_rhat']:.2f} for a tenth of the functions, or "
            "more), so spread_ratio and what else is compared with it are rough; pass a longer one, nuts=1000."
        )
    # A ratio that may as well be 1 is no finding: the functions of a short chain are correlated in time and with each
    # other.
    found = abs(log_ratio) > 3.0 * error
    if found and ratio < 0.8:
        report.advice.append(
            f"The functions spread {ratio:.2f} times as much as those of NUTS: the posterior is too narrow, "
            "which a test log-likelihood does not show. Train longer, use conditional layers (conditional='auto') or "
            "body='low_rank', and another estimator if it is SpectralStein()."
        )
    elif found and ratio > 1.25:
        report.advice.append(
            f"The functions spread {ratio:.2f} times as much as those of NUTS: the posterior is too wide. Train "
            "longer, and use conditional layers (conditional='auto') with more inducing points (num_inducing)."
        )
    noise, chain_noise = _noise(model, draws), _noise(model, chain)
    if noise is None or chain_noise is None:
        return
    ratios = noise.mean(0) / chain_noise.mean(0)
    worst = int(ratios.argmax())
    report.values.update(chain_noise=float(chain_noise.mean(0)[worst]), chain_noise_ratio=float(ratios[worst]))
    if report.values["chain_noise_ratio"] > 1.25:
        report.advice.append(
            f"The observation noise is {float(ratios[worst]):.2f} times that of NUTS: what the guide underfits goes "
            "into the noise. Use more inducing points (num_inducing), or train longer."
        )


def _some_rows(x: Any, most: int) -> Any:
    """Evenly spaced rows of a tensor with more than ``most``."""
    if not isinstance(x, Tensor) or len(x) <= most:
        return x
    return x[torch.linspace(0, len(x) - 1, most, dtype=torch.double).round().long().to(x.device)]


def _functions(model: BayesianModel, draws: Mapping[str, Tensor], x: Any) -> Tensor:
    """Function values, or class probabilities, ``[S, B, ...]`` in float64."""
    found = predict(model, draws, x)
    return (found.draws.softmax(-1) if found.is_classification else found.draws).double()


def _mean_log_std(f: Tensor, floor: Tensor) -> float:
    return float(f.std(0).clamp(min=floor).log().mean())


def _jackknife_error(statistic: Callable[[Tensor], float], draws: Tensor, num_blocks: int = 10) -> float:
    """Standard error of a statistic of correlated draws, from leaving out one block of them after the other."""
    blocks = draws.tensor_split(num_blocks)
    left_out = [statistic(torch.cat([*blocks[:i], *blocks[i + 1 :]])) for i in range(num_blocks)]
    values = torch.tensor(left_out, dtype=torch.double)
    return float(((num_blocks - 1) * values.var(unbiased=False)).sqrt())


# ---------------------------------------------------------------------- words


def _name(guide: Any) -> str:
    return getattr(guide, "__name__", type(guide).__name__)


def _shown(value: float, error: float | None) -> str:
    """A number with as many digits as its error supports."""
    if error is None or not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = min(10, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
