"""Clipping of gradients, of dense and of sparse ones; torch's own functions refuse the sparse."""

from collections.abc import Iterable

from torch import Tensor, nn


def clip_norm(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients so that the norm of all of them together is at most `largest`; gives the norm before.

    As `torch.nn.utils.clip_grad_norm_`. The entries of a sparse gradient that stand for one row are added up first.

    >>> import torch
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_norm([weight], 1.0), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    parameters = list(parameters)
    if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return nn.utils.clip_grad_norm_(parameters, largest)
    values = gradient_values(parameters)
    norm = nn.utils.get_total_norm(values)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(factor.to(value.device))
    return norm


def clip_value(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Clamp each element of the gradients to at most `largest` in size, as `torch.nn.utils.clip_grad_value_`."""
    for value in gradient_values(parameters):
        value.clamp_(-largest, largest)


def gradient_values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The numbers of all gradients, to be changed in place; sparse ones are made to have each row once."""
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    return values
