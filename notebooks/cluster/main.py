"""Train a reader of handwritten digits from the command line, on whatever the machine has.

python main.py                                   decides by itself: all GPUs, or the CPU
python main.py --gpus 4 --epochs 20              a process for each of four GPUs
python main.py --gpus none -lr 3e-4              the CPU
python main.py --help                            all options
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim

import quik_nb


class DigitReader(nn.Module):
    """Two layers that tell the ten digits from pictures of 8 x 8 pixels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """(samples, 64) pixels to (samples, 10) scores."""
        scores: Tensor = self.layers(pixels)
        return scores


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def main() -> None:
    """Read the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layer (default: %(default)s)")
    quik_nb.add_learn_args(parser, epochs=5, batch_size=32, lr=3e-3)
    args = parser.parse_args()

    def train(session: quik_nb.QuikSession) -> None:
        """Put the session together and train it: called once, whatever the number of GPUs."""
        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels / 16, dtype=torch.float32)

        session.add_data(train=(images, torch.tensor(digits)), valid=0.2)
        session.add_model(lambda: DigitReader(args.hidden))
        session.set_criterion(nn.CrossEntropyLoss)
        session.set_optimizer(optim.AdamW)
        session.set_metrics(accuracy=accuracy)

        session.train()
        if args.save:
            session.load_best()
        print(f"on the validation split: {session.evaluate('valid')}")

    quik_nb.traverse(train, args)


if __name__ == "__main__":
    main()
