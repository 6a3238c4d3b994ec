"""A short NUTS chain, for small networks, and the comparison of a guide's functions and noise with it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.errors import ArgumentError
from bayeshnet.evaluation._noise import noise_std, some_rows
from bayeshnet.evaluation._predict import predict
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import is_predictive
from bayeshnet.models.forms import num_rows
from bayeshnet.sites.modes import evaluating

__all__ = ["chain_length", "check_spread", "run_chain"]

# A chain of so many latents still takes minutes.
_MAX_LATENTS = 2000
# Functions are compared at so many rows at most.
_FUNCTION_ROWS = 200
_CHAIN_LENGTH = 200
# At most 2^6 - 1 gradients a step.
_TREE_DEPTH = 6


def chain_length(model: Any, nuts: bool | int) -> int:
    """The number of steps of the chain, 0 for none.

    Raises:
        ArgumentError: If it is too small, or a chain is not possible for this model.
    """
    length = _CHAIN_LENGTH if nuts is True else int(nuts)
    if length == 0:
        return 0
    if length < 20:
        raise ArgumentError(f"nuts: is {nuts}; pass True, False, or at least 20 steps.")
    if not is_predictive(model):
        raise ArgumentError(
            f"nuts: compares the functions of a network, and model is {kind_of(model)}; pass a BayesianModel, or "
            "nuts=False."
        )
    size = sum(math.prod(shape) for shape in model.latent_shapes.values())
    if size > _MAX_LATENTS:
        raise ArgumentError(
            f"nuts: the model has {size} latents, a chain would take too long; pass nuts=False, or diagnose a smaller "
            f"network (up to {_MAX_LATENTS}) on the same data."
        )
    return length


def run_chain(
    model: BayesianModel, start: dict[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], length: int
) -> dict[str, Tensor]:
    """Draws of a NUTS chain, ``[length, *shape]`` by site, after as many steps of warm-up."""
    with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pyro")
        kernel = NUTS(model, max_tree_depth=_TREE_DEPTH, init_strategy=init_to_value(values=start))
        chain = MCMC(kernel, num_samples=length, warmup_steps=length, disable_progbar=True)
        chain.run(*args, **kwargs)
        return chain.get_samples()


def check_spread(
    report: Diagnosis,
    model: BayesianModel,
    draws: Mapping[str, Tensor],
    chain: Mapping[str, Tensor],
    x: Any,
    of_rows: Mapping[str, Any] | None = None,
) -> None:
    """Compare spread of functions and observation noise of the guide's draws with those of the chain."""
    given = {name: value for name, value in (of_rows or {}).items() if name != "weight"}
    if num_rows(x) > _FUNCTION_ROWS:
        x, given = some_rows(x, _FUNCTION_ROWS), {name: some_rows(v, _FUNCTION_ROWS) for name, v in given.items()}
    of_guide, of_chain = _functions(model, draws, x, given), _functions(model, chain, x, given)
    if not bool((of_chain.std(0) > 0).any()):
        report.advice.append("The chain has not moved, so nothing is compared with it; run a longer one, nuts=1000.")
        return
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
            f"The chain has not converged (r-hat {report.values['chain_rhat']:.2f} for a tenth of the functions, or "
            "more), so spread_ratio and what else is compared with it are rough; run a longer one, nuts=1000."
        )
    # A ratio that may as well be 1 is no finding: the functions of a short chain are correlated in time and with each
    # other.
    found = abs(log_ratio) > 3.0 * error
    if found and ratio < 0.8:
        report.advice.append(
            f"The functions spread {ratio:.2f} times as much as those of NUTS: the posterior is too narrow, "
            "which a test log-likelihood does not show. Train longer, use conditional layers (conditional='auto') or "
            "family='low_rank', and another estimator if it is SpectralStein()."
        )
    elif found and ratio > 1.25:
        report.advice.append(
            f"The functions spread {ratio:.2f} times as much as those of NUTS: the posterior is too wide. Train "
            "longer, and use conditional layers (conditional='auto') with more inducing points (num_inducing)."
        )
    noise, chain_noise = noise_std(model, draws), noise_std(model, chain)
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


def _functions(model: BayesianModel, draws: Mapping[str, Tensor], x: Any, given: Mapping[str, Any]) -> Tensor:
    """The mean of an observation under each draw, class probabilities for labels, ``[S, B, ...]`` in float64."""
    return predict(model, dict(draws), x, **given).functions.double()


def _mean_log_std(f: Tensor, floor: Tensor) -> float:
    return float(f.std(0).clamp(min=floor).log().mean())


def _jackknife_error(statistic: Callable[[Tensor], float], draws: Tensor, num_blocks: int = 10) -> float:
    """Standard error of a statistic of correlated draws, from leaving out one block of them after the other."""
    blocks = draws.tensor_split(num_blocks)
    left_out = [statistic(torch.cat([*blocks[:i], *blocks[i + 1 :]])) for i in range(num_blocks)]
    values = torch.tensor(left_out, dtype=torch.double)
    return float(((num_blocks - 1) * values.var(unbiased=False)).sqrt())
