import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from modeling_axial import AxialImageTransformerConfig


def test_defaults_are_those_of_the_readme_of_the_seed():
    config = AxialImageTransformerConfig()
    assert (config.num_axes, config.hidden_size, config.num_hidden_layers) == (2, 128, 12)
    assert (config.num_attention_heads, config.head_dim) == (8, 16)
    assert config.reversible and config.position_embedding_shape is None
    assert config.model_type == "axial_image_transformer"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_axes": 3, "hidden_size": 7, "num_attention_heads": 2, "head_dim": 5},
        {"position_embedding_shape": (5, 3), "reversible": False},
        {"num_axes": 1, "position_embedding_shape": [7], "num_hidden_layers": 1},
    ],
)
def test_round_trip(fields, tmp_path):
    config = AxialImageTransformerConfig(**fields)
    config.save_pretrained(tmp_path)
    assert AxialImageTransformerConfig.from_pretrained(tmp_path) == config
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {name: stored[name] for name in fields} == json.loads(json.dumps(fields))


WRONG_FIELDS = [
    *(
        {name: value}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        for value in (0, -1, "2", 2.0)
    ),
    *({"num_axes": value} for value in (0, 4, -1, "2", None)),
    *({"head_dim": value} for value in (0, "8")),
    *({"position_embedding_shape": value} for value in (5, [], [5, 0], ["5", "3"], "53")),
    {"reversible": "yes"},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=str)
def test_wrong_values_are_named(fields):
    (name,) = fields
    with pytest.raises(StrictDataclassError, match=name):
        AxialImageTransformerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 7, "num_attention_heads": 2}, "hidden_size=7 must be a multiple of num_attention_heads=2"),
        ({"position_embedding_shape": [5, 3, 2]}, r"\[5, 3, 2\] has 3 axes, but num_axes=2"),
        ({"num_axes": 3, "position_embedding_shape": [5]}, r"\[5\] has 1 axes, but num_axes=3"),
    ],
)
def test_fields_that_do_not_fit_together(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        AxialImageTransformerConfig(**fields)


def test_words_of_the_seed_are_no_fields():
    with pytest.raises(ValueError, match="no field 'depth'"):
        AxialImageTransformerConfig(depth=3)


@pytest.mark.parametrize(("shape", "split"), [(None, set()), ([5, 3], {"transformer.pos_emb"})])
def test_blocks_that_fsdp_splits(shape, split):
    config = AxialImageTransformerConfig(position_embedding_shape=shape)
    assert set(config.base_model_fsdp_plan) == split | {"transformer.layers.blocks.*"}
    assert "base_model_fsdp_plan" not in config.to_dict()
    with pytest.raises(ValueError, match="derives 'base_model_fsdp_plan'"):
        AxialImageTransformerConfig(base_model_fsdp_plan={})


def test_derived_width_of_heads_follows_its_fields(tmp_path):
    config = AxialImageTransformerConfig(hidden_size=12, num_attention_heads=2)
    config.save_pretrained(tmp_path)
    assert config.head_dim == 6 and json.loads((tmp_path / "config.json").read_text())["head_dim"] is None
    assert AxialImageTransformerConfig.from_pretrained(tmp_path, hidden_size=8).head_dim == 4


def test_attention_maps_may_be_asked_for_in_the_config():
    assert AxialImageTransformerConfig(output_attentions=True).output_attentions
    with pytest.raises(StrictDataclassError, match="num_hidden_layers"):
        AxialImageTransformerConfig(num_hidden_layers=10**10)
