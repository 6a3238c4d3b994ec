"""Sentences and their topics: a small transformer with a padding mask, Bayesian in all its weights.

Writes short sentences about cooking, sailing and gardening from lists of words. Many words are used in all three, so
that some sentences tell little of their topic; sentences about space, whose own words are in no training sentence, are
shown to the classifiers only in the end. The network gets tokens and a padding mask, from a ``DataLoader`` that pads
each batch to its longest sentence. It is trained once as usual and once with a posterior over its weights, for as many
epochs. Prints a table of scores and saves a picture: the plain network is sure of what it gets wrong; the posterior is
as accurate with a far better log-likelihood, and errs on the other side, with less confidence than it could have.

Run: ``python examples/text_classifier.py [--epochs 250] [--out text_classifier.png]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayeshnet
from bayeshnet import likelihoods, metrics

TOPICS = {
    "cooking": "onion pan stir soup oven butter taste boil recipe spoon garlic dough bake slice pepper plate",
    "sailing": "mast harbour anchor sail tide deck knot crew wind keel wave captain steer rope buoy coast",
    "gardening": "soil seed spade rose hedge prune weed lawn root compost bloom petal shed fence bulb orchard",
}
SHARED = "salt water season fresh leaf pot basin light heavy slowly morning old green turn hold watch wait cover"
PLAIN = "the a we then and with it they in on again before after always"
STRANGE = "rocket orbit comet telescope galaxy moon lander crater probe eclipse meteor asteroid"
WORDS = ["<padding>", "<unknown>", *" ".join([PLAIN, SHARED, *TOPICS.values()]).split()]
NUMBER = {word: i for i, word in enumerate(WORDS)}
LONGEST = 12


def sentences(number: int, *, seed: int, strange: bool = False) -> tuple[list[str], Tensor]:
    """Sentences of 4 to 12 words and the numbers of their topics; with ``strange`` about space, whatever the number."""
    generator = torch.Generator().manual_seed(seed)
    lists = [words.split() for words in TOPICS.values()]
    topics = torch.randint(len(lists), (number,), generator=generator)
    found: list[str] = []
    for topic in topics.tolist():
        length = int(torch.randint(4, LONGEST + 1, (), generator=generator))
        own = STRANGE.split() if strange else lists[topic]
        words: list[str] = []
        for chance in torch.rand(length, generator=generator).tolist():
            # A word of the topic, one of another topic, one that all topics use, or one of no meaning.
            other = lists[int(torch.randint(len(lists), (), generator=generator))]
            pool = (
                own if chance < 0.3 else other if chance < 0.38 else SHARED.split() if chance < 0.65 else PLAIN.split()
            )
            words.append(pool[int(torch.randint(len(pool), (), generator=generator))])
        found.append(" ".join(words))
    return found, topics


def padded(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, L]`` and the mask ``[B, L]`` that is true at padding, as long as the longest sentence."""
    numbers = [torch.tensor([NUMBER.get(word, 1) for word in text.split()]) for text in texts]
    tokens = nn.utils.rnn.pad_sequence(numbers, batch_first=True)
    return tokens, tokens == 0


def collate(rows: list[tuple[str, int]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A batch ``((tokens, mask), topics)``."""
    return padded([text for text, _ in rows]), torch.tensor([topic for _, topic in rows])


class Classifier(nn.Module):
    """One layer of a transformer, and a linear layer on the mean over the words."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width, padding_idx=0)
        self.places = nn.Embedding(LONGEST, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.topics = nn.Linear(width, len(TOPICS))

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Logits ``[B, topics]``."""
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.layer(x, src_key_padding_mask=padding)
        there = (~padding).unsqueeze(-1).to(x.dtype)
        return self.topics((x * there).sum(1) / there.sum(1))


def trained(loader: DataLoader[tuple[str, int]], epochs: int) -> Classifier:
    """The network with its weights as usual."""
    net = Classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.005, weight_decay=0.01)
    for _ in range(epochs):
        for (tokens, padding), y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(tokens, padding), y).backward()
            optimizer.step()
    return net.eval()


def entropy(probs: Tensor) -> Tensor:
    """Entropy ``[B]`` of probabilities ``[B, C]`` in nats."""
    return -torch.special.xlogy(probs, probs).sum(-1)


def draw_picture(out: Path, found: dict[str, dict[str, Tensor]], topics: Tensor) -> None:
    """Calibration and entropy of the probabilities ``[B, C]`` by network and kind of sentence."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, probs, color in zip(found, found.values(), ("C1", "C0"), strict=True):
        confidence, label = probs["test"].max(-1)
        right = (label == topics).float()
        order = confidence.argsort().chunk(10)
        panels[0].plot(
            [float(confidence[part].mean()) for part in order],
            [float(right[part].mean()) for part in order],
            "o-",
            color=color,
            label=name,
        )
        for kind, style in (("test", "-"), ("strange", "--")):
            values = entropy(probs[kind]).sort().values
            panels[1].plot(values, torch.linspace(0.0, 1.0, len(values)), style, color=color, label=f"{name}, {kind}")
    panels[0].plot([1 / 3, 1], [1 / 3, 1], "k:", lw=1)
    panels[0].set(xlabel="confidence", ylabel="accuracy", title="calibration on test sentences, in tenths")
    panels[1].set(xlabel="entropy of the prediction / nats", ylabel="share of sentences", title="uncertainty")
    for panel in panels:
        panel.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=250, help="epochs of each training")
    parser.add_argument("--sentences", type=int, default=400, help="training sentences")
    parser.add_argument("--samples", type=int, default=100, help="networks sampled for the predictions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sentences and of every draw")
    parser.add_argument("--out", type=Path, default=Path("text_classifier.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads
    pyro.set_rng_seed(args.seed)
    texts, topics = sentences(args.sentences, seed=args.seed)
    rows = list(zip(texts, topics.tolist(), strict=True))
    loader: DataLoader[tuple[str, int]] = DataLoader(rows, batch_size=100, shuffle=True, collate_fn=collate)  # pyright: ignore[reportArgumentType] - a list is a data set
    test_texts, test_topics = sentences(1000, seed=args.seed + 1000)
    strange_texts, _ = sentences(500, seed=args.seed + 2000, strange=True)
    test, strange = padded(test_texts), padded(strange_texts)

    net = trained(loader, args.epochs)
    model = bayeshnet.BayesianModel(Classifier(), likelihood=likelihoods.Categorical(), dataset_size=len(rows))
    guide = bayeshnet.AutoHypernet(model, example=(padded(texts), topics), family="mean_field")
    bayeshnet.fit(model, guide, loader, epochs=args.epochs, num_particles=4, lr=0.02)

    with torch.no_grad():
        plain = {"test": net(*test).softmax(-1), "strange": net(*strange).softmax(-1)}
    pred = bayeshnet.predict(model, guide, test, num_samples=args.samples, batch_size=250)
    odd = bayeshnet.predict(model, guide, strange, num_samples=args.samples, batch_size=250)
    bayesian = {"test": pred.probs, "strange": odd.probs}

    print(f"\n{'network':<12}{'accuracy':>10}{'NLL':>8}{'ECE':>8}{'entropy, test':>15}{'entropy, strange':>18}")
    for name, probs in (("plain", plain), ("Bayesian", bayesian)):
        on_test = probs["test"]
        accuracy = float((on_test.argmax(-1) == test_topics).float().mean())
        nll = -float(on_test.gather(1, test_topics[:, None]).log().mean())
        ece = float(metrics.expected_calibration_error(on_test, test_topics))
        means = float(entropy(on_test).mean()), float(entropy(probs["strange"]).mean())
        print(f"{name:<12}{accuracy:>10.3f}{nll:>8.3f}{ece:>8.3f}{means[0]:>15.3f}{means[1]:>18.3f}")
    print(f"\n{len(rows)} training, {len(test_texts)} test and {len(strange_texts)} strange sentences;")
    print(f"largest possible entropy: {torch.tensor(3.0).log():.3f}; mutual information of label and network:")
    print(f"{float(pred.epistemic.mean()):.3f} on test sentences, {float(odd.epistemic.mean()):.3f} on strange ones")
    for text in ["stir the soup in the old pan", "hold the rope and watch the tide", "we watch the comet in orbit"]:
        tokens = padded([text])
        one = bayeshnet.predict(model, guide, tokens, num_samples=args.samples).probs[0]
        with torch.no_grad():
            other = net(*tokens).softmax(-1)[0]
        shown = ", ".join(f"{t} {p:.2f} (plain {q:.2f})" for t, p, q in zip(TOPICS, one, other, strict=True))
        print(f"  {text!r}: {shown}")

    draw_picture(args.out, {"plain": plain, "Bayesian": bayesian}, test_topics)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
