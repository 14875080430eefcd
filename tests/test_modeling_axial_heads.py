import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from modeling_axial import AxialConfig, AxialForImageClassification


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
