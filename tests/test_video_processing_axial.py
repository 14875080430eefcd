"""Clips come out as their frames do as pictures, sampled and padded as stated; bad ones are refused by name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_axial import AxialConfig, AxialImageProcessor, AxialModel, AxialPreTrainedModel, AxialVideoProcessor
from modeling_axial.video_processing_axial import sampled_frames
from tests.lazy_array import LazyArray, Sealed, peak_memory

FRAMES, HEIGHT, WIDTH = 7, 11, 13
CLIP = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
PATCH = (2, 3, 5)


def test_frames_that_are_sampled():
    assert sampled_frames(10, 3) == [1, 5, 8]  # the middles of 10/3, 1.67, 5 and 8.33, rounded down
    assert sampled_frames(7, 7) == sampled_frames(7, 9) == sampled_frames(7, None) == range(7)
    assert sampled_frames(300, 1) == [150]
    for num_frames in range(1, 40):
        for wanted in range(1, num_frames + 1):
            frames = list(sampled_frames(num_frames, wanted))
            assert frames == [int(np.floor((i + 0.5) * num_frames / wanted + 1e-9)) for i in range(wanted)]
            assert len(set(frames)) == wanted and frames[-1] < num_frames
            mirrored = [num_frames - 1 - frame for frame in frames[::-1]]
            assert max(abs(a - b) for a, b in zip(frames, mirrored, strict=True)) <= 1  # no end is preferred


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [{"height": 9, "width": 8}, {"shortest_edge": 9}], ids=str)
def test_frames_are_pictures(num_channels, size):
    """Frame by frame what `AxialImageProcessor` makes of it."""
    options = {"num_channels": num_channels, "size": size, "image_mean": 0.3, "image_std": 0.7, "resample": 3}
    processor = AxialVideoProcessor(num_frames=3, patch_size=PATCH, **options)
    inputs = processor(CLIP, return_tensors="pt")
    pictures = AxialImageProcessor(**options)([CLIP[i] for i in (1, 3, 5)], return_tensors="pt").pixel_values
    height, width = pictures.shape[2:]
    assert inputs.pixel_values.shape == (1, 4, num_channels, 9, 10) and inputs.pixel_values.dtype == torch.float32
    torch.testing.assert_close(inputs.pixel_values[0, :3, :, :height, :width], pictures, rtol=0, atol=1e-6)
    assert not inputs.pixel_values[0, 3:].any() and not inputs.pixel_values[..., width:].any()
    assert inputs.attention_mask.shape == (1, 2, 3, 2) and inputs.attention_mask.all()  # each cell has a pixel


def test_options_of_values():
    as_it_is = AxialVideoProcessor(do_resize=False, do_normalize=False, num_frames=None, patch_size=[1, 1, 1])
    np.testing.assert_allclose(as_it_is(CLIP).pixel_values[0], np.moveaxis(CLIP, -1, 1) / 255, rtol=1e-6)
    values = AxialVideoProcessor(do_resize=False, patch_size=(1, 1, 1))(CLIP).pixel_values[0]
    np.testing.assert_allclose(values, np.moveaxis(CLIP, -1, 1) / 127.5 - 1, atol=1e-6)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    values = as_it_is(CLIP, do_normalize=True, image_mean=mean, image_std=std).pixel_values[0]
    np.testing.assert_allclose(np.moveaxis(values, 1, -1), (CLIP / 255 - mean) / std, atol=1e-6)
    assert AxialVideoProcessor()(CLIP, return_tensors="pt").pixel_values.shape == (1, 8, 3, 224, 224)


FIRST = np.moveaxis(CLIP, -1, 1)
CLIPS = {
    "channels last": lambda: CLIP,
    "channels first": lambda: FIRST,
    "tensor": lambda: torch.tensor(FIRST),
    "tensor of bfloat16": lambda: torch.tensor(CLIP / 255.0),
    "lazily opened": lambda: LazyArray(CLIP),
    "a batch": lambda: CLIP[None],
    "a list of clips": lambda: [CLIP],
    "a list of frames": lambda: list(CLIP),
    "a tuple of frames": lambda: tuple(CLIP),
    "a list of lists of frames": lambda: [list(CLIP)],
    "frames of both layouts": lambda: [torch.tensor(frame) for frame in FIRST],
    "pictures": lambda: [Image.fromarray(frame) for frame in CLIP],
    "a list of lists of pictures": lambda: [[Image.fromarray(frame) for frame in CLIP]],
    "16 bits": lambda: CLIP.astype(np.uint16) * 257,
    "floating point": lambda: CLIP / 255,
    "a generator of clips": lambda: iter([CLIP]),
}


@pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS.keys())
def test_clips_of_every_kind(make):
    processor = AxialVideoProcessor(do_resize=False, num_frames=3, patch_size=[3, HEIGHT, WIDTH])
    expected = processor(CLIP).pixel_values
    assert expected.shape == (1, 3, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(processor(make()).pixel_values, expected)


def test_grey_clips():
    processor = AxialVideoProcessor(num_channels=1, do_resize=False, num_frames=None, patch_size=[7, HEIGHT, WIDTH])
    expected = processor(CLIP[..., :1]).pixel_values
    for clip in (
        [frame[..., 0] for frame in CLIP],
        CLIP[..., :1].repeat(3, -1),
        [Image.fromarray(f[..., 0]) for f in CLIP],
    ):
        np.testing.assert_array_equal(processor(clip).pixel_values, expected)


def test_only_sampled_frames_are_read():
    clip = LazyArray(np.broadcast_to(CLIP[:1], (10**9, HEIGHT, WIDTH, 3)))
    AxialVideoProcessor(do_resize=False, num_frames=5, patch_size=PATCH)(clip)
    assert clip.reads == [5 * HEIGHT * WIDTH * 3]


def test_the_layout_of_frames_can_be_said():
    clip = CLIP[:, :3]  # (3, 13, 3) frames
    processor = AxialVideoProcessor(do_resize=False, num_frames=None, patch_size=[1, 1, 1])
    assert processor(clip, input_data_format="channels_last").pixel_values.shape == (1, 7, 3, 3, WIDTH)
    assert processor(clip, input_data_format="channels_first").pixel_values.shape == (1, 7, 3, WIDTH, 3)
    with pytest.warns(UserWarning, match="taken to be first"):
        processor(clip)


def test_clips_of_different_lengths_and_sizes_are_padded():
    torch.manual_seed(0)
    config = AxialConfig(
        image_size=[8, 12, 15],
        patch_size=list(PATCH),
        num_channels=3,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = AxialModel(config).eval()
    processor = AxialVideoProcessor(do_resize=False, num_frames=6, patch_size=PATCH)
    clips = [CLIP, CLIP[:3, :5, :9], CLIP[:1]]
    inputs = processor(clips, return_tensors="pt")
    assert inputs.pixel_values.shape == (3, 6, 3, 12, 15) and inputs.attention_mask.shape == (3, 3, 4, 3)
    assert inputs.attention_mask.flatten(1).sum(1).tolist() == [3 * 4 * 3, 2 * 2 * 2, 1 * 4 * 3]
    with torch.no_grad():
        together = model(inputs.pixel_values.movedim(2, 1), attention_mask=inputs.attention_mask).pooler_output
        for pooled, clip in zip(together, clips, strict=True):
            alone = processor(clip, return_tensors="pt")
            alone = model(alone.pixel_values.movedim(2, 1), attention_mask=alone.attention_mask).pooler_output[0]
            torch.testing.assert_close(pooled, alone)
    fixed = processor(clips, pad_size=[10, 20, 30])
    assert fixed.pixel_values.shape == (3, 10, 3, 21, 30)


class Classifier(AxialPreTrainedModel):
    """Labels of clips are their brightest channels."""

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.post_init()

    def forward(self, pixel_values, attention_mask=None):
        assert pixel_values.shape == (1, 4, 3, 9, 10) and attention_mask.shape == (1, 2, 3, 2)
        return ImageClassifierOutput(logits=self.weight * pixel_values.mean((1, 3, 4)))


def test_pipeline_of_clips(tmp_path):
    av = pytest.importorskip("av")
    with av.open(tmp_path / "clip.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=25, width=16, height=16, pix_fmt="yuvj420p")
        for color in 4 * [(20, 250, 100)] + 4 * [(250, 20, 20)]:
            frame = np.broadcast_to(np.array(color, np.uint8), (16, 16, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    model = Classifier(AxialConfig(id2label={0: "red", 1: "green", 2: "blue"}))
    processor = AxialVideoProcessor(size={"height": 9, "width": 10}, patch_size=PATCH)
    classify = pipeline("video-classification", model=model, image_processor=processor, num_frames=4)
    scores = {found["label"]: found["score"] for found in classify(str(tmp_path / "clip.avi"))}
    expected = torch.tensor([20, 250, 100.0]).div(127.5).sub(1).softmax(0)
    assert [scores["red"], scores["green"], scores["blue"]] == pytest.approx(expected.tolist(), abs=0.02)


# kind: (clips, options, message)
BAD_BEFORE_READING = {
    "nothing": (None, {}, "clips must be arrays or lists of frames, got NoneType"),
    "a path": ("clip.mp4", {}, "got str; decode files first"),
    "a list of paths": (["clip.mp4"], {}, "clip 0 must be an array or a list of frames, got str"),
    "no clip": ([], {}, "no clip given"),
    "no frames": ([[]], {}, "clip 0 has no frames"),
    "0 frames": (Sealed(0, HEIGHT, WIDTH, 3), {}, "empty"),
    "no clips in a batch": (Sealed(0, 7, HEIGHT, WIDTH, 3), {}, "empty"),
    "the second has no frames": ([Sealed(7, HEIGHT, WIDTH, 3), []], {}, "clip 1 has no frames"),
    "one picture": (Sealed(HEIGHT, WIDTH, 3), {}, r"a clip must be .* got an array of shape \(11, 13, 3\)"),
    "6-D": (Sealed(1, 1, 7, HEIGHT, WIDTH, 3), {}, "a clip must be"),
    "5-D in a list": ([Sealed(1, 7, HEIGHT, WIDTH, 3)], {}, "clip 0 must have 4 dims"),
    "lists too deep": ([[[CLIP[0]]]], {}, "frame 0 must be a picture of PIL .* got list"),
    "a frame that is none": ([CLIP[0], None], {}, "frame 1 must be a picture of PIL .* got NoneType"),
    "a frame of 4-D": ([[CLIP[0], CLIP]], {}, r"frame 1 must be a picture .* got shape \(7, 11, 13, 3\)"),
    "bytes as a frame": ([[b"frame"]], {}, "frame 0 must be a picture .* got bytes"),
    "frames of two sizes": ([CLIP[0], CLIP[1, :5]], {}, "frames of one shape, got .*5, 13, 3.*11, 13, 3"),
    "pictures of two sizes": ([[Image.new("L", (5, 7)), Image.new("L", (7, 5))]], {}, "frames of one shape"),
    "objects": (Sealed(7, HEIGHT, WIDTH, 3, dtype=object), {}, "objects"),
    "complex": (Sealed(7, HEIGHT, WIDTH, 3, dtype=complex), {}, "complex"),
    "text": (Sealed(7, HEIGHT, WIDTH, 3, dtype="U1"), {}, "text"),
    "huge frames": (Sealed(7, 10**5, 10**5, 3), {}, "clip 0 has frames of shape .* beyond 89478485 pixels"),
    "huge batch": (Sealed(10**9, 1, 1, 1, 3), {}, "clips has 1000000000 samples; at most 65536"),
    "unknown option": (CLIP, {"frames": 3}, "no option 'frames': did you mean 'num_frames'"),
    "option of pictures": (CLIP, {"do_rescale": True}, "no option 'do_rescale'"),
}
BAD_VALUES = {
    "endless": (LazyArray(np.broadcast_to(np.uint8(0), (10**9, 16, 16, 3))), {"num_frames": None}, "would hold"),
    "two channels": (CLIP[..., :2], {}, "a picture has 1, 3 or 4 channels"),
    "said to be first": (CLIP, {"input_data_format": "channels_first"}, "a picture has 1, 3 or 4 channels, got 11"),
    "floating point in 0 to 255": (CLIP.astype(np.float32), {}, "must lie in .0, 1."),
    "NaN": (np.full((2, HEIGHT, WIDTH, 3), np.nan), {}, "must lie in .0, 1."),
    "infinite": (np.full((2, HEIGHT, WIDTH, 3), np.inf), {}, "must lie in .0, 1."),
    "negative": (CLIP.astype(int) - 256, {}, "must lie in 0 to 255"),
    "one size that the patch does not divide": (CLIP, {"do_pad": False}, "with do_pad=False"),
    "larger than pad_size": (CLIP, {"pad_size": [7, 11, 9]}, "pad_size .* is smaller than sample 0"),
    "huge in all": (LazyArray(np.broadcast_to(np.uint8(0), (10**4, 600, 600, 3))), {"num_frames": None}, "would hold"),
    "truncated": (
        LazyArray(CLIP, shape=(8, HEIGHT, WIDTH, 3)),
        {"num_frames": None},
        "announces frame 7, but holds fewer",
    ),
}


def refused(clips, options, message):
    with pytest.raises(ValueError, match=message):
        AxialVideoProcessor(do_resize=False, patch_size=PATCH)(clips, **options)


@pytest.mark.parametrize("kind", BAD_BEFORE_READING)
def test_what_shape_and_dtype_decide_is_refused_before_memory_is_taken(kind):
    refused(*BAD_BEFORE_READING[kind])  # what is imported only now is no memory of the array
    assert peak_memory(refused, *BAD_BEFORE_READING[kind]) < 2**20


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_values_are_refused(kind):
    refused(*BAD_VALUES[kind])


BAD_OPTIONS = {
    "num_frames": (0, 2.5, "all"),
    "num_channels": (2, None),
    "do_resize": (1,),
    "size": ({"height": 0, "width": 3},),
    "do_normalize": (None,),
    "image_mean": ([1.0], "x"),
    "image_std": (0, [1.0, 1.0, 0.0]),
    "patch_size": (16, [2, 2], [2, 0, 2]),
    "do_pad": (3,),
    "pad_size": ([5, 5], 0),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused(name):
    for value in BAD_OPTIONS[name]:
        with pytest.raises(ValueError, match="[Ss]ize" if name == "size" else name):
            AxialVideoProcessor(**{name: value})(CLIP)


CHOICES = {
    "num_frames": 5,
    "num_channels": 1,
    "input_data_format": "channels_last",
    "do_resize": True,
    "size": {"height": 9, "width": 10},
    "resample": 3,
    "do_normalize": True,
    "image_mean": [0.25],
    "image_std": 0.75,
    "patch_size": [2, 3, 5],
    "do_pad": True,
    "pad_size": [6, 9, 10],
}


def test_saved_file_holds_the_choices(tmp_path):
    assert set(CHOICES) == set(AxialVideoProcessor.valid_kwargs.__annotations__)
    processor = AxialVideoProcessor(**CHOICES)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == {
        **CHOICES,
        "auto_map": {"AutoImageProcessor": "video_processing_axial.AxialVideoProcessor"},
        "image_processor_type": "AxialVideoProcessor",
    }
    for again in (AxialVideoProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(again) is AxialVideoProcessor and again.to_dict() == processor.to_dict()
        np.testing.assert_array_equal(again(CLIP).pixel_values, processor(CLIP).pixel_values)
    all_frames = AxialVideoProcessor(num_frames=None)
    all_frames.save_pretrained(tmp_path)
    assert AxialVideoProcessor.from_pretrained(tmp_path).num_frames is None
