"""Bayesian LoRA: a digit reader, pretrained on upright digits, learns turned ones from ten examples of each.

A small network is trained on scikit-learn's digits (8x8 pixels). All its weights are then frozen, and low-rank adapters
(Hu et al., 2022), a product B A for each layer, learn digits that are turned by 90 degrees: by maximum likelihood; as a
Bayesian network whose weights are A and B; and as one whose weights are B, with A as it was learned before. Prints
accuracy, negative log-likelihood and expected calibration error on held-out turned digits, and saves a picture.

Run: ``python examples/lora.py [--steps 500] [--out lora.png]``.
"""

from __future__ import annotations

import argparse
import copy
from fnmatch import fnmatch
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import bayeshnet
from bayeshnet import likelihoods
from bayeshnet.metrics import expected_calibration_error
from bayeshnet.mnets import with_adapters


def digits(per_class: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Upright digits ``[B, 1, 8, 8]`` and labels; ``per_class`` new digits of each class and labels; the rest of both.

    No digit is in two of the sets.
    """
    data = load_digits()
    x = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8.0 - 1.0
    y = torch.as_tensor(data.target)
    upright, rest = train_test_split(torch.arange(len(y)).numpy(), test_size=0.5, stratify=y, random_state=seed)
    few, held_out = train_test_split(rest, train_size=10 * per_class, stratify=y[rest], random_state=seed)
    new = x.rot90(1, (2, 3))
    return x[upright], y[upright], new[few], y[few], new[held_out], y[held_out]


def network() -> nn.Module:
    """A reader of digits, small enough for a few seconds of pretraining."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(net: nn.Module, x: Tensor, y: Tensor, *, steps: int, name: str) -> None:
    """Maximum likelihood for whatever is not frozen, with Adam."""
    optimizer = torch.optim.Adam([param for param in net.parameters() if param.requires_grad], lr=3e-3)
    for _ in tqdm(range(steps), desc=name):
        rows = torch.randint(len(y), (min(128, len(y)),))
        loss = cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def scores(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood and calibration error of class probabilities ``[B, 10]``."""
    return {
        "accuracy": float((probs.argmax(-1) == y).float().mean()),
        "nll": -float(probs[torch.arange(len(y)), y].clamp_min(1e-38).log().mean()),
        "ece": float(expected_calibration_error(probs, y)),
    }


def reliability(probs: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """Mean confidence and accuracy in eight bins of equally many digits."""
    confidence, chosen = probs.max(-1)
    right = (chosen == y).float()
    bins = confidence.argsort().chunk(8)
    return [float(confidence[rows].mean()) for rows in bins], [float(right[rows].mean()) for rows in bins]


def selective(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Share of digits that are answered, the most confident first, and the accuracy among them."""
    confidence, chosen = probs.max(-1)
    right = (chosen == y)[confidence.argsort(descending=True)].float()
    answered = torch.arange(1, len(y) + 1)
    share, accuracy = answered / len(y), right.cumsum(0) / answered
    return share[len(y) // 10 :], accuracy[len(y) // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=500, help="training steps of each network, twice as many of maximum likelihood"
    )
    parser.add_argument("--samples", type=int, default=200, help="networks sampled for the predictions")
    parser.add_argument("--per-class", type=int, default=10, help="examples of each new digit")
    parser.add_argument("--rank", type=int, default=2, help="rank of the adapters")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of every draw")
    parser.add_argument("--out", type=Path, default=Path("lora.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads
    pyro.set_rng_seed(args.seed)
    x_old, y_old, x, y, x_test, y_test = digits(args.per_class, seed=args.seed)

    pretrained = network()
    train(pretrained, x_old, y_old, steps=args.steps, name="pretraining")
    adapted = with_adapters(pretrained, rank=args.rank)
    train(adapted, x, y, steps=2 * args.steps, name="LoRA, maximum likelihood")
    with torch.no_grad():
        probs = {"pretrained": pretrained(x_test).softmax(-1), "LoRA, maximum likelihood": adapted(x_test).softmax(-1)}
    # A posterior of all 660 numbers is paid for by 100 examples; with A as it is, there are 276.
    for name, points in (("LoRA, Bayesian A and B", ""), ("LoRA, Bayesian B", "*adapter_a")):
        start = copy.deepcopy(adapted)
        for key, param in start.named_parameters():
            param.requires_grad_(param.requires_grad and not fnmatch(key, points))
        model = bayeshnet.BayesianModel(start, likelihood=likelihoods.Categorical())
        guide = bayeshnet.AutoHypernet(model, example=(x, y), family="mean_field")
        bayeshnet.start_from(guide, start)
        bayeshnet.fit(model, guide, (x, y), steps=args.steps, lr=0.02, num_particles=4)
        probs[name] = bayeshnet.predict(model, guide, x_test, num_samples=args.samples).probs

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    print(f"\n{'turned digits':<26}{'accuracy':>9}{'NLL':>8}{'ECE':>8}")
    for (name, found), color in zip(probs.items(), ("0.6", "C1", "C2", "C0"), strict=True):
        s = scores(found, y_test)
        print(f"{name:<26}{s['accuracy']:>9.3f}{s['nll']:>8.3f}{s['ece']:>8.3f}")
        left.plot(*reliability(found, y_test), "o-", color=color)
        right.plot(*selective(found, y_test), color=color, label=f"{name}: ECE {s['ece']:.3f}")
    left.plot([0, 1], [0, 1], "k--", lw=1)
    left.set(xlabel="confidence", ylabel="accuracy", title="eighths of the held-out digits by confidence")
    right.set(xlabel="share that is answered, the most confident first", ylabel="accuracy", ylim=(0.0, 1.02))
    right.legend(loc="center right")
    right.set_title("accuracy if the rest is left to a person")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)

    frozen = sum(param.numel() for param in pretrained.parameters())
    learned = sum(param.numel() for param in adapted.parameters() if param.requires_grad)
    print(
        f"\n{frozen} frozen weights, {learned} of the adapters; {len(y)} examples, {len(y_test)} held-out digits; ",
        end="",
    )
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
