import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from transformers.initialization import no_init_weights

import configuration
from configuration import list_presets, load_preset
from configuration.counts import count_flops, count_parameters
from modeling_axial import AxialConfig, AxialDecoderConfig, AxialForCausalImageModeling, AxialModel
from tests.conftest import ROOT

# Parameters and FLOPs; a preset is not to change unnoticed. `python -m configuration.counts` prints them.
PINS = {
    "air_temperature": (58_688, 15_541_760),
    "axial_base": (114_034_944, 44_826_034_176),
    "axial_tiny": (7_275_072, 2_882_912_256),
    "axial_video_small": (36_104_064, 28_366_700_544),
    "axial_volume_small": (35_711_616, 36_666_605_568),
    "brain_tissue": (88_756, 91_226_112),
    "colour_autoregressive": (439_232, 1_498_300_416),
    "digits": (136_256, 13_296_640),
    "digits_autoregressive": (433_856, 680_787_968),
    "films": (209_408, 26_804_224),
    "indian_pines": (27_752, 1_589_292_800),
    "nuclei2d": (102_772, 125_042_688),
    "nuclei3d": (88_732, 59_609_088),
    "sst": (55_424, 84_768_768),
    "tables": (85_920, 1_002_393_600),
    "video_autoregressive": (382_960, 1_774_891_008),
}


def model_and_inputs(config):
    if isinstance(config, AxialConfig):
        return AxialModel(config), [torch.empty(1, config.num_channels, *config.image_shape)]
    input_ids = torch.zeros(1, config.num_channels, *config.image_size, dtype=torch.long)
    labels = torch.zeros(1, dtype=torch.long) if config.num_classes else None
    condition = torch.zeros(1, config.num_condition_channels, *config.image_size)
    return AxialForCausalImageModeling(config), [input_ids, labels, condition if condition.numel() else None]


def counted_flops(config):
    """FLOPs of a forward pass, counted operation by operation. No number is computed: the tensors are fake."""
    with FakeTensorMode(), no_init_weights(), torch.no_grad():
        model, inputs = model_and_inputs(config)
        model.eval().requires_grad_(False)  # the counter stumbles over views of parameters
        # The counter knows no formula for the fused attention kernel of the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs)
    return counter.get_total_flops()


def test_every_preset_has_a_pin():
    assert set(PINS) == set(list_presets())


@pytest.mark.parametrize("name", list_presets())
def test_size_of_a_preset(name):
    parameters, flops = PINS[name]
    config = load_preset(name)
    assert count_parameters(config) == parameters
    assert count_flops(config) == flops
    assert counted_flops(config) == flops


def test_table_holds_the_pins():
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \| ([\d,]+) \|",
        (ROOT / "configuration" / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    table = {
        name: (int(parameters.replace(",", "")), int(flops.replace(",", ""))) for name, _, parameters, flops in rows
    }
    assert table == PINS
    for name, size, *_ in rows:
        config = load_preset(name)
        shape = config.image_shape if isinstance(config, AxialConfig) else config.image_size
        assert size == " x ".join(map(str, (config.num_channels, *shape)))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"feed_forward": "gated_mlp"},
        {"feed_forward": "convolution"},
        {"feed_forward": "convolution", "periodic": True},
        {"num_inducing_points": 3},
        {"pooling": "attention", "num_pooling_seeds": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention_mode", ["sum", "sequential", "split", "alternating"])
@pytest.mark.parametrize(("grid", "patch"), [((7,), (2,)), ((5, 3), (3, 2)), ((2, 5, 3), (1, 2, 3))])
def test_formula_of_the_flops(grid, patch, attention_mode, overrides):
    config = AxialConfig(
        image_size=[length * side for length, side in zip(grid, patch, strict=True)],
        patch_size=patch,
        num_channels=2,
        hidden_size=10,
        num_hidden_layers=4 if len(grid) == 3 else 3,
        num_attention_heads=6,
        head_dim=4,
        intermediate_size=7,
        attention_mode=attention_mode,
        **overrides,
    )
    assert count_flops(config) == counted_flops(config)


@pytest.mark.parametrize("window", [1, 4, 20, [4, None]])
def test_formula_of_the_flops_of_windows(window):
    """In blocks where these pay, which a window of 20 on a line of 103 does not."""
    config = AxialConfig(
        image_size=[103, 80],
        patch_size=1,
        num_channels=2,
        hidden_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=7,
        attention_window=window,
    )
    assert count_flops(config) == counted_flops(config)
    in_full = AxialConfig(**{**config.to_dict(), "attention_window": None})
    assert (count_flops(config) < count_flops(in_full)) == (window != 20)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"feed_forward": "gated_mlp", "num_classes": 5},
        {"num_channels": 3},
        {"num_channels": 3, "num_condition_channels": 2},
        {"num_channels": 2, "channel_order": "nested", "num_condition_channels": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("image_size", [(5,), (7, 3), (2, 5, 3)])
def test_formula_of_the_flops_of_a_decoder(image_size, overrides):
    config = AxialDecoderConfig(
        image_size=image_size,
        vocab_size=11,
        hidden_size=10,
        num_attention_heads=3,
        head_dim=4,
        intermediate_size=7,
        num_outer_layers=2,
        num_inner_layers=3,
        num_exterior_layers=2,
        **{"num_channels": 1, **overrides},
    )
    assert count_flops(config) == counted_flops(config)


def test_flops_by_hand():
    """A patch of 2 pixels becomes a token of width 3, for one layer with one head of 5 and an MLP of 7."""
    config = AxialConfig(
        image_size=[2],
        patch_size=[2],
        num_channels=1,
        hidden_size=3,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=5,
        intermediate_size=7,
    )
    assert count_flops(config) == 2 * (2 * 3 + 4 * 3 * 5 + 2 * 5 + 2 * 3 * 7)


def test_preset_by_path(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"model_type": "axial", "image_size": [10, 21], "patch_size": [2, 3]}')
    expected = AxialConfig(image_size=[10, 21], patch_size=[2, 3])
    assert load_preset(path) == load_preset(str(path)) == expected
    for overrides in ({"hidden_size": 192}, {"image_size": [4, 9]}):
        expected = AxialConfig(**{"image_size": [10, 21], "patch_size": [2, 3], **overrides})
        assert load_preset(path, **overrides) == expected


@pytest.mark.parametrize("name", list_presets())
def test_preset_opens_without_this_folder(name):
    path = ROOT / "configuration" / "models" / f"{name}.json"
    config = load_preset(name)
    assert type(config).from_pretrained(path) == AutoConfig.from_pretrained(path) == config


def test_class_is_not_a_copy():
    assert configuration.AxialConfig is AxialConfig


@pytest.mark.parametrize("name", ["axial_large", "", "nowhere/axial_tiny.json", "models", ".."])
def test_unknown_preset(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))) as error:
        load_preset(name)
    for words in (*list_presets(), 'AxialConfig.from_pretrained("path/to/preset.json")', "checkout"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "axial",', "must be JSON"),
        ("", "must be JSON"),
        ("[1, 2]", '"model_type": "axial"'),
        ("null", '"model_type": "axial"'),
        ('{"hidden_size": 192}', '"model_type": "axial"'),
        ('{"model_type": "vit", "hidden_size": 192}', '"model_type": "axial"'),
    ],
)
def test_file_that_is_no_preset(tmp_path, text, words):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_preset(path)
    assert str(path) in str(error.value)


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be JSON"):
        load_preset(path)


def test_bad_values_in_a_preset(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"model_type": "axial", "hiden_size": 192}))
    with pytest.raises(ValueError, match="'hiden_size'.*did you mean 'hidden_size'"):
        load_preset(path)
    path.write_text(json.dumps({"model_type": "axial", "hidden_size": "192"}))
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        load_preset(path)
    with pytest.raises(ValueError, match="'num_layers'.*did you mean 'num_hidden_layers'"):
        load_preset("axial_tiny", num_layers=3)
