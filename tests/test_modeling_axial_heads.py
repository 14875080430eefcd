import inspect

import pytest
import torch
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, AutoModelForVideoClassification

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForImageClassification,
    AxialForVideoClassification,
    AxialModel,
)


def make_model(**overrides):
    torch.manual_seed(0)
    options = {"image_size": [10, 6], "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2, "num_labels": 5, "initializer_range": 0.5, **overrides}
    return AxialForImageClassification(AxialConfig(**options)).eval()


def test_logits_are_a_linear_map_of_the_mean_feature():
    model, pixel_values = make_model(), torch.randn(3, 1, 10, 6)
    output = model(pixel_values, output_attentions=True, output_hidden_states=True)
    features = model.axial(pixel_values).last_hidden_state.mean((1, 2))
    torch.testing.assert_close(output.logits, features @ model.classifier.weight.T + model.classifier.bias)
    assert output.loss is None and len(output.attentions) == 4 and len(output.hidden_states) == 3


def test_losses_by_kind_of_label():
    pixel_values = torch.randn(3, 1, 10, 6)
    model, labels = make_model(), torch.tensor([0, 4, 2])
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(-1)[torch.arange(3), labels].mean())
    regression = make_model(num_labels=1)
    target = torch.randn(3)
    output = regression(pixel_values, labels=target)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - target).square().mean())
    several = make_model(problem_type="multi_label_classification")
    target = torch.randint(0, 2, (3, 5)).float()
    output = several(pixel_values, labels=target)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, target)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_indices_of_any_integer_type(dtype):
    pixel_values, labels = torch.randn(3, 1, 10, 6), torch.tensor([0, 4, 2])
    expected = make_model()(pixel_values, labels=labels).loss
    assert torch.equal(make_model()(pixel_values, labels=labels.to(dtype)).loss, expected)
    assert torch.equal(make_model()(pixel_values, labels=labels.to(dtype)[:, None]).loss, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_several_classes_at_once_in_any_type(problem_type, dtype):
    pixel_values, labels = torch.randn(3, 1, 10, 6), torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    model = make_model(problem_type=problem_type)
    output = model(pixel_values, labels=labels.to(dtype))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels.float())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("chosen", ["at load", "afterwards"])
def test_one_label_in_place_of_several_is_a_number_to_predict(tmp_path, chosen):
    # As in transformers, where num_labels=1 means regression. As a choice among one class the loss would always be 0.
    model, pixel_values, labels = make_model(), torch.randn(3, 1, 10, 6), torch.tensor([0, 4, 2])
    model(pixel_values, labels=labels).loss.backward()
    assert model.config.problem_type == "single_label_classification"
    model.save_pretrained(tmp_path / "several")
    if chosen == "at load":
        model = AxialForImageClassification.from_pretrained(
            tmp_path / "several", num_labels=1, ignore_mismatched_sizes=True
        )
    else:
        config = AxialConfig.from_pretrained(tmp_path / "several")
        config.num_labels = 1
        model = AxialForImageClassification(config)
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - labels).square().mean())
    output.loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "one")
    reloaded = AxialForImageClassification.from_pretrained(tmp_path / "one")
    assert torch.equal(reloaded(pixel_values).logits, output.logits)


def test_every_parameter_gets_a_gradient():
    model = make_model().train()
    model(torch.randn(3, 1, 10, 6), labels=torch.tensor([0, 4, 2])).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


def test_padding_does_not_reach_the_logits():
    model, small = make_model(position_embedding="none"), torch.randn(2, 1, 10, 6)
    padded = torch.nn.functional.pad(small, (0, 4, 0, 2), value=9.0)
    mask = torch.nn.functional.pad(torch.ones(2, 5, 3), (0, 2, 0, 1))
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, model(small).logits)


def test_opens_by_its_head_and_by_the_trunk(tmp_path):
    model, pixel_values = make_model(), torch.randn(3, 1, 10, 6)
    model.save_pretrained(tmp_path)
    head = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(head(pixel_values).logits, model(pixel_values).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(trunk(pixel_values).pooler_output, model.axial(pixel_values).pooler_output)


def test_another_number_of_labels_replaces_only_the_classifier(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    reloaded = AxialForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert reloaded.classifier.weight.shape == (7, 8)
    ours, theirs = model.axial.state_dict(), reloaded.axial.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RuntimeError, match="size"):
        AxialForImageClassification.from_pretrained(tmp_path, num_labels=7)


# ---- clips ----


def make_clip_model(model_class=AxialForVideoClassification, **overrides):
    torch.manual_seed(0)
    options = {"image_size": [4, 10, 9], "patch_size": [2, 2, 3], "num_channels": 3, "hidden_size": 8, "num_labels": 5}
    options |= {"num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.5}
    return model_class(AxialConfig(**options | overrides)).eval()


@pytest.mark.parametrize("reversible", [False, True])
def test_clips_have_their_frames_in_front_of_their_channels(reversible):
    model, volumes = (
        make_clip_model(reversible=reversible),
        make_clip_model(AxialForImageClassification, reversible=reversible),
    )
    clip, labels = torch.randn(2, 6, 3, 10, 9), torch.tensor([4, 1])
    given = {"labels": labels, "attention_mask": torch.arange(90).view(2, 3, 5, 3) % 4 != 1}
    given |= {"position_ids": [torch.arange(3.0) * 2, torch.arange(5.0), torch.arange(3.0)]}
    output = model(clip, **given, output_attentions=True, output_hidden_states=True)
    expected = volumes(clip.movedim(2, 1), **given, output_attentions=True, output_hidden_states=True)
    assert torch.equal(output.loss, expected.loss) and torch.equal(output.logits, expected.logits)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 6
    plain = model(clip, **given)
    as_tuple = model(clip, **given, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], plain.logits)
    shares = model(clip, labels=labels, num_items_in_batch=4).loss
    torch.testing.assert_close(2 * shares, model(clip, labels=labels).loss)


def test_clips_in_another_order_are_refused():
    model = make_clip_model()
    for shape in ((2, 3, 4, 10, 9), (4, 3, 10, 9), (2, 4, 1, 10, 9)):
        with pytest.raises(ValueError, match=r"pixel_values must be \(batch, frames, num_channels=3, height, width\)"):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match="AxialForVideoClassification.forward has no argument 'mask'"):
        model(torch.zeros(2, 4, 3, 10, 9), mask=None)
    with pytest.raises(ValueError, match="clips have 3 axes"):
        make_clip_model(image_size=[10, 9], patch_size=[2, 3])


def test_a_clip_model_opens_by_its_head_and_by_the_trunk(tmp_path):
    model, clip = make_clip_model(), torch.randn(2, 4, 3, 10, 9)
    model.save_pretrained(tmp_path)
    head = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(head) is AxialForVideoClassification and torch.equal(head(clip).logits, model(clip).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(trunk(clip.movedim(2, 1)).pooler_output, model.axial(clip.movedim(2, 1)).pooler_output)


def test_clip_models_train_with_checkpointing_and_in_one_graph():
    model, clip, labels = (
        make_clip_model(hidden_dropout_prob=0.1).train(),
        torch.randn(2, 4, 3, 10, 9),
        torch.tensor([4, 1]),
    )
    torch.manual_seed(3)
    model(clip, labels=labels).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    torch.manual_seed(3)
    model(clip, labels=labels).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    model.gradient_checkpointing_disable()
    torch.compiler.reset()
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(clip, labels=labels).loss, model(clip, labels=labels).loss)


def test_an_exported_clip_model_takes_more_frames():
    model = make_clip_model()
    frames = 2 * torch.export.Dim("pairs", min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 6, 3, 10, 9),), dynamic_shapes={"pixel_values": {1: frames}})
    clip = torch.randn(2, 10, 3, 10, 9)
    torch.testing.assert_close(program.module()(clip).logits, model(clip).logits)


# ---- backbone ----


def make_backbone(**overrides):
    """A backbone on 3 axes of a model with two streams, unless told otherwise."""
    torch.manual_seed(0)
    options = {"image_size": [4, 10, 6], "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 4}
    options |= {"patch_size": [2, 2, 2], "num_attention_heads": 2, "initializer_range": 0.5, "reversible": True}
    return AxialBackbone(AxialConfig(**options | overrides)).eval()


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_feature_maps_are_the_normalised_hidden_states(pooling):
    backbone = make_backbone(out_features=["stem", "stage3", "stage4"], pooling=pooling)
    clip = torch.randn(2, 1, 6, 14, 10)  # not the native size
    output = backbone(clip)
    trunk = backbone.axial(clip, output_hidden_states=True)
    assert len(output.feature_maps) == len(backbone.channels) == 3 and backbone.channels == [8, 8, 8]
    for stage, feature_map in zip((0, 3, 4), output.feature_maps, strict=True):
        assert feature_map.shape == (2, 8, 3, 7, 5)
        assert torch.equal(feature_map.movedim(1, -1), backbone.axial.norm(trunk.hidden_states[stage]))
    assert torch.equal(output.feature_maps[-1].movedim(1, -1), trunk.last_hidden_state)
    assert output.hidden_states is None and output.attentions is None


def test_backbone_hands_out_states_and_maps_when_asked():
    backbone, clip = make_backbone(), torch.randn(2, 1, 4, 10, 6)
    output = backbone(clip, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == len(backbone.stage_names) == 5 and len(output.attentions) == 4 * 3
    last = backbone(clip, output_hidden_states=[-1]).hidden_states
    assert torch.equal(backbone.axial.norm(last[-1]).movedim(-1, 1), backbone(clip).feature_maps[0]) and last[0] is None
    as_tuple = backbone(clip, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0][0], backbone(clip).feature_maps[0])
    assert next(iter(inspect.signature(backbone.forward).parameters)) == "pixel_values"


@pytest.mark.parametrize("set_on", ["backbone", "config"])
def test_stages_can_be_chosen_later(set_on):
    backbone, clip = make_backbone(), torch.randn(1, 1, 4, 10, 6)
    assert backbone.out_features == ["stage4"] and backbone.out_indices == [4] and len(backbone(clip).feature_maps) == 1
    target = backbone if set_on == "backbone" else backbone.config
    target.out_indices = (0, 2)
    assert backbone.out_features == ["stem", "stage2"] and len(backbone(clip).feature_maps) == 2
    target.out_features = ["stage1"]
    assert backbone.out_indices == [1] and len(backbone(clip).feature_maps) == 1
    target.out_features = None
    assert backbone.out_features == ["stage4"]


def test_backbone_ignores_padding():
    backbone = make_backbone(position_embedding="none", out_indices=[1, 4])
    small = torch.randn(2, 1, 4, 10, 6)
    padded = torch.nn.functional.pad(small, (0, 4, 0, 2), value=9.0)
    mask = torch.nn.functional.pad(torch.ones(2, 2, 5, 3), (0, 2, 0, 1))
    for ours, expected in zip(
        backbone(padded, attention_mask=mask).feature_maps, backbone(small).feature_maps, strict=True
    ):
        torch.testing.assert_close(ours[..., :5, :3], expected)


def test_every_parameter_of_a_backbone_gets_a_gradient():
    backbone = make_backbone(pooling="attention", out_indices=[2, 4]).train()
    sum(feature_map.square().sum() for feature_map in backbone(torch.randn(2, 1, 4, 10, 6)).feature_maps).backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("saved_by", [AxialModel, AxialForImageClassification, AxialBackbone])
def test_backbone_opens_the_checkpoints_of_all(saved_by, tmp_path):
    config = make_backbone(out_indices=[1, 4], pooling="attention").config
    model = saved_by(config).eval()
    model.save_pretrained(tmp_path)
    backbone, info = AxialBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    clip = torch.randn(1, 1, 4, 10, 6)
    assert torch.equal(backbone(clip).feature_maps[1].movedim(1, -1), model.base_model(clip).last_hidden_state)
    assert backbone.out_features == ["stage1", "stage4"]
    assert type(AutoBackbone.from_config(backbone.config)) is AxialBackbone
