"""The best weights of a run: which they are, that checkpoints hold them, and that they come back."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from examples.best_weights import BestWeights


def make(larger_is_better=False, value=0.0):
    """(accelerator, what keeps the best weights, a prepared model whose weights are all `value`)"""
    accelerator = Accelerator(cpu=True)
    best = BestWeights(accelerator, "accuracy" if larger_is_better else "validation_loss", larger_is_better)
    model = accelerator.prepare(torch.nn.Linear(2, 3))
    return accelerator, best, fill(model, value)


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def weights_of(best, model):
    best.put_into(model)
    (value,) = {number for parameter in model.parameters() for number in parameter.flatten().tolist()}
    return value


@pytest.mark.parametrize("larger_is_better, chosen", [(False, 2), (True, 4)])
def test_the_first_of_the_best_is_kept(larger_is_better, chosen):
    _, best, model = make(larger_is_better)
    for number, value in enumerate([2.0, 1.0, 1.5, 3.0, 1.0, 3.0], start=1):
        best.see(value, fill(model, number))
    assert (best.chosen, best.evaluations, weights_of(best, model)) == (chosen, 6, chosen)
    expected = "highest accuracy (3)" if larger_is_better else "lowest validation_loss (1)"
    assert best.told() == f"those of evaluation {chosen} of 6, with the {expected}"


@pytest.mark.parametrize("seen", [[], [0.1], [0.3, 0.1 + 0.2, 0.7]])
def test_a_checkpoint_holds_them(tmp_path, seen):
    accelerator, best, model = make()
    for number, value in enumerate(seen, start=1):
        best.see(value, fill(model, number))
    fill(model, -1)
    accelerator.save_state(str(tmp_path))
    assert (tmp_path / BestWeights.file).exists() == bool(seen)

    accelerator, resumed, model = make()
    accelerator.load_state(str(tmp_path))
    assert (resumed.value, resumed.chosen, resumed.evaluations) == (best.value, best.chosen, best.evaluations)
    assert {parameter.mean().item() for parameter in model.parameters()} == {-1}  # what goes on is the last
    if seen:
        resumed.see(best.value, fill(model, 9))  # no better
        assert weights_of(resumed, model) == best.chosen
    resumed.see(0.01, fill(model, 10))
    assert weights_of(resumed, model) == 10


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_ends_the_run(value):
    _, best, model = make()
    best.see(1.0, model)
    with pytest.raises(FloatingPointError, match=f"the validation_loss of evaluation 2 is {value}"):
        best.see(value, model)


def test_weights_that_are_split_are_refused():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match="load_best_model_at_end keeps the weights as a whole, and FSDP splits them"):
        BestWeights(accelerator, "accuracy", True)
