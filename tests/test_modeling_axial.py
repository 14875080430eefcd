import copy
import itertools

import pytest
import torch
from transformers import AttentionInterface, AutoModel

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForImageClassification,
    AxialModel,
    RebuiltTwoStream,
    TwoStream,
)
from modeling_axial.attention_interfaces import eager_attention_forward
from modeling_axial.layer_context import LayerContext
from modeling_axial.testing import receptive_field
from tests.reference import reference_axial_attention

GRIDS = {1: [7], 2: [5, 3], 3: [2, 5, 3], 4: [2, 3, 5, 1]}


def make_config(num_axes=2, **overrides):
    patch = [2, 3, 1, 2][:num_axes]
    options = {
        "image_size": [length * side for length, side in zip(GRIDS[num_axes], patch, strict=True)],
        "patch_size": patch,
        "num_channels": 2,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,  # large enough that every part of the model shows in its output
    }
    if overrides.get("attention_mode") == "split":
        options |= {"num_attention_heads": 2 * num_axes, "head_dim": 4}
    if overrides.get("attention_mode") == "alternating":
        options["num_hidden_layers"] = max(2, num_axes)
    return AxialConfig(**{**options, **overrides})


def make_model(num_axes=2, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    return AxialModel(make_config(num_axes, **overrides)).eval().to(dtype)


def pixels(config, batch=2, dtype=torch.float64, extra_patches=0, seed=1):
    sizes = [size + extra_patches * side for size, side in zip(config.image_shape, config.patch_shape, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.num_channels, *sizes, generator=generator, dtype=dtype)


variants = pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"attention_mode": "sum"},
        {"reversible": True},
        {"feed_forward": "gated_mlp", "position_embedding": "rotary"},
        {"feed_forward": "convolution", "position_embedding": "none", "reversible": True, "attention_mode": "sum"},
        {"position_embedding": "learned+relative", "reversible": True},
        {"attention_mode": "split", "position_embedding": "learned+relative", "reversible": True},
        {"attention_mode": "alternating", "position_embedding": "rotary", "reversible": True},
        {"use_qk_norm": True, "layer_scale_init_value": 0.7, "drop_path_rate": 0.3, "reversible": True},
    ],
    ids=lambda overrides: "-".join(f"{value}" for value in overrides.values()) or "default",
)


@variants
def test_names_of_the_state_dict(overrides):
    names = set(make_model(**overrides).state_dict())
    expected = {"norm.weight", "norm.bias"}
    expected |= {f"embeddings.patch_embeddings.projection.{kind}" for kind in ("weight", "bias")}
    kinds, mode = overrides.get("position_embedding", "learned").split("+"), overrides.get("attention_mode")
    axes = [(0,), (1,)] if mode == "alternating" else [(0, 1), (0, 1)]
    if "learned" in kinds:
        expected |= {f"embeddings.position_embeddings.axis_{axis}" for axis in range(2)}
    if "relative" in kinds:
        expected |= {
            f"layers.{layer}.attention.axes.{axis}.positions.0.table" for layer in range(2) for axis in axes[layer]
        }
    net = {"mlp": ["fc1", "fc2"], "gated_mlp": ["gate_proj", "up_proj", "down_proj"], "convolution": ["conv1", "conv2"]}
    norms = ["attention.norm"] if mode else ["attention.norms.0", "attention.norms.1"]
    parts = [
        *norms,
        "feed_forward.norm",
        *(f"feed_forward.net.{part}" for part in net[overrides.get("feed_forward", "mlp")]),
    ]
    for layer in range(2):
        projections = [f"attention.axes.{axis}.{part}_proj" for axis in axes[layer] for part in "qkvo"]
        expected |= {f"layers.{layer}.{part}.{kind}" for part in parts + projections for kind in ("weight", "bias")}
        if "use_qk_norm" in overrides:
            expected |= {f"layers.{layer}.attention.axes.{axis}.{part}_norm.weight" for axis in (0, 1) for part in "qk"}
            expected |= {f"layers.{layer}.{half}_update.layer_scale.lambda1" for half in ("attention", "feed_forward")}
    assert names == expected


@pytest.mark.parametrize("num_axes", GRIDS)
def test_shapes_for_any_number_of_axes_and_any_size(num_axes):
    model = make_model(num_axes)
    for extra in (0, 2):
        output = model(pixels(model.config, extra_patches=extra))
        grid = tuple(length + extra for length in GRIDS[num_axes])
        assert output.last_hidden_state.shape == (2, *grid, 8) and output.pooler_output.shape == (2, 8)


def test_one_stream_written_out():
    model = make_model()
    hidden = model.embeddings(pixels(model.config))
    for layer in model.layers:
        for norm, attention in zip(layer.attention.norms, layer.attention.axes, strict=True):
            hidden = hidden + attention(norm(hidden))
        hidden = hidden + layer.feed_forward.net(layer.feed_forward.norm(hidden))
    torch.testing.assert_close(
        model(pixels(model.config)).last_hidden_state, model.norm(hidden), rtol=1e-12, atol=1e-12
    )


def test_two_streams_written_out():
    model = make_model(reversible=True, attention_mode="sum")
    first = second = model.embeddings(pixels(model.config))
    for layer in model.layers:
        normalised = layer.attention.norm(second)
        first = first + sum(attention(normalised) for attention in layer.attention.axes)
        second = second + layer.feed_forward.net(layer.feed_forward.norm(first))
    expected = model.norm((first + second) / 2)
    torch.testing.assert_close(model(pixels(model.config)).last_hidden_state, expected, rtol=1e-12, atol=1e-12)


@variants
def test_hidden_states(overrides):
    model = make_model(**overrides)
    entered = []
    model.embeddings.register_forward_hook(lambda module, inputs, output: entered.append(output))
    output = model(pixels(model.config), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], entered[0])
    assert not torch.equal(output.hidden_states[1], output.hidden_states[2])
    assert torch.equal(model.norm(output.hidden_states[-1]), output.last_hidden_state)
    without = model(pixels(model.config))
    assert without.hidden_states is None and torch.equal(without.last_hidden_state, output.last_hidden_state)
    # The same states come from the configuration, from index selection, and as a tuple.
    configured = make_model(**overrides, output_hidden_states=True)(pixels(model.config))
    assert all(map(torch.equal, configured.hidden_states, output.hidden_states))
    last = model(pixels(model.config), output_hidden_states=[-1]).hidden_states
    assert torch.equal(last[-1], output.hidden_states[-1]) and last[0] is None
    assert torch.equal(model(pixels(model.config), return_dict=False)[0], output.last_hidden_state)


@variants
def test_gradients_flow_through_recorded_states_and_maps(overrides):
    model = make_model(**overrides).train()
    output = model(pixels(model.config), output_hidden_states=True, output_attentions=True)
    kept = [*output.hidden_states, *output.attentions]
    for tensor in output.attentions:
        tensor.retain_grad()
    gradients = torch.autograd.grad(
        sum((state**2).sum() for state in output.hidden_states[1:]), list(model.parameters()), allow_unused=True
    )
    assert sum(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) > len(gradients) // 2
    output = model(pixels(model.config), output_attentions=True)
    for tensor in output.attentions:
        tensor.retain_grad()
    (output.last_hidden_state**2).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in output.attentions)
    assert len(kept) == 3 + (2 if overrides.get("attention_mode") == "alternating" else 4)


@pytest.mark.parametrize("attention_mode", ["sequential", "split", "alternating"])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_attention_maps_are_those_of_the_lines_in_order(num_axes, attn_implementation, attention_mode):
    model = make_model(num_axes, attention_mode=attention_mode)
    model.set_attn_implementation(attn_implementation)
    calls = []
    for layer in model.layers:
        for attention in layer.attention.axes:
            attention.core.register_forward_hook(
                lambda module, inputs, output: calls.append((module.axis, *inputs[:3]))
            )
    attentions = model(pixels(model.config), output_attentions=True).attentions
    num_calls = len(model.layers) * (1 if attention_mode == "alternating" else num_axes)
    assert [axis for axis, *_ in calls] == [number % num_axes for number in range(num_calls)]
    assert len(attentions) == num_calls
    for (axis, query, key, value), ours in zip(calls, attentions, strict=True):
        _, expected = reference_axial_attention(query, key, value, axis)
        length = GRIDS[num_axes][axis]
        assert ours.shape == (expected.shape[:-3].numel(), 2, length, length)
        torch.testing.assert_close(ours, expected.reshape(ours.shape), rtol=1e-12, atol=1e-12)


def test_asking_for_maps_leaves_the_backend_and_the_output_alone():
    model = make_model()
    model.set_attn_implementation("sdpa")
    with_maps = model(pixels(model.config), output_attentions=True)
    torch.testing.assert_close(with_maps.last_hidden_state, model(pixels(model.config)).last_hidden_state)
    assert model.config._attn_implementation == "sdpa" and model(pixels(model.config)).attentions is None


@variants
@pytest.mark.parametrize("num_axes", [2, 3])
def test_backends_agree(num_axes, overrides):
    model = make_model(num_axes, **overrides)
    outputs = []
    for attn_implementation in ("sdpa", "eager"):
        model.set_attn_implementation(attn_implementation)
        outputs.append(model(pixels(model.config)).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_pixels_reach_the_whole_grid_in_one_sequential_layer_and_the_cross_in_one_summed():
    for mode, expected_cells in (("sequential", 15), ("sum", 7)):
        model = make_model(num_hidden_layers=1, attention_mode=mode, position_embedding="none")
        reached = receptive_field(model, (1, 2, 10, 9), (1, 2), channel_dim=1, output_channel_dim=-1)
        cells = reached.unflatten(0, (5, 2)).unflatten(2, (3, 3))  # patches of 2 x 3 pixels
        assert torch.equal(cells.any(3).any(1), cells.all(3).all(1)), "a patch is seen whole or not at all"
        cells = cells.all(3).all(1)
        assert cells.sum() == expected_cells and cells[1].all() and cells[:, 2].all()


GRID = (5, 3)


class Masked(torch.nn.Module):
    """A model of one input."""

    def __init__(self, model, mask):
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, pixel_values):
        return self.model(pixel_values, attention_mask=self.mask).last_hidden_state


def cells_read(position, mask, axes_of_layers):
    """The cells that what a cell holds after those layers depends on: its own, and those in use on lines of such."""
    reached = {position}
    for axis in reversed([axis for axes in axes_of_layers for axis in axes]):
        lines = {(*cell[:axis], place, *cell[axis + 1 :]) for cell in reached for place in range(GRID[axis])}
        reached |= {cell for cell in lines if mask[(0, *cell)]}
    return reached


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("points", [None, [None, 2]])
@pytest.mark.parametrize("attention_mode", ["sum", "sequential", "split", "alternating"])
def test_cells_that_a_model_reads(attention_mode, points, masked, reversible):
    options = {"attention_mode": attention_mode, "num_inducing_points": points, "reversible": reversible}
    mask = torch.ones(1, *GRID, dtype=torch.bool)
    if masked:
        mask[0, 1, 1] = mask[0, 3] = mask[0, 4, 2] = False
    model = Masked(make_model(patch_size=1, image_size=list(GRID), position_embedding="none", **options), mask)
    checked = 0
    for position in [(1, 0), (2, 2)]:
        found = receptive_field(model, (1, 2, *GRID), position, channel_dim=1, output_channel_dim=-1)
        if attention_mode in ("sum", "split"):  # a cross of crosses
            cross = {
                cell
                for cell in itertools.product(*map(range, GRID))
                if mask[(0, *cell)] and (cell[0] == position[0] or cell[1] == position[1])
            }
            expected = {
                cell
                for cell in itertools.product(*map(range, GRID))
                for middle in cross
                if mask[(0, *cell)] and (cell[0] == middle[0] or cell[1] == middle[1])
            }
        else:
            layers = [(0,), (1,)] if attention_mode == "alternating" else [(0, 1), (0, 1)]
            expected = cells_read(position, mask, layers)
        assert set(map(tuple, found.nonzero().tolist())) == expected
        checked += len(expected)
    assert checked > 10


@pytest.mark.parametrize("attention_mode", ["sum", "sequential", "split", "alternating"])
def test_padding_is_read_by_nobody(attention_mode):
    model = make_model(attention_mode=attention_mode, position_embedding="rotary")
    small = pixels(model.config)
    padded = torch.full((2, 2, 10 + 4, 9 + 6), 7.0, dtype=torch.float64)
    padded[:, :, :10, :9] = small
    mask = torch.zeros(1, 7, 5, dtype=torch.long)
    mask[:, :5, :3] = 1
    output, expected = model(padded, attention_mask=mask), model(small)
    torch.testing.assert_close(output.last_hidden_state[:, :5, :3], expected.last_hidden_state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=1e-12, atol=1e-12)


@variants
def test_gradient_checkpointing_gives_the_same_gradients(overrides):
    model = make_model(**overrides, hidden_dropout_prob=0.1).train()
    gradients = []
    for checkpointed in (False, True):
        twin = copy.deepcopy(model)
        if checkpointed:
            twin.gradient_checkpointing_enable()
        torch.manual_seed(3)
        (twin(pixels(model.config)).last_hidden_state ** 2).sum().backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention_mode", ["sequential", "split", "alternating"])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_rebuilt_activations_give_the_numbers_of_stored_ones(num_axes, attention_mode):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = make_model(num_axes, reversible=True, attention_mode=attention_mode, **dropout).train()
    assert model.executor_class is RebuiltTwoStream
    results = []
    for executor_class in (RebuiltTwoStream, TwoStream):
        twin = copy.deepcopy(model)
        twin.executor_class = executor_class
        torch.manual_seed(3)
        output = twin(pixels(model.config), output_hidden_states=True, output_attentions=True)
        loss = output.last_hidden_state.square().sum() + output.hidden_states[1].pow(3).sum()
        (loss + output.attentions[0].square().sum()).backward()
        gradients = [parameter.grad for parameter in twin.parameters()]
        results.append([output.last_hidden_state, *output.hidden_states, *output.attentions, *gradients])
    for rebuilt, stored in zip(*results, strict=True):
        torch.testing.assert_close(rebuilt, stored, rtol=1e-10, atol=1e-10)


def test_rebuilding_saves_nothing_that_grows_with_depth():
    def saved_numbers(depth, executor_class):
        model = make_model(reversible=True, num_hidden_layers=depth).train()
        model.executor_class = executor_class
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        output = model(pixels(model.config)).last_hidden_state
        storages, seen, todo = {}, set(), [output.grad_fn]
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
            for name in dir(node):
                if name.startswith("_raw_saved_"):
                    raw = getattr(node, name)
                    for saved in raw if isinstance(raw, tuple) else (raw,):
                        if isinstance(data := getattr(saved, "data", None), torch.Tensor):
                            storages[data.untyped_storage().data_ptr()] = data.untyped_storage().nbytes()
        return sum(size for pointer, size in storages.items() if pointer not in own)

    stored = saved_numbers(8, TwoStream) - saved_numbers(4, TwoStream)
    rebuilt = saved_numbers(8, RebuiltTwoStream) - saved_numbers(4, RebuiltTwoStream)
    assert stored > 100_000 and rebuilt <= 0.05 * stored


@variants
def test_bfloat16_autocast_keeps_the_residual_streams_in_float32(overrides):
    model = make_model(**overrides, dtype=torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pixels(model.config, dtype=torch.float32), output_hidden_states=True)
    assert all(state.dtype == torch.float32 for state in output.hidden_states)
    output.last_hidden_state.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@variants
def test_autocast_leaves_float64_alone(overrides):
    model = make_model(**overrides)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(pixels(model.config)).last_hidden_state.dtype == torch.float64


def test_whole_model_in_bfloat16():
    model = make_model(dtype=torch.bfloat16, position_embedding="learned")
    output = model(pixels(model.config, dtype=torch.float32, extra_patches=1))
    assert output.last_hidden_state.dtype == torch.bfloat16 and output.last_hidden_state.isfinite().all()


@variants
def test_initial_weights_are_complete_also_from_the_meta_device(overrides, tmp_path):
    config = make_config(**{"initializer_range": 0.02, **overrides})
    torch.manual_seed(0)
    model = AxialModel(config)
    model.save_pretrained(tmp_path)
    weights = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if "layers.0" in name}
    # Loading builds on the meta device; what the file lacks must be initialised, not left as it happens to be.
    reloaded = AxialModel.from_pretrained(None, config=config, state_dict=kept)
    for name, tensor in reloaded.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name])
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        elif "layer_scale" in name:
            assert (tensor == 0.7).all(), name
        else:
            assert 0.01 < tensor.std() < 0.03 and tensor.mean().abs() < 0.01, name


@variants
def test_saved_and_loaded_is_the_same(overrides, tmp_path):
    model = make_model(**overrides, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    inputs = pixels(model.config, dtype=torch.float32)
    expected = model(inputs).last_hidden_state
    for loaded in (AxialModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert torch.equal(loaded(inputs).last_hidden_state, expected)


BAD_PIXELS = {
    "missing batch": (torch.zeros(2, 10, 9), "2 axes"),
    "a clip for an image model": (torch.zeros(1, 2, 4, 10, 9), "2 axes"),
    "channels": (torch.zeros(1, 3, 10, 9), "num_channels=2"),
    "channels last": (torch.zeros(1, 10, 9, 2), "num_channels=2"),
    "uint8": (torch.zeros(1, 2, 10, 9, dtype=torch.uint8), "floating point, got torch.uint8"),
    "boolean": (torch.zeros(1, 2, 10, 9, dtype=torch.bool), "floating point, got torch.bool"),
    "complex": (torch.zeros(1, 2, 10, 9, dtype=torch.complex64), "floating point, got torch.complex64"),
    "indivisible height": (torch.zeros(1, 2, 11, 9), "11 pixels along axis 0"),
    "indivisible width": (torch.zeros(1, 2, 10, 10), "10 pixels along axis 1"),
    "no pixels": (torch.zeros(1, 2, 10, 0), "0 pixels along axis 1"),
}


@pytest.mark.parametrize("pixel_values, message", BAD_PIXELS.values(), ids=BAD_PIXELS)
def test_bad_pixels_are_refused(pixel_values, message):
    with pytest.raises(ValueError, match=message):
        make_model()(pixel_values)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (3, 5, 3), (2, 5, 3, 1)], ids=str)
def test_bad_masks_are_refused(shape):
    model = make_model()
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(pixels(model.config), attention_mask=torch.ones(shape, dtype=torch.bool))


def test_masks_of_numbers_are_those_of_ones():
    model = make_model().eval()
    pixel_values = pixels(model.config)
    grid = model(pixel_values).last_hidden_state.shape[:-1]
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = model(pixel_values, attention_mask=mask).last_hidden_state
    for dtype in (torch.long, torch.float32):
        assert torch.equal(model(pixel_values, attention_mask=mask.to(dtype)).last_hidden_state, expected)


def test_unknown_arguments_of_from_pretrained_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="hiden_size"):
        AxialModel.from_pretrained(tmp_path, hiden_size=9)


@pytest.mark.slow
@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("num_axes", [2, *(pytest.param(axes, marks=pytest.mark.audit) for axes in (1, 3))])
def test_compiled_equals_eager(num_axes, reversible):
    torch.compiler.reset()  # all cases share one code object, and so one limit of recompilations
    model = make_model(num_axes, reversible=reversible, dtype=torch.float32, num_hidden_layers=1)
    inputs = pixels(model.config, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(inputs).last_hidden_state, model(inputs).last_hidden_state)
    gradients = []
    for run in (model.train(), compiled):
        model.zero_grad()
        run(inputs).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.audit
@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("attention_mode", ["split", "alternating"])
def test_compiled_updates_equal_eager_ones(attention_mode, reversible):
    torch.compiler.reset()
    options = {"use_qk_norm": True, "layer_scale_init_value": 0.7, "drop_path_rate": 0.5}
    model = make_model(attention_mode=attention_mode, reversible=reversible, dtype=torch.float32, **options)
    inputs = pixels(model.config, batch=5, dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for training in (False, True):
        for run in (model.train(training), compiled):
            torch.manual_seed(2)
            model.zero_grad()
            run(inputs).last_hidden_state.square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, ours in (gradients[:2], gradients[2:]):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)
    assert not torch.equal(gradients[0][-1], gradients[2][-1])


@pytest.mark.parametrize("num_axes", [2, *(pytest.param(axes, marks=pytest.mark.audit) for axes in (1, 3, 4))])
def test_exported_equals_eager_at_other_sizes(num_axes):
    overrides = {
        1: {"position_embedding": "learned+relative", "periodic": True},
        2: {"attention_mode": "alternating", "use_qk_norm": True, "layer_scale_init_value": 0.7, "drop_path_rate": 0.5},
        3: {"attention_mode": "split", "position_embedding": "rotary"},
        4: {"attention_window": 1, "position_embedding": "relative"},
    }
    model = make_model(num_axes, dtype=torch.float32, **overrides[num_axes])
    batch = torch.export.Dim("batch", min=1, max=64)
    patches = [torch.export.Dim(f"patches_{axis}", min=1, max=64) for axis in range(num_axes)]
    sizes = [side * count for side, count in zip(model.config.patch_shape, patches, strict=True)]
    program = torch.export.export(
        model,
        (pixels(model.config, dtype=torch.float32, extra_patches=1),),
        dynamic_shapes={"pixel_values": {0: batch, **{2 + axis: size for axis, size in enumerate(sizes)}}},
    )
    for extra in (1, 3):  # an exported graph distinguishes axes of length 1, so none is
        inputs = pixels(model.config, batch=3, dtype=torch.float32, extra_patches=extra)
        ours = program.module()(inputs).last_hidden_state
        torch.testing.assert_close(ours, model(inputs).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_dropout_of_every_attention():
    seen = []

    def backend(module, *args, **kwargs):
        seen.append(kwargs["dropout"])
        return eager_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("recording_dropout", backend)
    model = make_model(attention_probs_dropout_prob=0.25, num_inducing_points=[None, 3], pooling="attention")
    model.set_attn_implementation("recording_dropout")
    for training, dropout in ((True, 0.25), (False, 0.0)):
        seen.clear()
        model.train(training)(pixels(model.config))
        # In each of two layers a full axis and the two attentions of an induced one, then the pooling.
        assert seen == [dropout] * (2 * 3 + 1)


@pytest.mark.parametrize("overrides", [{}, {"reversible": True, "attention_mode": "sum"}], ids=str)
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_queries_and_keys_of_every_axis_are_turned_by_their_positions(num_axes, overrides):
    model, calls = make_model(num_axes, position_embedding="rotary", **overrides), []
    axes = [attention for layer in model.layers for attention in layer.attention.axes]
    for attention in axes:
        attention.core.register_forward_hook(lambda core, inputs, output: calls.append(inputs[:2]))
        for projection in (attention.q_proj, attention.k_proj):
            projection.register_forward_hook(lambda module, inputs, output: calls.append(output))
    model(pixels(model.config))
    for number, attention in enumerate(axes):
        *projected, turned = calls[3 * number : 3 * number + 3]
        for states, ours in zip(projected, turned, strict=True):
            first, second = states.unflatten(-1, (2, 4)).movedim(attention.axis + 1, 1).chunk(2, dim=-1)
            for position in range(first.shape[1]):
                angles = position * 10000.0 ** -torch.tensor([0, 2 / 4], dtype=torch.float64)
                line = ours.movedim(attention.axis + 1, 1)[:, position]
                expected = torch.complex(first[:, position], second[:, position]) * torch.exp(1j * angles)
                torch.testing.assert_close(
                    line, torch.cat((expected.real, expected.imag), dim=-1), rtol=1e-12, atol=1e-12
                )


# ---- positions from outside ----

kinds = pytest.mark.parametrize("position_embedding", ["learned", "rotary", "relative", "learned+rotary+relative"])


def counted(grid, start=0.0):
    return [torch.arange(length, dtype=torch.float64) + start for length in grid]


@kinds
def test_positions_count_from_zero_by_default(position_embedding):
    model = make_model(position_embedding=position_embedding)
    given = model(pixels(model.config), position_ids=counted([5, 3])).last_hidden_state
    torch.testing.assert_close(given, model(pixels(model.config)).last_hidden_state, rtol=1e-13, atol=1e-13)
    stretched = [1.5 * cells for cells in counted([5, 3])]
    other = model(pixels(model.config), position_ids=stretched).last_hidden_state
    assert (other - given).abs().max() > 1e-2


@pytest.mark.parametrize("position_embedding", ["rotary", "relative", "rotary+relative"])
def test_only_distances_count(position_embedding):
    model = make_model(position_embedding=position_embedding)
    expected = model(pixels(model.config)).last_hidden_state
    moved = model(pixels(model.config), position_ids=counted([5, 3], start=7.25)).last_hidden_state
    torch.testing.assert_close(moved, expected, rtol=1e-11, atol=1e-11)


@kinds
def test_each_sample_has_its_own_positions(position_embedding):
    model = make_model(position_embedding=position_embedding)
    generator = torch.Generator().manual_seed(3)
    rows, columns = (4 * torch.rand(2, length, generator=generator, dtype=torch.float64) for length in (5, 3))
    both = model(pixels(model.config), position_ids=[rows, columns]).last_hidden_state
    for sample in range(2):
        one = slice(sample, sample + 1)
        alone = model(pixels(model.config)[one], position_ids=[rows[sample], columns[one]]).last_hidden_state
        torch.testing.assert_close(both[one], alone, rtol=1e-12, atol=1e-12)
    assert (
        both[0] - model(pixels(model.config), position_ids=[rows[1], columns]).last_hidden_state[0]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["sum", "sequential", "split", "alternating"])
@pytest.mark.parametrize("num_axes", [1, 2, 3, 4])
def test_relative_attention_written_out(num_axes, mode):
    model = make_model(num_axes, position_embedding="relative", attention_mode=mode)
    f, grid = model.layers[-1].attention, GRIDS[num_axes]
    generator = torch.Generator().manual_seed(5)
    hidden_states = torch.randn(2, *grid, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, *grid, generator=generator) < 0.8
    updates = []
    for attention in f.axes:
        axis = attention.axis
        x = f.norms[axis](hidden_states + sum(updates)) if mode == "sequential" else f.norm(hidden_states)
        query, key, value = (
            projection(x).unflatten(-1, (2, 4)) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        output = torch.zeros_like(query)
        table, length = attention.positions[0].table, grid[axis]
        lines = [states.movedim(axis + 1, -3).flatten(0, -4) for states in (query, key, value, output)]
        keep = mask.movedim(axis + 1, -1).flatten(0, -2)
        for line in range(len(keep)):
            for head, i in itertools.product(range(2), range(length)):
                keys = [j for j in range(length) if keep[line, j]]
                if keys:
                    scores = [
                        lines[0][line, i, head] @ lines[1][line, j, head] / 2 + table[i - j + length - 1, head]
                        for j in keys
                    ]
                    weights = torch.stack(scores).softmax(0)
                    lines[3][line, i, head] = weights @ lines[2][line, keys, head]
        moved = lines[3].view(*query.movedim(axis + 1, -3).shape).movedim(-3, axis + 1)
        updates.append(attention.o_proj(moved.flatten(-2)))
    torch.testing.assert_close(f(hidden_states, LayerContext(mask=mask)), sum(updates), rtol=1e-12, atol=1e-12)


@pytest.mark.audit
@pytest.mark.parametrize("position_embedding", ["learned+relative", "rotary"])
def test_positions_from_outside_in_compiled_and_exported_code(position_embedding):
    torch.compiler.reset()
    model = make_model(dtype=torch.float32, position_embedding=position_embedding, num_hidden_layers=1)
    pixel_values, position_ids = pixels(model.config, dtype=torch.float32), [torch.arange(5.0) * 0.7, torch.ones(2, 3)]
    expected = model(pixel_values, position_ids=position_ids).last_hidden_state
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values, position_ids=position_ids).last_hidden_state, expected)
    program = torch.export.export(model, (pixel_values,), {"position_ids": position_ids})
    torch.testing.assert_close(program.module()(pixel_values, position_ids=position_ids).last_hidden_state, expected)


@pytest.mark.parametrize("model_class", [AxialForImageClassification, AxialBackbone])
def test_heads_hand_positions_down(model_class):
    torch.manual_seed(0)
    model = model_class(make_config(num_labels=3)).double().eval()
    position_ids = [cells.flip(0) for cells in counted([5, 3])]
    seen = []
    model.axial.register_forward_hook(lambda *call: seen.append(call[2]["position_ids"]), with_kwargs=True)
    model(pixels(model.config), position_ids=position_ids)
    assert seen[0] is position_ids


# ---- periodic axes ----


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("feed_forward", ["mlp", "convolution"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"position_embedding": "none"},
        {"position_embedding": "rotary+relative"},
        {"position_embedding": "relative", "attention_window": [None, 2]},
        {"position_embedding": ["learned", "rotary"], "attention_mode": "sum", "attention_window": 1},
        {"position_embedding": ["relative", "none"], "num_inducing_points": [None, 3], "pooling": "attention"},
    ],
    ids=str,
)
def test_to_roll_the_input_along_a_periodic_axis_rolls_the_output(overrides, feed_forward, reversible):
    model = make_model(
        image_size=[10, 99], periodic=[False, True], feed_forward=feed_forward, reversible=reversible, **overrides
    )
    pixel_values = torch.randn(2, 2, 10, 99, dtype=torch.float64)
    mask = torch.rand(2, 5, 33) > 0.2
    for attention_mask in (None, mask):
        output = model(pixel_values, attention_mask=attention_mask)
        for cells in (1, 16, 32):
            rolled_mask = None if attention_mask is None else mask.roll(cells, 2)
            rolled = model(pixel_values.roll(3 * cells, 3), attention_mask=rolled_mask)
            expected = output.last_hidden_state.roll(cells, 2)
            torch.testing.assert_close(rolled.last_hidden_state, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(rolled.pooler_output, output.pooler_output, rtol=1e-12, atol=1e-12)
    ends = make_model(image_size=[10, 99], feed_forward=feed_forward, reversible=reversible, **overrides)
    if overrides["position_embedding"] != "none" and "num_inducing_points" not in overrides:
        output, rolled = (ends(each).last_hidden_state for each in (pixel_values, pixel_values.roll(3, 3)))
        assert (rolled - output.roll(1, 2)).abs().max() > 1e-3


def test_a_part_of_a_periodic_axis_has_ends():
    options = {"attention_window": 1, "feed_forward": "convolution", "num_hidden_layers": 1, "periodic": [False, True]}
    model = make_model(image_size=[2, 33], position_embedding="relative", **options)
    pixel_values = torch.randn(1, 2, 2, 33, dtype=torch.float64)
    whole = model(pixel_values).last_hidden_state
    cells = torch.arange(11.0)
    outputs = {}
    for first, last in ((0, 11), (0, 9), (2, 11)):
        position_ids = [torch.zeros(1), cells[first:last]]
        crop = pixel_values[..., 3 * first : 3 * last]
        outputs[first, last] = model(crop, position_ids=position_ids, position_period=[None, 11.0]).last_hidden_state
        agrees = (outputs[first, last] - whole[:, :, first:last]).abs().amax((0, 1, 3)) < 1e-12
        # Attention reads one cell, and the two convolutions two further ones.
        inner = [3 <= cell < last - first - 3 for cell in range(last - first)]
        assert agrees.tolist() == ([True] * 11 if last - first == 11 else inner)
    # Where a crop lies makes no difference to what it reads.
    again = model(pixel_values[..., :27], position_ids=[torch.zeros(1), cells[2:]], position_period=[None, 11.0])
    torch.testing.assert_close(again.last_hidden_state, outputs[0, 9], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("position_embedding", ["none", "rotary"])
def test_a_part_of_a_periodic_axis_is_a_grid_with_ends(position_embedding, reversible):
    """Convolutions, too, read zeros beyond the ends of a part, as on an axis that is not periodic."""
    options = {"feed_forward": "convolution", "reversible": reversible, "position_embedding": position_embedding}
    circle, line = (make_model(image_size=[10, 33], periodic=periodic, **options) for periodic in ([True, True], False))
    line.load_state_dict(circle.state_dict())
    pixel_values = torch.randn(2, 2, 10, 27, dtype=torch.float64)
    position_ids = [torch.arange(5.0), torch.arange(9.0)]
    part = circle(pixel_values, position_ids=position_ids, position_period=[6.0, 11.0]).last_hidden_state
    if position_embedding == "none":
        torch.testing.assert_close(part, line(pixel_values).last_hidden_state, rtol=1e-12, atol=1e-12)
    closed = circle(pixel_values, position_ids=position_ids, position_period=[6.0, 9.0]).last_hidden_state
    assert ((part - closed).abs().amax((0, 1, 3)) > 1e-6).all()
    # The pixels of a last cell along an axis do not reach the first ones but by attention, which is off here.
    for layer in circle.layers:
        for mixer in layer.attention.axes:
            torch.nn.init.zeros_(mixer.o_proj.weight)
    changed = pixel_values.clone()
    changed[..., -3:] += 1
    for period, reaches in ((11.0, False), (9.0, True)):
        given = {"position_ids": position_ids, "position_period": [6.0, period]}
        before, after = (circle(pixels, **given).last_hidden_state for pixels in (pixel_values, changed))
        assert (not torch.equal(before[:, :, 0], after[:, :, 0])) == reaches


@pytest.mark.parametrize("model_class", [AxialForImageClassification, AxialBackbone])
def test_heads_hand_periods_down(model_class):
    torch.manual_seed(0)
    model = model_class(make_config(periodic=[False, True], position_embedding="rotary")).double().eval()
    pixel_values, position_ids = torch.randn(2, 2, 10, 9, dtype=torch.float64), [torch.arange(5.0), torch.arange(3.0)]
    whole, same, other = (
        model(pixel_values, **given)[0]
        for given in (
            {},
            {"position_ids": position_ids, "position_period": [None, 3]},
            {"position_ids": position_ids, "position_period": [None, 5]},
        )
    )
    whole, same, other = ((each[0] if isinstance(each, tuple) else each) for each in (whole, same, other))
    torch.testing.assert_close(same, whole, rtol=1e-12, atol=1e-12)
    assert (other - whole).abs().max() > 1e-4
    with pytest.raises(ValueError, match="position_period=None must have one entry"):
        model(pixel_values, position_ids=position_ids)


# ---- what else is known of each cell ----


@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
def test_added_embeddings_come_before_positions(position_embedding):
    model = make_model(position_embedding=position_embedding)
    inputs, mask = pixels(model.config), torch.arange(30).view(2, 5, 3) % 4 != 1
    generator = torch.Generator().manual_seed(4)
    added = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64)
    hidden = []
    model.embeddings.patch_embeddings.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    output = model(inputs, added_embeds=added, output_hidden_states=True)
    first = hidden[0] + added
    for name in model.embeddings.position_names:
        first = model.embeddings.get_submodule(name)(first)
    torch.testing.assert_close(output.hidden_states[0], first, rtol=1e-13, atol=1e-13)
    # What stands in masked cells has no effect.
    filled = added.masked_fill(~mask[..., None], torch.nan)
    masked = model(inputs, attention_mask=mask, added_embeds=filled)
    expected = model(inputs, attention_mask=mask, added_embeds=added)
    assert torch.equal(masked.last_hidden_state, expected.last_hidden_state)
    assert not torch.equal(masked.last_hidden_state, model(inputs, attention_mask=mask).last_hidden_state)
