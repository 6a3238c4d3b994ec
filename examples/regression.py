"""Two posteriors of one network on real data: a hypernetwork's and Pyro's AutoNormal.

Fits a 10-50-1 network to scikit-learn's diabetes data (442 patients, ten measurements, progression of the disease after
a year) with an inferred noise level, prints a table of scores on held-out patients and saves a picture.

Run: ``python examples/regression.py [--steps 2000] [--out regression.png]``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import bayeshnet
from bayeshnet import likelihoods, metrics, plotting, priors

BMI = 2  # the input that the slice runs along


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and target, split, standardised with the training part's statistics."""
    features, target = load_diabetes(return_X_y=True)
    parts = train_test_split(features, target, test_size=0.2, random_state=seed)
    x_train, x_test, y_train, y_test = (torch.tensor(part, dtype=torch.float32) for part in parts)
    x_mean, x_std, y_mean, y_std = x_train.mean(0), x_train.std(0), y_train.mean(), y_train.std()
    return (x_train - x_mean) / x_std, (y_train - y_mean) / y_std, (x_test - x_mean) / x_std, (y_test - y_mean) / y_std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each guide")
    parser.add_argument("--samples", type=int, default=4000, help="networks sampled for the predictions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of every draw")
    parser.add_argument("--out", type=Path, default=Path("regression.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads

    x_train, y_train, x_test, y_test = load(args.seed)
    net = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    model = bayeshnet.BayesianModel(
        net, prior=priors.Normal(scale="fan_in"), likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0))
    )
    grid = torch.zeros(200, 10)
    grid[:, BMI] = torch.linspace(float(x_train[:, BMI].min()) - 1.0, float(x_train[:, BMI].max()) + 1.0, 200)

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.25, 1.25, 1.0), layout="constrained")
    panels[1].sharey(panels[0])
    rows: list[tuple[str, dict[str, float]]] = []
    for panel, name, color in ((panels[0], "AutoHypernet", "C0"), (panels[1], "AutoNormal", "C1")):
        pyro.set_rng_seed(args.seed)
        began = time.perf_counter()
        if name == "AutoHypernet":
            guide = bayeshnet.AutoHypernet(model, example=(x_train, y_train))
        else:
            guide = AutoNormal(model)
        history = bayeshnet.fit(model, guide, (x_train, y_train), steps=args.steps)
        seconds = time.perf_counter() - began
        pred = bayeshnet.predict(model, guide, x_test, num_samples=args.samples)
        scores = metrics.regression_scores(pred.samples, y_test, log_density=pred.log_prob(y_test), level=0.9)
        rows.append((name, {**scores, "elbo": history.elbo()[0], "seconds": seconds}))

        along = bayeshnet.predict(model, guide, grid, num_samples=args.samples)
        plotting.regression_band(grid[:, BMI], along, train=(x_train[:, BMI], y_train), color=color, ax=panel)
        panel.set(title=name, xlabel="body mass index, other inputs at their mean")
        plotting.calibration_curve(pred, y_test, color=color, label=name, ax=panels[2])
    panels[0].set_ylabel("disease progression (standardised)")
    panels[1].set_ylabel("")
    panels[2].set_title("held-out patients")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)

    print(f"\n{'guide':<14}{'NLL':>8}{'RMSE':>8}{'CRPS':>8}{'90 % cov.':>11}{'ELBO':>9}{'seconds':>9}")
    for name, s in rows:
        print(
            f"{name:<14}{s['nll']:>8.3f}{s['rmse']:>8.3f}{s['crps']:>8.3f}{s['coverage']:>11.3f}"
            f"{s['elbo']:>9.1f}{s['seconds']:>9.1f}"
        )
    print(f"\n{len(y_train)} training and {len(y_test)} test rows, standardised units; picture: {args.out}")


if __name__ == "__main__":
    main()
