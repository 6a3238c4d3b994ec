"""What a Bayesian network gives ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.infer import Predictive
from torch import Tensor

from bayeshnet.arviz._variables import Draws, Groups, Selection, Variables, arrays, latents, own_dims
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import BayeshnetWarning, UsageError
from bayeshnet.evaluation import posterior_draws, predict
from bayeshnet.sites.arguments import inputs_and_targets, require_targets, row_arguments

__all__ = ["Network"]


class Network:
    """The groups of a Bayesian network."""

    def __init__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: Any, parallel: bool):
        require_targets(model, args, kwargs, "data")
        self.model, self.batch_size, self.parallel = model, batch_size, parallel
        self.x, self.y = inputs_and_targets(args, kwargs)
        self.of_rows = row_arguments(args, kwargs)
        model.check_observations(self.x, self.y)
        self._targets: Any = None
        self.counted: dict[str, Any] = {}

    def draws(self, guide: Any, num_samples: int) -> Mapping[str, Tensor]:
        return posterior_draws(self.model, guide, self.x, num_samples, parallel=self.parallel)

    def groups(self, draws: Draws, *, weights: Selection, functions: bool) -> tuple[Groups, dict[str, Any]]:
        pred = self._predicted(draws)
        conditional = pred.conditional
        event = [f"output_{i}" if i else "output" for i in range(len(conditional.event_shape))]
        y = torch.as_tensor(self.y).to(pred.draws.device)
        y = y.reshape(conditional.batch_shape[1:] + conditional.event_shape)
        self._targets = (("row", *event), y.cpu().numpy())
        weight = self.of_rows.get("weight")
        counted = torch.ones(len(y), dtype=torch.bool, device=y.device) if weight is None else weight.to(y.device) > 0
        if self.model.missing == "ignore" and y.is_floating_point():
            counted &= ~torch.isnan(y.reshape(len(y), -1)).all(1)
        self.counted = {"row": counted.cpu().numpy()}
        fn, known = self.model.observed(conditional, y, weight)
        posterior, kept = latents(draws, weights, lambda name: own_dims(name, draws.values[name].dim() - 1))
        found: Groups = {
            "posterior": posterior,
            "log_likelihood": {"obs": draws.variable(fn.log_prob(known), ("row",))},
            "posterior_predictive": {"obs": draws.variable(pred.samples, ("row", *event))},
        }
        if functions:
            outputs = pred.draws
            found["functions"] = {
                "outputs": draws.variable(outputs, ("row", *own_dims("outputs", outputs.dim() - 2))),
            }
            with suppress(UsageError):  # a distribution without a formula for its mean
                mean = pred.functions
                classes = ["class"] * (mean.dim() - 2 - len(event))
                found["functions"]["mean"] = draws.variable(mean, ("row", *event, *classes))
        return found, {"weights": kept, **self._facts()}

    def prior_groups(self, num: int, *, weights: Selection) -> Groups:
        given = {name: value for name, value in self.of_rows.items() if name != "weight"}
        made = Predictive(self.model, num_samples=num, parallel=True)(self.x, **given)
        draws = Draws(self.draws(made, num), "the prior")
        pred = self._predicted(draws)
        kept, _ = latents(draws, weights, lambda name: own_dims(name, draws.values[name].dim() - 1))
        return {"prior": kept, "prior_predictive": {"obs": draws.variable(pred.samples, self._targets[0])}}

    def given(self, inputs: bool) -> tuple[Variables, Variables]:
        """What was observed, and what is constant."""
        constant = dict(arrays("x", self.x)) if inputs else {}
        constant.update(entry for name, value in self.of_rows.items() for entry in arrays(name, value))
        return {"obs": self._targets}, constant

    def _predicted(self, draws: Draws) -> Any:
        given = {name: value for name, value in self.of_rows.items() if name != "weight"}
        return predict(self.model, draws.values, self.x, batch_size=self.batch_size, **given)

    def _facts(self) -> dict[str, Any]:
        counted = ["of each row"]
        if "weight" in self.of_rows:
            counted.append("times its weight")
        if self.model.missing == "ignore":
            counted.append("without missing targets")
        facts: dict[str, Any] = {"log_likelihood": ", ".join(counted)}
        if self.model.kl_weight != 1.0:
            facts["kl_weight"] = self.model.kl_weight
            warnings.warn(
                f"model: has kl_weight={self.model.kl_weight}, so its posterior counts the likelihood "
                f"{1.0 / self.model.kl_weight:.3g} times, and the log_likelihood for ArviZ counts it once; loo and "
                "compare take their draws for those of kl_weight=1.",
                BayeshnetWarning,
                stacklevel=stacklevel_of_user(),
            )
        return facts
