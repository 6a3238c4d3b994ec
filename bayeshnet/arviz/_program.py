"""What any other Pyro model gives ArviZ, from a trace of each draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from bayeshnet.arviz._variables import Draws, Groups, Selection, Variables, arrays, latents, own_dims
from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.guides.base import with_model
from bayeshnet.sites.latents import nodes_of

__all__ = ["Program"]


class Program:
    """The groups of any other Pyro model, from a trace of each draw."""

    def __init__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: Any, parallel: bool):
        if batch_size is not None:
            raise ArgumentError("batch_size: is for networks; leave it out for a Pyro model.")
        self.model, self.args, self.kwargs, self.parallel = model, args, kwargs, parallel
        nodes = nodes_of(prune_subsample_sites(self._trace({}))).items()
        self.sites: dict[str, Any] = {name: site for name, site in nodes if site["type"] == "sample"}
        observed = {name: site for name, site in self.sites.items() if site["is_observed"]}
        self.fixed = [name for name, site in observed.items() if site["infer"].get("_deterministic")]
        # A factor is "observed" too, and no observation.
        self.counted: dict[str, Any] = {}
        self.observed = [n for n, site in observed.items() if n not in self.fixed and type(site["fn"]) is not dist.Unit]
        self.latent = [name for name in self.sites if name not in observed]
        if not self.observed or not self.latent:
            what = "observed" if not self.observed else "latent"
            raise ArgumentError(f"data: the model has no {what} sites for these; pass all its arguments, targets too.")
        for name, site in self.sites.items():
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):
                    raise ArgumentError(
                        f"data: are {frame.size} of {frame.full_size} rows (plate {frame.name!r} of {name!r}); pass "
                        "all rows."
                    )

    def _trace(self, values: Mapping[str, Tensor]) -> Any:
        conditioned = poutine.condition(self.model, data=dict(values))
        return poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)

    def draws(self, guide: Any, num_samples: int) -> Mapping[str, Tensor]:
        given = guide
        if not isinstance(guide, Mapping):
            if not callable(guide):
                raise ArgumentTypeError(f"guide: is {kind_of(guide)}; pass a fitted guide, MCMC, or draws by site.")
            with with_model(guide, self.model):
                own = getattr(guide, "sample_posterior", None)
                made = Predictive(guide, num_samples=num_samples, parallel=self.parallel)
                given = made(*self.args, **self.kwargs) if own is None else own(num_samples)
        given = cast("Mapping[str, Any]", given)
        missing = [name for name in self.latent if not isinstance(given.get(name), Tensor)]
        if missing:
            raise ArgumentError(
                f"guide: gives no draws of the model's sites {missing}, only of {list(given)}; pass draws of all of "
                "them (of enumerated ones by pyro.infer.infer_discrete), or marginalise them."
            )
        numbers = {name: len(given[name]) for name in self.latent}
        if len(set(numbers.values())) > 1:
            raise ArgumentError(f"guide: gives different numbers of draws, {numbers}; pass as many of each site.")
        found: dict[str, Tensor] = {}
        for name, num in numbers.items():
            shape = self.sites[name]["value"].shape
            if given[name].numel() != num * shape.numel():
                raise ArgumentError(
                    f"guide: its draws of {name!r} have shape {tuple(given[name].shape)}; pass {['S', *shape]}."
                )
            found[name] = given[name].reshape((num, *shape))
        return found

    def groups(self, draws: Draws, *, weights: Selection, functions: bool) -> tuple[Groups, dict[str, Any]]:
        num = len(next(iter(draws.values.values())))
        scores: dict[str, list[Tensor]] = {name: [] for name in self.observed}
        samples: dict[str, list[Tensor]] = {name: [] for name in self.observed}
        fixed: dict[str, list[Tensor]] = {name: [] for name in self.fixed}
        for s in range(num):
            nodes = nodes_of(self._trace({name: value[s] for name, value in draws.values.items()}))
            for name in self.observed:
                site = nodes[name]
                score = site["fn"].log_prob(site["value"])
                mask = _mask(site).expand(score.shape)
                scores[name].append(torch.where(mask, score, torch.zeros_like(score)))
                self._count(self._dims(name), mask)
                samples[name].append(site["fn"].sample())
            for name in self.fixed:
                fixed[name].append(nodes[name]["value"])
        stacked = {name: torch.stack(values) for name, values in fixed.items()}
        posterior, kept = latents(draws, weights, self._dims)
        batch = {name: torch.stack(values) for name, values in scores.items()}
        found: Groups = {
            "posterior": posterior,
            "log_likelihood": {n: draws.variable(v, self._dims(n)[: v.dim() - 1]) for n, v in batch.items()},
            "posterior_predictive": {
                name: draws.variable(torch.stack(values), self._dims(name)) for name, values in samples.items()
            },
        }
        if functions:
            found["functions"] = {name: draws.variable(v, self._dims(name)) for name, v in stacked.items()}
        return found, {"weights": kept, "log_likelihood": "of each independent observation, 0 where it is masked"}

    def _count(self, dims: list[str], mask: Tensor) -> None:
        """Note which rows count, of sites with one dimension of them."""
        if mask.dim() == 1:
            self.counted[dims[0]] = self.counted.get(dims[0], False) | mask.cpu().numpy()

    def prior_groups(self, num: int, *, weights: Selection) -> Groups:
        made = Predictive(poutine.uncondition(self.model), num_samples=num)(*self.args, **self.kwargs)
        draws = Draws(self.draws(made, num), "the prior")
        observed = {name: made[name].reshape((num, *self.sites[name]["value"].shape)) for name in self.observed}
        return {
            "prior": latents(draws, weights, self._dims)[0],
            "prior_predictive": {name: draws.variable(value, self._dims(name)) for name, value in observed.items()},
        }

    def given(self, inputs: bool) -> tuple[Variables, Variables]:
        """What was observed, and the arguments of the model that are arrays and no observations."""
        values = {name: self.sites[name]["value"] for name in self.observed}
        named = {**{f"arg_{i}": value for i, value in enumerate(self.args)}, **self.kwargs}
        arguments = {name: value for name, value in named.items() if not any(value is y for y in values.values())}
        constant = dict(entry for name, value in arguments.items() for entry in arrays(name, value)) if inputs else {}
        return {n: (tuple(self._dims(n)), y.detach().cpu().numpy()) for n, y in values.items()}, constant

    def _dims(self, name: str) -> list[str]:
        """Dimensions of a site's value: its plates, and what is inside of them."""
        site = self.sites[name]
        dims = own_dims(name, site["value"].dim())
        batch = site["value"].dim() - site["fn"].event_dim
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and batch + frame.dim >= 0:
                dims[batch + frame.dim] = frame.name
        return dims


def _mask(site: Any) -> Tensor:
    """Which observations of a site count: by a handler's mask, and by that of a masked distribution."""
    fn = site["fn"]
    own = fn._mask if isinstance(fn, dist.MaskedDistribution) else True  # pyright: ignore[reportPrivateUsage]
    handlers = True if site["mask"] is None else site["mask"]
    return torch.as_tensor(own) & torch.as_tensor(handlers)
