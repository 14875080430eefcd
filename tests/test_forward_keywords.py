import inspect
import re

import pytest
import torch

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialForVideoClassification,
    AxialModel,
)

MODELS = pytest.mark.parametrize(
    "model_class",
    [
        AxialModel,
        AxialForImageClassification,
        AxialForSemanticSegmentation,
        AxialForDensePrediction,
        AxialBackbone,
    ],
)


def make_model(model_class, **overrides):
    torch.manual_seed(0)
    options = {"image_size": [5, 3], "patch_size": 1, "num_channels": 2, "hidden_size": 8, "num_attention_heads": 2}
    return model_class(AxialConfig(**{**options, "num_hidden_layers": 2, "num_labels": 3, **overrides})).eval()


@MODELS
@pytest.mark.parametrize("name", ["mask", "pixel_mask", "bool_masked_pos", "atention_mask", "interpolate_pos_encoding"])
def test_unknown_keywords_are_refused(model_class, name):
    keep = torch.ones(2, 5, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match=f"{model_class.__name__}.forward has no argument {name!r}.*attention_mask"):
        make_model(model_class)(torch.randn(2, 2, 5, 3), **{name: keep})


@MODELS
def test_keywords_of_transformers_are_taken(model_class):
    model, pixel_values = make_model(model_class), torch.randn(2, 2, 5, 3)
    (first, *_) = model(pixel_values, num_items_in_batch=2, output_router_logits=False, return_dict=False)
    plain = model(pixel_values)[0]
    assert torch.equal(torch.stack([*first]), torch.stack([*plain]))


@pytest.mark.parametrize("asked_by", ["keyword", "config"])
def test_compiled_before_any_eager_call_outputs_are_recorded(asked_by):
    # The layers are hooked when something is first asked for, here while the one graph is made.
    asked = {"output_hidden_states": True}
    model = make_model(AxialForImageClassification, num_hidden_layers=1, **(asked if asked_by == "config" else {}))
    twin = make_model(AxialForImageClassification, num_hidden_layers=1)
    pixel_values = torch.randn(2, 2, 5, 3)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        output = compiled(pixel_values, output_attentions=True, **(asked if asked_by == "keyword" else {}))
        expected = twin(pixel_values, output_attentions=True, **asked)
    assert len(output.hidden_states) == 2 and len(output.attentions) == 2
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)
    torch.testing.assert_close(output.attentions, expected.attentions)


@pytest.mark.parametrize(
    "model_class, said",
    {
        AxialModel: "Where the cells lie along the axis, in cells, whole or not",
        AxialForImageClassification: "any size that `patch_size` divides",
        AxialForVideoClassification: "in front of the",
        AxialForSemanticSegmentation: "Pixels of other cells do not count",
        AxialForDensePrediction: "Pixels of other cells do not count",
        AxialForMaskedImageModeling: "which is neither read nor to be reconstructed",
        AxialBackbone: "any size that `patch_size` divides",
    }.items(),
)
def test_each_argument_is_described_once_and_in_our_words(model_class, said):
    parameters = [name for name in inspect.signature(model_class.forward).parameters if name not in ("self", "kwargs")]
    assert re.findall(r"^ {12}(\w+) \(", model_class.forward.__doc__, re.MULTILINE) == parameters
    assert said in model_class.forward.__doc__ and "sequence_length)`, *optional*" not in model_class.forward.__doc__
