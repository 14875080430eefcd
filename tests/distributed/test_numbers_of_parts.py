"""What is gathered of a dense head; that its numbers are those of one process is in test_shard_axis."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_axial.distributed.numbers_of_parts import NumbersOfParts


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_the_fewer_are_gathered_numbers_or_features(numbers):
    gathered = []

    def gather(part):
        gathered.append(part.shape[-1])
        return torch.cat([part, part], 1)

    projection, features = nn.Linear(4, numbers), torch.randn(1, 2, 3, 4)
    split = SimpleNamespace(entered=SimpleNamespace(gather=gather))
    found, outputs = NumbersOfParts(lambda project, states, name: (project(states), name), split)(
        projection, features, name="outputs"
    )
    torch.testing.assert_close(found, projection(torch.cat([features, features], 1)))
    assert gathered == [min(4, numbers)] and outputs == "outputs"
