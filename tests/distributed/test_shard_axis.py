"""One axis split over ranks gives the numbers of one process."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForCausalImageModeling,
    AxialForImageClassification,
    AxialForSemanticSegmentation,
    AxialModel,
)
from modeling_axial.distributed import own_slice, shard_axis, unshard_axis
from modeling_axial.distributed.model_split import LateTrunkSplit, WholeTrunkSplit
from modeling_axial.distributed.numbers_of_parts import NumbersOfParts
from modeling_axial.reversible import OneStream, RebuiltTwoStream, TwoStream
from tests.distributed.cases import (
    DECODER_CASES,
    Case,
    errors_of_case,
    errors_of_decoder,
    gradients_of,
    make_case,
    make_decoder,
    make_inputs,
    make_model,
    meshes,
    part_of_inputs,
    relative_error,
)
from tests.ranks import run_on_ranks, whole

EXACT = 1e-13  # relative difference, in float64
CASES, SAMPLED = 320, 16

PLAIN = Case("learned", "sequential", (4, 6), (4, 6), 0, 2, "trunk", False, "counted", None, False, 1)
COMPOSED = PLAIN._replace(head="classifier", training=True)
# Calls of all-to-all in forward, and in all: 2, 4 and 6 for each attention along the split axis of two layers, another
# for each convolution, and another where the grid is gathered: at the end of the trunk, behind a linear dense head, or
# not at all for the mean of it.
EXCHANGES = {
    "sequential": (PLAIN, 2 * 2 + 1, 2 * 4 + 2),
    "sum": (PLAIN._replace(mode="sum"), 2 * 2 + 1, 2 * 4 + 2),
    "alternating": (PLAIN._replace(mode="alternating"), 2 + 1, 4 + 2),
    "induced": (PLAIN._replace(feature="induced"), 2 * 2 + 1, 2 * 4 + 2),
    "rebuilt": (PLAIN._replace(feature="reversible"), 2 * 2 + 1, 2 * 6 + 2),
    "stored": (PLAIN._replace(feature="stored streams"), 2 * 2 + 1, 2 * 4 + 2),
    "checkpointed": (PLAIN._replace(checkpointing="not reentrant", training=True), 2 * 2 + 1, 2 * 6 + 2),
    "reentrant": (PLAIN._replace(checkpointing="reentrant", training=True), 2 * 2 + 1, 2 * 6 + 2),
    "convolution": (PLAIN._replace(feature="convolution"), 2 * (2 + 2) + 1, 2 * (4 + 4) + 2),
    "dense": (PLAIN._replace(head="segmentation"), 2 * 2 + 1, 2 * 4 + 2),
    "mean": (PLAIN._replace(head="classifier"), 2 * 2, 2 * 4),
}


def errors_of_cases(first, last, *world_sizes):
    """{case: its errors} of those that this rank has a part in."""
    world_sizes = tuple(map(int, world_sizes))
    by_size, errors = meshes(world_sizes), {}
    for number in range(int(first), int(last)):
        case = make_case(number, world_sizes)
        if dist.get_rank() < case.world_size:
            errors[case.name] = errors_of_case(case, by_size[case.world_size])
    return errors


def errors_of_decoders(by_size):
    return {
        case.name: errors_of_decoder(case, by_size[case.world_size])
        for case in DECODER_CASES
        if dist.get_rank() < case.world_size
    }


class CountedExchanges:
    """In place of `all_to_all_single`: notes the bytes that each call sends to other ranks."""

    def __init__(self):
        self.sent, self.exchange = [], dist.all_to_all_single

    def __enter__(self):
        dist.all_to_all_single = self
        return self.sent

    def __exit__(self, *_):
        dist.all_to_all_single = self.exchange

    def __call__(self, received, sent, receive_sizes, send_sizes, group):
        numbers = sum(size for rank, size in enumerate(send_sizes) if rank != dist.get_rank(group))
        self.sent.append(numbers * sent.element_size())
        return self.exchange(received, sent, receive_sizes, send_sizes, group=group)


def count_exchanges(mesh):
    """{name: the bytes of each exchange in forward, and of each in backward}."""
    counted = {}
    for name, (case, _, _) in EXCHANGES.items():
        model = shard_axis(make_model(case), mesh, case.axis)
        if case.training:  # which only a wrapper may do
            model = DistributedDataParallel(model, process_group=mesh.get_group())
        inputs = make_inputs(case)
        inputs.pop("output_hidden_states", None)
        with CountedExchanges() as sent:
            output = model(**inputs)
            forward = list(sent)
            loss = output.last_hidden_state.square().sum() if case.head == "trunk" else output.loss
            loss.backward()
        counted[name] = forward, sent[len(forward) :]
    return counted


def wrap_fsdp(model, per_layer):
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (4,))
    for layer in model.axial.layers if per_layer else ():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# Wrapped over 2 x 2 ranks, along the data and along the axis.
REVERSIBLE = COMPOSED._replace(feature="reversible")
CHECKPOINTED = COMPOSED._replace(checkpointing="not reentrant")
WRAPPED = {
    "ddp": (COMPOSED, DistributedDataParallel),
    "ddp static_graph, rebuilt": (REVERSIBLE, partial(DistributedDataParallel, static_graph=True)),
    "fsdp2 per layer, checkpointed": (CHECKPOINTED, partial(wrap_fsdp, per_layer=True)),
}
WRAPPED_IN_AUDIT = {
    "ddp, convolution": (COMPOSED._replace(feature="convolution"), DistributedDataParallel),
    "ddp, of parts": (COMPOSED._replace(gathers=False), DistributedDataParallel),
    "ddp, rebuilt": (REVERSIBLE, DistributedDataParallel),
    "ddp, checkpointed": (CHECKPOINTED, DistributedDataParallel),
    "ddp find_unused_parameters": (COMPOSED, partial(DistributedDataParallel, find_unused_parameters=True)),
    "fsdp2": (COMPOSED, partial(wrap_fsdp, per_layer=False)),
    "fsdp2, of parts": (COMPOSED._replace(gathers=False), partial(wrap_fsdp, per_layer=False)),
    "fsdp2 per layer": (COMPOSED, partial(wrap_fsdp, per_layer=True)),
    "fsdp2 per layer, rebuilt": (REVERSIBLE, partial(wrap_fsdp, per_layer=True)),
}


def errors_of_wrapped(cases):
    """{name: the error of the gradients of two steps, of which data ranks have batches of their own}."""
    mesh, errors = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "axis")), {}
    for name, (case, wrap) in cases.items():
        plain, batches = make_model(case), [make_inputs(case, number) for number in range(2)]
        for batch in batches + batches:
            (plain(**batch).loss / 2).backward()
        wrapped = wrap(shard_axis(make_model(case), mesh["axis"], case.axis, gather=case.gathers))
        batch = batches[mesh.get_local_rank("data")]
        batch = batch if case.gathers else part_of_inputs(case, batch, mesh.get_local_rank("axis"))
        for _ in range(2):
            wrapped(**batch).loss.backward()
        gradients = [whole(gradient) for gradient in gradients_of(wrapped)]
        errors[name] = (0.0, relative_error(gradients, gradients_of(plain)))
    return errors


def errors_of_wrapped_in_audit():
    return errors_of_wrapped(WRAPPED_IN_AUDIT)


def all_on_four_ranks():
    by_size = meshes((2, 3))
    found = {
        "cases": errors_of_cases(0, SAMPLED, 2, 3),
        "decoders": errors_of_decoders(by_size),
        "wrapped": errors_of_wrapped(WRAPPED),
    }
    if dist.get_rank() < 2:
        found["exchanges"] = count_exchanges(by_size[2])
    return found


@pytest.fixture(scope="module")
def found():
    return run_on_ranks(all_on_four_ranks, world_size=4, timeout=540)


def check(errors_of_ranks, names):
    errors = [entry for rank in errors_of_ranks for entry in rank.items()]
    assert {name for name, _ in errors} == set(names)
    wrong = [(name, *both) for name, both in errors if not max(both) <= EXACT]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.distributed
def test_numbers_are_those_of_one_process(found):
    check([rank["cases"] for rank in found], [make_case(number, (2, 3)).name for number in range(SAMPLED)])


@pytest.mark.distributed
@pytest.mark.audit
def test_numbers_are_those_of_one_process_in_all_cases():
    errors = run_on_ranks(errors_of_cases, 0, CASES, 2, 3, 4, world_size=4, timeout=540)
    check(errors, [make_case(number, (2, 3, 4)).name for number in range(CASES)])


@pytest.mark.distributed
def test_decoders_draw_alike(found):
    check([rank["decoders"] for rank in found], [case.name for case in DECODER_CASES])


@pytest.mark.distributed
def test_wrapped_over_data_and_axis(found):
    check([rank["wrapped"] for rank in found], WRAPPED)


@pytest.mark.distributed
@pytest.mark.audit
def test_wrapped_in_other_ways():
    check(run_on_ranks(errors_of_wrapped_in_audit, world_size=4, timeout=540), WRAPPED_IN_AUDIT)


@pytest.mark.distributed
@pytest.mark.parametrize("name", EXCHANGES)
def test_number_of_exchanges(found, name):
    _, in_forward, in_all = EXCHANGES[name]
    for rank in found[:2]:
        forward, backward = rank["exchanges"][name]
        assert (len(forward), len(forward) + len(backward)) == (in_forward, in_all)


@pytest.mark.distributed
@pytest.mark.parametrize("name, times", {"sequential": 2, "rebuilt": 3}.items())
def test_bytes_of_exchanges(found, name, times):
    """2 (P - 1) / P of a rank's own activation for each attention in forward; twice, or thrice if rebuilt, in all."""
    own = 2 * 12 * 12 * 8  # a batch of 2, of 4 x 6 cells one half, 12 channels, in float64
    for rank in found[:2]:
        forward, backward = rank["exchanges"][name]
        *switches, gathered = forward
        assert sum(switches) == 2 * own and gathered == own  # 2 layers, 2 ranks
        assert sum(forward + backward) == times * 2 * own + 2 * gathered


@pytest.mark.distributed
def test_bytes_of_numbers_of_pixels(found):
    """Those of the numbers of each cell, 3 classes of 2 x 1 pixels, and not of its 12 channels."""
    for rank in found[:2]:
        forward, _ = rank["exchanges"]["dense"]
        assert forward[-1] == 2 * 12 * 6 * 8


# Without processes: what is refused, and what stays as it is.

RANK_1_OF_3 = SimpleNamespace(ndim=1, mesh_dim_names=("axis",), size=lambda: 3, get_local_rank=lambda: 1)


def make_axial(**fields):
    sizes = {"image_size": [4, 6], "patch_size": [1, 2], "hidden_size": 8, "num_attention_heads": 2}
    return AxialModel(AxialConfig(**sizes | {"num_hidden_layers": 2, "num_channels": 1} | fields))


def test_a_rank_reads_its_own_slice():
    assert own_slice((5, 3), RANK_1_OF_3, 0) == own_slice((5, 3), RANK_1_OF_3) == slice(2, 4)
    assert own_slice((5, 3), RANK_1_OF_3, 1) == slice(1, 2)
    assert own_slice((1, 1), RANK_1_OF_3) == slice(1, 1)


def test_the_longest_axis_is_split():
    model = shard_axis(make_axial(), RANK_1_OF_3)
    assert model.executor_class.split.axis == 0 and model.config.grid_shape == (4, 3)
    assert shard_axis(make_axial(patch_size=[2, 1]), RANK_1_OF_3).executor_class.split.axis == 1


def with_another_forward():
    return type("Another", (AxialForSemanticSegmentation,), {})(make_axial().config)


# Whole grids are gathered at the end of the trunk, unless what reads them is known to need parts alone.
SPLITS = {
    "trunk": (make_axial, WholeTrunkSplit),
    "backbone": (lambda: AxialBackbone(make_axial().config), WholeTrunkSplit),
    "mean": (lambda: AxialForImageClassification(make_axial().config), LateTrunkSplit),
    "attention": (lambda: AxialForImageClassification(make_axial(pooling="attention").config), WholeTrunkSplit),
    "linear": (lambda: AxialForSemanticSegmentation(make_axial().config), LateTrunkSplit),
    "pyramid": (lambda: AxialForSemanticSegmentation(make_axial(dense_head="pyramid").config), WholeTrunkSplit),
    "what inherits": (with_another_forward, WholeTrunkSplit),
}


@pytest.mark.parametrize("name", SPLITS)
def test_where_the_grid_is_gathered(name):
    make, split_class = SPLITS[name]
    model = shard_axis(make(), RANK_1_OF_3)
    assert type(getattr(model, "axial", model).executor_class.split) is split_class
    gathers_numbers = isinstance(model.__dict__.get("numbers_of_pixels"), NumbersOfParts)
    assert gathers_numbers == (name == "linear")
    assert "numbers_of_pixels" not in unshard_axis(model).__dict__


def hooks_of(model):
    names = "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"
    return [len(getattr(module, name)) for module in model.modules() for name in names]


@pytest.mark.parametrize("executor_class", [OneStream, TwoStream, RebuiltTwoStream])
def test_unshard_restores(executor_class):
    model = make_axial(feed_forward="convolution").eval()
    model.executor_class = executor_class
    before, pixels = hooks_of(model), torch.randn(2, 1, 4, 6)
    expected = model(pixels).last_hidden_state
    assert shard_axis(model, RANK_1_OF_3) is model
    assert issubclass(model.executor_class, executor_class) and model.executor_class is not executor_class
    assert hooks_of(model) != before
    assert unshard_axis(model) is model
    assert model.executor_class is executor_class and hooks_of(model) == before
    assert torch.equal(model(pixels).last_hidden_state, expected)
    with pytest.raises(ValueError, match="AxialModel is not split along an axis"):
        unshard_axis(model)


def test_an_executor_of_stored_streams_stands_in_for_one_that_rebuilds():
    model = shard_axis(make_axial(reversible=True), RANK_1_OF_3)
    assert issubclass(model.executor_class, RebuiltTwoStream)
    assert issubclass(model.executor_class.stored, TwoStream) and not model.executor_class.stored.stored


def test_checkpoints_stay_as_they_are(tmp_path):
    model = make_axial()
    model.save_pretrained(tmp_path / "whole")
    names = list(model.state_dict())
    shard_axis(model, RANK_1_OF_3)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "split")
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "split" / path).read_bytes()


def with_another_feed_forward():
    model = make_axial()
    model.layers[1].feed_forward.net = torch.nn.Identity()
    return model


TWO_DIMS = SimpleNamespace(ndim=2, mesh_dim_names=("data", "axis"))
REFUSED = {
    "two dims": (make_axial, TWO_DIMS, None, "the mesh has 2 dims .* must have one"),
    "no such axis": (make_axial, RANK_1_OF_3, 2, r"axis=2 is none of the 2 axes of the grid \(4, 3\)"),
    "axis from the end": (make_axial, RANK_1_OF_3, -1, "axis=-1 is none"),
    "one cell": (lambda: make_axial(image_size=[1, 6]), RANK_1_OF_3, 0, "axis 0 of the grid .* has 1 cell"),
    "one axis": (lambda: make_axial(image_size=[6], patch_size=[2]), RANK_1_OF_3, 0, "a grid of one axis"),
    "split already": (lambda: shard_axis(make_axial(), RANK_1_OF_3), RANK_1_OF_3, 1, "split along an axis already"),
    "depth that is drawn": (lambda: make_axial(drop_path_rate=0.1), RANK_1_OF_3, 0, "drop_path_rate .* set it to 0"),
    "another feed-forward": (with_another_feed_forward, RANK_1_OF_3, 0, "Identity is not known to run on a part"),
    "another model": (lambda: torch.nn.Linear(2, 2), RANK_1_OF_3, 0, "Linear has no axial trunk"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused(name):
    make, mesh, axis, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        shard_axis(make(), mesh, axis)


def test_a_decoder_that_is_split_does_not_generate():
    model = make_decoder(DECODER_CASES[0])
    shard_axis(model, RANK_1_OF_3)
    with pytest.raises(ValueError, match="split the batch over the ranks instead"):
        model.generate(1)
    assert unshard_axis(model).generate.__func__ is AxialForCausalImageModeling.generate
