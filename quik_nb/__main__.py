"""The command line: `python -m quik_nb demo` trains a small model on real data, `train FILE` a session from a file.

Each subcommand is a function of the parsed options that returns the exit code. An error of ours is told in words, a
traceback is for what nobody foresaw.
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from quik_nb import __version__
from quik_nb.errors import QuikError
from quik_nb.recipe.cli_options import Parser, add_arguments, settings_from
from quik_nb.recipe.settings import Settings
from quik_nb.session.session import QuikSession
from quik_nb.storage.files import Files

PROGRAM = "python -m quik_nb"
DEMO: dict[str, Any] = {"epochs": 15, "batch_size": 32, "lr": 3e-3, "view": "text"}
"""What the demo takes where no option says otherwise."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command of these words; gives the exit code."""
    options = parser().parse_args(words)
    try:
        return int(options.run(options))
    except QuikError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"{PROGRAM}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130  # as shells count an interrupt


def parser() -> Parser:
    """The parser of all subcommands."""
    made = Parser(prog=PROGRAM, description="A Jupyter-first, interactive training kit for PyTorch.")
    made.add_argument("--version", action="version", version=f"quik_nb {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for run in (demo,):
        command = commands.add_parser(
            run.__name__,
            help=(run.__doc__ or "").splitlines()[0],
            description=run.__doc__,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        add_arguments(command, Settings(**DEMO))
    command = commands.add_parser("train", help=(train.__doc__ or "").splitlines()[0], description=train.__doc__)
    command.add_argument("file", help="as session.save(file) wrote it; it holds code, so train only what you trust")
    command.set_defaults(run=train)
    add_arguments(command)
    return made


def demo(options: Namespace) -> int:
    """Train a model that reads handwritten digits (1,797 pictures of 8 x 8 pixels, a fifth for validation)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        print(
            f"{PROGRAM} demo trains on the digits that come with scikit-learn, which is not installed here:\n"
            f"    {Path(sys.executable).name} -m pip install scikit-learn",
            file=sys.stderr,
        )
        return 1
    pixels, digits = load_digits(return_X_y=True)
    session = (
        QuikSession(**(DEMO | settings_from(options)))
        .add_data(train=(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)), valid=0.2)
        .add_model(lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
        .set_criterion(nn.CrossEntropyLoss)
        .set_optimizer(optim.AdamW)
        .set_metrics(accuracy=accuracy)
    )
    session.train()
    if session.settings.view is False:  # else the view has printed it, row by row
        print(session.history.to_string(index=False))
    if session.settings.save:
        print(files(session))
    return 0


def train(options: Namespace) -> int:
    """Train the session in a file, and keep the result in that file; options hold for this training only."""
    session = QuikSession.load(options.file)
    try:
        session.train(**settings_from(options))
    finally:  # also what was trained before an interrupt or an error
        if len(session.history):
            session.save(options.file)
    print(f"{options.file} holds the trained session: QuikSession.load({options.file!r})")
    return 0


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def files(session: QuikSession) -> str:
    """What a training has written and where, as seen from the working folder."""
    settings = session.settings
    best = int(session.history.set_index("epoch").valid_loss.idxmin())
    weights = near(Files(Path(settings.base_dir), settings.date).weights(best))
    lines = [f"    {weights}   the weights of the best epoch, one such file for each"]
    if session.folder is not None:
        folder = str(near(session.folder)).ljust(len(str(weights)))
        lines.append(f"    {folder}   the history, and the checkpoint to go on from")
    return "\n".join(["files:", *lines])


def near(path: Path) -> Path:
    """A path as seen from the working folder, where it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
