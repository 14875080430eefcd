"""How drawn pictures are laid out."""

import numpy as np
import torch

from examples.autoregressive_report import tile, to_levels


def test_levels():
    input_ids = torch.tensor([0, 1, 100, 255]).view(1, 4, 1, 1)
    assert to_levels(input_ids, 256).tolist() == [[[[0, 1, 100, 255]]]]  # channels last
    assert to_levels(input_ids.clamp(max=3), 4).tolist() == [[[[0, 85, 255, 255]]]]


def test_pictures_are_tiled_row_by_row():
    pictures = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(2, axis=2)
    g = 128
    assert tile(pictures, columns=2)[..., 0].tolist() == [
        [g, g, g, g, g, g, g],
        [g, 0, 0, g, 1, 1, g],
        [g, g, g, g, g, g, g],
        [g, 2, 2, g, g, g, g],
        [g, g, g, g, g, g, g],
    ]


def test_a_clip_is_a_row_of_its_frames():
    clips = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
    assert tile(clips, columns=1, border=0)[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
