"""Which optimizer trains which parameters, by the patterns of their names; and what is wrong with those.

What is not here: the optimizers themselves, which are made where the training runs (`training/optimizers.py`).
"""

from collections.abc import Iterator

from quik_nb.recipe.patterns import fits
from quik_nb.recipe.recipe import Recipe


def trained_names(recipe: Recipe) -> list[str]:
    """Names of the parameters that are trained: those that need a gradient and are not frozen."""
    assert recipe.model is not None  # `validate.check` refuses a recipe without one
    frozen = recipe.settings.freeze
    named = recipe.model.named_parameters()
    return [name for name, p in named if p.requires_grad and not (frozen and fits(name, frozen))]


def assigned(recipe: Recipe) -> dict[str, list[str]]:
    """Names of the parameters that each optimizer trains, by the optimizer's name.

    An optimizer without `params` takes what no other takes.
    """
    names = trained_names(recipe)
    patterns = [spec.params for spec in recipe.optimizers.values() if spec.params is not None]
    rest = [name for name in names if not any(fits(name, pattern) for pattern in patterns)]
    return {
        key: rest if spec.params is None else [name for name in names if fits(name, spec.params)]
        for key, spec in recipe.optimizers.items()
    }


def assignment_faults(recipe: Recipe) -> Iterator[str]:
    """One sentence for each fault: a parameter of two optimizers, or of none; an optimizer without any."""
    taking_rest = [key for key, spec in recipe.optimizers.items() if spec.params is None]
    if len(taking_rest) > 1:
        yield (
            f"set_optimizer: {_listed(taking_rest)} both take the parameters that no other takes, and each parameter "
            f"has one optimizer: pass params= to all but one, or the same name to replace the first"
        )
        return

    members = assigned(recipe)
    for name in trained_names(recipe):
        owners = [key for key, names in members.items() if name in names]
        if len(owners) > 1:
            yield (
                f"set_optimizer: {name} is taken by {_listed(owners)}, and each step would move it twice: pass "
                f"narrower params="
            )
        if not owners and recipe.optimizers:
            yield (
                f"set_optimizer: {name} is trained by no optimizer and is not frozen: leave params= out in one call, "
                f"which then takes the rest, or use freeze={name!r}"
            )

    for key, spec in recipe.optimizers.items():
        if not members[key] and len(recipe.optimizers) > 1:
            left = (
                "none are left for it" if spec.params is None else f"params={spec.params!r} fits none that is trained"
            )
            yield f"set_optimizer: {key!r} has no parameters, as {left}: pass other params=, or leave the call out"


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) if name else "the optimizer without a name" for name in names)
