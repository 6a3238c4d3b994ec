"""Samplers of several kinds, and their exact densities by full Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayeshnet.hnets import HMLP, HPerturbWrapper, HyperNetInterface
from bayeshnet.mnets.param_table import ParamRecord


class SineHyperNet(nn.Module, HyperNetInterface):
    """A third-party hypernetwork without a linear head: ``h(z) = sin(W z + b) + z-part``."""

    def __init__(self, num_outputs: int, noise_dim: int) -> None:
        nn.Module.__init__(self)
        HyperNetInterface.__init__(self)
        self._target_shapes = [[num_outputs]]
        self._num_known_conds = 0
        self._internal_params = nn.ParameterList(
            [nn.Parameter(0.5 * torch.randn(num_outputs, noise_dim)), nn.Parameter(torch.randn(num_outputs))]
        )
        self._records = (ParamRecord((num_outputs, noise_dim), "weight", 1), ParamRecord((num_outputs,), "bias", 1))
        self.uncond_in_size = noise_dim

    def distillation_targets(self):
        return None

    def forward(
        self,
        uncond_input=None,
        cond_input=None,
        cond_id=None,
        weights=None,
        distilled_params=None,
        condition=None,
        ret_format="squeezed",
    ):
        weight, bias = self.internal_params if weights is None else weights
        return self.convert_out_format(torch.sin(uncond_input @ weight.T + bias), "flattened", ret_format)


def perturbed(
    num_outputs: int = 12,
    noise_dim: int = 4,
    *,
    noise: str = "shared",
    kind: str = "mlp",
    sigma: float = 0.4,
    **options,
) -> HPerturbWrapper:
    """A wrapped hypernetwork with noise scales that differ per weight."""
    if kind == "sine":
        hnet = SineHyperNet(num_outputs, noise_dim)
    else:
        options = {"layers": (8, 8), "activation_fn": nn.Tanh(), **options}
        hnet = HMLP([[num_outputs]], uncond_in_size=noise_dim, cond_in_size=0, verbose=False, **options)
    wrapper = HPerturbWrapper(hnet, sigma_noise=sigma, noise=noise, learn_sigma="per_weight", verbose=False)
    with torch.no_grad():
        wrapper.log_sigma_noise.add_(0.3 * torch.randn(num_outputs))
    return wrapper


def generator_jacobian(hnet: HPerturbWrapper, z: Tensor) -> Tensor:
    """dh/dz of the wrapped network ``[S, D, n]``, by torch.func."""
    inner = hnet.internal_hnet
    return torch.func.vmap(torch.func.jacfwd(lambda row: inner.forward(row[None], ret_format="flattened")[0]))(z)


def exact_shared_log_prob(hnet: HPerturbWrapper, noise: Tensor) -> Tensor:
    """Density by the log-determinant of the full D x D Jacobian."""

    def weights(row: Tensor) -> Tensor:
        return hnet.forward(row[None], ret_format="flattened")[0]

    jacobian = torch.func.vmap(torch.func.jacfwd(weights))(noise)
    log_base = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
    return log_base - torch.linalg.slogdet(jacobian)[1]


def assert_gradients(hnet: nn.Module, log_q: Callable[[], Tensor]) -> None:
    """Gradients of a scalar of a float64 hypernetwork are central differences, each along a random direction."""
    params = [p for p in hnet.parameters() if p.requires_grad]
    grads = torch.autograd.grad(log_q(), params, allow_unused=True)
    step = 1e-6
    for param, grad in zip(params, grads, strict=True):
        direction = torch.randn_like(param)
        with torch.no_grad():
            values: list[Tensor] = []
            for move in (step, -2 * step, step):  # up, down and back
                param.add_(move * direction)
                values.append(log_q())
        actual = torch.zeros(()) if grad is None else (grad * direction).sum()
        # Rounding of sums of size 10 over a step of 1e-6: 1e-9; the third derivative adds 1e-12.
        torch.testing.assert_close(actual, (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-6)
    assert sum(grad is not None and bool(grad.any()) for grad in grads) >= 2
