"""Ranks that are not given what fits together learn of it all, before one waits for another in vain."""

import re
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from modeling_axial.distributed import own_slice, shard_axis, unshard_axis
from tests.distributed.cases import Case, make_inputs, make_model
from tests.ranks import run_on_ranks

CASE = Case("learned", "sequential", (5, 3), (5, 3), 0, 2, "classifier", False, "counted", None, False, 1)
LIMIT = timedelta(seconds=20)


def error_of(call, *args, **kwargs):
    """The type and text of what a call raises, and how many seconds that took."""
    start = time.monotonic()
    try:
        call(*args, **kwargs)
    except (ValueError, RuntimeError, TypeError) as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return None


def on_second_rank(inputs, key, change):
    """The inputs, changed on the second rank."""
    return {**inputs, key: change(inputs[key])} if dist.get_rank() == 1 else inputs


def misuses():
    rank, mesh, found = dist.get_rank(), DeviceMesh("cpu", [0, 1], mesh_dim_names=("axis",)), {}
    model, inputs = shard_axis(make_model(CASE), mesh, 0, timeout=LIMIT), make_inputs(CASE)
    pixels = inputs["pixel_values"].detach()
    inputs["pixel_values"] = pixels
    with torch.no_grad():
        found["another batch"] = error_of(model, **on_second_rank(inputs, "pixel_values", lambda x: x.flip(0)))
        found["another shape"] = error_of(model, **on_second_rank(inputs, "pixel_values", lambda x: x[:1]))
        found["other labels"] = error_of(model, **on_second_rank(inputs, "labels", lambda x: (x + 1) % 3))
        found["an argument more"] = error_of(model, **inputs, **({"return_dict": True} if rank else {}))
        found["attention maps"] = error_of(model, **inputs, output_attentions=True)
        model.axial.executor_class, executor = model.axial.executor_class.whole, model.axial.executor_class
        found["another executor"] = error_of(model, **inputs)
        model.axial.executor_class = executor
        found["a part alone"] = error_of(model.axial.layers[0].attention, torch.randn(2, 3, 3, 12).double())
    with torch.set_grad_enabled(rank == 0):
        found["gradients on one rank"] = error_of(model, **inputs)
    model.train(rank == 0)
    with torch.no_grad():
        found["training on one rank"] = error_of(model, **inputs)
    model.train()
    found["no wrapper"] = error_of(model, **inputs)
    alone = dist.new_group([0]), dist.new_group([1])
    found["another group"] = error_of(DistributedDataParallel(model, process_group=alone[rank]), **inputs)
    found["right"] = error_of(DistributedDataParallel(model), **inputs)
    unshard_axis(model)
    found |= misuses_of_parts(mesh, pixels, inputs)
    lost = DeviceMesh.from_group(dist.new_group([0, 1]), "cpu")  # a group of no use behind
    other = shard_axis(make_model(CASE), lost, 0, timeout=timedelta(seconds=1)).eval()
    found["alone"] = error_of(other, **inputs) if rank == 0 else None
    return found


def misuses_of_parts(mesh, pixels, inputs):
    found, own = {}, own_slice((5, 3), mesh, 0)
    parts = {**inputs, "pixel_values": pixels[:, :, 2 * own.start : 2 * own.stop]}
    model = shard_axis(make_model(CASE), mesh, 0, gather=False, timeout=LIMIT)
    with torch.no_grad():
        found["right parts"] = error_of(model, **parts)
        found["whole pixels"] = error_of(model, **inputs)  # which cannot be told from parts of a grid twice as long
        found["parts of other sizes"] = error_of(model, **{**parts, "pixel_values": pixels[:, :, : 2 + 2 * own.start]})
        found["half a patch"] = error_of(model, **on_second_rank(parts, "pixel_values", lambda x: x[:, :, :-1]))
        found["another width"] = error_of(model, **on_second_rank(parts, "pixel_values", lambda x: x[..., :-1]))
        found["no dims"] = error_of(model, **on_second_rank(parts, "pixel_values", lambda x: x[0]))
        dense = shard_axis(make_model(CASE._replace(head="segmentation")), mesh, 0, gather=False, timeout=LIMIT)
        parts["labels"] = torch.zeros(2, 2 * (own.stop - own.start), 3, dtype=torch.long)
        found["right labels of parts"] = error_of(dense, **parts)
        found["labels of one rank"] = error_of(dense, **on_second_rank(parts, "labels", lambda x: None))
    return found


@pytest.fixture(scope="module")
def errors():
    return run_on_ranks(misuses)


MESSAGES = {
    "another batch": "all ranks along the split axis .*rank 0: pixel_values = .* of checksum .*rank 1: pixel_values",
    "another shape": r"rank 0: pixel_values = \(2, 2, 10, 3\) .*; rank 1: pixel_values = \(1, 2, 10, 3\)",
    "other labels": "rank 0: labels = ",
    "an argument more": "rank 0: nothing; rank 1: kwargs = {return_dict: True}",
    "attention maps": "output_attentions=True would give each rank the maps of its own lines only",
    "another executor": "the executor is OneStream, .* set executor_class before shard_axis",
    "a part alone": "runs inside its trunk only",
    "gradients on one rank": "rank 0: gradients enabled = True; rank 1: gradients enabled = False",
    "training on one rank": r"rank 0: train\(\) = True; rank 1: train\(\) = False",
    "no wrapper": "needs gradients averaged over all ranks: wrap it",
    "another group": r"averaged over the ranks \[.\] only",
    "parts of other sizes": r"axis 0 were given \[1, 4\] cells, but must have \[3, 2\] of 5, .*cut by own_slice",
    "half a patch": r"a part of 3 pixels along axis 0 is not cut between patches of 2\. \(rank 1",
    "another width": r"rank 0: pixel_values = \(2, 2, its part, 3\) .*; rank 1: pixel_values = \(2, 2, its part, 2\)",
    "no dims": r"pixel_values must be a tensor of 4 dims\. \(rank 1",
    "labels of one rank": "rank 0: labels = 3 dims of torch.int64; rank 1: labels = None",
}


@pytest.mark.distributed
@pytest.mark.parametrize("misuse", MESSAGES)
def test_misuse_raises_on_all_ranks(errors, misuse):
    for rank in errors:
        kind, text, seconds = rank[misuse]
        assert kind == "ValueError" and seconds < LIMIT.total_seconds()
        assert re.search(MESSAGES[misuse], text), text


@pytest.mark.distributed
def test_right_use_raises_on_no_rank(errors):
    for name in ("right", "right parts", "right labels of parts", "whole pixels"):
        assert [rank[name] for rank in errors] == [None, None]


@pytest.mark.distributed
def test_a_rank_that_is_alone_waits_no_longer_than_it_was_told(errors):
    kind, text, seconds = errors[0]["alone"]
    assert kind == "RuntimeError" and 1 <= seconds < LIMIT.total_seconds()
    assert text.startswith("rank 0 waited for the other ranks of its axis, in vain, for 1 seconds at most")
