"""Models of which one axis is split over ranks, beside the same on one process; what ranks run for the tests here."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialDecoderConfig,
    AxialForCausalImageModeling,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialModel,
)
from modeling_axial.distributed import shard_axis
from modeling_axial.distributed.switching import shard_slice
from modeling_axial.reversible import TwoStream

PATCHES = {2: (2, 1), 3: (1, 2, 1)}
# Grids whose axes are shorter than there are ranks, leave a remainder, or have one cell.
GRIDS = {2: ((5, 3), (7, 2), (2, 11), (1, 5)), 3: ((3, 2, 5), (2, 5, 3), (1, 3, 2))}

# What is special about a model: fields of its configuration.
FEATURES: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {"position_embedding": "rotary"},
    "relative": {"position_embedding": "relative"},
    "two kinds of position": {"position_embedding": "learned+rotary", "use_qk_norm": True},
    "none": {"position_embedding": "none", "feed_forward": "gated_mlp"},
    "induced": {"num_inducing_points": 3},
    "windowed": {"attention_window": 1, "position_embedding": "relative"},
    "periodic": {"periodic": True, "position_embedding": "learned+rotary"},
    "windowed and periodic": {"periodic": True, "attention_window": 1, "position_embedding": "relative"},
    "convolution": {"feed_forward": "convolution"},
    "convolution, periodic": {"feed_forward": "convolution", "periodic": True},
    "layer scale": {"layer_scale_init_value": 0.5},
    "pooling by attention": {"pooling": "attention", "num_pooling_seeds": 2},
    "reversible": {"reversible": True},
    "reversible, rotary, convolution": {"reversible": True, "feed_forward": "convolution"},
    "stored streams": {"reversible": True},
}
# Fields of the configuration that shape losses; all but the plain ones leave out what does not count.
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"class_weights": [0.5, 2.0, 1.25], "prediction_loss": "absolute"},
    "of two terms": {
        "class_weights": [0.0, 1.0, 2.0],
        "dice_loss_weight": 0.7,
        "prediction_loss": "quantile",
        "quantiles": [0.2, 0.7],
    },
}
MODES = ("sequential", "sum", "split", "alternating")
POSITIONS = ("counted", "given", "of samples")
# Those that give parts of what they are given parts of.
LOCAL_HEADS = ("trunk", "classifier", "backbone", "segmentation", "masked", "prediction")
HEADS = ("trunk", "trunk", "classifier", "backbone", "segmentation", "pyramid", "masked", "prediction")


class Case(NamedTuple):
    feature: str
    mode: str
    native: tuple[int, ...]  # grid of the configuration
    grid: tuple[int, ...]  # that runs
    axis: int
    world_size: int
    head: str
    masked: bool
    positions: str
    checkpointing: str | None  # "reentrant", "not reentrant" or None
    training: bool
    passes: int  # forward passes before their backward
    gathers: bool = True  # every rank is given the whole grid, or its part
    loss: str = "plain"

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items())


def make_case(number: int, world_sizes: tuple[int, ...]) -> Case:
    """Any number makes a case; as many as there are features make each of them."""
    draw = random.Random(number)
    axes = draw.choice((2, 2, 3))
    native, grid = draw.choice(GRIDS[axes]), draw.choice(GRIDS[axes])
    case = Case(
        feature=list(FEATURES)[number % len(FEATURES)],
        mode=draw.choice(MODES),
        native=native,
        grid=draw.choice((native, grid)),
        axis=draw.choice([axis for axis in range(axes) if native[axis] > 1]),
        world_size=draw.choice(world_sizes),
        head=draw.choice(HEADS),
        masked=draw.random() < 0.5,
        positions=draw.choice(POSITIONS),
        checkpointing=draw.choice((None, None, "reentrant", "not reentrant")),
        training=draw.random() < 0.7,
        passes=draw.choice((1, 1, 2)),
    )
    possible = case.head in LOCAL_HEADS and "pooling" not in case.feature and case.grid[case.axis] >= case.world_size
    return case._replace(gathers=not possible or draw.random() < 0.3, loss=draw.choice(list(LOSSES)))


def configuration(case: Case) -> AxialConfig:
    patch = PATCHES[len(case.native)]
    fields = {
        "image_size": [cells * size for cells, size in zip(case.native, patch, strict=True)],
        "patch_size": list(patch),
        "num_channels": 2,
        "hidden_size": 12,
        "num_attention_heads": len(case.native),
        "head_dim": 4,
        "intermediate_size": 7,
        "num_hidden_layers": len(case.native),
        "attention_mode": case.mode,
        "num_labels": 3,
        "dense_head": "pyramid" if case.head == "pyramid" else "linear",
    }
    return AxialConfig(**fields | FEATURES[case.feature] | LOSSES[case.loss])


MODELS: dict[str, Callable[[AxialConfig], Any]] = {
    "trunk": AxialModel,
    "classifier": AxialForImageClassification,
    "backbone": AxialBackbone,
    "segmentation": AxialForSemanticSegmentation,
    "pyramid": AxialForSemanticSegmentation,
    "masked": AxialForMaskedImageModeling,
    "prediction": AxialForDensePrediction,
}


def make_model(case: Case) -> Any:
    """In float64, with weights so large that every part shows in the output."""
    torch.manual_seed(0)
    model = MODELS[case.head](configuration(case)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    if case.feature == "stored streams":
        getattr(model, "axial", model).executor_class = TwoStream
    if case.checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": case.checkpointing == "reentrant"})
    return model.train(case.training)


def make_inputs(case: Case, number: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    batch, grid, axes = 2, case.grid, range(len(case.grid))
    pixels = [cells * size for cells, size in zip(grid, PATCHES[len(grid)], strict=True)]
    inputs: dict[str, Any] = {
        "pixel_values": torch.randn(batch, 2, *pixels, dtype=torch.float64, generator=generator).requires_grad_()
    }
    if case.masked:
        inputs["attention_mask"] = torch.rand(batch, *grid, generator=generator) < 0.7
    if case.positions != "counted":
        samples = () if case.positions == "given" else (batch,)
        inputs["position_ids"] = [
            3 * torch.rand(*samples, cells, generator=generator, dtype=torch.float64) for cells in grid
        ]
        if FEATURES[case.feature].get("periodic"):
            # Of the first axis the grid is a part only.
            inputs["position_period"] = [float(cells + (axis == 0)) for axis, cells in zip(axes, grid, strict=True)]
    if case.head == "classifier":
        inputs["labels"] = torch.randint(3, (batch,), generator=generator)
    elif case.head in ("segmentation", "pyramid"):
        inputs["labels"] = torch.randint(3, (batch, *pixels), generator=generator)
        if case.loss != "plain":
            inputs["labels"][torch.rand(batch, *pixels, generator=generator) < 0.2] = -100
    elif case.head == "masked":
        inputs["bool_masked_pos"] = torch.rand(batch, *grid, generator=generator) < 0.4
    elif case.head == "prediction":
        inputs["labels"] = torch.randn(batch, 1, *pixels, generator=generator, dtype=torch.float64)
        if case.loss != "plain":
            inputs["loss_mask"] = torch.rand(batch, 1, *pixels, generator=generator) < 0.8
            of_first_axis = (1, 1, pixels[0], *[1] * (len(pixels) - 1))
            inputs["loss_weights"] = torch.rand(of_first_axis, generator=generator, dtype=torch.float64)
    if case.loss == "of two terms" and case.head in ("segmentation", "pyramid", "prediction"):
        inputs["num_items_in_batch"] = 50
    if case.head in ("trunk", "backbone") or case.passes > 1:
        inputs["output_hidden_states"] = True
    return inputs


def tensors_of(outputs: Any) -> dict[str, torch.Tensor]:
    """All that a model returns, tuples taken apart."""
    tensors = {}
    for name, entry in outputs.items():
        entries = {f"{name}.{index}": part for index, part in enumerate(entry)} if isinstance(entry, tuple) else {}
        tensors |= entries or {name: entry}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def cells_of(case: Case, rank: int, scale: int = 1) -> slice:
    """The cells along the split axis that a rank is given where each has its part, or their pixels."""
    own = shard_slice(case.grid[case.axis], rank, case.world_size)
    return slice(own.start * scale, own.stop * scale)


def part_of(case: Case, name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """What a rank is given, or gives, of an argument or an output."""
    patch, from_end = PATCHES[len(case.grid)][case.axis], case.axis - len(case.grid)
    of_pixels = ("pixel_values", "prediction", "reconstruction", "loss_mask", "loss_weights")
    if name in of_pixels or (name in ("logits", "labels") and case.head != "classifier"):
        if whole.shape[from_end] == 1:  # weights along another axis
            return whole
        dim, own = from_end, cells_of(case, rank, patch)
    elif name.startswith("feature_maps"):
        dim, own = case.axis + 2, cells_of(case, rank)
    elif name.startswith(("last_hidden_state", "hidden_states", "attention_mask", "bool_masked_pos")):
        dim, own = case.axis + 1, cells_of(case, rank)
    else:
        return whole
    return whole.narrow(dim, own.start, own.stop - own.start)


def part_of_inputs(case: Case, inputs: dict[str, Any], rank: int) -> dict[str, Any]:
    """Those of a rank that is given its part; its pixels are a leaf of their own."""
    parts = {
        name: part_of(case, name, value, rank).detach() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    parts["pixel_values"] = parts["pixel_values"].clone().requires_grad_()
    if case.positions != "counted":
        own = cells_of(case, rank)
        positions = enumerate(inputs["position_ids"])
        parts["position_ids"] = [ids[..., own] if axis == case.axis else ids for axis, ids in positions]
    return parts


def loss_of(case: Case, outputs: dict[str, torch.Tensor], shapes: dict[str, torch.Size], rank: int) -> torch.Tensor:
    """A number to which every output counts, each cell differently. `shapes`: of the whole outputs; of parts of these
    each rank's share of the sum, times the number of ranks, so that their mean is the loss."""
    terms = []
    for name, tensor in outputs.items():
        weights = torch.linspace(-1, 1, shapes[name].numel(), dtype=tensor.dtype).view(shapes[name])
        parts = 1 if tensor.shape == shapes[name] else case.world_size
        weights = weights if parts == 1 else part_of(case, name, weights, rank)
        terms.append((tensor * weights).tanh().sum() * (parts / shapes[name].numel()))
    return torch.stack(terms).sum()


class Run(NamedTuple):
    """What a case gives; the gradients of the parameters stay in their `.grad`."""

    outputs: list[dict[str, torch.Tensor]]  # of each pass
    pixel_gradients: list[torch.Tensor]


def run(model: nn.Module, case: Case, whole: Run | None = None, rank: int = 0) -> Run:
    """`whole`: the run on one process, for a rank that is given its part."""
    inputs = [make_inputs(case, number) for number in range(case.passes)]
    if whole is not None:
        inputs = [part_of_inputs(case, each, rank) for each in inputs]
    outputs = [tensors_of(model(**each)) for each in inputs]
    losses = [
        loss_of(case, each, {name: tensor.shape for name, tensor in all_of_it.items()}, rank)
        for each, all_of_it in zip(outputs, outputs if whole is None else whole.outputs, strict=True)
    ]
    torch.stack(losses).sum().backward()
    return Run(outputs, [each["pixel_values"].grad for each in inputs])


def relative_error(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest of all tensors, each relative to its norm, or to a hundredth of that of all where it is less: what
    cancelled in it, wholly in the gradients of the biases of keys, was larger."""
    least = 1e-2 * torch.stack([tensor.norm() for tensor in theirs]).norm()
    errors = [
        (one - other).norm() / torch.maximum(other.norm(), least)
        for one, other in zip(ours, theirs, strict=True)
        if other.numel()
    ]
    return torch.stack(errors).max().item()


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    """The gradients of those parameters that have one."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def average(gradients: list[torch.Tensor], group: dist.ProcessGroup) -> None:
    for gradient in gradients:
        dist.all_reduce(gradient, group=group)
        gradient /= dist.get_world_size(group)


def errors_of_case(case: Case, mesh: DeviceMesh) -> tuple[float, float]:
    """Of the outputs, and of the gradients, against one process; called on the ranks of the mesh."""
    plain, rank, group = make_model(case), mesh.get_local_rank(), mesh.get_group()
    expected = run(plain, case)
    split = shard_axis(make_model(case), mesh, case.axis, gather=case.gathers)
    wrapped = DistributedDataParallel(split, process_group=group)
    with wrapped.no_sync():  # averaged here: DDP itself refuses reentrant checkpointing, and two passes at once
        ours = run(wrapped, case, None if case.gathers else expected, rank)
    average(gradients_of(split), group)
    pixels, expected_pixels = ours.pixel_gradients, expected.pixel_gradients
    if case.gathers:
        average(pixels, group)
    else:
        pixels = [gradient / case.world_size for gradient in pixels]
        expected_pixels = [part_of(case, "pixel_values", gradient, rank) for gradient in expected_pixels]
    outputs, expected_outputs = [], []
    for tensors, whole_tensors in zip(ours.outputs, expected.outputs, strict=True):
        assert tensors.keys() == whole_tensors.keys()
        outputs += tensors.values()
        expected_outputs += [
            whole if case.gathers else part_of(case, name, whole, rank) for name, whole in whole_tensors.items()
        ]
    return relative_error(outputs, expected_outputs), relative_error(
        gradients_of(split) + pixels, gradients_of(plain) + expected_pixels
    )


class DecoderCase(NamedTuple):
    channel_order: str
    axis: int  # of its grid, of which the channels are the first where they are nested
    reversible: bool
    checkpointed: bool
    training: bool
    world_size: int

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items())


DECODER_CASES = [
    DecoderCase("slices", 1, False, False, True, 2),
    DecoderCase("slices", 0, True, False, True, 3),
    DecoderCase("slices", 0, False, False, False, 2),
    DecoderCase("nested", 2, True, True, True, 3),
    DecoderCase("nested", 0, False, False, True, 2),
]


def run_decoder(model: nn.Module, parameters: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a decoder gives, and the gradients of `parameters`, which may be without its wrapper."""
    generator = torch.Generator().manual_seed(0)
    outputs = model(
        torch.randint(7, (3, 2, 4, 5), generator=generator),
        class_labels=torch.randint(2, (3,), generator=generator),
        condition=torch.randn(3, 1, 4, 5, generator=generator, dtype=torch.float64),
        output_hidden_states=True,
    )
    outputs.loss.backward()
    return list(tensors_of(outputs).values()), gradients_of(parameters)


def make_decoder(case: DecoderCase) -> AxialForCausalImageModeling:
    torch.manual_seed(0)
    config = AxialDecoderConfig(
        image_size=[4, 5],
        num_channels=2,
        vocab_size=7,
        hidden_size=8,
        num_attention_heads=2,
        num_outer_layers=1,
        num_inner_layers=1,
        num_exterior_layers=1,
        channel_order=case.channel_order,
        num_classes=2,
        class_dropout_prob=0.5,
        num_condition_channels=1,
        position_embedding="learned+relative",
        reversible=case.reversible,
    )
    model = AxialForCausalImageModeling(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    if case.checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train(case.training)


def errors_of_decoder(case: DecoderCase, mesh: DeviceMesh) -> tuple[float, float]:
    """As `errors_of_case`; the ranks come with random states of their own, and draw what the first of them would."""
    plain, split, group = make_decoder(case), shard_axis(make_decoder(case), mesh, case.axis), mesh.get_group()
    torch.manual_seed(1)
    torch.manual_seed(int(torch.randint(2**62, (1,))))
    expected = run_decoder(plain, plain)
    torch.manual_seed(1 + dist.get_rank())
    wrapped = DistributedDataParallel(split, process_group=group)
    with wrapped.no_sync():
        ours = run_decoder(wrapped, split)
    draws = torch.rand(3)
    torch.manual_seed(1 + dist.get_rank())
    if case.training:
        torch.randint(2**62, (1,))
    assert torch.equal(draws, torch.rand(3)), "each rank goes on with its own random state"
    average(ours[1], group)
    return relative_error(ours[0], expected[0]), relative_error(ours[1], expected[1])


def meshes(world_sizes: tuple[int, ...]) -> dict[int, DeviceMesh]:
    """Of the first ranks, so many; made by all ranks, whether they are of the mesh or not."""
    return {size: DeviceMesh("cpu", list(range(size))) for size in world_sizes}
