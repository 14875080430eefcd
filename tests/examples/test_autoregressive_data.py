"""Data for the autoregressive model: what is held out is not in the training part, and how pictures are moved."""

import numpy as np
import pytest
import torch
from PIL import Image

from examples.autoregressive_data import FilmClips, PhotographCrops, Tokens, crops, shift_pictures
from modeling_axial import AxialDecoderConfig


def test_tokens_are_levels():
    pictures = np.array([0, 63, 64, 128, 255], np.uint8).reshape(5, 1, 1, 1)
    assert Tokens(pictures, 256)[:]["input_ids"].flatten().tolist() == [0, 63, 64, 128, 255]
    data = Tokens(pictures, 4, labels=np.arange(5))
    assert data[:]["input_ids"].flatten().tolist() == [0, 0, 1, 2, 3]
    assert data[2] == {"input_ids": torch.tensor([[[1]]]), "class_labels": torch.tensor(2)}


@pytest.mark.parametrize("num_channels", [1, 3])
def test_crops_lie_side_by_side(tmp_path, num_channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = AxialDecoderConfig(image_size=[2, 3], num_channels=num_channels)
    tiles = crops(tmp_path / "a.png", config)
    assert tiles.shape == (2 * 3, num_channels, 2, 3) and tiles.dtype == np.uint8
    if num_channels == 3:
        assert np.array_equal(tiles[4], pixels[2:4, 3:6].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="larger than the picture a.png"):
        crops(tmp_path / "a.png", AxialDecoderConfig(image_size=[6, 3], num_channels=num_channels))


def test_photographs():
    data = PhotographCrops(AxialDecoderConfig(image_size=[24, 24], num_channels=3))
    assert not set(data.train_photographs) & set(data.held_out_photographs)
    # By the sizes of the pictures: 400 x 600, 500 x 741, 427 x 640; 512 x 512, 300 x 451.
    assert (len(data.train), len(data.held_out)) == (16 * 25 + 20 * 30 + 17 * 26, 21 * 21 + 12 * 18)
    assert data.train[0]["input_ids"].shape == (3, 24, 24) and data.train[:]["input_ids"].unique().numel() == 256


@pytest.mark.parametrize("num_channels", [1, 3])
def test_film(num_channels):
    data = FilmClips(AxialDecoderConfig(image_size=[6, 9, 11], num_channels=num_channels))
    clips, held_out = data.train[:]["input_ids"], data.held_out[:]["input_ids"]
    assert clips.shape == (96 - 5, num_channels, 6, 9, 11) and held_out.shape == (4, num_channels, 6, 9, 11)
    assert torch.equal(clips[0, :, 1:], clips[1, :, :-1])  # starts at every frame
    assert not torch.equal(clips[0, :, 0], clips[0, :, 5])  # something moves
    frames = {tuple(frame.flatten().tolist()) for clip in clips for frame in clip.movedim(1, 0)}
    assert len(frames) == 96
    assert not frames & {tuple(frame.flatten().tolist()) for clip in held_out for frame in clip.movedim(1, 0)}
    with pytest.raises(ValueError, match="at most 24 frames"):
        FilmClips(AxialDecoderConfig(image_size=[25, 9, 11], num_channels=num_channels))


def test_shifts_are_uniform_and_bring_in_zeros():
    pictures = torch.arange(1, 7).view(1, 1, 2, 3).expand(2000, 1, 2, 3)
    shifted = shift_pictures(pictures, 1, torch.Generator().manual_seed(0))
    kinds, counts = shifted.unique(dim=0, return_counts=True)
    assert len(kinds) == 9 and counts.min() > 2000 / 9 * 0.8
    assert [[[[0, 1, 2], [0, 4, 5]]]] in [[kind.tolist()] for kind in kinds]
    assert [[[[0, 0, 0], [2, 3, 0]]]] in [[kind.tolist()] for kind in kinds]
    assert shift_pictures(pictures, 0, torch.Generator()) is pictures


def test_shifts_of_two_processes_are_those_of_one():
    pictures = torch.randint(256, (6, 3, 2, 4, 5))
    whole = shift_pictures(pictures, 2, torch.Generator().manual_seed(5))
    for process_index in (0, 1):
        part = shift_pictures(
            pictures[process_index::2], 2, torch.Generator().manual_seed(5), process_index, num_processes=2
        )
        assert torch.equal(part, whole[process_index::2])
