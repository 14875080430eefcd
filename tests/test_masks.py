"""Masks one by one, and then the promise that they keep: what is masked is not there, in any model and combination."""

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from modeling_axial import AxialBackbone, AxialConfig, AxialForImageClassification, AxialModel
from modeling_axial.masks import boolean_mask, bounding_box, clear_masked, grid_mask, repeat_mask

LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32])
def test_ones_and_zeros_of_any_type_are_a_mask(dtype):
    mask = torch.tensor([[1, 0, 1]]).to(dtype)
    assert boolean_mask(mask, "mask").tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    "values", [[0.0, -torch.inf], [0.0, LOWEST], [0.0, -1e4], [1.0, torch.nan], [1.0, 0.2], [1, 2], [0, -1], [1, 255]]
)
def test_other_numbers_are_refused(values):
    with pytest.raises(
        ValueError, match=r"attention_mask must be boolean.*True \(or 1\) stands for what is used"
    ) as error:
        grid_mask(torch.tensor([values]), (1, 2))
    assert str(values[1]).rstrip("0").rstrip(".")[:4] in str(error.value)


def test_floating_point_zeros_alone_are_refused():
    with pytest.raises(ValueError, match="attention_mask holds floating-point zeros alone"):
        grid_mask(torch.zeros(1, 1), (2, 3))
    assert not grid_mask(torch.zeros(1, 1, dtype=torch.int64), (2, 3)).any()
    assert grid_mask(torch.zeros(0, 3), (0, 3)).shape == (0, 3)


@pytest.mark.parametrize("values", [[0.0, -torch.inf], [1.0, torch.nan], [1, 2]])
@pytest.mark.parametrize("model_class", [AxialModel, AxialForImageClassification, AxialBackbone])
def test_models_refuse_additive_masks(model_class, values):
    model = model_class(config_for((5, 3))).eval()
    with pytest.raises(ValueError, match="attention_mask must be boolean"):
        model(torch.randn(1, 2, 5, 3), attention_mask=torch.tensor(values)[torch.arange(15) % 2].view(1, 5, 3))


@pytest.mark.parametrize("shape", [(5, 3), (2, 5), (2, 5, 4), (3, 5, 3), (2, 5, 3, 1)])
def test_masks_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must broadcast to \(batch, \*grid\) \(2, 5, 3\)"):
        grid_mask(torch.ones(shape), (2, 5, 3))


def test_the_mask_is_a_tensor_of_its_own():
    given = torch.ones(2, 5, 3, dtype=torch.bool)
    mask = grid_mask(given, (2, 5, 3))
    given[:] = False
    assert mask.all()


def test_without_values_the_type_decides():
    with FakeTensorMode():
        for dtype in (torch.bool, torch.int64):
            assert boolean_mask(torch.ones(2, 3, dtype=dtype), "mask").dtype == torch.bool
        with pytest.raises(
            ValueError, match="mask must be boolean or of integers where its values cannot be looked at"
        ):
            boolean_mask(torch.ones(2, 3), "mask")
    with pytest.raises(ValueError, match="torch.float16"):
        boolean_mask(torch.ones(2, 3, dtype=torch.float16, device="meta"), "mask")


def test_compiled_code_takes_integers_and_refuses_floats():
    torch.compiler.reset()  # PyTorch compiles a function eight times at most
    model, pixel_values = AxialModel(config_for((5,), num_hidden_layers=1)).eval(), torch.randn(2, 2, 5)
    mask = torch.arange(10).view(2, 5) % 3 != 0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(pixel_values, attention_mask=mask).pooler_output
    torch.testing.assert_close(compiled(pixel_values, attention_mask=mask.long()).pooler_output, expected)
    with pytest.raises(Exception, match="must be boolean or of integers"):
        compiled(pixel_values, attention_mask=mask.float())


def test_exported_programs_take_masks():
    model, pixel_values = AxialModel(config_for((5, 3))).eval(), torch.randn(2, 2, 5, 3)
    mask = torch.arange(30).view(2, 5, 3) % 7 != 0
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(
        model,
        (pixel_values,),
        {"attention_mask": mask},
        dynamic_shapes={"pixel_values": {2: rows}, "attention_mask": {1: rows}},
    )
    larger, mask = torch.randn(2, 2, 11, 3), torch.arange(66).view(2, 11, 3) % 7 != 0
    expected = model(larger, attention_mask=mask).pooler_output
    torch.testing.assert_close(program.module()(larger, attention_mask=mask).pooler_output, expected)


def test_cleared_cells_are_zero_and_get_no_gradient():
    states = torch.full((2, 3, 5), torch.nan, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, True, False]])
    cleared = clear_masked(states, mask)
    assert torch.equal(cleared.isnan().all(-1), mask) and (cleared[~mask] == 0).all()
    cleared.sum().backward()
    assert torch.equal(states.grad[..., 0], mask.double())
    assert clear_masked(states, None) is states


def test_a_mask_on_a_finer_grid():
    mask = torch.arange(30).view(2, 5, 3) % 4 != 1
    finer = repeat_mask(mask, (2, 3))
    assert finer.shape == (2, 10, 9) and repeat_mask(None, (2, 3)) is None
    for sample, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(10), torch.arange(9)):
        assert finer[sample, row, column] == mask[sample, row // 2, column // 3]


def test_bounding_box():
    mask = torch.zeros(3, 5, 7, dtype=torch.bool)
    mask[0, 1, 6] = mask[0, 3, 2] = mask[1, 4, 0] = True
    (first_row, rows), (first_column, columns) = bounding_box(mask)
    assert (first_row.tolist(), rows.tolist()) == ([[1], [4], [0]], [[3], [1], [5]])
    assert (first_column.tolist(), columns.tolist()) == ([[2], [0], [0]], [[5], [1], [7]])
    ((first, extent),) = bounding_box(torch.tensor([[False, True, True, False]]))
    assert (first.item(), extent.item()) == (1, 2)


# ---- a padded, masked picture gives what it gives alone ----

POSITIONS = ["learned", "learned", "rotary", "none", "relative", "learned+relative", "rotary+relative"]
CONTENTS = (torch.nan, torch.inf, -torch.inf, 1e30, 7.0)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}


def config_for(grid, **overrides):
    options = {"image_size": list(grid), "patch_size": [1] * len(grid), "num_channels": 2, "hidden_size": 8}
    return AxialConfig(**{**options, "num_attention_heads": 2, "num_hidden_layers": 2, "num_labels": 3, **overrides})


def drawn_case(number):
    """A model, and pictures of different sizes, each alone and padded in one batch, with the mask."""
    draw = random.Random(number)
    num_axes = draw.choice([1, 2, 2, 3])
    points = [draw.choice([None, None, 3]) for _ in range(num_axes)]
    kinds = [POSITIONS[:4] if number else POSITIONS for number in points]  # points see no pairs of cells
    windows = [None if number else draw.choice([None, 1, 2]) for number in points]
    one_for_all = draw.choice(POSITIONS[:4])
    config = config_for(
        [draw.choice([2, 3, 5, 7]) for _ in range(num_axes)],
        attention_mode=draw.choice(["sum", "sequential", "split", "alternating"]),
        num_attention_heads=6,
        head_dim=4,
        num_hidden_layers=3 if num_axes == 3 else 2,
        feed_forward=draw.choice(["mlp", "gated_mlp", "convolution", "convolution"]),
        position_embedding=draw.choice([one_for_all, [draw.choice(names) for names in kinds]]),
        pooling=draw.choice(["mean", "attention"]),
        num_pooling_seeds=draw.choice([1, 3]),
        reversible=draw.random() < 0.5,
        num_inducing_points=points,
        attention_window=windows,
    )
    torch.manual_seed(number)
    model = draw.choice([AxialModel, AxialModel, AxialForImageClassification, AxialBackbone])(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / 3
    dtype = draw.choice([torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16])
    model = model.to(dtype).train(draw.random() < 0.5)
    model.set_attn_implementation(draw.choice(["sdpa", "sdpa", "eager"]))

    sizes = [[draw.choice([1, 2, 3, 5, 7]) for _ in range(num_axes)] for _ in range(draw.choice([1, 2, 3]))]
    padded_grid = [max(lengths) + draw.choice([0, 1, 4]) for lengths in zip(*sizes, strict=True)]
    padded = torch.full((len(sizes), 2, *padded_grid), draw.choice(CONTENTS), dtype=dtype)
    mask = torch.zeros(len(sizes), *padded_grid, dtype=torch.bool)
    pictures, boxes = [], []
    for index, size in enumerate(sizes):
        starts = [draw.randint(0, length - own) for length, own in zip(padded_grid, size, strict=True)]
        box = tuple(slice(start, start + own) for start, own in zip(starts, size, strict=True))
        pictures.append(torch.randn(1, 2, *size, dtype=dtype))
        padded[(index, slice(None), *box)] = pictures[-1][0]
        mask[(index, *box)] = True
        boxes.append(box)
    return model, pictures, padded.requires_grad_(), mask, boxes


def cut_out(output, index, box):
    """What a model says of one picture of a batch, and of the cells in its box."""
    if hasattr(output, "feature_maps"):
        return [features[(index, slice(None), *box)] for features in output.feature_maps]
    if hasattr(output, "logits"):
        return [output.logits[index]]
    return [output.pooler_output[index], output.last_hidden_state[(index, *box)]]


def gradients(model, inputs, results):
    loss = sum(
        result.float().sin().sum() if result.dtype == torch.bfloat16 else result.sin().sum() for result in results
    )
    wanted = [*inputs, *model.parameters()]
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


def largest_error(found, expected):
    """Relative to the largest number of all, as some gradients are zero but for rounding; NaN if one is NaN."""
    scale = max(tensor.detach().abs().max().item() for tensor in expected)
    differences = [(ours - theirs).detach().abs().max() for ours, theirs in zip(found, expected, strict=True)]
    return torch.stack(differences).max().item() / scale


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=pytest.mark.audit if number % 10 else ()) for number in range(400)]
)
def test_a_padded_picture_gives_what_it_gives_alone(number):
    model, pictures, padded, mask, boxes = drawn_case(number)
    tolerance = TOLERANCES[padded.dtype]
    output = model(padded, attention_mask=mask)
    found, expected = [], []
    for index, (picture, box) in enumerate(zip(pictures, boxes, strict=True)):
        found += cut_out(output, index, box)
        expected += cut_out(model(picture), 0, (slice(None),) * len(box))
    assert largest_error(found, expected) <= tolerance
    if padded.dtype != torch.bfloat16:  # whose gradients are sums of many roundings
        of_padded, *of_parameters = gradients(model, [padded], found)
        assert largest_error(of_parameters, gradients(model, [], expected)) <= 10 * tolerance
        assert not of_padded[~mask.unsqueeze(1).expand_as(padded)].any()


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("feed_forward", ["mlp", "gated_mlp", "convolution"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_what_stands_in_holes_has_no_effect(feed_forward, attn_implementation, content):
    # Such as land in a field of the ocean, or frames that are missing: no box, and lines without any cell.
    torch.manual_seed(0)
    model = AxialModel(config_for((5, 7), feed_forward=feed_forward, pooling="attention")).double().train()
    model.set_attn_implementation(attn_implementation)
    mask = torch.rand(2, 5, 7) > 0.4
    mask[0, 3] = mask[1, :, 2] = False
    pixel_values = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    results = []
    for filled in (0.0, content):
        inputs = pixel_values.masked_fill(~mask[:, None], filled)
        output = model(inputs, attention_mask=mask)
        results.append([output.pooler_output, output.last_hidden_state])
        results[-1] += gradients(model, [], [output.pooler_output, output.last_hidden_state[mask]])
    assert all(map(torch.equal, *results))
