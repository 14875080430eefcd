import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from examples.image_classification_data import Digits
from examples.web.build_page import example_nuclei
from examples.web.export_models import SEGMENTER, ClassifierWithMaps, DecoderPixel, Segmenter, open_models
from modeling_axial import (
    AxialConfig,
    AxialDecoderConfig,
    AxialForCausalImageModeling,
    AxialForImageClassification,
    AxialForSemanticSegmentation,
)
from tests.conftest import ROOT
from tests.examples.web.graph_sampler import complete, open_graphs, uniform_draws

ANY_CLASS = 10


@pytest.fixture(scope="module")
def models():
    return open_models()


@pytest.fixture(scope="module")
def graphs(exported):
    return open_graphs(exported)


@pytest.fixture(scope="module")
def held_out():
    """Pictures uint8 (1000, 28, 28), sorted by class."""
    digits = Digits()
    return digits.pictures[digits.held_out]


@pytest.mark.slow
def test_the_classifier_gives_the_logits_and_maps_of_the_model(models, graphs, held_out):
    for picture in held_out[::50]:
        pixel_values = torch.from_numpy(picture)[None, None] / 127.5 - 1
        logits, maps = graphs["classifier"].run(None, {"pixel_values": pixel_values.numpy()})
        with torch.no_grad():
            output = models[0](pixel_values, output_attentions=True)
        np.testing.assert_allclose(logits, output.logits, rtol=0, atol=1e-4)
        assert maps.shape == (4, 2, 7, 2, 7, 7)
        for layer, axis in np.ndindex(4, 2):
            np.testing.assert_allclose(maps[layer, axis], output.attentions[2 * layer + axis], rtol=0, atol=1e-5)


def assert_completed_as_by_the_model(model, graphs, picture, known_rows, class_label, guidance_scale, seed):
    known = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    known[:, :, :known_rows] = True
    expected = model.generate(
        class_labels=torch.tensor([class_label]),
        known=(torch.from_numpy(picture)[None, None].long(), known),
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        sampler="cached",
    )
    labels = [class_label] if guidance_scale == 1 else [class_label, ANY_CLASS]
    drawn = complete(graphs, picture, known_rows, labels, guidance_scale, uniform_draws(seed, 28, 28, 256))
    np.testing.assert_array_equal(drawn, expected[0, 0])
    assert len(np.unique(drawn[known_rows:])) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("class_label", "guidance_scale"), [(ANY_CLASS, 1), (3, 2)])
def test_rows_are_completed_as_by_the_model(models, graphs, held_out, class_label, guidance_scale):
    assert_completed_as_by_the_model(models[1], graphs, held_out[333], 22, class_label, guidance_scale, seed=0)


@pytest.mark.audit
@pytest.mark.parametrize("label", range(10))
def test_halves_are_completed_as_by_the_model(models, graphs, held_out, label):
    picture = held_out[100 * label + 7]
    assert_completed_as_by_the_model(models[1], graphs, picture, 14, ANY_CLASS, 1, seed=label)
    assert_completed_as_by_the_model(models[1], graphs, picture, 14, label, 2, seed=label)


@pytest.mark.audit
def test_whole_pictures_are_drawn_as_by_the_model(models, graphs, held_out):
    assert_completed_as_by_the_model(models[1], graphs, held_out[0], 0, 5, 1, seed=3)


@pytest.mark.slow
def test_the_segmenter_gives_the_logits_of_the_model(models, graphs):
    pictures, masks = example_nuclei(models[2].config)
    processor = AutoImageProcessor.from_pretrained(ROOT, subfolder=SEGMENTER)
    for picture, mask in zip(pictures, masks, strict=True):
        pixel_values = processor(picture, return_tensors="pt").pixel_values
        (logits,) = graphs["segmenter"].run(None, {"pixel_values": pixel_values.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, models[2](pixel_values).logits, rtol=0, atol=1e-4)
        found = logits[0].argmax(0) == 1
        assert (found & (mask == 1)).sum() / (found | (mask == 1)).sum() > 0.88


def test_models_that_the_page_cannot_show_are_refused():
    config = AxialConfig(image_size=[8, 12], patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"grid \(2, 3\)"):
        ClassifierWithMaps(AxialForImageClassification(config))
    config = AxialDecoderConfig(image_size=[4, 5], num_channels=3, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match="num_channels=3"):
        DecoderPixel(AxialForCausalImageModeling(config))
    config = AxialConfig(num_channels=1, num_labels=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="num_channels=1, num_axes=2, num_labels=3"):
        Segmenter(AxialForSemanticSegmentation(config))
