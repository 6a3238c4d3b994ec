"""Two hypernetworks make all weights of a small residual network, which reads scikit-learn's digits.

A chunked deconvolutional hypernetwork paints the weights as 43 images; a structured one makes the layers from
templates. Only the hypernetworks are trained: the ResNet-14 has no parameters of its own. Prints a table and saves a
picture.

Run: ``python examples/image_hypernets.py [--epochs 40] [--out image_hypernets.png]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from bayeshnet.hnets import ChunkedHDeconv, HyperNet, StructuredHMLP, init_conditional_embeddings, resnet_chunking
from bayeshnet.init import chunked_hyperfan_init, hyperfan_init
from bayeshnet.mnets import ResNet

BATCH_SIZE = 64
LEARNING_RATE = 4e-3  # the largest one; it rises to it and falls to 0
IMAGE = (32, 32)  # of weights
TARGET = 0.95  # accuracy that both are to reach
EMBEDDING_VAR = 0.001  # chunked hyperfan needs the embedding of the condition to be small


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 64]`` with the training part's mean 0 and variance 1, and labels ``[N]``."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Run:
    """What a training run left: accuracies of each epoch, those at its end, and its time."""

    train_curve: list[float]
    test_curve: list[float]
    train_accuracy: float
    test_accuracy: float
    seconds: float


def load(seed: int, *, validate: bool = False) -> Digits:
    """The digits, split 4 : 1 within each class; with ``validate`` the training part is split so again."""
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    if validate:
        x_train, x_test, y_train, y_test = train_test_split(
            x_train, y_train, test_size=0.2, stratify=y_train, random_state=seed
        )
    x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in (x_train, x_test))
    mean, std = x_train.mean(), x_train.std()
    return Digits((x_train - mean) / std, torch.tensor(y_train), (x_test - mean) / std, torch.tensor(y_test))


def make_net() -> ResNet:
    """A ResNet-14 for 8x8 images that receives all of its weights, those of the batch norm too."""
    return ResNet((8, 8, 1), 10, num_feature_maps=(8, 8, 16, 32), n=2, no_weights=True)


def make_deconv(net: ResNet) -> ChunkedHDeconv:
    """Images of 32x32 weights, one after the other; the embedding of an image says which."""
    hnet = ChunkedHDeconv(
        net.param_shapes, IMAGE, chunk_emb_size=8, cond_in_size=8, num_layers=4, num_filters=(16, 16, 8), sa_units=(1,)
    )
    init_conditional_embeddings(hnet, normal_std=EMBEDDING_VAR**0.5)
    chunked_hyperfan_init(hnet, cond_var=EMBEDDING_VAR, mnet=net)
    return hnet


def make_structured(net: ResNet) -> StructuredHMLP:
    """Eight output channels at a time, as a linear combination of templates; the embeddings are the coefficients.

    Soft weight sharing (Savarese & Maire 2019): layers with equally many input channels share their templates.
    """
    chunk_shapes, num_per_chunk, assembly_fct = resnet_chunking(net, gcd_chunking=True)
    hnet = StructuredHMLP(
        net.param_shapes,
        chunk_shapes,
        num_per_chunk,
        4,
        {"layers": ()},
        assembly_fct,
        cond_chunk_embs=True,  # the condition is in the chunks' embeddings; there is no other input
        cond_in_size=0,
    )
    hyperfan_init(hnet, mnet=net)
    return hnet


def num_parameters(hnet: HyperNet) -> int:
    return sum(param.numel() for param in hnet.parameters())


def accuracy(net: ResNet, hnet: HyperNet, x: Tensor, y: Tensor) -> float:
    net.eval()
    hnet.eval()
    with torch.no_grad():
        return float((net(x, weights=hnet(cond_id=0)).argmax(1) == y).double().mean())


def train(net: ResNet, hnet: HyperNet, data: Digits, epochs: int) -> Run:
    """Minimise the cross-entropy over the hypernetwork's parameters.

    The test part is scored after each epoch, for the picture. Nothing is stopped or chosen by it.
    """
    began = time.perf_counter()
    optimizer = torch.optim.Adam(hnet.parameters(), lr=LEARNING_RATE)
    num = len(data.y_train)
    steps = epochs * -(-num // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    train_curve: list[float] = []
    test_curve: list[float] = []
    bar = tqdm(range(epochs), desc=type(hnet).__name__, unit="epoch")
    for _ in bar:
        net.train()
        hnet.train()
        hits = 0
        for batch in torch.randperm(num).split(BATCH_SIZE):
            logits = net(data.x_train[batch], weights=hnet(cond_id=0))
            optimizer.zero_grad()
            F.cross_entropy(logits, data.y_train[batch]).backward()
            optimizer.step()
            schedule.step()
            hits += int((logits.argmax(1) == data.y_train[batch]).sum())
        train_curve.append(hits / num)
        test_curve.append(accuracy(net, hnet, data.x_test, data.y_test))
        bar.set_postfix(train=f"{train_curve[-1]:.3f}", test=f"{test_curve[-1]:.3f}")
    seconds = time.perf_counter() - began
    return Run(train_curve, test_curve, accuracy(net, hnet, data.x_train, data.y_train), test_curve[-1], seconds)


def hyper_images(hnet: ChunkedHDeconv, rows: int, columns: int) -> Tensor:
    """The first images that the hypernetwork makes, in a grid, with NaN between them."""
    gap = 2
    with torch.no_grad():
        flat = hnet(cond_id=0, ret_format="flattened")[0]
    images = flat[: rows * columns * hnet.chunk_size].reshape(rows, columns, *IMAGE)
    images = F.pad(images, (0, gap, 0, gap), value=float("nan"))
    return images.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:-gap, :-gap]


def draw(runs: dict[str, Run], images: Tensor, part: str, out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(1.3, 1.0), layout="constrained")
    for color, (name, run) in zip(("C0", "C1"), runs.items(), strict=True):
        epochs = range(1, len(run.test_curve) + 1)
        left.plot(epochs, run.train_curve, color=color, linestyle="--", linewidth=1, label=f"{name}, training")
        left.plot(epochs, run.test_curve, color=color, label=f"{name}, {part}")
    left.axhline(TARGET, color="0.6", linewidth=0.8, zorder=0)
    left.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02), title="a ResNet-14 whose weights are all generated")
    left.legend(loc="lower right", frameon=False)
    bound = float(images.nan_to_num().abs().quantile(0.99))
    shown = right.imshow(images.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
    right.set(xticks=(), yticks=(), title="its weights, as ChunkedHDeconv paints them")
    right.spines[:].set_visible(False)
    figure.colorbar(shown, ax=right, extend="both", shrink=0.8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each training run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of every draw")
    parser.add_argument("--out", type=Path, default=Path("image_hypernets.png"), help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="two epochs only, to see that it runs")
    parser.add_argument(
        "--validate", action="store_true", help="test on a fifth of the training part, as while choosing the settings"
    )
    args = parser.parse_args(argv)
    epochs = 2 if args.quick else args.epochs
    part = "validation" if args.validate else "test"
    if epochs < 1:
        parser.error(f"--epochs: is {epochs}; give at least 1")

    torch.set_num_threads(1)  # tensors this small are slower on several threads

    data = load(args.seed, validate=args.validate)
    runs: dict[str, Run] = {}
    rows: list[str] = []
    images = torch.empty(0)
    for make in (make_deconv, make_structured):
        torch.manual_seed(args.seed)
        net = make_net()
        hnet = make(net)
        run = train(net, hnet, data, epochs)
        name, made, own = type(hnet).__name__, hnet.num_outputs, num_parameters(hnet)
        runs[name] = run
        rows.append(
            f"{name:<16}{made:>9}{own:>12}{made / own:>8.2f}{epochs:>8}{run.seconds:>9.1f}"
            f"{run.train_accuracy:>8.3f}{run.test_accuracy:>12.3f}"
        )
        if isinstance(hnet, ChunkedHDeconv):
            images = hyper_images(hnet, 6, 7)
    draw(runs, images, part, args.out)

    print(
        f"\n{'class':<16}{'weights':>9}{'parameters':>12}{'ratio':>8}{'epochs':>8}{'seconds':>9}{'train':>8}{part:>12}"
    )
    print(*rows, sep="\n")
    print(f"\n{len(data.y_train)} training and {len(data.y_test)} {part} images; picture: {args.out}")


if __name__ == "__main__":
    main()
