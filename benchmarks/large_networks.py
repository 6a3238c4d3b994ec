"""Default guides of large networks: a ResNet-18 from the guide to the file, and families for a CNN of 109,410 weights.

* ``peak_gb``: resident memory of a fresh process at its peak, everything included: the default guide of a ResNet-18
  for 32 x 32 images is built from a batch of 16, fitted for 10 steps, predicts with 5 samples, is saved and loaded;
  the loaded one has to predict the same to the bit;
* ``step_ratio``: two steps at batch 4 with the default guide over two with Pyro's ``AutoNormal`` and the same number of
  particles, in alternating runs;
* ``params_per_weight``, ``num_inducing``, ``num_particles``: what was chosen by default;
* with ``--digits``: ELBO and test accuracy of families with at most three parameters per weight on scikit-learn's
  digits, beside the hypernetwork with as many inducing points as a small network has.

Run: ``python benchmarks/large_networks.py [--quick] [--json FILE] [--digits]``. In full about three minutes of
processor time, and ten with ``--digits``; ``--quick`` takes a ResNet of 311,000 weights and two steps.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from _common import _status, alternate, parser, report, run_fresh
from _large_networks import ResNet, digits_cnn, images
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import bayeshnet
from bayeshnet import AutoHypernet, BayesianModel, families, fit, likelihoods, predict

WIDTHS = {False: (64, 128, 256, 512), True: (16, 32, 64, 128)}
BATCH, ROWS, STEPS = 16, 256, 10


def resnet(*, quick: bool) -> ResNet:
    return ResNet(WIDTHS[quick], 1 if quick else 2)


def model_of(net: torch.nn.Module, rows: int) -> BayesianModel:
    return BayesianModel(net, likelihood=likelihoods.Categorical(), dataset_size=rows)


def whole_path(*, quick: bool) -> dict[str, Any]:
    """Build, fit, predict, save and load; seconds of processor time of each, and the peak of this process."""
    torch.manual_seed(0)
    x, y = images(ROWS)
    data = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    found: dict[str, Any] = {}
    clock = time.process_time()

    def note(name: str) -> None:
        nonlocal clock
        found[name], clock = time.process_time() - clock, time.process_time()

    model = model_of(resnet(quick=quick), ROWS)
    note("model_s")
    guide = AutoHypernet(model, example=data[0])
    note("guide_s")
    steps = 2 if quick else STEPS
    history = fit(model, guide, data, steps=steps, progress=False)
    note("fit_s")
    torch.manual_seed(1)
    draws = predict(model, guide, x[:BATCH], 5).draws
    note("predict_s")
    with tempfile.TemporaryDirectory() as folder:
        bayeshnet.save(Path(folder) / "run", model=model, guide=guide)
        note("save_s")
        loaded = bayeshnet.load_posterior(Path(folder) / "run", resnet(quick=quick))
        note("load_s")
    torch.manual_seed(1)
    again = predict(loaded.model, loaded.guide, x[:BATCH], 5).draws
    if not torch.equal(draws, again):
        raise SystemExit("the loaded guide predicts something else")
    note("again_s")
    return {
        **found,
        "step_s": found["fit_s"] / steps,
        "peak_gb": _status("VmHWM") / 1e9,
        "weights": guide.latent_dim,
        "params_per_weight": guide.num_parameters / guide.latent_dim,
        "num_inducing": 0 if guide.inducing is None else guide.inducing.num_inducing,
        "num_particles": history.num_particles,
        "repr": repr(guide),
    }


def step_times(*, quick: bool) -> tuple[list[float], list[float]]:
    """Seconds of two steps at batch 4: with the default guide, and with a plain one."""
    torch.manual_seed(0)
    x, y = images(4)
    model = model_of(resnet(quick=quick), ROWS)
    guide = AutoHypernet(model, example=(x, y))
    num = guide.default_particles
    plain = AutoNormal(model, init_scale=0.1)
    elbo = Trace_ELBO(num_particles=num, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, plain, pyro.optim.Adam({"lr": 0.01}), elbo)

    def ours() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bayeshnet.errors.DatasetSizeWarning)
            fit(model, guide, (x, y), steps=2, progress=False)

    def theirs() -> None:
        for _ in range(2):
            svi.step(x, y)

    times = alternate({"ours": ours, "plain": theirs}, 3, warm_up=1)
    return times["ours"], times["plain"]


# ---------------------------------------------------------------------- which family


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - for this part alone

    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images / 16.0, dtype=torch.float32).unsqueeze(1)[order]
    y = torch.tensor(found.target)[order]
    return x[:1300], y[:1300], x[1300:], y[1300:]


def of_family(data: tuple[Tensor, Tensor, Tensor, Tensor], steps: int, **options: Any) -> dict[str, Any]:
    x, y, x_test, y_test = data
    torch.manual_seed(0)
    model = model_of(digits_cnn(), len(x))
    guide = AutoHypernet(model, example=(x[:128], y[:128]), **options)
    clock = time.process_time()
    history = fit(model, guide, (x, y), steps=steps, batch_size=128, num_particles=4, progress=False)
    seconds = time.process_time() - clock
    probs = predict(model, guide, x_test, 50).mean
    return {
        "family": guide.family.describe() if guide.family is not None else "",
        "inducing": 0 if guide.inducing is None else guide.inducing.num_inducing,
        "params_per_weight": guide.num_parameters / guide.latent_dim,
        "elbo": -sum(history.losses[-50:]) / len(history.losses[-50:]),
        "accuracy": float((probs.argmax(-1) == y_test).double().mean()),
        "step_ms": 1e3 * seconds / steps,
    }


def of_families(*, quick: bool) -> list[dict[str, Any]]:
    data, steps = digits(), 20 if quick else 500
    candidates: list[dict[str, Any]] = [
        {},
        {"family": families.MeanField(), "conditional": None},
        {"conditional": None},
        {"conditional": "last", "num_inducing": 4},
        {"family": families.BlockGaussian(1), "conditional": "last", "num_inducing": 12},
        {"family": families.Hypernet(), "conditional": "last", "num_inducing": 217},
    ]
    return [of_family(data, steps, **options) for options in candidates]


def main(fresh: Callable[..., Any] = run_fresh) -> None:
    made = parser(__doc__ or "")
    made.add_argument("--digits", action="store_true", help="compare families, too")
    made.add_argument("--part", action="store_true", help="the path alone, as JSON")
    args = made.parse_args()
    if args.part:
        print(json.dumps(whole_path(quick=args.quick)))
        return
    path = fresh(__file__, "--part", *(["--quick"] if args.quick else []))
    print(path.pop("repr"))
    ours, plain = step_times(quick=args.quick)
    rows = [{"part": key.removesuffix("_s"), "seconds": path[key]} for key in path if key.endswith("_s")]
    rows += of_families(quick=args.quick) if args.digits else []
    keys = ("peak_gb", "weights", "params_per_weight", "num_inducing", "num_particles")
    summary = {
        **{key: path[key] for key in keys},
        "step_s": path["step_s"],
        "step_ratio": median(ours) / median(plain),
    }
    report(rows, summary, args)


if __name__ == "__main__":
    main()
