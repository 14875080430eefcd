"""A model of which one axis is split, together with what else is done to models."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from modeling_axial import AxialConfig, AxialForImageClassification
from modeling_axial.distributed import shard_axis
from tests.conftest import ROOT
from tests.distributed.cases import Case, average, gradients_of, make_inputs, make_model, relative_error
from tests.ranks import run_on_ranks

CASE = Case("learned", "sequential", (5, 7), (5, 7), 0, 2, "classifier", True, "counted", None, True, 1)


def errors(plain, split, case, mesh, dtype=torch.float64):
    """Of outputs and gradients of a step."""
    inputs = make_inputs(case)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    wrapped = DistributedDataParallel(split, process_group=mesh.get_group())
    with wrapped.no_sync():
        found, expected = (model(**inputs) for model in (wrapped, plain))
        for output in (found, expected):
            output.loss.backward()
    average(gradients_of(split), mesh.get_group())
    return [relative_error([found.logits], [expected.logits]), relative_error(*map(gradients_of, (split, plain)))]


def in_float32(mesh):
    worst = [0.0, 0.0]
    for feature in ("learned", "rotary", "relative", "convolution", "reversible"):
        case = CASE._replace(feature=feature)
        models = [make_model(case).float() for _ in range(2)]
        # Of numbers like those of trained models: the others are so large that scores of float32 are coarse.
        for parameter in (parameter for model in models for parameter in model.parameters()):
            parameter.data *= 0.3
        plain, split = models
        found = errors(plain, shard_axis(split, mesh, 0), case, mesh, torch.float32)
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return worst


def compiled(mesh):
    """Each layer in one graph: with `fullgraph` a break raises."""
    torch.compiler.reset()
    plain, split = make_model(CASE), shard_axis(make_model(CASE), mesh, 0)
    for layer in split.axial.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    return errors(plain, split, CASE, mesh)


def with_lora(mesh):
    """Low-rank changes of the projections, which alone are trained."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        models.append(get_peft_model(make_model(CASE), lora))
    plain, split = models
    shard_axis(split.base_model.model, mesh, 0)
    trained = [name for name, parameter in split.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)
    return errors(plain, split, CASE, mesh)


def composed():
    mesh = init_device_mesh("cpu", (2,))
    return {"float32": in_float32(mesh), "compiled": compiled(mesh), "with LoRA": with_lora(mesh)}


@pytest.fixture(scope="module")
def found():
    return run_on_ranks(composed, world_size=2)


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "bound"), [("float32", 1e-6), ("compiled", 1e-13), ("with LoRA", 1e-13)])
def test_numbers_are_those_of_one_process(found, name, bound):
    for rank in found:
        assert 0 <= max(rank[name]) <= bound


def with_dropout():
    """The sums of outputs with the random states of the ranks alike, and not, each twice; and without dropout."""
    config = AxialConfig(
        image_size=[10, 7],
        patch_size=[2, 1],
        hidden_dropout_prob=0.5,
        num_channels=1,
        hidden_size=8,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = AxialForImageClassification(config).double().train()
    mesh = init_device_mesh("cpu", (2,))
    model = DistributedDataParallel(shard_axis(model, mesh, 0), process_group=mesh.get_group())
    pixel_values = torch.randn(1, 1, 12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks, dropout = [], model.module.axial.layers[0].feed_forward.dropout
    dropout.register_forward_hook(lambda module, args, output: masks.append((output == 0)[:, :2].flatten().tolist()))
    sums = []
    for apart in (0, 0, dist.get_rank(), dist.get_rank()):
        torch.manual_seed(5 + apart)
        sums.append(model(pixel_values).logits.sum().item())
    return {"sums": sums, "masks": masks}


@pytest.mark.distributed
def test_dropout_differs_between_ranks_unless_their_random_states_are_alike():
    first, second = run_on_ranks(with_dropout, world_size=2)
    for rank in (first, second):
        assert rank["sums"][0] == rank["sums"][1] != rank["sums"][2] == rank["sums"][3]
    assert first["sums"] == second["sums"]
    alike, apart = (
        [a == b for a, b in zip(*(rank["masks"] for rank in (first, second)), strict=True)][i] for i in (0, 2)
    )
    assert alike and not apart


# One of two processes that nobody looks after, unlike those of a launcher, which ends all when one is gone.
A_STEP = """
import os, signal, sys
from datetime import timedelta
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.distributed.device_mesh import init_device_mesh
from modeling_axial.distributed import shard_axis
from tests.distributed.cases import make_inputs, make_model
from tests.distributed.test_composition import CASE
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{file}", timedelta(seconds=60), rank=rank, world_size=2)
split = shard_axis(make_model(CASE), init_device_mesh("cpu", (2,)), 0)
loss = DistributedDataParallel(split)(**make_inputs(CASE)).loss
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
loss.backward()
"""


@pytest.mark.distributed
def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", A_STEP, str(rank), str(tmp_path / "file")],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, message = ranks[0].communicate(timeout=200)
        assert ranks[0].returncode == 1 and "RuntimeError" in message and "gloo" in message
        assert ranks[1].wait(10) == -signal.SIGKILL
    finally:
        for rank in ranks:
            rank.kill()
