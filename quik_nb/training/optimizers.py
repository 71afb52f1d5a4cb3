"""The optimizers of a recipe: their keywords, their groups of parameters, and which parameters are trained at all.

The user's own keywords win over the session's settings, and those over what is filled in here.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from quik_nb.errors import RecipeError
from quik_nb.recipe.assignment import assigned
from quik_nb.recipe.patterns import fits
from quik_nb.recipe.recipe import Optimizer, Recipe, Spec


def optimizer_keywords(spec: Spec, recipe: Recipe) -> dict[str, Any]:
    """All keywords the optimizer gets: the step's own, those of the settings that it takes, and `fused` where it pays.

    >>> from torch import optim
    >>> optimizer_keywords(Spec(optim.SGD, {"momentum": 0.9}), Recipe())
    {'lr': 0.001, 'momentum': 0.9}
    """
    defaults = {k: v for k, v in recipe.settings.optimizer_defaults().items() if spec.takes(k)}
    keywords = {**defaults, **spec.keywords}
    if recipe.model is not None and _can_fuse(spec, recipe.model):
        keywords["fused"] = True
    return keywords


def _can_fuse(spec: Spec, model: nn.Module) -> bool:
    """Whether torch's fused form of this optimizer exists and the user did not choose another form.

    One kernel for all parameters took 0.77 times as long as the default on small steps; the sums are the same.
    """
    chosen = {"fused", "foreach", "differentiable", "capturable"} & set(spec.keywords)
    if chosen or not spec.takes("fused") or not getattr(spec.target, "__module__", "").startswith("torch.optim"):
        return False
    parameters = [p for p in model.parameters() if p.requires_grad]
    if spec.target is optim.Adagrad and any(p.device.type != "cpu" for p in parameters):
        return False  # whose fused form some versions of torch have on the CPU only
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not sparse and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def make_optimizers(recipe: Recipe, model: nn.Module) -> dict[str, optim.Optimizer]:
    """The optimizers by name, each over its part of the model's trained parameters.

    Raises:
        RecipeError: one refuses its keywords; or a function made one over the weights of another model.
    """
    parameters = dict(model.named_parameters())
    made = {}
    for name, members in assigned(recipe).items():
        spec = recipe.optimizers[name]
        made[name] = _make(spec, optimizer_keywords(spec, recipe), model, {n: parameters[n] for n in members})
        _check_parameters(spec, made[name], model)
    return made


def _make(
    spec: Optimizer, keywords: dict[str, Any], model: nn.Module, members: dict[str, nn.Parameter]
) -> optim.Optimizer:
    target: Any = spec.target
    args: list[Any] = [parameter_groups(spec, members)]
    if (method := spec.method_of(model)) is not None:
        target, args = getattr(model, method), []
    elif spec.takes_model:
        args = [model]
    try:
        return target(*args, **keywords)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
        raise RecipeError(f"set_optimizer: {spec.name}({shown}) was refused: {error}.") from error


def _check_parameters(spec: Optimizer, made: Any, model: nn.Module) -> None:
    """Refuse what a function made that would train nothing of this model.

    A function of the notebook may have the notebook's model in its hands, of which a worker trains a copy.
    """
    if not hasattr(made, "param_groups"):
        raise RecipeError(f"set_optimizer: {spec.name} gave a {type(made).__name__}, and no optimizer of torch's kind.")
    ours = {id(parameter) for parameter in model.parameters()}
    theirs = [parameter for group in made.param_groups for parameter in group["params"]]
    strangers = sum(id(parameter) not in ours for parameter in theirs)
    if strangers:
        raise RecipeError(
            f"set_optimizer: {spec.name} made an optimizer in which {strangers} of {len(theirs)} parameters are none "
            f"of this model, so that it would be trained in part or not at all: make it from what it is called with, "
            f"as set_optimizer(lambda model: ...) or set_optimizer(lambda params: ...)."
        )


def parameter_groups(spec: Optimizer, members: dict[str, nn.Parameter]) -> list[Any]:
    """Parameters as torch's optimizers take them: those of no group first, then each group in turn.

    A parameter that fits several patterns belongs to the first of them.

    Args:
        spec: with the groups.
        members: the parameters that this optimizer trains, by name.
    """
    if not spec.groups:
        return list(members.values())
    groups: dict[str | None, list[nn.Parameter]] = {None: [], **{pattern: [] for pattern in spec.groups}}
    for name, parameter in members.items():
        groups[next((pattern for pattern in spec.groups if fits(name, pattern)), None)].append(parameter)
    return [{"params": ps, **(spec.groups[p] if p else {})} for p, ps in groups.items() if ps]


def trained_parameters(recipe: Recipe) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes of the parameters that each optimizer trains, by the optimizer's name."""
    assert recipe.model is not None  # `validate.check` refuses a recipe without one
    shapes = {name: tuple(p.shape) for name, p in recipe.model.named_parameters()}
    return {key: [(name, shapes[name]) for name in names] for key, names in assigned(recipe).items()}


def freeze(model: nn.Module, pattern: str | None) -> Iterable[nn.Parameter]:
    """Switch off the gradients of the parameters whose names fit; returns those that were switched off."""
    frozen = [] if pattern is None else [p for name, p in matching(model, pattern) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def matching(model: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters whose names fit a pattern such as "encoder", "encoder.*" or "*.bias"; commas join patterns.

    >>> [name for name, _ in matching(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "0, *.bias")]
    ['0.weight', '0.bias', '1.bias']
    """
    return [(name, p) for name, p in model.named_parameters() if fits(name, pattern)]
