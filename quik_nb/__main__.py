"""The command line: `python -m quik_nb demo`, `train FILE`, `runs [FOLDER]`, `resume [FOLDER]` and `doctor`.

Each subcommand is a function of the parsed options that returns the exit code. Errors are shown in words; `--debug`
adds the traceback.
"""

import sys
from argparse import SUPPRESS, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from quik_nb.doctor import doctor as print_facts
from quik_nb.errors import QuikError
from quik_nb.recipe.cli_options import Parser, add_learn_args, add_optional_args, settings_from
from quik_nb.session.script_errors import brief
from quik_nb.session.session import QuikSession
from quik_nb.storage.files import Files
from quik_nb.storage.run_list import list_runs
from quik_nb.views.format import duration

PROGRAM = "python -m quik_nb"
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = f"""exit codes:
  {DONE}    done
  {FAILED}    it failed; the message says why
  {USAGE}    the command line cannot be used
  {INTERRUPTED}  interrupted; rows, weights and state are kept"""

DEMO: dict[str, Any] = {"epochs": 15, "batch_size": 32, "lr": 3e-3, "view": "text"}
"""What the demo takes where no option says otherwise."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command of these words; gives the exit code."""
    options = parser().parse_args(words)
    try:
        return int(options.run(options))
    except KeyboardInterrupt as interrupt:
        print(f"{PROGRAM}: {interrupt or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except QuikError as error:
        if options.debug:
            raise
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    except Exception as error:  # of code in a session's file, or a fault of ours
        if options.debug:
            raise
        print(f"{brief(error)}{PROGRAM}: {options.command} failed; --debug shows where", file=sys.stderr)
    return FAILED


def parser() -> Parser:
    """The parser of all subcommands."""
    made = Parser(
        prog=PROGRAM,
        description="A Jupyter-first, interactive training kit for PyTorch.",
        epilog=EXIT_CODES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    from quik_nb import __version__  # the package itself is a door, like this module

    made.add_argument("--version", action="version", version=f"quik_nb {__version__}")
    made.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = made.add_subparsers(required=True, metavar="COMMAND", title="commands", dest="command")

    def command(run: Callable[[Namespace], int]) -> Parser:
        doc = run.__doc__ or ""
        added = commands.add_parser(
            run.__name__,
            help=doc.splitlines()[0],
            description=doc,
            epilog=EXIT_CODES,
            formatter_class=RawDescriptionHelpFormatter,
        )
        added.add_argument("--debug", action="store_true", default=SUPPRESS, help=SUPPRESS)
        added.set_defaults(run=run)
        return added

    add_learn_args(command(demo), DEMO)

    file = command(train)
    file.add_argument("file", help="as session.save(file) wrote it; it holds code, so train only what you trust")
    add_optional_args(file)

    folder = command(resume)
    folder.add_argument(
        "folder",
        nargs="?",
        help="a run folder, as `runs` lists them; the latest in data/ by default. It holds code, so resume only what "
        "you trust",
    )
    add_optional_args(folder)

    command(runs).add_argument(
        "folder", nargs="?", default=".", help="the base_dir of sessions; this folder by default"
    )
    command(doctor)
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
        return FAILED

    pixels, digits = load_digits(return_X_y=True)
    session = (
        QuikSession(**settings_from(options))
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
    return DONE


def train(options: Namespace) -> int:
    """Train the session in a file, and keep the result in that file; options hold for this training only."""
    session = QuikSession.load(options.file)
    try:
        session.train(**settings_from(options))
    finally:  # also what was trained before an interrupt or an error
        if len(session.history):
            session.save(options.file)
    print(f"{options.file} holds the trained session: QuikSession.load({options.file!r})")
    return DONE


def resume(options: Namespace) -> int:
    """Train on from a run folder, up to the epochs of its session, or for --epochs more; options hold for this call."""
    session = QuikSession.resume(options.folder)
    settings = settings_from(options)
    if "epochs" not in settings:
        rows = session.history
        unfinished = int((rows["fraction"] < 1).sum()) if "fraction" in rows else 0
        settings["epochs"] = session.settings.epochs - (len(rows) - unfinished)

    if settings["epochs"] <= 0:
        where = options.folder or "the latest run folder"
        print(f"{where} has all of its {session.settings.epochs} epochs: --epochs N trains N more")
        return DONE
    session.train(**settings)
    return DONE


def runs(options: Namespace) -> int:
    """List the run folders of a folder: epochs, the best loss, the time, and whether they can be resumed."""
    found = list_runs(Path(options.folder))
    if not found:
        print(f"{PROGRAM}: there are no run folders in {options.folder} or in its data/", file=sys.stderr)
        return FAILED

    lines = [("run folder", "epochs", "best epoch", "best loss", "time", "")]
    for run in found:
        best = ("-", "-") if run.best_epoch is None else (str(run.best_epoch), f"{run.best_loss:.4g}")
        note = "" if run.can_resume else "no checkpoint"
        lines.append((str(near(run.folder)), str(run.epochs), *best, duration(run.seconds), note))

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for folder, *numbers, note in lines:
        cells = "  ".join(number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True))
        print(f"{folder:<{widths[0]}}  {cells}  {note}".rstrip())
    return DONE


def doctor(_: Namespace) -> int:
    """Tell what this machine has, and what a training would do on it; nothing is started."""
    print_facts()
    return DONE


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
        lines.append(f"    {folder}   the history, and the checkpoint to resume from")
    return "\n".join(["files:", *lines])


def near(path: Path) -> Path:
    """A path as seen from the working folder, where it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
