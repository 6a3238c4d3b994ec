"""The part of a guide that turns a distribution over all latents, in one flat vector, into Pyro sites."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayeshnet.checks import require_count, require_trainable
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError
from bayeshnet.guides._decay import GroupDecay
from bayeshnet.models.param_sites import emit_param_sites
from bayeshnet.sites.arguments import call_arguments, call_error, nan_data_error, refuse_nan_data, require_targets
from bayeshnet.sites.latents import CheckedInit, LatentSite, jacobian_site, latent_sites, nodes_of, prior_draw
from bayeshnet.sites.one_thread import one_thread
from bayeshnet.sites.quantiles import sample_quantiles

__all__ = ["Guide", "with_model"]


def with_model(guide: Any, model: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Let a guide of this package go by the model that it is used with; any other guide is left alone."""
    return guide.attached(model) if isinstance(guide, Guide) else contextlib.nullcontext()


def _is_no_site(msg: Any) -> bool:
    return msg["type"] != "sample" or site_is_subsample(msg)


def _without_graph(value: Any) -> Any:
    """A tensor, or a distribution with all that it is made of, detached; what is given stays as it is."""
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if isinstance(value, list | tuple):
        return type(value)(map(_without_graph, value)) if type(value) in (list, tuple) else value
    if not isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        return value
    made = copy.copy(value)
    vars(made).update({key: _without_graph(part) for key, part in vars(value).items()})
    return made


class Guide(AutoContinuous):
    """Base of the guides: built at once from an example, right under every ELBO of Pyro.

    A subclass implements :meth:`get_posterior`, and :meth:`learned_modules` if it has parameters.

    Args:
        model: Any Pyro model whose latents are continuous.
        example: The model's arguments.
        init_loc_fn: Per-site initialisation function for the prototype; prior draws by default.

    Raises:
        ValueError: If latents are discrete or absent, or the data hold NaN or infinite values.
        TypeError: If ``model`` or ``init_loc_fn`` is no callable, or ``example`` no arguments of the model.
        RuntimeError: Under ``torch.inference_mode()``, in which nothing can be made that learns.
    """

    def __init__(
        self, model: Callable[..., Any], *, example: Any, init_loc_fn: Callable[..., Any] | None = None
    ) -> None:
        if not callable(model):
            raise ArgumentTypeError(f"model: is a {type(model).__name__}; pass a Pyro model, a callable.")
        if isinstance(model, AutoGuide):
            raise ArgumentTypeError(f"model: is a guide ({type(model).__name__}); pass the model itself.")
        require_trainable(type(self).__name__)
        super().__init__(model, init_loc_fn=prior_draw if init_loc_fn is None else CheckedInit(init_loc_fn))
        self._original: tuple[Callable[..., Any]] | None = (model,)  # in a tuple: no submodule of the guide
        args, kwargs = call_arguments(example, "example")
        require_targets(model, args, kwargs, "example")
        try:
            with one_thread(type(self).__name__):
                self._setup_prototype(*args, **kwargs)
        except BayeshnetError:
            raise
        except TypeError as error:
            wrong_call = call_error(model, args, kwargs, "example", error)
            if wrong_call is None:
                raise
            raise wrong_call from error
        except ValueError as error:  # Pyro's validation of a distribution's parameters, computed from the data
            better = nan_data_error(args, kwargs, error)
            if better is None:
                raise
            raise better from error

    # Observed sites too: their data are looked at. What is hidden is as in Pyro's other guides otherwise.
    _prototype_hide_fn = staticmethod(_is_no_site)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # That of AutoContinuous would fail on discrete latents and on mixtures; the sites are described here instead.
        AutoGuide._setup_prototype(self, *args, **kwargs)
        trace = cast("Trace", self.prototype_trace)
        refuse_nan_data(self.original_model, trace, args, kwargs)
        for name in trace.observation_nodes:
            trace.remove_node(name)
        # The trace is kept, and what hangs in a graph of gradients, of learned prior scales for instance, cannot be
        # copied. Not traced without gradients: a model may need them.
        for node in nodes_of(trace).values():
            node.update({key: _without_graph(node[key]) for key in ("fn", "value") if key in node})
        self._sites = latent_sites(cast("Trace", self.prototype_trace))
        self._sizes = [site.numel for site in self._sites]
        self.latent_dim = sum(self._sizes)
        self._unpacked_shapes: tuple[torch.Size | None, list[torch.Size]] = (None, [])

    def _init_loc(self) -> Tensor:
        nodes = nodes_of(cast("Trace", self.prototype_trace))
        values = [site.unconstrain(nodes[site.name]["value"]) for site in self._sites]
        return torch.cat([value.reshape(-1) for value in values]).detach()

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The distribution over all latents, flattened and unconstrained: a draw is ``[D]``."""

    def learned_modules(self) -> dict[str, nn.Module]:
        """The modules whose parameters are announced to Pyro, by name."""
        return {}

    # ------------------------------------------------------------------ hooks of a training loop

    def begin_fit(self, model: Callable[..., Any], data: Any) -> None:
        """Prepare the guide for a fit; :func:`~bayeshnet.fit` calls this before its first step.

        A training loop of your own calls it as well. From then on the parameters of groups with a ``"decay"`` (see
        :meth:`param_groups`) shrink by the factor ``1 - lr * decay`` after each step of any optimiser that has them,
        until :meth:`end_fit` or :meth:`cancel_fit`. A second call begins anew.

        Args:
            model: The model that the guide is fitted to.
            data: The data as for :func:`~bayeshnet.fit`: the model's arguments, or an iterable of batches.

        Example:
            >>> import pyro, torch
            >>> from pyro.infer import SVI, Trace_ELBO
            >>> from bayeshnet import AutoHypernet
            >>> model = lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            >>> guide = AutoHypernet(model, example=())
            >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            >>> guide.begin_fit(model, ())
            >>> losses = [svi.step() for _ in range(3)]
            >>> guide.end_fit(model, ())
        """
        self.cancel_fit()
        self._decay = GroupDecay(self.param_groups(1.0))

    def end_fit(self, model: Callable[..., Any], data: Any) -> None:
        """Finish a fit; :func:`~bayeshnet.fit` calls this after its last step. See :meth:`begin_fit`.

        Args:
            model: The model that the guide was fitted to.
            data: The data.
        """
        self.cancel_fit()

    def cancel_fit(self) -> None:
        """Undo what :meth:`begin_fit` has set up, where a fit fails and :meth:`end_fit` has nothing to finish."""
        if self._decay is not None:
            self._decay.remove()
            self._decay = None

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser: all parameters that require a gradient, at this learning rate.

        A subclass may divide them. A group with a ``"decay"`` has decoupled weight decay, with any optimiser, between
        :meth:`begin_fit` and :meth:`end_fit`.

        Args:
            lr: Learning rate.
        """
        return [{"params": [param for param in self.parameters() if param.requires_grad], "lr": lr}]

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that :func:`~bayeshnet.fit` keeps by default; None for no bound."""
        return None

    _decay: GroupDecay | None = None

    # ------------------------------------------------------------------ what there is

    @property
    def original_model(self) -> Callable[..., Any] | None:
        """The model as it was given, without Pyro's handlers; None in a copy, until :meth:`attach`."""
        return None if self._original is None else self._original[0]

    def attach(self, model: Callable[..., Any]) -> None:
        """Give a copy its model back, to place its inducing points, say.

        :func:`~bayeshnet.fit` does it with the model that it is given. Predictions need no call: a copy draws as the
        guide did that it was made from, and functions that are given a model, as :func:`~bayeshnet.predict` is, go by
        that. Only a copy that a loop of your own trains together with learned prior scales, and that is then asked for
        draws without its model, has to be told of it.

        Args:
            model: The model that the guide was built for, or a copy of it.

        Example:
            >>> import copy, pyro, torch
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
        """Go by this model within a ``with`` block, whatever model the guide belongs to; by its own for any other kind.

        Args:
            model: A :class:`~bayeshnet.BayesianModel` with the guide's latents; anything else changes nothing.
        """
        before = self._original
        self._original = (model,) if hasattr(model, "weight_priors") else before
        try:
            yield
        finally:
            self._original = before

    @property
    def target_shapes(self) -> list[list[int]]:
        """Shapes of the latents in unconstrained coordinates, in the order in which they are generated."""
        return [list(site.shape) for site in self._sites]

    def __getstate__(self) -> dict[str, Any]:
        # A copy without the model, as for every guide of Pyro; theirs takes it from the original as well.
        return {**self.__dict__, "_model": None, "master": None, "_original": None, "_decay": None}

    # ------------------------------------------------------------------ the guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents as Pyro sites; the arguments are those of the model.

        Returns:
            The values by site name.
        """
        for name, module in self.learned_modules().items():
            emit_param_sites(f"{self._pyro_name}.{name}", module)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        values: dict[str, Tensor] = {}
        for site, unconstrained in self._unpack(latent):
            value = site.constrain(unconstrained)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                jacobian_site(site, unconstrained, value)
                values[site.name] = pyro.sample(site.name, _PointMass(value, event_dim=site.value_event_dim))
        return values

    def _unpack(self, latent: Tensor) -> Iterator[tuple[LatentSite, Tensor]]:
        batch_shape = latent.shape[:-1]
        if self._unpacked_shapes[0] != batch_shape:  # the same at every step; broadcast_shapes is slow
            shapes = [torch.broadcast_shapes(s.shape, batch_shape + (1,) * s.event_dim) for s in self._sites]
            self._unpacked_shapes = (batch_shape, shapes)
        parts = latent.split(self._sizes, -1)
        for site, part, shape in zip(self._sites, parts, self._unpacked_shapes[1], strict=True):
            yield site, part.reshape(shape)

    # ------------------------------------------------------------------ summaries

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """``num_samples`` draws of every latent in one call: ``[num_samples, *shape]`` by site name.

        Raises:
            ValueError: If ``num_samples`` is not positive.
            TypeError: If it is no whole number.
        """
        require_count("num_samples", num_samples)
        latent = self.get_posterior().rsample((num_samples,))
        return {
            site.name: site.constrain(part.reshape((num_samples, *site.shape)))
            for site, part in zip(self._sites, latent.split(self._sizes, -1), strict=True)
        }

    def median(  # pyright: ignore[reportIncompatibleMethodOverride] - one keyword more than Pyro's
        self, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Median of each latent coordinate by Monte Carlo, standard error about ``1.25 std / sqrt(num_samples)``."""
        return {name: value[0] for name, value in self.quantiles([0.5], num_samples=num_samples).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each latent coordinate by Monte Carlo.

        They are taken in unconstrained coordinates and transformed, as Pyro's other guides do.

        Args:
            quantiles: Q numbers between 0 and 1.
            args: Ignored, for Pyro's signature.
            num_samples: Number of draws; the error of a quantile falls with its square root.
            kwargs: Ignored.

        Returns:
            ``[Q, *shape]`` by site name.

        Raises:
            ValueError: If a quantile is outside of 0..1, or ``num_samples`` not positive.
            TypeError: If an argument is of another type.
        """
        require_count("num_samples", num_samples)
        try:
            levels = torch.as_tensor(quantiles, dtype=self.loc.dtype, device=self.loc.device)
        except (TypeError, ValueError):
            raise ArgumentTypeError(f"quantiles: is {quantiles!r}; pass a list of numbers between 0 and 1.") from None
        if levels.dim() != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ArgumentError(f"quantiles: is {quantiles}; pass a list of numbers between 0 and 1.")
        latent = self.get_posterior().rsample((num_samples,))
        parts = sample_quantiles(latent, levels).split(self._sizes, -1)
        return {
            site.name: site.constrain(part.reshape((len(levels), *site.shape)))
            for site, part in zip(self._sites, parts, strict=True)
        }


class _PointMass(dist.Delta):
    """A Delta that recognises its own value, without comparing all numbers at every step."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().rsample(sample_shape) if sample_shape else self.v

    def log_prob(self, x: Tensor) -> Tensor:
        if x is self.v:
            return cast("Tensor", self.log_density).expand(self.batch_shape)
        return super().log_prob(x)
