"""The settings as options of a command line."""

from argparse import ArgumentParser, Namespace
from typing import Any

import pytest

from quik_nb import QuikSession, RecipeError, Settings, add_learn_args
from quik_nb.recipe import kinds
from quik_nb.recipe.cli_options import Parser, add_optional_args, option, settings_from, value_words
from quik_nb.recipe.kinds import Choice, Kind
from quik_nb.recipe.settings import SETTINGS, setting_names

BY_KIND: dict[Kind, tuple[str, Any]] = {
    kinds.COUNT: ("7", 7),
    kinds.COUNT_FROM_ZERO: ("2", 2),
    kinds.ABOVE_ZERO: ("3e-4", 3e-4),
    kinds.FROM_ZERO: ("0.01", 0.01),
    kinds.DECAY: ("0.999", 0.999),
    kinds.PAIR: ("0.9 0.98", (0.9, 0.98)),
    kinds.SEED: ("0", 0),
    kinds.SWITCH: ("", True),
    kinds.TEXT: ("baseline", "baseline"),
    kinds.FOLDER: ("runs", "runs"),
    kinds.DATE: ("20210101", "20210101"),
    kinds.PATTERNS: ("encoder.*", "encoder.*"),
    kinds.DEVICE: ("cuda:1", "cuda:1"),
    kinds.COUNT_OR_AUTO: ("4", 4),
    kinds.COUNT_OR_BEST: ("best:3", "best:3"),
}
"""The text of a value behind an option, and what it means, by the kind of the setting."""


def given(name: str) -> tuple[str, Any]:
    """A text for a setting's option, and what it means."""
    kind = SETTINGS[name].kind
    return (kind.words[1], kind.words[1]) if isinstance(kind, Choice) else BY_KIND[kind]


def read(line: str, parser: ArgumentParser | None = None) -> dict[str, object]:
    """The settings that a line of options gives."""
    return settings_from(add_optional_args(parser or Parser()).parse_args(line.split()))


def complaint(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed about a line that cannot be used."""
    with pytest.raises(SystemExit, match="2"):
        read(line)
    return capsys.readouterr().err


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_has_an_option(name: str) -> None:
    """Each setting can be given, is read in its own type, and is a value that Settings takes."""
    text, value = given(name)

    assert {name: value} == read(f"{option(name)} {text}")
    assert {name: value} == read(f"--{name} {text}")
    assert value == getattr(Settings().changed({name: value}), name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--gpus 4", {"processes": 4}),
        ("--gpus auto", {"processes": "auto"}),
        ("--gpus none", {"processes": 1, "device": "cpu"}),
        ("-g 0", {"processes": 1, "device": "cpu"}),
        ("--keep 3", {"keep": 3}),
        ("--keep best:3", {"keep": "best:3"}),
        ("--no-save", {"save": False}),
        ("--view false", {"view": False}),
        ("--view False", {"view": False}),
        ("--no-view", {"view": False}),
        ("--no-sync-batchnorm", {"sync_batchnorm": False}),
        ("--no-sync_batchnorm", {"sync_batchnorm": False}),
        ("--betas 0.9,0.98", {"betas": (0.9, 0.98)}),
        (
            "-e 3 -bs 32 -lr 1e-5 -wd 0.1 -eps 1e-7",
            {"epochs": 3, "batch_size": 32, "lr": 1e-5, "weight_decay": 0.1, "eps": 1e-7},
        ),
        ("--bs 32 --learning_rate 1e-5 -nw 2", {"batch_size": 32, "lr": 1e-5, "num_workers": 2}),
        ("-amp", {"precision": "auto"}),
        ("--mixed_precision", {"precision": "auto"}),
        ("--no-mixed-precision", {"precision": "fp32"}),
        ("--nodes 1 -nr 0", {}),
    ],
)
def test_other_ways_to_give_it(line: str, expected: dict[str, object]) -> None:
    """Short options, those of older scripts, `auto`, and the ways to say no mean the same settings."""
    assert expected == read(line)


@pytest.mark.parametrize("text", ["0.9, 0.99", "0.9,0.99", "0.9 0.99"])
def test_two_numbers_in_one_text(text: str) -> None:
    """A pair may be one text, with a comma or a space between the numbers."""
    assert (0.9, 0.99) == add_learn_args().parse_args(["--betas", text]).betas


def test_what_was_not_given_is_left_to_the_session() -> None:
    """Only options that were used are settings, so that a session's own values stay."""
    assert {} == read("")


@pytest.mark.parametrize(
    ("line", "near"),
    [("--epcohs 5", "'--epochs'"), ("--batchsize=32", "'--batch-size'"), ("--gpu 2", "'--gpus'"), ("--ls 1", "'--lr'")],
)
def test_a_typo_gets_the_near_option(line: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option is answered with the near one."""
    assert f"did you mean {near}?" in complaint(line, capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--epochs five", "argument -e/--epochs: 'five' is not a whole number above 0"),
        ("--epochs 0", "argument -e/--epochs: '0' is not a whole number above 0"),
        ("--precision bf61", "argument --precision: 'bf61' is not known; did you mean 'bf16'?"),
        ("--gpus two", "argument -g/--gpus: 'two' is neither 'auto' nor a whole number above 0"),
        ("--betas 0.9 x", "argument --betas: '0.9 x' are not two numbers such as (0.9, 0.999)"),
        ("--betas 0.9", "argument --betas: '0.9' are not two numbers"),
        ("--epochs 5 six", "unexpected argument: 'six'"),
        ("--nodes 2", "'2' machines: a script trains on the machine that it was started on, with --gpus N"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_the_command_line(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that a setting cannot have is answered with the option, the value and the reason, with exit code 2."""
    assert words in complaint(line, capsys)


def test_an_abbreviation_is_a_typo(capsys: pytest.CaptureFixture[str]) -> None:
    """An option is not guessed from its beginning: a later option would change what it means."""
    assert "'--epochs'" in complaint("--epoch 5", capsys)


def test_words_to_complete() -> None:
    """Options that take words say which."""
    assert [("fp32", "bf16", "fp16", "auto"), ("none", "auto"), ()] == [
        value_words(option) for option in ("--precision", "--gpus", "--epochs")
    ]


# ---------------------------------------------------------------------- a script's own parser


@pytest.mark.parametrize("name", setting_names())
def test_the_default_that_the_help_shows_trains(name: str) -> None:
    """A session of a line without options has the defaults of quik_nb, or those of the script; the help shows them."""
    _, value = given(name)
    plain, own = add_learn_args(), add_learn_args(Parser(), {name: value})

    assert Settings() == QuikSession.from_args(plain.parse_args([])).settings
    assert Settings().changed({name: value}) == QuikSession.from_args(own.parse_args([])).settings
    assert f"(default: {value})" in " ".join(own.format_help().split())


def test_defaults_by_the_names_of_older_scripts() -> None:
    """Defaults are understood by those names too, as keywords or in a dict."""
    own = {"bs": 50_000, "learning_rate": 1e-5, "gpus": "none"}
    args = add_learn_args(ArgumentParser(), own, mixed_precision=True).parse_args([])

    changes = {"batch_size": 50_000, "lr": 1e-5, "processes": 1, "device": "cpu", "precision": "auto"}
    assert Settings().changed(changes) == QuikSession.from_args(args).settings


def test_a_default_of_no_setting_is_an_error() -> None:
    """A default that is of no setting, or cannot be used, is told with the right name."""
    with pytest.raises(RecipeError, match=r"no setting 'epoch': did you mean 'epochs'.*; lr='high' is not a number"):
        add_learn_args(ArgumentParser(), epoch=3, lr="high")


def test_defaults_that_the_parser_was_given() -> None:
    """`set_defaults` of the parser, before or after, counts as well, and the help shows it."""
    parser = ArgumentParser()
    parser.set_defaults(epochs=7)
    add_learn_args(parser, lr=0.5).set_defaults(batch_size=8)
    args = parser.parse_args([])

    assert (7, 8, 0.5) == (args.epochs, args.batch_size, args.lr)
    assert ["(default: 7)", "(default: 8)"] == [
        word for word in ("(default: 7)", "(default: 8)") if word in " ".join(parser.format_help().split())
    ]


def owned(*options: str, **how: Any) -> ArgumentParser:
    """A script's parser that has an option of its own, and ours."""
    parser = ArgumentParser()
    parser.add_argument(*options, **how)
    return add_learn_args(parser)


def test_a_scripts_own_options_stay() -> None:
    """A script's options and ours stand side by side, and one that the script has already stays its own."""
    parser = owned("--epochs", type=int, default=3)
    args = parser.parse_args(["--gpus", "2"])

    assert (3, 2) == (args.epochs, args.processes)
    assert 3 == QuikSession.from_args(args).settings.epochs
    assert 9 == parser.parse_args(["-e", "9"]).epochs


def test_an_own_gpus_takes_no_other_option_away() -> None:
    """Only the option string that the script has is its own: --processes is there beside its --gpus, which counts."""
    parser = owned("--gpus", type=int, default=4)

    assert 4 == settings_from(parser.parse_args([]))["processes"]
    assert 2 == parser.parse_args(["--processes", "2"]).processes
    with pytest.raises(RecipeError, match=r"args\.gpus=4 and args.processes=2 are two values of one setting"):
        settings_from(parser.parse_args(["--processes", "2"]))


def test_the_default_of_an_own_option_counts() -> None:
    """A default that an option of the script has already cannot be given a second time, and the help shows no other."""
    parser = ArgumentParser()
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)

    with pytest.raises(RecipeError, match=r"add_learn_args\(processes=2\).*parser.set_defaults\(gpus=2\)"):
        add_learn_args(parser, processes=2)
    with pytest.raises(RecipeError, match=r"add_learn_args\(epochs=9\).*parser.set_defaults\(epochs=9\)"):
        add_learn_args(parser, epochs=9)
    shown = " ".join(add_learn_args(parser).format_help().split())
    assert "one per GPU if there are several --device" in shown
    assert "passes over the training split in one call of train() (default: 3)" in shown


def test_an_own_way_to_say_no_stays() -> None:
    """A script's own --no-save is its own, and --save is still ours."""
    args = owned("--no-save", action="store_true").parse_args(["--no-save", "--save"])

    assert (True, True) == (args.no_save, args.save)


# ---------------------------------------------------------------------- namespaces


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gpus": 2}, {"processes": 2}),
        ({"gpus": "none"}, {"processes": 1, "device": "cpu"}),
        ({"bs": 32, "learning_rate": 0.1}, {"batch_size": 32, "lr": 0.1}),
        ({"mixed_precision": True}, {"precision": "auto"}),
        ({"mixed_precision": False}, {"precision": "fp32"}),
        ({"fp16": True}, {"precision": "fp16"}),
        ({"epochs": None, "lr": 0.1, "other": None}, {"lr": 0.1}),
        ({"data": "x.csv", "model": "resnet", "depth": 3}, {}),
    ],
)
def test_a_namespace_by_hand(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """What is set on a namespace by hand is understood by older names too; None counts as not given."""
    assert expected == settings_from(Namespace(**given))


def test_a_name_set_after_parsing_counts() -> None:
    """An older name set on a parsed namespace counts, where the setting itself has its default."""
    args = add_learn_args().parse_args([])
    args.gpus, args.bs = 2, 32

    settings = QuikSession.from_args(args).settings
    assert (2, 32) == (settings.processes, settings.batch_size)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("learnin_rate", "learning_rate"),
        ("gpu", "gpus"),
        ("weigth_decay", "weight_decay"),
    ],
)
def test_a_name_that_is_almost_a_setting_is_an_error(name: str, near: str) -> None:
    """A slip of the pen is told with the right name, rather than dropped in silence."""
    with pytest.raises(RecipeError, match=f"args.{name} is no setting, and would change nothing: use args.{near}"):
        settings_from(Namespace(**{name: 3}))


def test_a_name_of_the_scripts_own_can_be_left_out() -> None:
    """A script that has an option which looks like a setting says so."""
    assert {"seed": 1} == settings_from(Namespace(seeds=[1, 2], seed=1), ignore=["seeds"])


def test_a_scripts_own_option_of_the_same_name() -> None:
    """An option of the script's own that has a setting's name is told where its value is none, and can be left out."""
    args = owned("--output", default="results.csv").parse_args([])

    with pytest.raises(RecipeError, match=r"output='results.csv' is not known.*pass ignore=\['output'\] beside args"):
        settings_from(args)
    assert "logger" == QuikSession.from_args(args, ignore=["output"]).settings.output


def test_what_is_no_namespace() -> None:
    """What parse_args() did not give is told."""
    with pytest.raises(RecipeError, match="and this is list"):
        settings_from(["--epochs", "3"])  # type: ignore[arg-type]


def test_each_older_name_means_one_setting() -> None:
    """No name stands for two settings, and none is a setting's own."""
    names = [other for setting in SETTINGS.values() for other in setting.also_called]

    assert sorted(set(names)) == sorted(names)
    assert [] == [name for name in names if name in SETTINGS]
