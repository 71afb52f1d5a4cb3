"""The settings as options of a command line."""

from argparse import ArgumentParser, Namespace

import pytest

from quik_nb import QuikSession, RecipeError, Settings
from quik_nb.recipe.cli_options import Parser, add_arguments, option, settings_from
from quik_nb.recipe.settings import setting_names

TYPED = {
    "epochs": ("7", 7),
    "batch_size": ("256", 256),
    "lr": ("3e-4", 3e-4),
    "weight_decay": ("0.01", 0.01),
    "betas": ("0.9 0.98", (0.9, 0.98)),
    "eps": ("1e-6", 1e-6),
    "seed": ("0", 0),
    "precision": ("bf16", "bf16"),
    "processes": ("4", 4),
    "device": ("cuda:1", "cuda:1"),
    "clip_norm": ("1", 1.0),
    "clip_value": ("0.5", 0.5),
    "accumulate": ("4", 4),
    "name": ("baseline", "baseline"),
    "data_date": ("20210101", "20210101"),
    "base_dir": ("runs", "runs"),
    "view": ("text", "text"),
    "save": ("", True),
    "keep": ("best:3", "best:3"),
    "checkpoint_minutes": ("2.5", 2.5),
    "patience": ("3", 3),
    "min_delta": ("0.01", 0.01),
    "ema": ("0.999", 0.999),
    "freeze": ("encoder.*", "encoder.*"),
    "compile": ("", True),
    "start_method": ("spawn", "spawn"),
    "timeout": ("60", 60.0),
    "find_unused_parameters": ("", True),
    "sync_batchnorm": ("", True),
    "output": ("all", "all"),
}
"""For each setting, what is typed behind its option, and what that means."""


def read(line: str, parser: ArgumentParser | None = None) -> dict[str, object]:
    """The settings that a line of options gives."""
    return settings_from(add_arguments(parser or Parser()).parse_args(line.split()))


def complaint(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed about a line that cannot be used."""
    with pytest.raises(SystemExit, match="2"):
        read(line)
    return capsys.readouterr().err


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_has_an_option(name: str) -> None:
    """Each setting can be typed, is read in its own type, and is a value that Settings takes."""
    text, value = TYPED[name]

    assert {name: value} == read(f"{option(name)} {text}")
    assert {name: value} == read(f"--{name} {text}")
    assert value == getattr(Settings().changed({name: value}), name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--gpus 4", {"processes": 4}),
        ("--gpus auto", {"processes": "auto"}),
        ("--keep 3", {"keep": 3}),
        ("--keep best:3", {"keep": "best:3"}),
        ("--no-save", {"save": False}),
        ("--view false", {"view": False}),
        ("--view False", {"view": False}),
        ("--no-view", {"view": False}),
        ("--no-sync-batchnorm", {"sync_batchnorm": False}),
    ],
)
def test_other_ways_to_type_it(line: str, expected: dict[str, object]) -> None:
    """Aliases, `auto`, and the two ways to say no."""
    assert expected == read(line)


def test_what_was_not_given_is_left_to_the_session() -> None:
    """Only options that were typed are settings, so that a session's own values stay."""
    assert {} == read("")


def test_words_that_are_no_choice_are_left_to_settings() -> None:
    """What a value may be is said by Settings alone, with the near one."""
    with pytest.raises(RecipeError, match="bf16"):
        Settings().changed(read("--precision bf61"))


@pytest.mark.parametrize(
    ("line", "near"),
    [("--epcohs 5", "'--epochs'"), ("--batchsize=32", "'--batch-size'"), ("--gpu 2", "'--gpus'"), ("--ls 1", "'--lr'")],
)
def test_a_typo_gets_the_near_option(line: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option is answered with the near one."""
    assert f"did you mean {near}?" in complaint(line, capsys)


def test_a_value_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A value of the wrong type is answered with the option and the value."""
    message = complaint("--epochs five", capsys)

    assert "--epochs" in message
    assert "'five'" in message


def test_a_word_too_many_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A word that belongs to no option is named."""
    assert "'six'" in complaint("--epochs 5 six", capsys)


def test_an_abbreviation_is_a_typo(capsys: pytest.CaptureFixture[str]) -> None:
    """An option is not guessed from its beginning: a later option would change what it means."""
    assert "'--epochs'" in complaint("--epoch 5", capsys)


def test_a_scripts_own_parser_serves() -> None:
    """A script's options and ours stand side by side, and one that the script has already stays its own."""
    parser = ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--epochs", type=int, default=3)

    namespace = add_arguments(parser).parse_args(["--data", "x.csv", "--gpus", "2"])

    assert "x.csv" == namespace.data
    assert {"epochs": 3, "processes": 2} == settings_from(namespace)


def test_none_counts_as_not_given() -> None:
    """A script's own option that defaults to None leaves the session's value."""
    assert {"lr": 0.1} == settings_from(Namespace(epochs=None, lr=0.1, other=None))


def test_a_session_is_made_from_options() -> None:
    """`from_args` gives a session with what was typed, and the defaults elsewhere."""
    session = QuikSession.from_args(
        add_arguments(ArgumentParser()).parse_args(["--epochs", "9", "--betas", "0.8", "0.9"])
    )

    assert Settings(epochs=9, betas=(0.8, 0.9)) == session.settings


def test_help_shows_the_defaults_of_its_owner() -> None:
    """The help says what each option does and what happens without it."""
    shown = " ".join(add_arguments(Parser(), Settings(epochs=15)).format_help().split())

    assert "--epochs N passes over the training split in one call of train() (default: 15)" in shown
    assert "--save, --no-save save the weights at each epoch's end (default: on)" in shown
