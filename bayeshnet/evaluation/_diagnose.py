"""How good a fitted guide is: everything that can be checked, in one report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bayeshnet.checks import require_count
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.errors import DensityError
from bayeshnet.evaluation._chain import chain_length, check_spread, run_chain
from bayeshnet.evaluation._noise import check_noise
from bayeshnet.evaluation._sources import posterior_draws
from bayeshnet.evaluation.importance import importance_sample
from bayeshnet.evaluation.psis import WeightedDraws
from bayeshnet.models.capabilities import is_predictive
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, row_arguments
from bayeshnet.sites.one_thread import one_thread

__all__ = ["diagnose"]

_FEW_DRAWS = 100


@torch.no_grad()
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    num_samples: int = 2000,
    nuts: bool | int = False,
    thorough: bool = True,
) -> Diagnosis:
    """Check a fitted guide against its model.

    - The guide's own diagnosis, if it has a method ``diagnose(*, thorough) -> Diagnosis``: folding, entropy gap,
      self-weight.
    - ELBO, log evidence by Pareto-smoothed importance sampling and the gap between the two, k-hat, effective sample
      size of the importance weights.
    - For a :class:`~bayeshnet.BayesianModel` with inferred Gaussian noise: the noise under the guide against the
      residuals of the predictive mean on the training data (importance-corrected, if the weights can be trusted).
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
        ArgumentError: If a number is too small, ``nuts`` is not possible for this model, or for the reasons of
            :func:`~bayeshnet.importance_sample`.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If the guide is a point, or a weight is NaN or +inf.

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
    length = chain_length(model, nuts)
    own: Callable[..., Diagnosis] | None = getattr(guide, "diagnose", None)
    name = str(guide) if own is not None else getattr(guide, "__name__", type(guide).__name__)
    report = Diagnosis({}, title=f"{name}, {num_samples} draws")
    with one_thread("diagnose"), torch.random.fork_rng(devices=[]):
        if own is not None:
            found = own(thorough=thorough)
            report.values.update(found.values)
            report.advice.extend(found.advice)
        weighted = _weigh(report, model, guide, data, num_samples)
        if is_predictive(model):
            args, kwargs = call_arguments(data, "data", model)
            x, y = inputs_and_targets(args, kwargs)
            of_rows = row_arguments(args, kwargs)
            draws = posterior_draws(model, guide, x, num_samples) if weighted is None else weighted.draws
            check_noise(report, model, draws, weighted, x, y, of_rows)
            if length:
                best = 0 if weighted is None else int(weighted.log_weights.argmax())
                start = {site: value[best].clone() for site, value in draws.items()}
                check_spread(report, model, draws, run_chain(model, start, args, kwargs, length), x, of_rows)
    return report


def _weigh(
    report: Diagnosis, model: Callable[..., Any], guide: Callable[..., Any], data: Any, num_samples: int
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
            f"The effective sample size of the importance weights is {smoothed.ess:.0f}; raise num_samples, or use a "
            "guide closer to the posterior."
        )
    return weighted
