import copy
import itertools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageToImage,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialImageProcessor,
    AxialModel,
    RebuiltTwoStream,
    TwoStream,
)
from modeling_axial.modeling_axial_dense import cut, pad_to_patches
from modeling_axial.testing import receptive_field

GRIDS = {1: [7], 2: [5, 3], 3: [2, 5, 3], 4: [2, 3, 5, 1]}
PATCHES = [2, 3, 4, 1]
MODELS = [AxialForSemanticSegmentation, AxialForDensePrediction, AxialForMaskedImageModeling]
model_classes = pytest.mark.parametrize("model_class", MODELS)
dense_heads = pytest.mark.parametrize("dense_head", ["linear", "pyramid"])


def make_config(num_axes=2, **overrides):
    options = {
        "image_size": [length * side for length, side in zip(GRIDS[num_axes], PATCHES, strict=False)],
        "patch_size": PATCHES[:num_axes],
        "num_channels": 2,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 3,
        "pyramid_size": 4,
        "initializer_range": 0.3,  # large enough that every part of the model shows in its output
    }
    return AxialConfig(**{**options, **overrides})


def make_model(model_class, num_axes=2, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    model = model_class(make_config(num_axes, **overrides)).eval().to(dtype)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 10  # biases, too
    return model


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_for(model, sizes, batch=2, seed=2):
    """Keywords that make the model compute a loss, for pictures of these sizes; some pixels do not count."""
    numbers = draw(batch, *sizes, seed=seed)
    if isinstance(model, AxialForSemanticSegmentation):
        return {"labels": ((numbers > 0).long() + (numbers > 0.8).long()).masked_fill(numbers < -1.5, 255)}
    if isinstance(model, AxialForDensePrediction):
        return {"labels": numbers.unsqueeze(1), "loss_mask": numbers.unsqueeze(1) > -1.5}
    grid = [math.ceil(size / side) for size, side in zip(sizes, model.config.patch_shape, strict=True)]
    return {"bool_masked_pos": draw(batch, *grid, seed=seed) > 0}


def pixels_of(output):
    """What a model says of each pixel."""
    return next(value for name, value in output.items() if name in ("logits", "prediction", "reconstruction"))


# ---- sizes ----


@pytest.mark.parametrize("num_axes", GRIDS)
@model_classes
def test_a_picture_of_any_size_is_that_padded_with_zeros(model_class, num_axes):
    for dense_head in ("linear", "pyramid")[: 1 if num_axes == 4 else 2]:
        model = make_model(model_class, num_axes, dense_head=dense_head)
        for sizes in ([9, 11, 5, 2], [1, 2, 7, 3], [4, 6, 8, 1]):
            sizes = sizes[:num_axes]
            picture = draw(2, 2, *sizes)
            whole_sizes = [math.ceil(size / side) * side for size, side in zip(sizes, PATCHES, strict=False)]
            whole = torch.zeros(2, 2, *whole_sizes, dtype=torch.float64)
            whole[(..., *map(slice, sizes))] = picture
            given = labels_for(model, sizes)
            hidden = {name: mask for name, mask in given.items() if name == "bool_masked_pos"}
            output = model(picture, **given)
            pixels = pixels_of(output)
            channels = {AxialForSemanticSegmentation: 3, AxialForDensePrediction: 1, AxialForMaskedImageModeling: 2}
            assert pixels.shape == (2, channels[model_class], *sizes) and output.loss.isfinite()
            expected = pixels_of(model(whole, **hidden))[(..., *map(slice, sizes))]
            torch.testing.assert_close(pixels, expected, rtol=1e-13, atol=1e-13)


def test_padding_and_cutting():
    picture = draw(2, 3, 5, 8)
    padded = pad_to_patches(picture, (3, 4))
    assert padded.shape == (2, 3, 6, 8) and torch.equal(padded[:, :, :5], picture) and not padded[:, :, 5:].any()
    assert torch.equal(cut(padded, (5, 8)), picture)
    assert torch.equal(pad_to_patches(picture, (5, 2)), picture)


# ---- masks ----

COMBINATIONS = [
    {},
    {"position_embedding": "rotary", "feed_forward": "gated_mlp", "reversible": True},
    {"position_embedding": "learned+relative", "feed_forward": "convolution", "attention_mode": "sum"},
    {"position_embedding": "none", "num_inducing_points": 3, "pooling": "attention"},
]


def boxes_of(model, index, num_axes):
    """Of each picture of a padded batch: its cells, its whole patches and its pixels, which end inside of a patch.

    A picture whose hidden patches are to be made up ends with one, as what lies behind its end would count otherwise.
    """
    starts, lengths = ([0, 0, 2], [4, 5, 3]) if index == 0 else ([1, 0, 2], [6, 2, 2])
    short = 0 if isinstance(model, AxialForMaskedImageModeling) else 1
    boxes = [], [], []
    for start, length, side in list(zip(starts, lengths, PATCHES, strict=False))[:num_axes]:
        first, end = start * side, (start + length) * side
        boxes[0].append(slice(start, start + length))
        boxes[1].append(slice(first, end))
        boxes[2].append(slice(first, end - short * (side > 1)))
    return boxes


def how_many_count(given, patch_shape):
    """Numbers that count in the loss of one picture."""
    if "bool_masked_pos" in given:
        return given["bool_masked_pos"].sum() * math.prod(patch_shape)
    return given["loss_mask"].sum() if "loss_mask" in given else (given["labels"] != 255).sum()


@pytest.mark.parametrize("overrides", COMBINATIONS, ids=lambda overrides: "-".join(map(str, overrides.values())))
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@dense_heads
@model_classes
def test_a_padded_picture_gives_what_it_gives_alone(model_class, dense_head, num_axes, overrides):
    """Two pictures of different sizes in one batch: zeros to the end of their last patches, NaN behind them."""
    model = make_model(model_class, num_axes, dense_head=dense_head, **overrides).train()
    padded = torch.full((2, 2, *(7 * side for side in model.config.patch_shape)), torch.nan, dtype=torch.float64)
    mask = torch.zeros(2, *[7] * num_axes, dtype=torch.bool)
    there = torch.zeros_like(padded, dtype=torch.bool)
    in_batch = labels_for(model, padded.shape[2:])  # whatever they say outside of the pictures
    pictures, alone, pixel_boxes = [], [], []
    for index in range(2):
        cells, whole, pixels = boxes_of(model, index, num_axes)
        pictures.append(draw(1, 2, *(at.stop - at.start for at in pixels), seed=index))
        padded[(index, slice(None), *whole)] = 0
        padded[(index, slice(None), *pixels)] = pictures[-1][0]
        mask[(index, *cells)] = there[(index, slice(None), *whole)] = True
        pixel_boxes.append((index, slice(None), *pixels))
        if "labels" in in_batch:  # the ends of patches that are no part of a picture
            behind = torch.ones(padded.shape[2:], dtype=torch.bool)
            behind[tuple(pixels)] = False
            in_batch["labels"][index][..., behind] = 255 if model_class is AxialForSemanticSegmentation else torch.nan
            if "loss_mask" in in_batch:
                in_batch["loss_mask"][index][..., behind] = False
        box = cells if "bool_masked_pos" in in_batch else pixels
        alone.append({name: tensor[index : index + 1][(..., *box)] for name, tensor in in_batch.items()})
    padded.requires_grad_()
    output = model(padded, attention_mask=mask, **in_batch)
    outputs = [model(picture, **given) for picture, given in zip(pictures, alone, strict=True)]
    for box, expected in zip(pixel_boxes, outputs, strict=True):
        torch.testing.assert_close(pixels_of(output)[box], pixels_of(expected)[0], rtol=1e-12, atol=1e-12)
    # The loss of both is the mean over what counts in either.
    counts = [how_many_count(given, model.config.patch_shape) for given in alone]
    expected = sum(count * own.loss for count, own in zip(counts, outputs, strict=True)) / sum(counts)
    assert min(counts) > 0
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
    # So are the gradients, and nothing reaches what is masked.
    parameters = list(model.parameters())
    of_padded, *found = torch.autograd.grad(output.loss, [padded, *parameters])
    gradients = torch.autograd.grad(expected, parameters)
    scale = max(gradient.abs().max() for gradient in gradients)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-11)
    assert not of_padded[~there].any() and of_padded[there].any()


@dense_heads
@model_classes
def test_labels_of_masked_cells_do_not_count(model_class, dense_head):
    model, sizes = make_model(model_class, dense_head=dense_head), (10, 9)
    mask = torch.arange(30).view(2, 5, 3) % 4 != 1
    given, picture = labels_for(model, sizes), draw(2, 2, *sizes)
    expected = model(picture, attention_mask=mask, **given).loss
    of_pixels = mask.repeat_interleave(2, 1).repeat_interleave(3, 2)
    changed = {}
    for name, tensor in given.items():
        keep = mask if name == "bool_masked_pos" else of_pixels.view(2, *[1] * (tensor.dim() - 3), *sizes)
        changed[name] = tensor.where(keep, {"labels": 1, "loss_mask": True}.get(name, True))
        assert not torch.equal(changed[name], tensor)
    assert torch.equal(model(picture, attention_mask=mask, **changed).loss, expected)
    assert not torch.equal(model(picture, **given).loss, expected)


# ---- losses ----


def test_segmentation_loss_is_the_cross_entropy():
    model, picture = make_model(AxialForSemanticSegmentation), draw(2, 2, 7, 8)
    labels = labels_for(model, (7, 8))["labels"]
    output = model(picture, labels=labels)
    counts = (labels != 255).nonzero().tolist()
    scores = output.logits.log_softmax(1)
    expected = -sum(scores[sample, labels[sample, y, x], y, x] for sample, y, x in counts) / len(counts)
    torch.testing.assert_close(output.loss, expected, rtol=1e-13, atol=0)
    weighted = make_model(AxialForSemanticSegmentation, class_weights=[1, 2, 3], dice_loss_weight=0.5)
    assert not torch.equal(weighted(picture, labels=labels).loss, output.loss)
    shared = model(picture, labels=labels, num_items_in_batch=2 * labels.numel())
    torch.testing.assert_close(2 * shared.loss, output.loss, rtol=1e-13, atol=0)


def test_prediction_loss_is_the_squared_error():
    model, picture = make_model(AxialForDensePrediction, num_target_channels=3), draw(2, 2, 7, 8)
    labels, latitudes = draw(2, 3, 7, 8, seed=4), draw(1, 1, 7, 1, seed=5).square()
    output = model(picture, labels=labels, loss_weights=latitudes)
    errors = (output.prediction - labels).square().mean((0, 1, 3))
    weights = latitudes.flatten()
    torch.testing.assert_close(output.loss, (errors * weights).sum() / weights.sum(), rtol=1e-13, atol=0)
    assert output.reconstruction is output.prediction and "reconstruction" not in output
    shared = model(picture, labels=labels, loss_weights=latitudes, num_items_in_batch=2 * labels.numel())
    torch.testing.assert_close(2 * shared.loss, output.loss, rtol=1e-13, atol=0)


def test_quantiles_have_a_dim_of_their_own():
    model = make_model(AxialForDensePrediction, num_target_channels=3, prediction_loss="quantile", quantiles=[0.2, 0.7])
    output = model(draw(2, 2, 7, 8), labels=draw(2, 3, 7, 8))
    assert output.prediction.shape == (2, 3, 2, 7, 8) and output.loss.isfinite()


@model_classes
def test_without_labels_no_loss(model_class):
    output = make_model(model_class)(draw(2, 2, 7, 8))
    assert output.loss is None and pixels_of(output).shape[-2:] == (7, 8)


# ---- hidden patches ----


@dense_heads
def test_what_is_hidden_is_not_seen(dense_head):
    model, picture = make_model(AxialForMaskedImageModeling, dense_head=dense_head), draw(2, 2, 9, 8)
    hidden = draw(2, 5, 3, seed=3) > 0
    of_pixels = hidden.repeat_interleave(2, 1).repeat_interleave(3, 2)[:, None, :9, :8].expand_as(picture)
    picture.requires_grad_()
    output = model(picture, bool_masked_pos=hidden)
    errors = (output.reconstruction - picture).abs()[of_pixels]
    torch.testing.assert_close(output.loss, errors.mean(), rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(output.reconstruction.square().sum(), picture)
    assert not gradient[of_pixels].any() and gradient[~of_pixels].all()
    other = torch.where(of_pixels, 7.0, picture)
    assert torch.equal(model(other, bool_masked_pos=hidden).reconstruction, output.reconstruction)
    # Zeros in their place are not the same: the model knows what is hidden.
    zeros = model(picture.masked_fill(of_pixels, 0)).reconstruction
    assert (zeros - output.reconstruction).abs().max() > 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_a_pyramid_takes_hidden_patches_for_missing_ones(masked, monkeypatch):
    """Not for patches of zeros, which a picture may have."""
    model, hidden = make_model(AxialForMaskedImageModeling, dense_head="pyramid"), draw(2, 5, 3, seed=3) > 0
    mask, seen, before_trunk = torch.arange(30).view(2, 5, 3) % 4 != 1, [], model.dense_head.before_trunk
    monkeypatch.setattr(
        model.dense_head, "before_trunk", lambda *given: seen.append(given[1].mask) or before_trunk(*given)
    )
    model(draw(2, 2, 9, 8), bool_masked_pos=hidden, attention_mask=mask if masked else None)
    assert torch.equal(seen[0], mask & ~hidden if masked else ~hidden)


def test_hidden_patches_in_every_form():
    model, picture, hidden = make_model(AxialForMaskedImageModeling), draw(2, 2, 10, 9), draw(2, 5, 3, seed=3) > 0
    expected = model(picture, bool_masked_pos=hidden)
    for form in (hidden.long(), hidden.double(), hidden.flatten(1), hidden.flatten(1).long()):
        output = model(picture, bool_masked_pos=form)
        assert torch.equal(output.loss, expected.loss) and torch.equal(output.reconstruction, expected.reconstruction)
    none = model(picture, bool_masked_pos=torch.zeros_like(hidden))
    assert none.loss.item() == 0 and torch.equal(none.reconstruction, model(picture).reconstruction)
    for shape in ((5, 3), (1, 5, 3), (2, 3, 5), (2, 14), (2, 10, 9)):
        with pytest.raises(
            ValueError, match=r"bool_masked_pos has shape .* \(2, 5, 3\), or \(batch, patches\) \(2, 15\)"
        ):
            model(picture, bool_masked_pos=torch.ones(shape))
    with pytest.raises(ValueError, match="bool_masked_pos must be boolean"):
        model(picture, bool_masked_pos=torch.full((2, 5, 3), 0.3))


# ---- refusals ----


@dense_heads
@model_classes
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(2, 10, 9), "2 axes"),
        (torch.zeros(1, 3, 10, 9), "num_channels=2"),
        (torch.zeros(1, 2, 10, 9, dtype=torch.uint8), "floating point"),
        (torch.zeros(1, 2, 0, 9), "0 pixels along axis 0"),
    ],
)
def test_bad_pixels_are_refused(model_class, dense_head, picture, message):
    with pytest.raises(ValueError, match=message):
        make_model(model_class, dense_head=dense_head)(picture)


@model_classes
def test_masks_of_other_grids_are_refused(model_class):
    with pytest.raises(ValueError, match=r"must broadcast to \(batch, \*grid\) \(2, 4, 3\)"):
        make_model(model_class)(draw(2, 2, 7, 8), attention_mask=torch.ones(2, 3, 3))


@pytest.mark.parametrize("num_labels", [0, 1])
def test_one_class_is_no_segmentation(num_labels):
    with pytest.raises(ValueError, match=f"num_labels of at least 2, got {num_labels}"):
        AxialForSemanticSegmentation(make_config(num_labels=num_labels))


# ---- weights ----


@dense_heads
@model_classes
def test_every_parameter_gets_a_gradient(model_class, dense_head):
    model = make_model(model_class, dense_head=dense_head, pooling="attention").train()
    model(draw(2, 2, 7, 8), **labels_for(model, (7, 8))).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [
        name for name, parameter in model.named_parameters() if not parameter.grad.any() and "k_proj" not in name
    ]


@pytest.mark.parametrize("dense_head", ["linear", "pyramid"])
def test_names_of_the_state_dict(dense_head):
    model = make_model(AxialForMaskedImageModeling, dense_head=dense_head)
    names = {name for name in model.state_dict() if not name.startswith("axial.")}
    parts = ["pixel_decoder"]
    if dense_head == "pyramid":
        between = ["full_to_half", "half_to_tokens", "tokens_to_half", "half_to_full", "norm", "stem.convolution"]
        blocks = ["full_before", "half_before", "half_after", "full_after"]
        inside = ["norm", "conv1.convolution", "conv2.convolution"]
        parts += [f"dense_head.{part}" for part in between]
        parts += [f"dense_head.{block}.{part}" for block, part in itertools.product(blocks, inside)]
    assert names == {"mask_token.token", *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias"))}
    assert {
        name for name in make_model(AxialForSemanticSegmentation).state_dict() if not name.startswith("axial.")
    } == {
        "pixel_classifier.weight",
        "pixel_classifier.bias",
    }
    assert "pixel_predictor.weight" in make_model(AxialForDensePrediction).state_dict()


AUTO_CLASSES = dict(
    zip(
        MODELS,
        [AutoModelForSemanticSegmentation, AutoModelForImageToImage, AutoModelForMaskedImageModeling],
        strict=True,
    )
)


@dense_heads
@model_classes
def test_opens_by_its_head_by_the_trunk_and_as_a_backbone(model_class, dense_head, tmp_path):
    model = make_model(model_class, dense_head=dense_head, dtype=torch.float32, pooling="attention")
    model.save_pretrained(tmp_path)
    picture = draw(2, 2, 10, 9, dtype=torch.float32)
    head, info = AUTO_CLASSES[model_class].from_pretrained(tmp_path, output_loading_info=True)
    assert type(head) is model_class and not any(info.values())
    assert torch.equal(pixels_of(head(picture)), pixels_of(model(picture)))
    trunk = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(trunk(picture).last_hidden_state, model.axial(picture).last_hidden_state)
    backbone, info = AxialBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(backbone(picture).feature_maps[0].movedim(1, -1), model.axial(picture).last_hidden_state)


@pytest.mark.parametrize("saved_by", [AxialModel, AxialForImageClassification, AxialForMaskedImageModeling])
@dense_heads
def test_what_was_trained_before_is_taken_along(dense_head, saved_by, tmp_path):
    """All but what makes the numbers: a pyramid, too, goes from hidden patches to segmentation."""
    saved = make_model(saved_by, dtype=torch.float32, dense_head=dense_head, pooling="attention", num_channels=3)
    saved.save_pretrained(tmp_path)
    model, info = AxialForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    new = ("pixel_classifier.",) if saved_by is AxialForMaskedImageModeling else ("pixel_classifier.", "dense_head.")
    assert info["missing_keys"] and all(name.startswith(new) for name in info["missing_keys"])
    before = saved.state_dict() if saved_by is not AxialModel else saved.state_dict(prefix="axial.")
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in info["missing_keys"]}
    assert kept and all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    assert model(draw(2, 3, 7, 8, dtype=torch.float32)).logits.isfinite().all()


@dense_heads
def test_initial_weights(dense_head):
    """Of `initializer_range`, but for a pyramid, through which a picture must keep its size."""
    torch.manual_seed(0)
    options = {"dense_head": dense_head, "hidden_size": 64, "pyramid_size": 16, "initializer_range": 0.02}
    model = AxialForMaskedImageModeling(make_config(**options))
    for name, parameter in model.named_parameters():
        if name.startswith("axial."):
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            unit = name.startswith("dense_head.") and "half_to_tokens" not in name
            expected = parameter[0].numel() ** -0.5 if unit else 0.02
            assert 0.7 * expected < parameter.std() < 1.3 * expected, name
    loaded = AxialForMaskedImageModeling.from_pretrained(None, config=model.config, state_dict={})
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert ours.std(correction=0) == theirs.std(correction=0) or 0.7 < ours.std() / theirs.std() < 1.4


# ---- everything that holds for the trunk ----


@dense_heads
@model_classes
def test_states_maps_and_positions_are_those_of_the_trunk(model_class, dense_head):
    model, picture = make_model(model_class, dense_head=dense_head), draw(2, 2, 10, 9)
    asked, seen = {"output_hidden_states": True, "output_attentions": True}, []
    model.axial.register_forward_hook(lambda *call: seen.append(call[2:]), with_kwargs=True)
    position_ids = [torch.arange(5.0).double() + 1.5, torch.arange(3.0).double() * 2]
    output = model(picture, position_ids=position_ids, **asked)
    ((keywords, of_trunk),) = seen
    assert keywords["position_ids"] is position_ids
    assert len(output.hidden_states) == 3 and len(output.attentions) == 4
    assert all(map(torch.equal, output.hidden_states, of_trunk.hidden_states))
    assert (pixels_of(output) - pixels_of(model(picture))).abs().max() > 1e-3


@dense_heads
@model_classes
def test_rebuilt_activations_give_the_numbers_of_stored_ones(model_class, dense_head):
    model = make_model(model_class, dense_head=dense_head, reversible=True, hidden_dropout_prob=0.1).train()
    assert model.axial.executor_class is RebuiltTwoStream
    results = []
    for executor_class in (RebuiltTwoStream, TwoStream):
        twin = copy.deepcopy(model)
        twin.axial.executor_class = executor_class
        torch.manual_seed(3)
        output = twin(draw(2, 2, 7, 8), **labels_for(model, (7, 8)))
        output.loss.backward()
        results.append([pixels_of(output), *(parameter.grad for parameter in twin.parameters())])
    for rebuilt, stored in zip(*results, strict=True):
        torch.testing.assert_close(rebuilt, stored, rtol=1e-10, atol=1e-10)


@dense_heads
@model_classes
def test_bfloat16_autocast(model_class, dense_head):
    model = make_model(model_class, dense_head=dense_head, dtype=torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(draw(2, 2, 7, 8, dtype=torch.float32), **labels_for(model, (7, 8)), output_hidden_states=True)
    assert all(state.dtype == torch.float32 for state in output.hidden_states) and output.loss.dtype != torch.bfloat16
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@dense_heads
@model_classes
def test_adapters_train_beside_a_new_head(model_class, dense_head):
    model = make_model(model_class, dense_head=dense_head, dtype=torch.float32)
    picture, given = draw(2, 2, 7, 8, dtype=torch.float32), labels_for(model, (7, 8))
    expected = pixels_of(model(picture, **given))
    modules = [name for name, _ in model.named_children() if name != "axial"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=modules))
    output = adapted(pixel_values=picture, **given)
    torch.testing.assert_close(pixels_of(output), expected)
    output.loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)


@pytest.mark.parametrize("dense_head", ["linear", pytest.param("pyramid", marks=pytest.mark.audit)])
@model_classes
def test_graph_is_whole(model_class, dense_head):
    model = make_model(model_class, dense_head=dense_head, dtype=torch.float32, num_hidden_layers=1).train()
    picture, given = draw(2, 2, 7, 8, dtype=torch.float32), labels_for(model, (7, 8))
    given["attention_mask"] = torch.arange(24).view(2, 4, 3) % 5 != 1
    torch.compiler.reset()
    output = torch.compile(model, backend="eager", fullgraph=True)(picture, **given)
    expected = model(picture, **given)
    torch.testing.assert_close(pixels_of(output), pixels_of(expected))
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.audit
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@dense_heads
@model_classes
def test_compiled_equals_eager(model_class, dense_head, num_axes):
    torch.compiler.reset()
    model = make_model(model_class, num_axes, dense_head=dense_head, dtype=torch.float32, num_hidden_layers=1).train()
    sizes = [9, 11, 5][:num_axes]
    picture, given = draw(2, 2, *sizes, dtype=torch.float32), labels_for(model, sizes)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(picture, **given).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def exported(model, picture, whole):
    """A program for any batch and size, or for those of whole patches alone."""
    batch, sizes = torch.export.Dim("batch", min=1, max=64), {}
    for axis, side in enumerate(model.config.patch_shape):
        # An exported graph distinguishes axes of one cell.
        cells = torch.export.Dim(f"cells_{axis}", min=2, max=64)
        sizes[2 + axis] = side * cells if whole else torch.export.Dim(f"pixels_{axis}", min=side + 1, max=64)
    # Of any size the compiler cannot prove that whole patches are at least as large, and is told to look each time.
    return torch.export.export(
        model,
        (picture,),
        dynamic_shapes={"pixel_values": {0: batch, **sizes}},
        prefer_deferred_runtime_asserts_over_guards=not whole,
    )


@pytest.mark.parametrize(
    "whole", [pytest.param(True, marks=pytest.mark.audit, id="whole patches"), pytest.param(False, id="any size")]
)
@pytest.mark.parametrize("num_axes", [1, *(pytest.param(axes, marks=pytest.mark.audit) for axes in (2, 3))])
@dense_heads
@model_classes
def test_exported_equals_eager_at_other_sizes(model_class, dense_head, num_axes, whole):
    model = make_model(model_class, num_axes, dense_head=dense_head, dtype=torch.float32)
    cells = [4, 5, 3][:num_axes]
    native = [count * side for count, side in zip(cells, PATCHES, strict=False)]
    program = exported(model, draw(2, 2, *native, dtype=torch.float32), whole).module()
    for extra in (1, 3):
        # Of any size: whole patches, too.
        short = 0 if whole or extra == 1 else 1
        sizes = [(count + extra) * side - short for count, side in zip(cells, PATCHES, strict=False)]
        picture = draw(3, 2, *sizes, dtype=torch.float32)
        torch.testing.assert_close(pixels_of(program(picture)), pixels_of(model(picture)), rtol=1e-4, atol=1e-4)


def compare_onnx(model, tmp_path, masked=False):
    """Exported to ONNX and run there against the model, at two sizes; `masked`: with lines without any cell."""
    batch = torch.export.Dim("batch", min=1, max=64)
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))

    def inputs(count, rows, columns):
        pixels = {"pixel_values": draw(count, 2, 2 * rows, 3 * columns, dtype=torch.float32)}
        if not masked:
            return pixels
        mask = torch.ones(count, rows, columns, dtype=torch.bool)
        mask[0, 1] = mask[1, :, -1] = mask[1, 0, 0] = False
        return pixels | {"attention_mask": mask}

    shapes = {"pixel_values": {0: batch, 2: 2 * rows, 3: 3 * columns}}
    if masked:
        shapes["attention_mask"] = {0: batch, 1: rows, 2: columns}
    torch.onnx.export(
        model,
        (),
        tmp_path / "model.onnx",
        kwargs=inputs(2, 5, 3),
        dynamo=True,
        external_data=False,
        input_names=list(shapes),
        output_names=["pixels"],
        dynamic_shapes=shapes,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for sizes in ((5, 3), (7, 2)):
        batch = inputs(3, *sizes)
        (pixels,) = session.run(["pixels"], {name: values.numpy() for name, values in batch.items()})
        torch.testing.assert_close(torch.from_numpy(pixels), pixels_of(model(**batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.audit
@dense_heads
@model_classes
def test_onnx_equals_eager_at_other_sizes(model_class, dense_head, tmp_path):
    compare_onnx(make_model(model_class, dense_head=dense_head, dtype=torch.float32), tmp_path)


@pytest.mark.audit
@pytest.mark.parametrize(
    "options",
    [
        {"position_embedding": "learned+relative", "attention_mode": "split"},
        {"position_embedding": "rotary+relative", "periodic": [True, False], "attention_window": [None, 1]},
        {"position_embedding": "rotary", "periodic": [True, False], "attention_window": [2, 1]},
    ],
    ids=str,
)
def test_onnx_of_biased_scores_and_windows(options, tmp_path):
    compare_onnx(make_model(AxialForDensePrediction, dense_head="linear", dtype=torch.float32, **options), tmp_path)


@pytest.mark.audit
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_embedding": "learned+relative"},
        {"attention_window": 1},
        {"num_inducing_points": 2},
    ],
    ids=str,
)
def test_onnx_of_lines_without_cells(options, tmp_path):
    """Their queries get zeros there, too, where ONNX's own attention would give the mean of all values."""
    model = make_model(AxialForDensePrediction, dense_head="linear", dtype=torch.float32, **options)
    compare_onnx(model, tmp_path, masked=True)


# ---- periodic axes ----


@dense_heads
@model_classes
def test_to_roll_a_picture_along_a_periodic_axis_rolls_what_is_said_of_it(model_class, dense_head):
    options = {"patch_size": [2, 4], "image_size": [10, 28], "position_embedding": ["learned", "relative"]}
    model = make_model(model_class, dense_head=dense_head, periodic=[False, True], **options)
    pixel_values, mask = draw(2, 2, 9, 28), draw(2, 5, 7, seed=3) > -0.7
    for step in (1, 3):
        output = pixels_of(model(pixel_values, attention_mask=mask))
        rolled = pixels_of(model(pixel_values.roll(4 * step, 3), attention_mask=mask.roll(step, 2)))
        torch.testing.assert_close(rolled, output.roll(4 * step, -1), rtol=1e-12, atol=1e-12)
    # As a part of a larger circle it has ends.
    positions = [torch.arange(5.0), torch.arange(7.0)]
    whole = pixels_of(model(pixel_values, position_ids=positions, position_period=[None, 7]))
    part = pixels_of(model(pixel_values, position_ids=positions, position_period=[None, 8]))
    assert (whole - part).abs().max() > 1e-3
    assert ((whole - part).abs().amax(tuple(range(whole.dim() - 1))) > 1e-9).all()  # attention reaches all columns


def test_zeros_never_stand_between_the_ends_of_a_periodic_axis():
    model = make_model(AxialForSemanticSegmentation, periodic=[False, True])
    with pytest.raises(ValueError, match="8 pixels along axis 1, which is periodic.*multiple of the patch, 3"):
        model(draw(1, 2, 10, 8))


def test_what_a_pyramid_reads_across_the_ends():
    options = {"patch_size": [2], "image_size": [80], "num_hidden_layers": 1, "attention_window": 1}
    for periodic in (False, True):
        config = make_config(1, dense_head="pyramid", periodic=periodic, position_embedding="none", **options)
        model = AxialForSemanticSegmentation(config)
        seen = receptive_field(model, (1, 2, 80), (0,), channel_dim=1, output_fn=lambda output: output.logits)
        near = seen.nonzero().flatten()
        assert near.min() == 0 and (near.max() > 60) == periodic
        farther = (near + 40) % 80  # that pixel in the middle
        assert 2 <= farther.max() - 40 <= 30 and (farther.min() < 40) == periodic


def test_pipeline_of_segmentation():
    model = make_model(AxialForSemanticSegmentation, dtype=torch.float32, num_channels=3, dense_head="pyramid")
    model.config.id2label = {0: "sky", 1: "sea", 2: "land"}
    processor = AxialImageProcessor(do_resize=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = model(**processor(picture, return_tensors="pt")).logits[0].argmax(0).numpy()
    found = pipeline("image-segmentation", model=model, image_processor=processor)(picture)
    assert {part["label"] for part in found} == {model.config.id2label[label] for label in np.unique(expected).tolist()}
    for part in found:
        label = {name: label for label, name in model.config.id2label.items()}[part["label"]]
        np.testing.assert_array_equal(np.asarray(part["mask"]) > 0, expected == label)
