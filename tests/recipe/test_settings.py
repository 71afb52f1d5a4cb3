"""Settings check themselves, and what they say names the value and what to use."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from quik_nb import QuikSession, RecipeError, Settings
from quik_nb.recipe.settings import SETTINGS, setting_names

GOOD: list[dict[str, Any]] = [
    {"epochs": 1, "batch_size": 1, "accumulate": 3},
    {"lr": 1, "weight_decay": 0, "betas": (0.9, 0.99), "eps": 1e-8},
    {"seed": 0, "keep": 1, "processes": 4},
    {"processes": "auto", "precision": "bf16", "view": False},
    {"data_date": "20210101", "base_dir": "runs", "name": "my run"},
]

BAD: list[tuple[str, Any]] = [
    ("epochs", 0),
    ("epochs", 2.5),
    ("epochs", True),
    ("batch_size", -1),
    ("accumulate", 0),
    ("lr", 0),
    ("lr", float("nan")),
    ("lr", "1e-3"),
    ("weight_decay", -0.1),
    ("betas", 0.9),
    ("betas", (0.9,)),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", 2**64),
    ("precision", "float16"),
    ("processes", 0),
    ("processes", "all"),
    ("clip_norm", -1),
    ("keep", 0),
    ("view", True),
    ("start_method", "thread"),
    ("data_date", "../../etc"),
    ("data_date", 20210101),
]


@pytest.mark.parametrize("changes", GOOD)
def test_good_values(changes: dict[str, Any]) -> None:
    """Values that can be used are taken as they are."""
    settings = Settings().changed(changes)

    assert changes == {name: getattr(settings, name) for name in changes}


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_other_libraries(number: Any) -> None:
    """A number of NumPy or torch is taken as Python's own, so that files hold nothing else."""
    settings = Settings().changed({"lr": number, "betas": (number, number), "epochs": np.int64(3)})

    assert (0.5, (0.5, 0.5), 3) == (settings.lr, settings.betas, settings.epochs)
    assert [float, float, int] == [type(value) for value in (settings.lr, settings.betas[0], settings.epochs)]  # type: ignore[index]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values(name: str, value: Any) -> None:
    """A value that cannot be used is named with the setting, and nothing changes."""
    with pytest.raises(RecipeError, match=f"^{name}="):
        Settings().changed({name: value})


@pytest.mark.parametrize("name", setting_names())
def test_a_typo_in_each_setting(name: str) -> None:
    """A setting with its first two letters swapped is recognised."""
    typo = name[:1] * 2 + name[1:]
    with pytest.raises(RecipeError, match=f"no setting '{typo}': did you mean '{name}'"):
        Settings().changed({typo: 1})


@pytest.mark.parametrize("name", setting_names())
def test_shift_tab_tells_each_setting(name: str) -> None:
    """The docstrings of Settings and of a session tell what each setting means and what it is by itself."""
    line = f"{name}: {SETTINGS[name].doc} (default: {SETTINGS[name].default!r})"

    assert [True, True] == [line in str(inspect.getdoc(face)) for face in (Settings, QuikSession)]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("learning_rate", "lr=3"), ("num_epochs", "epochs=3"), ("max_epochs", "epochs=3"), ("gpus", "processes=3")],
)
def test_names_that_others_use(theirs: str, ours: str) -> None:
    """What others call a setting is answered with the name that it has here, and the value given."""
    with pytest.raises(RecipeError, match=f"no setting '{theirs}': use {ours}$"):
        Settings().changed({theirs: 3})


def test_defaults_can_be_used() -> None:
    """Every default is a value that can be used."""
    assert [] == Settings().faults()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"device": torch.device("cuda", 1)}, "cuda:1"),
        ({"device": 1}, "cuda:1"),
        ({"freeze": ["encoder", "*.bias"]}, "encoder, *.bias"),
        ({"freeze": ""}, None),
        ({"betas": [0.9, 0.99]}, (0.9, 0.99)),
    ],
)
def test_one_form_of_a_value(value: dict[str, Any], expected: Any) -> None:
    """Values that mean the same are one value from there on."""
    (name,) = value

    assert expected == getattr(Settings().changed(value), name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"batch_size": 32}, False), ({"seed": 1}, False), ({"lr": 0.1, "epochs": 9, "processes": 2}, True)],
)
def test_which_settings_change_the_batches(changes: dict[str, Any], expected: bool) -> None:
    """Another batch size or seed makes other batches; nothing else does."""
    assert expected == Settings().same_batches(Settings().changed(changes))
