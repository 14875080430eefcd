"""The loss of a grid of which each rank has a part; that it is exact for every head is in test_shard_axis.py."""

import re
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from modeling_axial import AxialConfig, AxialForDensePrediction
from modeling_axial.dense_losses import prediction_loss
from modeling_axial.distributed import shard_axis, unshard_axis
from modeling_axial.distributed.loss_of_parts import LossOfParts
from tests.ranks import run_on_ranks

LIMIT = timedelta(seconds=20)


def make_model():
    return AxialForDensePrediction(
        AxialConfig(image_size=[5, 4], patch_size=[1, 1], num_channels=1, hidden_size=8, num_attention_heads=2)
    )


def squared(labels, prediction, config, over_all=None, **kwargs):
    """A loss that a user might set: it takes all keywords, and makes no use of `over_all`."""
    return (labels - prediction).square().mean()


def error_of(loss, labels, prediction, **kwargs):
    start = time.monotonic()
    try:
        loss(labels, prediction, make_model().config, **kwargs)
    except ValueError as error:
        return str(error), time.monotonic() - start


def losses():
    rank, mesh, generator = dist.get_rank(), DeviceMesh("cpu", [0, 1]), torch.Generator().manual_seed(0)
    config, found = make_model().config, {}
    labels, prediction = (torch.randn(2, 1, 5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    own = [(0, 3), (3, 5)][rank]
    parts = [tensor[:, :, slice(*own)] for tensor in (labels, prediction)]
    loss = LossOfParts(prediction_loss, mesh, LIMIT)
    found["equal"] = torch.allclose(loss(*parts, config), prediction_loss(labels, prediction, config), rtol=1e-14)
    found["mean of a part"] = (loss(*parts, config) - prediction_loss(*parts, config)).item()
    narrow = parts[0][..., :-1] if rank == 1 else parts[0]
    found["labels of one rank"] = error_of(loss, narrow, parts[1])
    found["again"] = error_of(loss, *parts)
    found["of a user"] = error_of(LossOfParts(squared, mesh, LIMIT), *parts)
    return found


@pytest.fixture(scope="module")
def found():
    return run_on_ranks(losses)


@pytest.mark.distributed
def test_it_is_the_loss_of_the_whole(found):
    assert all(rank["equal"] and abs(rank["mean of a part"]) > 1e-2 for rank in found)


@pytest.mark.distributed
def test_what_one_rank_is_wrongly_given_raises_on_all(found):
    for rank in found:
        text, seconds = rank["labels of one rank"]
        assert re.search(r"labels have shape \(2, 1, 2, 3\), .* \(2, 1, 2, 4\)\. \(rank 1 along", text), text
        assert seconds < LIMIT.total_seconds() and rank["again"] is None


@pytest.mark.distributed
def test_a_loss_that_makes_no_sums_over_all_is_refused(found):
    assert all("the loss function squared makes no sums over_all" in rank["of a user"][0] for rank in found)


def test_unshard_restores():
    mesh = type("Mesh", (), {"ndim": 1, "size": lambda self: 2, "get_local_rank": lambda self: 0})()
    model = shard_axis(make_model(), mesh, 0, gather=False)
    assert isinstance(model.loss_function, LossOfParts)
    assert unshard_axis(model).loss_function is prediction_loss
    assert shard_axis(model, mesh, 0).loss_function is prediction_loss  # of the whole on every rank
