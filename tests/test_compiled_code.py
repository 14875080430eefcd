import pytest
import torch
from torch import nn

from modeling_axial.compiled_code import without_guards


def add_scaled(module, states, factor):
    states.add_(module(states), alpha=factor)


@pytest.fixture
def compiled():
    torch.compiler.reset()
    yield torch.compile(add_scaled, dynamic=False, backend="eager")
    torch.compiler.reset()


def given(module, length=3, factor=2):
    return {"module": module, "states": torch.ones(1, length), "factor": factor}


def test_the_code_runs_without_asking(compiled):
    module, arguments = nn.Tanh(), given(nn.Tanh())
    arguments["module"] = module
    compiled(**arguments)
    code = without_guards(add_scaled, compiled, arguments)
    assert code is not compiled
    others = given(module)
    code(**others)
    expected = given(module)
    add_scaled(**expected)
    assert torch.equal(others["states"], expected["states"])
    # That no guard is looked at shows where one would fail: the code knows the factor it was compiled for.
    others = given(module, factor=5)
    code(**others)
    assert torch.equal(others["states"], expected["states"])


def test_the_code_is_that_of_the_arguments(compiled):
    module = nn.Tanh()
    for factor in (2, 3, 5):
        compiled(**given(module, factor=factor))
    for factor in (3, 2, 5):
        arguments, expected = (given(module, factor=factor) for _ in range(2))
        without_guards(add_scaled, compiled, arguments)(**arguments)
        add_scaled(**expected)
        assert torch.equal(arguments["states"], expected["states"])


@pytest.mark.parametrize("changed", [{"length": 4}, {"factor": 7}, {"module": nn.Sigmoid()}], ids=str)
def test_without_code_that_fits_it_is_the_compiled_function(compiled, changed):
    module = nn.Tanh()
    assert without_guards(add_scaled, compiled, given(module)) is compiled, "nothing has been compiled yet"
    compiled(**given(module))
    assert without_guards(add_scaled, compiled, given(**{"module": module, **changed})) is compiled
