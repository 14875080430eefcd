import itertools
import math

import pytest
import torch

from modeling_axial import AxialConfig, AxialModel, AxialPositionalEmbedding
from modeling_axial.configuration_strict import POSITION_NAMES
from modeling_axial.position_embeddings import (
    POSITION_KINDS,
    AxisCells,
    LearnedPositionEmbedding,
    LinePosition,
    PositionKind,
    RelativePosition,
    RotaryPosition,
    apply_rotary,
    cells_of_axis,
    check_position_ids,
    check_position_period,
    line_classes,
    make_grid_positions,
    prepare_line,
    read_table,
    resample_table,
)

GRIDS = [(7,), (5, 3), (2, 5, 3), (2, 3, 7, 5)]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
HEADS, HEAD_DIM = 2, 6


def config_for(grid, **overrides):
    options = {"patch_size": [1] * len(grid), "hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS}
    return AxialConfig(image_size=list(grid), **{**options, **overrides})


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def learned(grid, dtype=torch.float64):
    module = LearnedPositionEmbedding(config_for(grid)).to(dtype)
    for number, table in enumerate(module.parameters()):
        table.data = states(*table.shape, seed=number, dtype=dtype)
    return module


def rotations_for(grid, **overrides):
    dtype, config = overrides.pop("dtype", torch.float64), config_for(grid, position_embedding="rotary", **overrides)
    hidden_states = torch.zeros(1, *grid, HEADS * HEAD_DIM, dtype=dtype)
    return [
        rotation for axis in config.axes for rotation in prepare_line(config, axis, cells_of_axis(axis, hidden_states))
    ]


def cells(grid):
    return itertools.product(*(range(length) for length in grid))


# ---- learned tables ----


@pytest.mark.parametrize("make", [lambda: learned((5, 3)), lambda: AxialPositionalEmbedding(12, (5, 3), -1).double()])
def test_gradients_of_tables_given_to_a_functional_call(make):
    module, hidden_states = make(), states(2, 5, 3, HEADS * HEAD_DIM)
    tables = {name: table.detach() for name, table in module.named_parameters()}

    def loss(tables):
        return torch.func.functional_call(module, tables, hidden_states).square().sum()

    found = torch.func.grad(loss)(tables)
    module(hidden_states).square().sum().backward()
    for name, table in module.named_parameters():
        torch.testing.assert_close(found[name], table.grad)


def linearly_resampled(table, length):
    """Row i lies at (i + 1/2) · native / length - 1/2 of the native rows, and is mixed from the two beside it."""
    native, rows = len(table), []
    for i in range(length):
        place = min(max((i + 0.5) * native / length - 0.5, 0), native - 1)
        below = math.floor(place)
        above = min(below + 1, native - 1)
        rows.append((1 - (place - below)) * table[below] + (place - below) * table[above])
    return torch.stack(rows)


@grids
def test_one_table_for_each_axis(grid):
    tables = dict(LearnedPositionEmbedding(config_for(grid)).named_parameters())
    assert {name: tuple(table.shape) for name, table in tables.items()} == {
        f"axis_{axis}": (length, HEADS * HEAD_DIM) for axis, length in enumerate(grid)
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 7, 13, 64])
def test_resampling_to_the_native_length_changes_no_bit(length, dtype):
    table = states(length, 5, dtype=dtype)
    assert torch.equal(resample_table(table, length), table)


@pytest.mark.parametrize("native", [1, 2, 5, 7])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 11, 23])
def test_resampling_equals_linear_interpolation(native, length):
    table = states(native, 5)
    resampled = resample_table(table, length)
    assert resampled.shape == (length, 5)
    assert torch.allclose(resampled, linearly_resampled(table, length), rtol=0, atol=1e-14)


@grids
def test_native_tables_are_added_along_their_axes(grid):
    module, hidden_states = learned(grid), states(2, *grid, HEADS * HEAD_DIM, seed=9)
    output = module(hidden_states)
    for cell in cells(grid):
        expected = hidden_states[(slice(None), *cell)]
        for axis, coordinate in enumerate(cell):
            expected = expected + module.get_parameter(f"axis_{axis}")[coordinate]
        assert torch.equal(output[(slice(None), *cell)], expected)


@grids
def test_tables_at_another_size(grid):
    module = learned(grid)
    other_grid = [length + 2 + axis for axis, length in enumerate(grid)]
    other_grid[-1] = max(grid[-1] - 2, 1)
    hidden_states = states(2, *other_grid, HEADS * HEAD_DIM, seed=9)
    tables = [
        linearly_resampled(module.get_parameter(f"axis_{axis}").detach(), length)
        for axis, length in enumerate(other_grid)
    ]
    output = module(hidden_states)
    assert output.shape == hidden_states.shape
    for cell in cells(other_grid):
        expected = hidden_states[(slice(None), *cell)] + sum(
            table[coordinate] for table, coordinate in zip(tables, cell, strict=True)
        )
        assert torch.allclose(output[(slice(None), *cell)], expected, rtol=0, atol=1e-13)


def test_gradient_reaches_every_table():
    module = learned((5, 3))
    hidden_states = states(2, 5, 3, HEADS * HEAD_DIM)
    module(hidden_states).sum().backward()
    # A row of one axis is added once for each coordinate of the other axis and each sample.
    assert torch.equal(module.axis_0.grad, torch.full_like(module.axis_0, 2.0 * 3))
    assert torch.equal(module.axis_1.grad, torch.full_like(module.axis_1, 2.0 * 5))


# ---- rotary ----


@pytest.mark.parametrize("rope_theta", [10000.0, 100, 2.5])
@grids
def test_rotation_of_each_pair(grid, rope_theta):
    rotations = rotations_for(grid, rope_theta=rope_theta)
    assert len(rotations) == len(grid)
    query = states(2, *grid, HEADS, HEAD_DIM)
    half = HEAD_DIM // 2
    for axis in range(len(grid)):
        rotated = apply_rotary(query, *rotations[axis], axis)
        expected = torch.empty_like(query)
        for cell in cells(grid):
            for pair in range(half):
                angle = cell[axis] * rope_theta ** (-2 * pair / HEAD_DIM)
                turn = torch.tensor(
                    [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
                )
                for sample, head in itertools.product(range(2), range(HEADS)):
                    vector = query[(sample, *cell, head)]
                    expected[(sample, *cell, head)][[pair, pair + half]] = turn @ vector[[pair, pair + half]]
        assert torch.allclose(rotated, expected, rtol=0, atol=1e-13)


def scores_along(query, key, grid, axis):
    """Rotated query of cell (.., t, ..) times rotated key of (.., s, ..), for every line along `axis`."""
    rotation = rotations_for(grid)[axis]
    query, key = (
        apply_rotary(vector.expand(1, *grid, 1, HEAD_DIM), *rotation, axis).squeeze(-2) for vector in (query, key)
    )
    query, key = (states.movedim(axis + 1, -2).flatten(0, -3) for states in (query, key))  # (lines, length, head_dim)
    return query @ key.transpose(-1, -2)


@grids
def test_scores_depend_only_on_the_distance_along_the_axis(grid):
    query, key = states(HEAD_DIM, seed=1), states(HEAD_DIM, seed=2)
    for axis, length in enumerate(grid):
        scores = scores_along(query, key, grid, axis)
        # The same on every line, so wherever the line lies on the other axes, ...
        assert torch.allclose(scores, scores[:1].expand_as(scores), rtol=0, atol=1e-13)
        # ... the same for every pair of the same distance, ...
        by_distance = [scores[0].diagonal(distance) for distance in range(1 - length, length)]
        for diagonal in by_distance:
            assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-13)
        # ... and not the same for different distances, of which the sign counts too.
        values = torch.stack([diagonal[0] for diagonal in by_distance])
        apart = (values[:, None] - values).abs() + torch.eye(len(values))
        assert apart.min() > 1e-6
        assert torch.allclose(values[length - 1], query @ key, rtol=0, atol=1e-13)


@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)
def test_rotation_is_that_of_the_axis(grid):
    vector = states(HEAD_DIM).expand(1, *grid, 1, HEAD_DIM)
    for axis, rotation in enumerate(rotations_for(grid)):
        rotated = apply_rotary(vector, *rotation, axis)
        for other in range(len(grid)):
            first, second = rotated.select(other + 1, 0), rotated.select(other + 1, 1)
            assert torch.equal(first, second) == (other != axis)


def test_rotation_keeps_lengths_and_position_zero():
    grid = (5, 3)
    query = states(2, *grid, HEADS, HEAD_DIM)
    for axis, rotation in enumerate(rotations_for(grid)):
        rotated = apply_rotary(query, *rotation, axis)
        assert torch.allclose(rotated.norm(dim=-1), query.norm(dim=-1), rtol=0, atol=1e-13)
        assert torch.equal(rotated.select(axis + 1, 0), query.select(axis + 1, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_angles_are_computed_in_float32_at_least(dtype):
    grid = (257, 3)
    rotations = rotations_for(grid, dtype=dtype)
    for (cos, sin), (exact_cos, exact_sin), length in zip(rotations, rotations_for(grid), grid, strict=True):
        assert cos.dtype == sin.dtype == torch.float32 and cos.shape == sin.shape == (1, length, HEAD_DIM)
        assert torch.allclose(cos.double(), exact_cos, rtol=0, atol=1e-4)
        assert torch.allclose(sin.double(), exact_sin, rtol=0, atol=1e-4)
    query = states(1, *grid, HEADS, HEAD_DIM, dtype=dtype)
    assert apply_rotary(query, *rotations[0], 0).dtype == dtype


def test_angles_are_made_where_the_states_are():
    config, hidden_states = config_for((5, 3), position_embedding="rotary"), torch.empty(1, 5, 3, 12, device="meta")
    for axis in config.axes:
        ((cos, sin),) = prepare_line(config, axis, cells_of_axis(axis, hidden_states))
        assert cos.device.type == sin.device.type == "meta"


def test_rotary_has_no_state():
    config = config_for((5, 3))
    module = RotaryPosition(config, config.axes[0])
    assert not module.state_dict() and not list(module.buffers())


# ---- learned tables under a mask ----


def test_under_a_mask_tables_are_spread_over_the_bounding_box_of_each_sample():
    module = learned((5, 3))
    hidden_states = states(4, 7, 11, HEADS * HEAD_DIM, seed=9)
    boxes = [(range(1, 6), range(4, 7)), (range(7), range(11)), (range(3, 5), range(10, 11)), (range(7), range(11))]
    mask = torch.zeros(4, 7, 11, dtype=torch.bool)
    for index, (rows, columns) in enumerate(boxes[:3]):  # corners are enough, and the last has no cell at all
        mask[index, rows[0], columns[0]] = mask[index, rows[-1], columns[-1]] = True
    output = module(hidden_states, mask)
    for index, (rows, columns) in enumerate(boxes):
        of_rows, of_columns = (
            linearly_resampled(module.axis_0, len(rows)),
            linearly_resampled(module.axis_1, len(columns)),
        )
        expected = hidden_states[index, rows][:, columns] + of_rows[:, None] + of_columns
        torch.testing.assert_close(output[index, rows][:, columns], expected, rtol=1e-13, atol=1e-13)
    native = hidden_states[0, 1:6, 4:7] + module.axis_0[:, None] + module.axis_1
    assert torch.equal(output[0, 1:6, 4:7], native), "a box of native size gets the rows themselves"


def test_a_table_is_read_at_any_position_and_clamped_at_its_edges():
    table = states(5, 3)
    positions = torch.tensor([[-2.0, 0.0, 0.25], [3.5, 4.0, 9.0]], dtype=torch.float64)
    read = read_table(table, positions)
    expected = [table[0], table[0], 0.75 * table[0] + 0.25 * table[1], (table[3] + table[4]) / 2, table[4], table[4]]
    torch.testing.assert_close(read, torch.stack(expected).view(2, 3, 3))


def test_positions_may_be_more_precise_than_the_table():
    table = states(5, 3, dtype=torch.float32)
    read = read_table(table, torch.tensor([0.5, 4.0], dtype=torch.float64))
    torch.testing.assert_close(read, torch.stack([table[:2].mean(0), table[4]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision_are_mixed_in_float32(dtype):
    table, positions = states(5, 300, dtype=torch.float32).to(dtype), torch.tensor([0.3, 1.7, 3.9])
    expected = read_table(table.double(), positions.double()).to(dtype)
    assert (read_table(table, positions) == expected).double().mean() > 0.99  # but for ties


def test_the_table_is_read_deterministically_on_every_device():
    # Backward of torch's own resampling has no deterministic form on CUDA, and refuses to run when one is asked for.
    table = states(5, 3).requires_grad_()
    nodes, todo = set(), [resample_table(table, 7).grad_fn]
    while todo:
        node = todo.pop()
        nodes.add(type(node).__name__)
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert "IndexBackward0" in nodes and not any("Upsample" in name for name in nodes)


# ---- relative ----


def relative(length, heads=HEADS):
    config = config_for((length,), position_embedding="relative", num_attention_heads=heads)
    module = RelativePosition(config, config.axes[0]).double()
    module.table.data = states(*module.table.shape)
    return config, module


def bias_of(config, module, positions):
    return module.bias(module.prepare(config, config.axes[0], AxisCells(positions)))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_one_number_for_each_head_and_distance(length):
    config, module = relative(length)
    assert module.table.shape == (2 * length - 1, HEADS)
    bias = bias_of(config, module, torch.arange(length + 3, dtype=torch.float64)[None])
    assert bias.shape == (1, HEADS, length + 3, length + 3)
    for head, query, key in itertools.product(range(HEADS), range(length + 3), range(length + 3)):
        distance = min(max(query - key, 1 - length), length - 1)  # clipped
        assert bias[0, head, query, key] == module.table[distance + length - 1, head]


def test_distances_between_whole_numbers_are_mixed_and_may_differ_between_samples():
    config, module = relative(5)
    positions = torch.tensor([[0.0, 0.25, 3.0], [10.0, 12.0, 30.0]], dtype=torch.float64)
    bias = bias_of(config, module, positions)
    at = {distance: module.table[distance + 4] for distance in range(-4, 5)}
    torch.testing.assert_close(bias[0, :, 1, 0], 0.75 * at[0] + 0.25 * at[1])
    torch.testing.assert_close(bias[0, :, 0, 1], 0.75 * at[0] + 0.25 * at[-1])
    torch.testing.assert_close(bias[0, :, 2, 1], 0.25 * at[2] + 0.75 * at[3])
    rows = [at[distance] for distance in (0, -2, -4, 2, 0, -4, 4, 4, 0)]  # from 30 it is clipped
    torch.testing.assert_close(bias[1], torch.stack(rows).T.view(HEADS, 3, 3))


# ---- kinds by name, and positions from outside ----


def test_kinds_may_differ_between_axes():
    config = config_for((5, 3, 2), position_embedding=["learned", "rotary+relative", "learned"])
    (module,) = make_grid_positions(config)
    assert {name: table.shape[0] for name, table in module.named_parameters()} == {"axis_0": 5, "axis_2": 2}
    assert [line_classes(axis) for axis in config.axes] == [[], [RotaryPosition, RelativePosition], []]
    hidden_states = states(2, 5, 3, 2, 12).float()
    prepared = [prepare_line(config, axis, cells_of_axis(axis, hidden_states)) for axis in config.axes]
    assert [len(each) for each in prepared] == [0, 2, 0]


def test_positions_from_outside_are_rows_of_the_tables_and_a_mask_moves_nothing():
    module, hidden_states = learned((5, 3)), states(2, 2, 4, HEADS * HEAD_DIM, seed=9)
    rows = torch.tensor([[1.0, 7.0], [0.5, -3.0]], dtype=torch.float64)
    columns = torch.tensor([[2.0, 1.0, 0.0, 0.25]], dtype=torch.float64)
    mask = torch.zeros(2, 2, 4, dtype=torch.bool)
    mask[:, 1, 2] = True
    given = (AxisCells(rows), AxisCells(columns))
    output = module(hidden_states, mask, given)
    assert torch.equal(output, module(hidden_states, None, given))
    of_rows = torch.stack([module.axis_0[[1, 4]], torch.stack([module.axis_0[:2].mean(0), module.axis_0[0]])])
    of_columns = torch.stack([*module.axis_1[[2, 1, 0]], 0.75 * module.axis_1[0] + 0.25 * module.axis_1[1]])
    torch.testing.assert_close(output, hidden_states + of_rows[:, :, None] + of_columns)


@pytest.mark.parametrize(
    "position_ids, message",
    {
        "tensor": (torch.zeros(2, 5), "one tensor for each of the 2 axes.*got Tensor"),
        "too few": ([torch.zeros(5)], "one tensor for each of the 2 axes.*of 1"),
        "length": ([torch.zeros(5), torch.zeros(4)], r"axis 1 must have shape \(3,\) or \(2, 3\), got \(4,\)"),
        "batch": ([torch.zeros(3, 5), torch.zeros(3)], r"axis 0 must have shape \(5,\) or \(2, 5\), got \(3, 5\)"),
        "list": ([torch.zeros(5), [0, 1, 2]], "axis 1 must be a tensor of real numbers, got list"),
        "boolean": ([torch.zeros(5).bool(), torch.zeros(3)], "axis 0 must be a tensor of real numbers, got torch.bool"),
        "not finite": ([torch.zeros(5), torch.tensor([0.0, torch.nan, 1.0])], "axis 1 must be finite"),
        "complex": ([torch.zeros(5) * 1j, torch.zeros(3)], "real numbers, got torch.complex64"),
    }.values(),
)
def test_positions_that_do_not_fit_are_refused(position_ids, message):
    with pytest.raises(ValueError, match=message):
        check_position_ids(position_ids, (2, 5, 3), torch.float32, torch.device("cpu"))


def test_positions_are_kept_precise():
    given = [torch.arange(5), torch.zeros(1, 3, dtype=torch.float64)]
    first, second = check_position_ids(given, (2, 5, 3), torch.bfloat16, torch.device("cpu"))
    assert (first.dtype, second.dtype) == (torch.float32, torch.float64)
    assert first.tolist() == [[0, 1, 2, 3, 4]] and second.shape == (1, 3)
    assert check_position_ids(given, (2, 5, 3), torch.float64, torch.device("cpu"))[0].dtype == torch.float64


# ---- periodic axes ----


def test_distances_on_a_circle_go_the_shorter_way_round():
    positions = torch.tensor([[0.0, 2.5, 6.0, 7.0]], dtype=torch.float64)
    assert AxisCells(positions).distances[0, :, 0].tolist() == [0, 2.5, 6, 7]
    around = AxisCells(positions, 8).distances[0]
    assert around[:, 0].tolist() == [0, 2.5, -2, -1] and around[0].tolist() == [0, -2.5, 2, 1]
    # Half a circle is one distance, wherever it begins.
    ends = AxisCells(torch.arange(8.0)[None], 8).distances[0]
    assert {ends[cell, (cell + 4) % 8].item() for cell in range(8)} == {-4}
    blocks = AxisCells(positions, 8, queries=torch.tensor([[0], [3]]), keys=torch.tensor([[1, 2], [0, 1]]))
    assert blocks.distances.tolist() == [[[[-2.5, 2.0]], [[-1.0, -3.5]]]]


def test_only_all_of_a_periodic_axis_wraps():
    positions = torch.arange(6.0)[None]
    assert [AxisCells(positions, period).wraps for period in (None, 6, 6.0, 5.9, 7)] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_tables_of_periodic_axes_are_circles():
    config = config_for((5, 3), periodic=[True, False])
    module = LearnedPositionEmbedding(config).double()
    module.axis_0.data, module.axis_1.data = states(5, 12), torch.zeros(3, 12, dtype=torch.float64)
    table, hidden_states = module.axis_0, torch.zeros(2, 10, 3, 12, dtype=torch.float64)
    output = module(hidden_states)
    places = [(0.5 + cell) / 2 - 0.5 for cell in range(10)]
    expected = torch.stack(
        [table[math.floor(x) % 5] * (1 - x % 1) + table[(math.floor(x) + 1) % 5] * (x % 1) for x in places]
    )
    torch.testing.assert_close(output[0, :, 1], expected, rtol=1e-14, atol=1e-14)
    # A mask moves nothing on such an axis, but as ever on others.
    mask = torch.zeros(2, 10, 3, dtype=torch.bool)
    mask[:, 3:5, :2] = True
    assert torch.equal(module(hidden_states, mask)[:, :, :2], output[:, :, :2])
    # From outside they are scaled from the period to the native length.
    around = torch.tensor([[0.0, 1.5, -1.0, 14.0]], dtype=torch.float64)
    given = module(hidden_states[:, :4], None, (AxisCells(around, 15), AxisCells(torch.zeros(1, 3))))
    expected = torch.stack([table[0], (table[0] + table[1]) / 2, *[table[4] / 3 + 2 * table[0] / 3] * 2])
    torch.testing.assert_close(given[1, :, 2], expected, rtol=1e-14, atol=1e-14)


def test_a_place_just_before_the_first_row_of_a_circle_is_the_first():
    table = states(5, 2)
    assert torch.equal(read_table(table, torch.tensor([-1e-30], dtype=torch.float64), periodic=True), table[:1])


@pytest.mark.parametrize("period", [60, 360.0])
def test_rotations_of_periodic_axes_make_whole_turns(period):
    config = config_for((60,), position_embedding="rotary", periodic=True, head_dim=12, rope_theta=100.0)
    positions = torch.linspace(-5, 3, 7, dtype=torch.float64)[None] * period / 10
    (cos, sin), (cos_around, sin_around) = (
        RotaryPosition.prepare(config, config.axes[0], AxisCells(each, period))
        for each in (positions, positions + period)
    )
    torch.testing.assert_close((cos, sin), (cos_around, sin_around), rtol=1e-11, atol=1e-11)
    # 100 ** (-k / 6) radians a cell: 9.5, 4.4, 2.06, 0.95, 0.44 and 0.2 turns in 60 cells.
    angles = (
        2
        * math.pi
        * torch.tensor([10.0, 4.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        * positions[0, :, None]
        / period
    )
    torch.testing.assert_close(cos[0], angles.cos().repeat(1, 2), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sin[0], angles.sin().repeat(1, 2), rtol=1e-11, atol=1e-11)
    short = config_for((2,), position_embedding="rotary", periodic=True)
    cos, _ = RotaryPosition.prepare(short, short.axes[0], cells_of_axis(short.axes[0], states(1, 2, 4)))
    assert cos[0, :, 0].tolist() == [1, -1]  # one turn at least, so that cells differ


@pytest.mark.parametrize(
    "position_period, with_ids, message",
    {
        "none": (None, True, r"position_period=None must have one entry for each of the 2 axes.*periodic, \[0\]"),
        "without positions": ([7.0, None], False, "give both, or neither"),
        "too few": ([7.0], True, "each of the 2 axes"),
        "of another axis": ([7.0, 7.0], True, "None for others"),
        "not of the periodic one": ([None, 7.0], True, "a positive number"),
        "zero": ([0, None], True, "a positive number"),
        "infinite": ([math.inf, None], True, "a positive number"),
        "not a number": ([math.nan, None], True, "a positive number"),
        "text": (["7", None], True, "a positive number"),
    }.values(),
)
def test_periods_that_do_not_fit_are_refused(position_period, with_ids, message):
    config = config_for((5, 3), periodic=[True, False])
    position_ids = [torch.zeros(5), torch.zeros(3)] if with_ids else None
    with pytest.raises(ValueError, match=message):
        check_position_period(position_period, position_ids, config.axes)


def test_periods_of_each_axis():
    axes = config_for((5, 3), periodic=[True, False]).axes
    assert check_position_period(None, None, axes) == (None, None)
    assert check_position_period([360.0, None], [torch.zeros(5), torch.zeros(3)], axes) == (360.0, None)


class Slopes(LinePosition):
    """Scores fall with the distance, for each head in its own way (Press et al. 2021, arXiv 2108.12409)."""

    @staticmethod
    def prepare(config, axis, cells):
        slopes = 2.0 ** -torch.arange(1, config.num_attention_heads + 1, device=cells.positions.device)
        return -slopes[:, None, None] * cells.distances.abs()[..., None, :, :]

    def bias(self, prepared):
        return prepared


def test_a_kind_of_position_from_other_code(monkeypatch, tmp_path):
    monkeypatch.setitem(POSITION_KINDS, "slopes", PositionKind(line=Slopes))
    monkeypatch.setattr("modeling_axial.configuration_strict.POSITION_NAMES", {*POSITION_NAMES, "slopes"})
    torch.manual_seed(0)
    model = AxialModel(config_for((5, 3), position_embedding="slopes+learned", num_hidden_layers=1)).double().eval()
    hidden_states = states(2, 5, 3, HEADS * HEAD_DIM)
    for axis, attention in enumerate(model.layers[0].attention.axes):
        calls = []
        attention.core.register_forward_hook(lambda *call, calls=calls: calls.append(call[1]))
        attention(hidden_states)
        bias = calls[0][4]
        distances = torch.arange((5, 3)[axis])
        expected = torch.stack([-(distances[:, None] - distances).abs() / 2**head for head in (1, 2)])
        torch.testing.assert_close(bias[0], expected.double())
    model.save_pretrained(tmp_path)
    again = AxialModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    pixel_values = states(2, 3, 5, 3)
    assert torch.equal(again(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)
