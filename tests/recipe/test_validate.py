"""What does not fit, or is missing, is told with what to use for the data at hand."""

import pytest
import torch
from harness.plain import quiet
from torch import Tensor, nn, optim

from quik_nb import RecipeError

X = torch.zeros(12, 4)
CLASS_NUMBERS = torch.arange(12) % 3


def words_of(target: Tensor, criterion: type[nn.Module] | None, outputs: int) -> str:
    """What is said before a training on this target."""
    session = quiet(epochs=1).add_data(train=(X, target)).add_model(nn.Linear(4, outputs)).set_optimizer(optim.SGD)
    if criterion is not None:
        session.set_criterion(criterion)
    with pytest.raises(RecipeError) as caught:
        session.train()
    return str(caught.value)


@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.L1Loss, nn.BCEWithLogitsLoss])
def test_class_numbers_want_cross_entropy(criterion: type[nn.Module]) -> None:
    """A criterion of numbers on class numbers, with several outputs, is told CrossEntropyLoss and no cast."""
    words = words_of(CLASS_NUMBERS, criterion, outputs=3)

    assert "use set_criterion(nn.CrossEntropyLoss)" in words
    assert "y.float()" not in words


def test_whole_numbers_want_a_cast() -> None:
    """With one output, whole numbers are numbers, which a criterion of numbers takes as floats."""
    assert "pass y.float()" in words_of(CLASS_NUMBERS, nn.MSELoss, outputs=1)


@pytest.mark.parametrize(("target", "usual"), [(torch.zeros(12, 1), "MSELoss"), (CLASS_NUMBERS, "CrossEntropyLoss")])
def test_the_missing_criterion_is_one_for_the_target(target: Tensor, usual: str) -> None:
    """What is missing is said as a call that would work: MSELoss for numbers, CrossEntropyLoss for class numbers."""
    assert f".set_criterion(nn.{usual})" in words_of(target, None, outputs=1)
