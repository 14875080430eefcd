"""What all configurations share, seen on that of the encoder."""

import copy
import json
import re
import warnings

import pytest
import torch
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from modeling_axial import AxialConfig, AxialForImageClassification, AxialModel


def stored(folder, **contents):
    """A folder whose config.json holds `contents`."""
    (folder / "config.json").write_text(json.dumps({"model_type": "axial", **contents}))
    return folder


def test_one_label_is_a_regression():
    with pytest.raises(ValueError, match="num_labels"):
        AxialConfig(num_labels=1, problem_type="single_label_classification")
    assert AxialConfig(num_labels=1, problem_type="regression").num_labels == 1


# ---- keys that are no field ----

UNKNOWN_KEYS = {
    "hiden_size": "did you mean 'hidden_size'?",
    "num_layers": "did you mean 'num_hidden_layers'?",
    "image_sizes": "did you mean 'image_size'?",
    "dropout_probability": "did you mean 'hidden_dropout_prob'?",
    "zzz": "",
    "_note": "",
    "layer_types": "did you mean 'layer_norm_eps'?",
    "rope_parameters": "did you mean 'drop_path_rate'?",
    # Names of what is in the class, but no field.
    "validate": "",
    "push_to_hub": "",
    "attribute_map": "",
    "base_model_fsdp_plan": "",
}


@pytest.mark.parametrize(("key", "hint"), UNKNOWN_KEYS.items())
def test_unknown_key_of_the_constructor(key, hint):
    with pytest.raises(
        ValueError, match=re.escape(f"AxialConfig has no field {key!r} (value ['full_attention'])")
    ) as error:
        AxialConfig(**{key: ["full_attention"], "hidden_size": 96})
    assert hint in str(error.value)
    assert ("did you mean" in str(error.value)) == bool(hint)


@pytest.mark.parametrize(("key", "hint"), UNKNOWN_KEYS.items())
@pytest.mark.parametrize("opener", [AxialConfig, AutoConfig])
def test_unknown_key_of_from_pretrained(tmp_path, opener, key, hint):
    folder = stored(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"AxialConfig has no field {key!r} (value 3)")) as error:
        opener.from_pretrained(folder, **{key: 3})
    assert hint in str(error.value)


@pytest.mark.parametrize(("key", "hint"), UNKNOWN_KEYS.items())
@pytest.mark.parametrize(
    "read",
    [
        AxialConfig.from_pretrained,
        AutoConfig.from_pretrained,
        lambda folder: AxialConfig.from_json_file(folder / "config.json"),
        lambda folder: AxialConfig.from_dict(json.loads((folder / "config.json").read_text())),
    ],
    ids=["AxialConfig", "AutoConfig", "from_json_file", "from_dict"],
)
def test_unknown_key_in_a_file(tmp_path, read, key, hint):
    folder = stored(tmp_path, **{key: ["full_attention"], "hidden_size": 96})
    with pytest.warns(
        UserWarning, match=re.escape(f"AxialConfig has no field {key!r} (value ['full_attention'])")
    ) as record:
        config = read(folder)
    assert len(record) == 1 and hint in str(record[0].message) and "Ignored" in str(record[0].message)
    assert config == AxialConfig(hidden_size=96)
    assert key not in config.__dict__ and key not in config.to_dict()
    assert config.output_attentions is False  # nothing of transformers' own went with it
    AxialConfig(**config.to_dict())


def test_several_unknown_keys_in_a_file(tmp_path):
    with pytest.warns(UserWarning) as record:
        AxialConfig.from_pretrained(stored(tmp_path, hiden_size=3, _note=4))
    assert {re.search("'(.*?)'", str(warning.message))[1] for warning in record} == {"hiden_size", "_note"}


def test_unknown_keyword_of_a_model(tmp_path):
    AxialForImageClassification(tiny_config()).save_pretrained(tmp_path)
    for opener in (AxialModel, AxialForImageClassification, AutoModel, AutoModelForImageClassification):
        with pytest.raises(TypeError, match="hiden_size"):
            opener.from_pretrained(tmp_path, hiden_size=3)


DERIVED = [
    name
    for name, value in vars(AxialConfig).items()
    if isinstance(value, property) and name not in ("out_features", "out_indices")  # which can be set
]


def test_derived_keys():
    assert {"num_axes", "image_shape", "patch_shape", "grid_shape"} <= set(DERIVED)


@pytest.mark.parametrize("key", [*DERIVED, "is_heterogeneous"])
def test_derived_key_is_refused(tmp_path, key):
    message = f"AxialConfig derives '{key}' from other fields; it cannot be set"
    with pytest.raises(ValueError, match=message):
        AxialConfig(**{key: 3})
    for opener in (AxialConfig, AutoConfig):
        with pytest.raises(ValueError, match=message):
            opener.from_pretrained(stored(tmp_path), **{key: 3})
    with pytest.raises(ValueError, match=message):
        AxialConfig.from_pretrained(stored(tmp_path, **{key: 3}))
    with pytest.raises(AttributeError):
        setattr(AxialConfig(), key, 3)


@pytest.mark.parametrize(
    "keyword", [{"layer_types": 3}, {"per_layer_config": 3}, {"mtp_layer_types": 3}, {"attribute_map": 3}]
)
def test_keyword_that_transformers_chokes_on(keyword):
    with pytest.raises(ValueError, match=re.escape(f"AxialConfig cannot be made with {keyword}: ")):
        AxialConfig(**keyword)


def test_other_model_type(tmp_path):
    for make in (
        lambda: AxialConfig(model_type="vit"),
        lambda: AxialConfig.from_pretrained(stored(tmp_path, model_type="vit")),
    ):
        with pytest.raises(ValueError, match="AxialConfig has model_type='axial', got 'vit'"):
            make()
    assert AxialConfig(model_type="axial") == AxialConfig()


def test_keys_of_other_tools_are_kept(tmp_path):
    values = {
        "auto_map": {"AutoConfig": "configuration_axial.AxialConfig"},
        "custom_pipelines": {"a": {"impl": "b.C"}},
        "quantization_config": {"quant_method": "c"},
    }
    config = AxialConfig(**values)
    for key, value in values.items():
        assert config.to_dict()[key] == value
    config.save_pretrained(tmp_path)
    reloaded = AxialConfig.from_pretrained(tmp_path)
    for key, value in values.items():
        assert getattr(reloaded, key) == value


# ---- writing and reading ----

SAMPLES = [
    {},
    {"image_size": 48, "patch_size": 8},
    {"image_size": [6, 35], "patch_size": [2, 5]},
    {"image_size": (6, 35, 33), "patch_size": (2, 5, 3)},
    {"image_size": 12, "patch_size": (2, 3, 4, 6)},
    {"num_labels": 10},
    {"num_labels": 0},
    {"id2label": {0: "zero", 1: "one", 2: "two"}, "label2id": {"zero": 0, "one": 1, "two": 2}},
    {"id2label": {0: "zero", 1: "one", 2: "two"}},
    {"label2id": {"zero": 0, "one": 1}},
    {"num_inducing_points": (2, None), "pooling": "attention", "num_pooling_seeds": 3},
    {"head_dim": 8, "intermediate_size": 100, "position_embedding": "rotary", "rope_theta": 100},
    {"reversible": True, "qkv_bias": False, "feed_forward": "convolution", "attention_mode": "sum"},
    {"attention_mode": "split", "use_qk_norm": True, "layer_scale_init_value": 1e-5, "drop_path_rate": 0.1},
    {"hidden_dropout_prob": 0, "layer_norm_eps": 1e-12, "initializer_range": 0.1, "hidden_act": "silu"},
    {"dtype": "bfloat16", "problem_type": "regression", "num_labels": 1, "architectures": ["AxialModel"]},
    {"output_attentions": True, "output_hidden_states": True, "return_dict": False},
]
samples = pytest.mark.parametrize("values", SAMPLES, ids=lambda values: "-".join(values) or "default")


def tiny_config(**overrides):
    options = {"image_size": 6, "patch_size": 3, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    return AxialConfig(**{**options, **overrides})


@samples
def test_equals_its_reloaded_self(tmp_path, values):
    config = AxialConfig(**values)
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    text = config.to_json_string()
    assert json.loads(text) == json.loads((tmp_path / "config.json").read_text())
    copies = [
        AxialConfig.from_pretrained(tmp_path),
        AxialConfig.from_pretrained(tmp_path / "config.json"),
        AxialConfig.from_json_file(tmp_path / "config.json"),
        AxialConfig.from_json_file(tmp_path / "all.json"),
        AutoConfig.from_pretrained(tmp_path),
        AxialConfig.from_dict(json.loads(text)),
        AxialConfig(**json.loads(text)),
        AxialConfig(**config.to_dict()),
        AxialConfig(**config.to_diff_dict()),
        copy.deepcopy(config),
    ]
    for number, other in enumerate(copies):
        assert other == config, number
        # Equality is that of the fields; here is the rest.
        assert {**other.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}, number
        assert other.num_labels == config.num_labels
        assert other.output_attentions is config.output_attentions is values.get("output_attentions", False)
    assert AxialConfig(**{**values, "num_channels": 7}) != config


def test_stored_version_is_no_difference():
    config = AxialConfig.from_dict({"transformers_version": "4.0.0"})
    assert config == AxialConfig()
    assert config.to_dict()["transformers_version"] == AxialConfig().to_dict()["transformers_version"] != "4.0.0"


@pytest.mark.parametrize("name", ["note", "_note"])
def test_a_note_does_not_lock_the_checkpoint(tmp_path, name):
    model = AxialModel(tiny_config())
    setattr(model.config, name, 1)
    assert name not in model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert name not in json.loads((tmp_path / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for opener in (AxialModel, AutoModel):
            assert opener.from_pretrained(tmp_path).config == model.config
        AxialConfig(**model.config.to_dict())


def test_config_of_a_loaded_model_makes_the_same_config(tmp_path):
    AxialForImageClassification(tiny_config(num_labels=3)).to(torch.bfloat16).save_pretrained(tmp_path)
    config = AutoModelForImageClassification.from_pretrained(tmp_path).config
    assert config._name_or_path == str(tmp_path) and config.auto_map and config.architectures
    again = AxialConfig(**config.to_dict())
    assert again == config
    assert again.to_dict() == config.to_dict()


def test_keywords_of_from_pretrained_override(tmp_path):
    AxialConfig(num_labels=5, dtype="float16", image_size=48).save_pretrained(tmp_path)
    for opener in (AxialConfig, AutoConfig):
        config = opener.from_pretrained(
            tmp_path,
            image_size=(32, 48),
            num_labels=3,
            attn_implementation="eager",
            output_attentions=True,
            dtype="auto",
        )
        assert config.image_size == [32, 48] and config.num_labels == 3 and config.dtype == torch.float16
        assert config._attn_implementation == "eager" and config.output_attentions is True
        assert opener.from_pretrained(tmp_path, dtype="bfloat16").dtype in (torch.bfloat16, "bfloat16")
        assert opener.from_pretrained(tmp_path, return_dict=False, architectures=["AxialModel"]).return_dict is False


# ---- what transformers' own tests ask of any configuration ----


def test_common_properties():
    names = ("hidden_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size", "num_channels")
    config = AxialConfig()
    for number, name in enumerate(names):
        setattr(config, name, 32 + number)
        assert getattr(config, name) == config.to_dict()[name] == 32 + number


def test_json_string_holds_every_argument():
    values = {"hidden_size": 96, "image_size": [32, 48], "reversible": True, "hidden_act": "relu", "rope_theta": 3.5}
    stored_values = json.loads(AxialConfig(**values).to_json_string())
    assert {name: stored_values[name] for name in values} == values
    assert stored_values["model_type"] == "axial"


def test_subfolder(tmp_path):
    config = AxialConfig(hidden_size=96)
    config.save_pretrained(tmp_path / "sub" / "folder")
    for opener in (AxialConfig, AutoConfig):
        assert opener.from_pretrained(tmp_path, subfolder="sub/folder") == config


def test_number_of_labels():
    config = AxialConfig(num_labels=5)
    assert config.num_labels == len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    for names in ({"id2label": {"0": "a", "1": "b", "2": "c"}}, {"label2id": {"a": 0, "b": 1, "c": 2}}):
        config = AxialConfig(**names)
        assert config.num_labels == 3
        assert config.id2label == {0: "a", 1: "b", 2: "c"} and config.label2id == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(StrictDataclassError, match="id2label"):
        AxialConfig(label2id={"a": 1, "b": 2})


def test_unused_keywords_are_handed_back(tmp_path):
    config, unused = AxialConfig.from_dict({}, return_unused_kwargs=True, hidden_size=96, foo=False, validate=1)
    assert config == AxialConfig(hidden_size=96)
    assert unused == {"foo": False, "validate": 1}
    for opener in (AxialConfig, AutoConfig):
        _, unused = opener.from_pretrained(stored(tmp_path), return_unused_kwargs=True, foo=False)
        assert unused == {"foo": False}


def test_override_reaches_what_derives_from_it(tmp_path):
    folder = stored(tmp_path, hidden_size=96, num_attention_heads=2)
    for opener in (AxialConfig, AutoConfig):
        config = opener.from_pretrained(folder, hidden_size=60)
        assert (config.hidden_size, config.head_dim, config.intermediate_size) == (60, 30, 240)


def test_derived_values_are_not_stored_as_if_chosen(tmp_path):
    sizes = {"hidden_size": 96, "num_attention_heads": 2}
    AxialConfig(**sizes).save_pretrained(tmp_path / "derived")
    AxialConfig(**sizes, head_dim=48, intermediate_size=7).save_pretrained(tmp_path / "chosen")
    stored_fields = json.loads((tmp_path / "derived" / "config.json").read_text())
    assert stored_fields["head_dim"] is None and stored_fields["intermediate_size"] is None
    for opener in (AxialConfig, AutoConfig):
        config = opener.from_pretrained(tmp_path / "derived", hidden_size=60)
        assert (config.head_dim, config.intermediate_size) == (30, 240)
        config = opener.from_pretrained(tmp_path / "chosen", hidden_size=60)
        assert (config.head_dim, config.intermediate_size) == (48, 7)


def test_derived_values_follow_what_they_derive_from():
    config = AxialConfig(hidden_size=96, num_attention_heads=2)
    config.hidden_size = 60
    assert (config.head_dim, config.intermediate_size) == (30, 240)
    config.num_attention_heads = 7
    with pytest.raises(StrictDataclassClassValidationError, match="hidden_size=60 must be a multiple"):
        config.validate()
    config.head_dim = 9
    config.hidden_size = 35
    assert (config.head_dim, config.intermediate_size, config.to_dict()["head_dim"]) == (9, 140, 9)
    config.head_dim = None
    assert config.head_dim == 5 and copy.deepcopy(config) == config == AxialConfig.from_dict(config.to_dict())


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_labels"])
def test_sizes_that_would_exhaust_the_memory_are_refused_on_reading(tmp_path, field):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "axial", field: 10**10}))
    for opener in (AxialConfig, AutoConfig):
        with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="10000000000"):
            opener.from_pretrained(tmp_path)


def test_dictionary_is_left_alone():
    values = {"hidden_size": 96, "model_type": "axial", "zzz": 1}
    with pytest.warns(UserWarning, match="zzz"):
        AxialConfig.from_dict(values, num_labels=4, hidden_size=192)
    assert values == {"hidden_size": 96, "model_type": "axial", "zzz": 1}


def test_keyword_arguments_only():
    with pytest.raises(ValueError, match="keyword"):
        AxialConfig(48)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("return_dict", False, False),
        ("output_hidden_states", True, True),
        ("output_attentions", True, True),
        ("dtype", "float16", torch.float16),
        ("torch_dtype", "float16", torch.float16),
        ("chunk_size_feed_forward", 5, 5),
        ("architectures", ["AxialModel"], ["AxialModel"]),
        ("problem_type", "regression", "regression"),
        ("name_or_path", "somewhere", "somewhere"),
        ("attn_implementation", "eager", "eager"),
    ],
)
def test_common_keywords(name, value, kept):
    config = AxialConfig(**{name: value})
    assert (
        getattr(config, {"torch_dtype": "dtype", "attn_implementation": "_attn_implementation"}.get(name, name)) == kept
    )


def test_copy_is_deep():
    config = AxialConfig(image_size=[32, 48], patch_size=[16, 16])
    twin = copy.deepcopy(config)
    twin.image_size[0] = 64
    assert config.image_size == [32, 48]
