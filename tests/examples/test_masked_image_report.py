"""What is told about a pretrained model: its errors, the picture, the model card."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch.utils.data import TensorDataset

from examples.masked_image_data import MaskedPictures
from examples.masked_image_report import draw_reconstructions, loading_lines, score_lines, write_model_card
from examples.results import OURS
from modeling_axial import AxialConfig, AxialForMaskedImageModeling


@pytest.mark.parametrize("num_channels", [1, 3])
def test_picture(tmp_path, num_channels):
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[6, 10], patch_size=[3, 2], num_channels=num_channels, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model = AxialForMaskedImageModeling(config).eval()
    dataset = MaskedPictures(TensorDataset(torch.rand(20, num_channels, 6, 10)), 0.5, config.grid_shape)
    draw_reconstructions(tmp_path / "figure.png", model, dataset, len(dataset))
    with Image.open(tmp_path / "figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = (pixels == (70, 130, 180)).all(1).mean()  # what is not seen
    assert 0.03 < blue < 0.2 and len(np.unique(pixels, axis=0)) > 50


def test_model_card(tmp_path):
    class Data:
        hub_id, license, name = "imagefolder", None, "few"
        trained_on, measured_on = "many pictures", "few pictures"

    errors = {OURS: 0.123456789, "mean": 0.5}
    assert score_lines(errors)[1:] == [f"0.1235  {OURS}", "0.5000  mean"]
    write_model_card(tmp_path, Data, errors, 0.6, "user/start")
    card = ModelCard.load(tmp_path / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("few", "mae", 0.123457)
    assert "hidden patches of pictures, 60% of them" in card.text
    assert "on many pictures.\n- Measured on few pictures.\n" in card.text and "| mean | 0.5000 |" in card.text
    assert loading_lines("user/start") in card.text
