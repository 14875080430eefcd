import copy
import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_axial.configuration_axial import AxialConfig
from modeling_axial.configuration_axial_decoder import AxialDecoderConfig, ExteriorConfig


def test_defaults():
    config = AxialDecoderConfig()
    assert (config.image_size, config.num_channels, config.vocab_size) == ([32, 32], 3, 256)
    assert (config.head_dim, config.intermediate_size) == (32, 1024)
    assert config.channel_order == "slices" and config.num_classes is None and config.num_condition_channels == 0
    assert config.position_embedding == "learned" and config.model_type == "axial_decoder"


@pytest.mark.parametrize(
    ("fields", "num_grids", "grid_shape", "num_exterior_channels"),
    [
        ({"num_channels": 3}, 3, (5, 7), 6),
        ({"num_channels": 3, "num_condition_channels": 2}, 3, (5, 7), 8),
        ({"num_channels": 1}, 1, (5, 7), 0),
        ({"num_channels": 3, "channel_order": "nested"}, 1, (3, 5, 7), 0),
        ({"num_channels": 3, "channel_order": "nested", "num_condition_channels": 2}, 1, (3, 5, 7), 2),
        ({"num_channels": 1, "channel_order": "nested"}, 1, (5, 7), 0),
    ],
)
def test_token_grids(fields, num_grids, grid_shape, num_exterior_channels):
    config = AxialDecoderConfig(image_size=(5, 7), **fields)
    assert (config.num_grids, config.grid_shape) == (num_grids, grid_shape)
    assert config.num_exterior_channels == num_exterior_channels


@pytest.mark.parametrize(
    ("fields", "stacks"),
    [
        ({"image_size": (5, 7)}, ["exterior.stack", "outer_levels.*", "inner_level"]),
        ({"image_size": (5, 7), "num_channels": 1}, ["outer_levels.*", "inner_level"]),
        ({"image_size": (5,), "channel_order": "nested"}, ["outer_levels.*", "inner_level"]),
        ({"image_size": (5,), "num_channels": 1}, ["inner_level"]),
        ({"image_size": (5,), "num_channels": 1, "num_condition_channels": 2}, ["exterior.stack", "inner_level"]),
    ],
    ids=str,
)
def test_blocks_that_fsdp_splits(fields, stacks):
    config = AxialDecoderConfig(**fields)
    blocks = {f"{stack}.blocks.*" for stack in stacks}
    assert set(config.base_model_fsdp_plan) == blocks | {"token_embeddings", "norm", "head"}
    assert "base_model_fsdp_plan" not in config.to_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (2, 3, 5), "num_channels": 1, "vocab_size": 2, "hidden_size": 7, "head_dim": 3},
        {"image_size": [9], "channel_order": "nested", "num_classes": 10, "num_condition_channels": 3},
        {"position_embedding": "rotary+relative", "attention_window": 3},
        {"reversible": True, "feed_forward": "gated_mlp", "hidden_dropout_prob": 0.1, "intermediate_size": 5},
    ],
    ids=str,
)
def test_round_trip(fields, tmp_path):
    config = AxialDecoderConfig(**fields)
    config.save_pretrained(tmp_path)
    assert AxialDecoderConfig.from_pretrained(tmp_path) == config
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {name: stored[name] for name in fields} == json.loads(json.dumps(fields))


COUNTS = ("num_channels", "hidden_size", "num_attention_heads", "head_dim", "intermediate_size", "num_classes")
COUNTS += ("num_outer_layers", "num_inner_layers", "num_exterior_layers")
WRONG_FIELDS = [
    *({name: value} for name in COUNTS for value in (0, -1, "2", 2.0)),
    *({"image_size": value} for value in (28, [], [5, 0], ["5", "3"], None)),
    *({"vocab_size": value} for value in (1, 0, "256", None)),
    *({"num_condition_channels": value} for value in (-1, "1", None)),
    *({"channel_order": value} for value in ("interleaved", None)),
    *({"feed_forward": value} for value in ("convolution", None)),
    *({"attention_window": value} for value in (0, -1, "2", [2, 3])),
    *({"position_embedding": value} for value in ("", "sinusoidal", "rotary+rotary", "none+rotary", "rotary+", None)),
    {"position_embedding": ["rotary", "relative"]},
    *(
        {name: value}
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "class_dropout_prob")
        for value in (-0.1, 1.0)
    ),
    *({"layer_norm_eps": value} for value in (0, -1e-5)),
    {"hidden_act": "gelo"},
    {"reversible": "yes"},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=str)
def test_wrong_values_are_named(fields):
    (name,) = fields
    with pytest.raises(StrictDataclassError, match=name):
        AxialDecoderConfig(**fields)


def test_rotary_positions_turn_pairs():
    options = {"hidden_size": 6, "num_attention_heads": 2}
    with pytest.raises(StrictDataclassError, match='position_embedding="rotary" rotates pairs: head_dim=3'):
        AxialDecoderConfig(**options, position_embedding="learned+rotary")
    assert AxialDecoderConfig(**options, position_embedding="relative").head_dim == 3


def test_a_file_of_before_there_were_these_fields_opens_as_it_was():
    stored = AxialDecoderConfig(image_size=(5, 7)).to_dict()
    del stored["position_embedding"], stored["attention_window"]
    assert AxialDecoderConfig.from_dict(stored) == AxialDecoderConfig(image_size=(5, 7))


def test_axes_of_tokens_and_of_pixels():
    options = {"channel_order": "nested", "num_condition_channels": 1, "position_embedding": "learned+relative"}
    config = AxialDecoderConfig(image_size=(5, 7), num_attention_heads=4, **options)
    exterior = copy.deepcopy(ExteriorConfig(config))
    assert [(axis.axis, axis.length) for axis in config.axes] == [(0, 3), (1, 5), (2, 7)]
    assert [(axis.axis, axis.length) for axis in exterior.axes] == [(0, 5), (1, 7)]
    for axis in (*config.axes, *exterior.axes):
        assert axis.positions == ("learned", "relative") and axis.num_heads == 4
    assert exterior.grid_shape == (5, 7) and exterior.head_dim == 64
    windowed = AxialDecoderConfig(image_size=(5, 7), attention_window=4)
    assert [(axis.mixer, axis.reach) for axis in windowed.axes] == [("window", 4), ("window", 4)]
    assert [(axis.mixer, axis.reach) for axis in config.axes] == [("full", 2), ("full", 4), ("full", 6)]
    view = ExteriorConfig(config)
    config.hidden_dropout_prob = 0.5
    assert (view.hidden_dropout_prob, exterior.hidden_dropout_prob) == (0.5, 0.0)


def test_only_classes_can_be_hidden():
    with pytest.raises(StrictDataclassError, match="class_dropout_prob=0.1 needs num_classes, which is None"):
        AxialDecoderConfig(class_dropout_prob=0.1)
    assert AxialDecoderConfig(num_classes=10, class_dropout_prob=0.1).num_class_embeddings == 11
    assert AxialDecoderConfig(num_classes=10).num_class_embeddings == 10


def test_width_of_heads_must_be_known():
    with pytest.raises(StrictDataclassError, match="hidden_size=7 must be a multiple of num_attention_heads=2"):
        AxialDecoderConfig(hidden_size=7, num_attention_heads=2)


def test_unknown_and_derived_fields_are_refused():
    with pytest.raises(ValueError, match="did you mean 'num_inner_layers'"):
        AxialDecoderConfig(num_iner_layers=2)
    with pytest.raises(ValueError, match="derives 'grid_shape'"):
        AxialDecoderConfig(grid_shape=(3, 5, 7))
    with pytest.raises(ValueError, match="model_type='axial_decoder'"):
        AxialDecoderConfig(model_type=AxialConfig.model_type)


@pytest.mark.parametrize("field", ["num_outer_layers", "num_inner_layers", "num_exterior_layers"])
def test_depths_that_would_exhaust_the_memory_are_refused(field):
    with pytest.raises(StrictDataclassError, match="must be from 1 to 10000, got 10000000000"):
        AxialDecoderConfig(**{field: 10**10})


def test_derived_values_follow_what_they_derive_from():
    stored = AxialDecoderConfig(hidden_size=64, num_attention_heads=4).to_dict()
    assert stored["head_dim"] is None and stored["intermediate_size"] is None
    config = AxialDecoderConfig.from_dict(stored, hidden_size=60)
    assert (config.head_dim, config.intermediate_size) == (15, 240)
