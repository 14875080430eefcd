"""The U-Net to compare with is as large as asked for, goes across the ends of periodic axes only, and learns."""

import pytest
import torch

from examples.dense_prediction_peer import CircularUNet, CircularUNetConfig, unet_for
from modeling_axial import AxialConfig, AxialForDensePrediction


def make_unet(periodic=(False, True), **options):
    torch.manual_seed(0)
    model = CircularUNet(CircularUNetConfig(periodic=periodic, widths=[3, 5, 7], **options)).eval().double()
    torch.nn.init.normal_(model.pixel_predictor.convolution.weight)
    return model


@pytest.mark.parametrize("image_size", [[23], [7, 12], [3, 5, 8]])
def test_shapes_for_one_to_three_axes(image_size):
    model = make_unet([False] * len(image_size), num_channels=3, num_target_channels=2)
    pixel_values = torch.randn(2, 3, *image_size, dtype=torch.float64)
    labels = torch.randn(2, 2, *image_size, dtype=torch.float64)
    loss_mask = torch.rand(labels.shape) < 0.5
    output = model(pixel_values, labels=labels, loss_mask=loss_mask)
    assert output.prediction.shape == labels.shape
    error = (output.prediction - labels).square()
    assert output.loss.item() == pytest.approx(error[loss_mask].mean().item())
    weights = torch.rand(labels.shape, dtype=torch.float64)
    weighted = model(pixel_values, labels=labels, loss_weights=weights).loss
    assert weighted.item() == pytest.approx(((weights * error).sum() / weights.sum()).item())


@pytest.mark.parametrize(("shape", "axis", "by"), [((7, 12), 1, 4), ((7, 12), 1, -8), ((7, 9), 1, 1), ((8, 7), 0, 4)])
def test_to_roll_a_periodic_axis_rolls_the_forecast(shape, axis, by):
    pixel_values = torch.randn(1, 1, *shape, dtype=torch.float64)
    rolled = []
    for periodic in (True, False):
        model = make_unet([periodic and axis == number for number in (0, 1)])
        there = model(pixel_values.roll(by, axis + 2)).prediction.roll(-by, axis + 2)
        rolled.append((there - model(pixel_values).prediction).abs().max().item())
    assert rolled[0] < 1e-12 and rolled[1] > 1e-3


def test_an_untrained_one_forecasts_nearly_nothing():
    model = CircularUNet(CircularUNetConfig())
    assert model(torch.randn(1, 1, 7, 12)).prediction.abs().max() < 0.5
    assert model.stem.convolution.weight.std() > 0.1  # as PyTorch draws them


@pytest.mark.parametrize("hidden_size", [24, 32, 80])
def test_as_many_parameters(hidden_size):
    config = AxialConfig(
        image_size=[6, 12],
        patch_size=[2, 3],
        num_channels=4,
        num_target_channels=2,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        periodic=[True, False],
        prediction_loss="absolute",
    )
    ours = AxialForDensePrediction(config).num_parameters()
    unet = unet_for(config, ours)
    assert abs(unet.num_parameters() / ours - 1) < 0.05
    full, half, quarter = unet.config.widths
    assert 1.5 < half / full < 2.5 and 1.5 < quarter / half < 2.5
    assert (unet.config.num_channels, unet.config.num_target_channels) == (4, 2)
    assert unet.config.periodic == [True, False] and unet.config.prediction_loss == "absolute"


def test_what_has_no_equal():
    with pytest.raises(ValueError, match="within 5 % of the 40 parameters"):
        unet_for(AxialConfig(image_size=4, patch_size=2), 40)
    with pytest.raises(ValueError, match="1 to 3 axes, the model has 4"):
        unet_for(AxialConfig(image_size=[2] * 4, patch_size=[1] * 4), 10**5)


def test_saved_and_loaded(tmp_path):
    model = make_unet(num_channels=2).float()
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 2, 7, 12)
    loaded = CircularUNet.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values).prediction, model(pixel_values).prediction)
