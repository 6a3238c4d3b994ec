"""The base of all guides: a distribution over all latents, in one flat vector, as the sites of a Pyro program."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import unwrap
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_trainable
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.guides._decay import GroupDecay
from bayeshnet.guides._summaries import Summaries
from bayeshnet.models.param_sites import emit_param_sites
from bayeshnet.sites.arguments import call_arguments, require_targets
from bayeshnet.sites.data_errors import errors_of_data, refuse_nan_data
from bayeshnet.sites.latents import emit_sites, latent_sites, nodes_of
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.prototype import CheckedInit, detach_trace, prior_draw, refuse_sampled_layers
from bayeshnet.sites.shown_data import show_example

__all__ = ["Guide", "with_model"]


def with_model(guide: Any, model: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Let a guide of this package draw as a guide for this model within a ``with`` block; see :meth:`Guide.attached`.

    Any other guide is left alone.

    Example:
        >>> with with_model(lambda x: None, lambda x: None):
        ...     pass
    """
    return guide.attached(model) if isinstance(guide, Guide) else contextlib.nullcontext()


def _is_not_latent_or_data(msg: Any) -> bool:
    return msg["type"] != "sample" or site_is_subsample(msg)


class Guide(Configured, Summaries):
    """Base of the guides: built at once from an example, and usable under every ELBO of Pyro.

    Its parameters are in the module: ``pyro.get_param_store().save`` writes none of them, :func:`~bayeshnet.save` all.

    A subclass implements :meth:`get_posterior` and :meth:`move_to`, and :meth:`learned_modules` if it has parameters.

    Args:
        model: Any Pyro model whose latents are continuous.
        example: The model's arguments.
        init_loc_fn: Per-site initialisation function for the prototype; prior draws by default.

    Attributes:
        sites: The latent sites of the model, in the order of their coordinates.
        latent_dim: Number D of unconstrained coordinates.
        loc: Location ``[D]`` of the guide's own coordinates: the prototype's value, unless a subclass replaces it.
        scale: Their scale ``[D]``: 1, unless a subclass replaces it.

    Raises:
        ArgumentError: If latents are discrete or absent, or the data hold NaN or infinite values.
        ArgumentTypeError: If ``model`` or ``init_loc_fn`` cannot be called, or the model not with ``example``, or its
            layers have ``PyroSample`` weights.
        UsageError: Under ``torch.inference_mode()``, in which nothing can be built that learns.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> class Point(Guide):
        ...     def get_posterior(self, *args, **kwargs):
        ...         return dist.Delta(self.loc, event_dim=1)
        ...     def move_to(self, mean, std=None, draws=None):
        ...         self.loc = mean
        >>> guide = Point(lambda: pyro.sample("scale", dist.Gamma(torch.ones(2), 1.0).to_event(1)), example=())
        >>> [site.name for site in guide.sites], guide()["scale"].shape
        (['scale'], torch.Size([2]))
    """

    configured_as = "guide"
    unrecorded = frozenset({"model", "example", "init_loc_fn"})

    loc: Tensor
    scale: Tensor
    _decay: GroupDecay | None = None

    def __init__(
        self, model: Callable[..., Any], *, example: Any, init_loc_fn: Callable[..., Any] | None = None
    ) -> None:
        if not callable(model):
            raise ArgumentTypeError(f"model: is {kind_of(model)}; pass a Pyro model, a callable.")
        if isinstance(model, AutoGuide):
            raise ArgumentTypeError(f"model: is a guide ({type(model).__name__}); pass the model itself.")
        refuse_sampled_layers(model)
        require_trainable(type(self).__name__)
        super().__init__(model, init_loc_fn=prior_draw if init_loc_fn is None else CheckedInit(init_loc_fn))
        self._original: tuple[Callable[..., Any]] | None = (model,)  # in a tuple: no submodule of the guide
        args, kwargs = call_arguments(example, "example", unwrap(model))
        require_targets(model, args, kwargs, "example")
        show_example(model, args, kwargs)
        with errors_of_data(model, args, kwargs, "example"), one_thread(type(self).__name__):
            self._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.ones_like(loc))

    # Observed sites too: their data are looked at. What is hidden is as in Pyro's other guides otherwise.
    _prototype_hide_fn = staticmethod(_is_not_latent_or_data)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # That of AutoContinuous would fail on discrete latents and on mixtures; the sites are described here instead.
        AutoGuide._setup_prototype(self, *args, **kwargs)
        trace = cast("Trace", self.prototype_trace)
        refuse_nan_data(self.original_model, trace, args, kwargs)
        for name in trace.observation_nodes:
            trace.remove_node(name)
        detach_trace(trace)
        self.sites = latent_sites(trace)
        self.latent_dim = sum(site.numel for site in self.sites)
        self._create_plates(*args, **kwargs)  # NeuTraReparam asks for them before the first call

    def example_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the model, positional and by keyword, that the guide was built from."""
        inputs = nodes_of(cast("Trace", self.prototype_trace))["_INPUT"]
        return inputs["args"], inputs["kwargs"]

    def _init_loc(self) -> Tensor:
        """Return the prototype in unconstrained coordinates ``[D]``: prior draws, or values of ``init_loc_fn``."""
        nodes = nodes_of(cast("Trace", self.prototype_trace))
        values = [site.unconstrain(nodes[site.name]["value"]) for site in self.sites]
        return torch.cat([value.reshape(-1) for value in values]).detach()

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Return the distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""

    @abstractmethod
    def move_to(self, mean: Tensor, std: Tensor | None = None, draws: Mapping[str, Tensor] | None = None) -> None:
        """Give the latents these means and standard deviations, in place; :func:`~bayeshnet.infer.start_from` calls it.

        Args:
            mean: Means ``[D]`` in unconstrained coordinates; NaN for latents that are to stay where they are.
            std: Standard deviations ``[D]``; None or NaN for those that are to stay.
            draws: The draws ``[S, n]`` by site name whose moments these are, in unconstrained coordinates, for a guide
                that makes use of more than their moments; sites without any are missing.
        """

    def learned_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose parameters are announced to Pyro, by name."""
        return {}

    # ------------------------------------------------------------------ hooks of a training loop

    def begin_fit(self, model: Callable[..., Any], data: Any) -> None:
        """Prepare the guide for a fit; :func:`~bayeshnet.fit` calls this before its first step.

        A training loop of your own calls it, too. From then on the parameters of groups with a ``"decay"`` (see
        :meth:`param_groups`) shrink by the factor ``1 - lr * decay`` after each step of any optimiser that has them,
        until :meth:`end_fit` or :meth:`cancel_fit`. A second call starts anew. Copies of the guide are not in a fit.

        Args:
            model: The model that the guide is fitted to.
            data: The data as for :func:`~bayeshnet.fit`: the model's arguments, or an iterable of batches.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from pyro.infer import SVI, Trace_ELBO
            >>> from bayeshnet import AutoHypernet
            >>> model = lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            >>> guide = AutoHypernet(model, example=())
            >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            >>> guide.begin_fit(model, ())
            >>> losses = [svi.step() for _ in range(3)]
            >>> guide.end_fit(model, ())
            >>> len(losses)
            3
        """
        self.cancel_fit()
        self._decay = GroupDecay(self.param_groups(1.0))

    def end_fit(self, model: Callable[..., Any], data: Any) -> None:
        """Finish a fit; :func:`~bayeshnet.fit` calls this after its last step. See :meth:`begin_fit` for an example.

        Args:
            model: The model that the guide was fitted to.
            data: The data that it was fitted to.
        """
        self.cancel_fit()

    def cancel_fit(self) -> None:
        """Stop the decay that :meth:`begin_fit` has started, where a fit fails, so that there is nothing to finish.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
            >>> guide = AutoHypernet(model, example=())
            >>> guide.begin_fit(model, ())
            >>> guide.cancel_fit()
        """
        if self._decay is not None:
            self._decay.remove()
            self._decay = None

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimiser: here, all parameters that require a gradient.

        A subclass may divide them. A group with a ``"decay"`` has decoupled weight decay of that strength, with any
        optimiser, between :meth:`begin_fit` and :meth:`end_fit`.

        Args:
            lr: Learning rate.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernetDelta
            >>> guide = AutoHypernetDelta(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), example=())
            >>> optimizer = torch.optim.Adam(guide.param_groups(0.01))
        """
        return [{"params": [param for param in self.parameters() if param.requires_grad], "lr": lr}]

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that :func:`~bayeshnet.fit` keeps by default; None for no bound."""
        return None

    # ------------------------------------------------------------------ what there is

    @property
    def original_model(self) -> Callable[..., Any] | None:
        """The model that was given, without Pyro's handlers around it; None in a copy, until :meth:`attach`."""
        return None if self._original is None else self._original[0]

    def attach(self, model: Callable[..., Any]) -> None:
        """Give a copy its model back, for example to place its inducing points.

        :meth:`begin_fit` of an :class:`~bayeshnet.AutoHypernet` does it. Predictions need no call: a copy draws as the
        original did when it was copied, and functions that take a model, such as :func:`~bayeshnet.predict`, go by
        that model. Only a copy that is trained together with learned prior scales in a loop without
        :meth:`begin_fit`, and is then asked for draws without its model, has to be told of it.

        Args:
            model: The model that the guide was built for, or a copy of it.

        Example:
            >>> import copy, pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> model = lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            >>> guide = copy.deepcopy(AutoHypernet(model, example=()))
            >>> guide.original_model is None
            True
            >>> guide.attach(model)
            >>> guide.original_model is model
            True
        """
        self._original = (model,)

    @contextlib.contextmanager
    def attached(self, model: Callable[..., Any]) -> Generator[None]:
        """Draw as a guide for this model within a ``with`` block, with the prior scales that it has learned.

        Args:
            model: A :class:`~bayeshnet.BayesianModel` with the guide's latents; any other model changes nothing.

        Example:
            >>> import pyro, torch, pyro.distributions as dist
            >>> from bayeshnet import AutoHypernet
            >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
            >>> guide = AutoHypernet(model, example=())
            >>> with guide.attached(model):
            ...     draws = guide.sample_posterior(3)
        """
        before = self._original
        self._original = (model,) if hasattr(model, "weight_priors") else before  # asks on a hot path
        try:
            yield
        finally:
            self._original = before

    @property
    def target_shapes(self) -> list[list[int]]:
        """Shapes of the latents in unconstrained coordinates, in the order in which they are generated."""
        return [list(site.shape) for site in self.sites]

    def __getstate__(self) -> dict[str, Any]:
        # A copy without the model, as for every guide of Pyro; theirs takes it from the original as well.
        return {**self.__dict__, "_model": None, "master": None, "_original": None, "_decay": None}

    # ------------------------------------------------------------------ the guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents as Pyro sites.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.

        Returns:
            The values by site name.
        """
        self.emit_params()
        latent = self.sample_latent(*args, **kwargs)
        return emit_sites(self.sites, latent, self._create_plates(*args, **kwargs))

    def emit_params(self) -> None:
        """Announce the parameters of :meth:`learned_modules` to Pyro; part of :meth:`forward`."""
        for name, module in self.learned_modules().items():
            emit_param_sites(f"{self._pyro_name}.{name}", module)
