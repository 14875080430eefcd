import inspect
import json
import math
import re
import warnings
from collections import Counter
from dataclasses import fields

import pytest
import torch
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassError,
    StrictDataclassFieldValidationError,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_axial import AxialConfig
from modeling_axial.configuration_strict import AxisDescription, StrictConfig, check_positions
from tests.test_configuration_strict import stored, tiny_config

# For each field: values of a wrong type, values out of range, values that are right.
LENGTHS = (
    ["16", 16.0, None, True, [16, "16"], [16.0], (16, True), {"height": 16}],
    [0, -16, [], (), [16, 0], (-16, 16)],
    [16, [16], [16, 32], (32, 16), [16, 32, 48]],
)
NUMBERS = (["2", 2.0, None, True, [2]], [0, -2], [1, 2, 12])
OPTIONAL_NUMBERS = (["2", 2.0, True, [2]], [0, -2], [None, 2, 12])
FLAGS = (["yes", 1, None, 0.0, [True]], None, [True, False])  # None: every value of the type is right
PROBABILITIES = (["0.1", None, True, [0.1]], [1, 1.0, -0.1, 3, math.nan, math.inf], [0, 0.0, 0.1, 0.999])
POSITIVES = (["0.1", None, True, [0.1]], [0, 0.0, -1e-6, math.nan, math.inf], [1e-6, 2, 1e6])
CASES = {
    "image_size": LENGTHS,
    "patch_size": LENGTHS,
    "num_channels": NUMBERS,
    "hidden_size": NUMBERS,
    "num_hidden_layers": NUMBERS,
    "num_attention_heads": NUMBERS,
    "head_dim": OPTIONAL_NUMBERS,
    "intermediate_size": OPTIONAL_NUMBERS,
    "hidden_act": ([None, 3, ["gelu"]], ["", "gelo", "GELU"], ["gelu", "relu", "silu"]),
    "attention_mode": (
        [None, 3, ["sum"], True],
        ["", "Sum", "parallel"],
        ["sum", "sequential", "split", "alternating"],
    ),
    "feed_forward": ([None, 3, ["mlp"], True], ["", "MLP", "conv"], ["mlp", "gated_mlp", "convolution"]),
    "position_embedding": (
        [None, 3, [3], False],
        ["", "+", "learned+", "learned rotary", [], (), ["none", ""]],
        ["learned", "rotary", "none", "relative", "learned+relative", ["learned", "rotary+relative"], ("none", "none")],
    ),
    "rope_theta": POSITIVES,
    "num_inducing_points": (
        ["2", 2.0, True, [2.0], [2, "3"], (2, True)],
        [0, -2, [], (), [2, 0], (None, -1)],
        [None, 3, [2, None], (None, 3)],
    ),
    "mixer": ([3, True, [3]], [[], ()], [None, "full", ["full", None], (None, None)]),
    "attention_window": (
        ["2", 2.0, True, [2.0], [2, "3"], (2, True)],
        [0, -2, [], (), [2, 0], (None, -1)],
        [None, 3, [2, None], (None, 3)],
    ),
    "periodic": (["yes", 1, None, 0.0, [1, 0]], [[], ()], [True, False, [True, False], (False, True)]),
    "pooling": ([None, 3, ["mean"], True], ["", "max"], ["mean", "attention"]),
    "num_pooling_seeds": NUMBERS,
    "reversible": FLAGS,
    "dense_head": ([None, 3, ["linear"], True], ["", "Linear", "unet"], ["linear", "pyramid"]),
    "pyramid_size": OPTIONAL_NUMBERS,
    "semantic_loss_ignore_index": (["255", 255.0, None, True, [255]], None, [-1, 0, 255]),
    "class_weights": (
        ["1", 1, True, ["1", 2], [1, True], {0: 1.0}],
        [[1, -1], (math.nan, 1), [math.inf, 1], [0, 0.0], []],
        [None, [1, 2.5], (0, 1)],
    ),
    "dice_loss_weight": (["0.1", None, True, [0.1]], [-0.1, math.nan, math.inf], [0, 0.0, 0.5, 1]),
    "num_target_channels": NUMBERS,
    "prediction_loss": ([None, 3, ["squared"], True], ["", "Squared", "huber"], ["squared", "absolute", "quantile"]),
    "quantiles": (
        ["0.5", 0.5, None, True, ["0.5"], [0.5, True], {0: 0.5}],
        [[], (), [0.5, 1], [0], [-0.1, 0.5], [math.nan]],
        [[0.5], (0.1, 0.9), [0.2, 0.4, 0.8]],
    ),
    "qkv_bias": FLAGS,
    "use_qk_norm": FLAGS,
    "layer_scale_init_value": (["0.1", True, [0.1]], [0, 0.0, -1e-6, math.nan, math.inf], [None, 1e-5, 1, 2.0]),
    "drop_path_rate": PROBABILITIES,
    "hidden_dropout_prob": PROBABILITIES,
    "attention_probs_dropout_prob": PROBABILITIES,
    "layer_norm_eps": POSITIVES,
    "initializer_range": (["0.1", None, True, [0.1]], [-0.1, math.nan, math.inf], [0, 0.0, 0.02, 1]),
    # Fields of every transformers config.
    "architectures": (["AxialModel", 3, [3], {"a": 1}], None, [None, [], ["AxialModel"]]),
    "output_hidden_states": (["yes", 1, [0]], None, [None, True, False]),
    "return_dict": (["yes", 1], None, [None, True, False]),
    "dtype": ([16, 1.5, ["float16"], {"": "float16"}], ["", "float61", "nn", "FP16"], [None, "float16", torch.float64]),
    "chunk_size_feed_forward": (["0", 0.5, None], None, [0, 1]),
    "is_encoder_decoder": (["no", 0, None], None, [True, False]),
    "id2label": (
        [["a"], "a", 2, {0: 1}, {0.5: "a"}],
        [{1: "a"}, {0: "a", 2: "b"}, {"0": "a", "x": "b"}, {-1: "a", 0: "b"}],
        [None, {}, {0: "a"}, {"1": "b", "0": "a"}],
    ),
    "label2id": ([["a"], "a", 2, {0: 1}, {"a": 0.5}], None, [None, {"a": 0, "b": 1}]),
    "problem_type": ([3, ["regression"], True], ["", "classification"], [None, "regression"]),
}
UNCHECKED = {
    "transformers_version",  # replaced by the version at work, whatever is given
    *("_out_features", "_out_indices"),  # where out_features and out_indices are kept, see the stages of a backbone
}

# Each rule that ties fields to each other: an example of its violation, and what the error must say.
RULES = {
    "as many image axes as patch axes": (
        {"image_size": [16, 32, 48], "patch_size": [16, 16]},
        ["image_size=[16, 32, 48]", "3 axes", "patch_size=[16, 16]", "2", "same length"],
    ),
    "patches divide the image": (
        {"image_size": [48, 40], "patch_size": [16, 16]},
        ["image_size=[48, 40]", "multiple", "patch_size=[16, 16]"],
    ),
    "inducing points for each axis": (
        {"num_inducing_points": [3, None, 5]},
        ["num_inducing_points=[3, None, 5]", "2 axes", "patch_size=16"],
    ),
    "heads divide the width": (
        {"hidden_size": 34, "num_attention_heads": 4},
        ["hidden_size=34", "multiple", "num_attention_heads=4", "head_dim"],
    ),
    "positions have a known name": (
        {"position_embedding": ["learned", "rotary+absolute"]},
        ["position_embedding=['learned', 'rotary+absolute']", "'absolute'", "learned, none, relative, rotary"],
    ),
    "each kind of position once": (
        {"position_embedding": ["learned+none", "none"]},
        ["position_embedding=['learned+none', 'none']", "once", "alone"],
    ),
    "mixers have a known name": (
        {"mixer": ["full", "convolution"]},
        ["mixer=['full', 'convolution']", "'convolution'", "full, induced, window"],
    ),
    "a mixer reads its own field": (
        {"attention_window": [None, 2], "num_inducing_points": [None, 3]},
        ["num_inducing_points=3", "attention_window=2", "axis 1", "mixer='window'"],
    ),
    "inducing points see no pairs of cells": (
        {"position_embedding": "relative", "num_inducing_points": [None, 3]},
        ['position_embedding="relative"', "axis 1", "num_inducing_points=3"],
    ),
    "rotary turns pairs": (
        {"position_embedding": "rotary", "head_dim": 7},
        ['position_embedding="rotary"', "head_dim=7", "even"],
    ),
    "axes share out the heads": (
        {"attention_mode": "split", "image_size": 8, "patch_size": [2, 2, 2, 2]},
        ['attention_mode="split"', "num_attention_heads=6", "multiple of the 4 axes", "patch_size=[2, 2, 2, 2]"],
    ),
    "alternating layers see every axis": (
        {"attention_mode": "alternating", "image_size": 8, "patch_size": [2, 2, 2], "num_hidden_layers": 2},
        ['attention_mode="alternating"', "num_hidden_layers=2", "at least the 3 axes", "patch_size=[2, 2, 2]"],
    ),
    "convolutions have 1 to 3 axes": (
        {"feed_forward": "convolution", "image_size": 8, "patch_size": [2, 2, 2, 2]},
        ['feed_forward="convolution"', "1 to 3 axes", "patch_size=[2, 2, 2, 2]"],
    ),
    "pyramids have 1 to 3 axes": (
        {"dense_head": "pyramid", "image_size": 8, "patch_size": [2, 2, 2, 2]},
        ['dense_head="pyramid"', "1 to 3 axes", "patch_size=[2, 2, 2, 2]", '"linear"'],
    ),
    "a weight for each label": (
        {"class_weights": [1.0, 2.0, 3.0], "num_labels": 4},
        ["class_weights=[1.0, 2.0, 3.0]", "num_labels=4"],
    ),
    "layers are alike": ({"per_layer_config": {"0": {"hidden_size": 34}}}, ["per_layer_config", "alike"]),
}
VIOLATIONS = [pytest.param(fields, words, id=rule) for rule, (fields, words) in RULES.items()]
NAMED_ERRORS = (StrictDataclassError, ValueError)


def field_values(kind):
    kinds = ("wrong type", "out of range", "right")
    return [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, case in CASES.items()
        for value in case[kinds.index(kind)] or []
    ]


# ---- fields ----


def test_every_field_has_cases():
    assert set(CASES) | UNCHECKED == {field.name for field in fields(AxialConfig)}
    for name, (wrong_type, out_of_range, right) in CASES.items():
        assert wrong_type and right, name
        assert out_of_range is None or out_of_range, name


def matches_type_or_range(error, name, value):
    text = str(error)
    assert name in text and (repr(value) in text or str(value) in text)
    assert "expected" in text or "doesn't match any type" in text or "must" in text


@pytest.mark.parametrize(("name", "value"), field_values("wrong type") + field_values("out of range"))
def test_bad_value(name, value):
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        AxialConfig(**{name: value})
    matches_type_or_range(error.value, name, value)

    config = AxialConfig()
    before = getattr(config, name)
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        setattr(config, name, value)
    matches_type_or_range(error.value, name, value)
    assert getattr(config, name) == before

    with pytest.raises(StrictDataclassFieldValidationError):
        AxialConfig.from_dict({}, **{name: value})
    with pytest.raises(StrictDataclassFieldValidationError):
        AxialConfig.from_dict({name: value})


def as_kept(name, value):
    """The value of a field that was given `value`, beside the fields of `test_right_value`."""
    if value is None and name in ("id2label", "label2id"):
        return {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}[name]
    if value is None and name in ("head_dim", "intermediate_size", "pyramid_size"):
        return {"head_dim": 384 // 6, "intermediate_size": 4 * 384, "pyramid_size": 384 // 4}[name]
    if name == "id2label":
        return {int(index): label for index, label in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return torch.float16 if value == "float16" else value


@pytest.mark.parametrize(("name", "value"), field_values("right"))
def test_right_value(name, value):
    fitting = {}
    if name == "image_size":
        fitting = {"patch_size": [16] * (2 if isinstance(value, int) else len(value))}
    if name == "patch_size":
        fitting = {"image_size": 96}
    if name == "hidden_size":
        fitting = {"num_attention_heads": 1}
    config = AxialConfig(**fitting, **{name: value})
    expected = as_kept(name, value)
    assert getattr(config, name) == expected and type(getattr(config, name)) is type(expected)


@pytest.mark.parametrize("value", ["3", 3.0, None, True, [3], -1])
def test_num_labels_is_checked(value):
    with pytest.raises(ValueError, match=re.escape(f"num_labels must be an int of at least 0, got {value!r}")):
        AxialConfig(num_labels=value)
    config = AxialConfig()
    with pytest.raises(ValueError, match="num_labels"):
        config.num_labels = value
    assert config.num_labels == 2


def test_derived_values():
    config = AxialConfig(image_size=(6, 35, 33), patch_size=[2, 5, 3], hidden_size=30, num_attention_heads=5)
    assert (config.num_axes, config.image_shape, config.patch_shape) == (3, (6, 35, 33), (2, 5, 3))
    assert config.grid_shape == (3, 7, 11)
    assert (config.head_dim, config.intermediate_size) == (6, 120)

    config = AxialConfig(image_size=48, patch_size=[8])
    assert (config.num_axes, config.image_shape, config.patch_shape, config.grid_shape) == (1, (48,), (8,), (6,))
    config = AxialConfig(image_size=48, patch_size=8)
    assert (config.num_axes, config.image_shape, config.patch_shape, config.grid_shape) == (2, (48, 48), (8, 8), (6, 6))
    assert AxialConfig(hidden_size=34, num_attention_heads=4, head_dim=7).head_dim == 7

    assert config.pooled_size == 384
    assert config.axes == tuple(AxisDescription(axis, 6, num_heads=6) for axis in range(2))
    config = AxialConfig(
        image_size=[6, 35],
        patch_size=[2, 5],
        num_inducing_points=[None, 5],
        position_embedding=["rotary+relative", "none"],
        rope_theta=7,
    )
    assert config.axes == (
        AxisDescription(0, 3, ("rotary", "relative"), 7, "full", None, num_heads=6),
        AxisDescription(1, 7, ("none",), 7, "induced", 5, num_heads=6),
    )
    assert all(axis.use_qk_norm for axis in AxialConfig(use_qk_norm=True).axes)
    assert [axis.mixer for axis in AxialConfig(num_inducing_points=3).axes] == ["induced", "induced"]
    config = AxialConfig(image_size=[6, 35], patch_size=[2, 5], attention_window=[None, 2], periodic=[True, False])
    assert config.axes == (
        AxisDescription(0, 3, num_heads=6, periodic=True),
        AxisDescription(1, 7, num_heads=6, mixer="window", attention_window=2),
    )
    assert AxialConfig(num_pooling_seeds=3).pooled_size == 384
    assert AxialConfig(num_pooling_seeds=3, pooling="attention").pooled_size == 3 * 384


@pytest.mark.parametrize(
    "values",
    [
        {"mixer": "window"},
        {"mixer": "induced"},
        {"mixer": "full", "attention_window": 2},
        {"mixer": "full", "num_inducing_points": 2},
        {"mixer": "window", "num_inducing_points": 2, "attention_window": 2},
        {"mixer": "induced", "num_inducing_points": 2, "attention_window": 2},
        {"num_inducing_points": 2, "attention_window": 2},
    ],
    ids=str,
)
def test_no_mixer_without_its_field_or_with_that_of_another(values):
    with pytest.raises(StrictDataclassClassValidationError, match="but axis 0 has mixer="):
        AxialConfig(**values)


@pytest.mark.parametrize(
    ("length", "window", "periodic", "reach"),
    [(7, None, False, 6), (7, None, True, 3), (8, None, True, 4), (7, 2, False, 2), (7, 9, False, 6), (7, 9, True, 3)],
)
def test_how_far_cells_are_apart_that_meet(length, window, periodic, reach):
    assert AxisDescription(0, length, num_heads=2, attention_window=window, periodic=periodic).reach == reach


def test_axes_and_heads_of_the_layers():
    def axes_and_heads(**overrides):
        config = AxialConfig(image_size=48, patch_size=[8, 8, 8], num_hidden_layers=5, **overrides)
        return [[(axis.axis, axis.num_heads) for axis in config.axes_of_layer(layer)] for layer in range(5)]

    for mode in ("sum", "sequential"):
        assert axes_and_heads(attention_mode=mode) == [[(0, 6), (1, 6), (2, 6)]] * 5
    assert axes_and_heads(attention_mode="split") == [[(0, 2), (1, 2), (2, 2)]] * 5
    assert axes_and_heads(attention_mode="alternating") == [[(0, 6)], [(1, 6)], [(2, 6)], [(0, 6)], [(1, 6)]]


def test_attention_with_a_table_of_all_heads_stays_whole_under_tensor_parallelism():
    whole, split = (AxialConfig(position_embedding=kind).base_model_tp_plan for kind in ("relative", "rotary"))
    assert {name for name in split if "attention" not in name} == set(whole)
    assert AxialConfig(position_embedding=["learned", "relative"]).base_model_tp_plan == whole


def test_every_rank_normalises_its_heads_by_the_scale_of_all():
    for values, parts in (({}, [""]), ({"num_inducing_points": [None, 3]}, ["", "gather.", "scatter."])):
        plain, normed = (AxialConfig(use_qk_norm=flag, **values).base_model_tp_plan for flag in (False, True))
        added = {f"layers.*.attention.axes.*.{part}{name}_norm" for part in parts for name in "qk"}
        assert normed == plain | dict.fromkeys(added, "replicated_with_grad_allreduce")


def test_a_file_of_before_there_were_these_fields_opens_as_it_was(tmp_path):
    values = {"image_size": 48, "patch_size": 8, "attention_mode": "sum", "reversible": True}
    file = tmp_path / "config.json"
    written = AxialConfig(**values).to_dict()
    for name in ("use_qk_norm", "layer_scale_init_value", "drop_path_rate"):
        del written[name]
    file.write_text(json.dumps(written))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = AxialConfig.from_json_file(file)
    assert config == AxialConfig(**values)
    assert (config.use_qk_norm, config.layer_scale_init_value, config.drop_path_rate) == (False, None, 0.0)


# ---- rules between fields ----


def test_every_rule_has_a_violation():
    rules = [inspect.getsource(config_class.validate_architecture) for config_class in (AxialConfig, StrictConfig)]
    rules.append(inspect.getsource(check_positions))
    assert "".join(rules).count("raise ValueError") == len(RULES)


@pytest.mark.parametrize(("values", "words"), VIOLATIONS)
def test_broken_rule(tmp_path, values, words):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        AxialConfig(**values)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(StrictDataclassClassValidationError):
        AxialConfig.from_dict({}, **values)
    with pytest.raises(StrictDataclassClassValidationError):
        AxialConfig.from_pretrained(stored(tmp_path, **values))


@pytest.mark.parametrize(
    ("values", "words"), [violation for violation in VIOLATIONS if violation.id != "heads divide the width"]
)
def test_rule_broken_later_is_found_when_saving(tmp_path, values, words):
    config = AxialConfig()
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(StrictDataclassClassValidationError) as error:
        config.save_pretrained(tmp_path)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": [48, 32, 16], "patch_size": [16, 8, 4]},
        {"hidden_size": 34, "num_attention_heads": 4, "head_dim": 7},
        {"mixer": ["window", "induced"], "attention_window": [2, None], "num_inducing_points": [None, 3]},
        {"position_embedding": "rotary", "head_dim": 8},
        {"position_embedding": "learned", "head_dim": 7},
        {"feed_forward": "convolution", "image_size": 8, "patch_size": [2, 2, 2]},
        {"feed_forward": "mlp", "image_size": 8, "patch_size": [2, 2, 2, 2]},
        {"attention_mode": "split", "image_size": 8, "patch_size": [2, 2, 2]},
        {"attention_mode": "alternating", "image_size": 8, "patch_size": [2, 2, 2], "num_hidden_layers": 3},
        {"output_attentions": True, "attn_implementation": "sdpa"},  # the model turns to eager attention by itself
    ],
)
def test_right_combination(values):
    AxialConfig(**values).validate()


# ---- any JSON ----

OTHER_KEYS = [
    "num_labels",
    "output_attentions",
    "attn_implementation",
    "layer_types",
    "rope_scaling",
    "per_layer_config",
]
OTHER_KEYS += [
    "model_type",
    "transformers_version",
    "torch_dtype",
    "name_or_path",
    "auto_map",
    "num_axes",
    "hiden_size",
]
OTHER_KEYS += ["validate", "temperature", "__class__", "_x", "", "sub_configs", "mtp_layer_types", "attribute_map"]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 100)
    | st.floats()
    | st.sampled_from(["axial", "16", "sum", "rotary", "float16", "default", "eager"])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def json_configs(draw):
    right = {
        name: st.sampled_from([value for value in values if not isinstance(value, (torch.dtype, tuple))])
        for name, (_, _, values) in CASES.items()
    }
    keys = draw(st.lists(st.sampled_from([*CASES, *CASES, *OTHER_KEYS]) | st.text(max_size=5), max_size=6, unique=True))
    wild = draw(st.sampled_from([False, False, True]))
    return {key: draw(json_values if wild or key not in right else right[key]) for key in keys}


def test_any_json_works_or_raises_a_named_error(tmp_path):
    outcomes = Counter()
    file = tmp_path / "config.json"

    def attempt(make):
        try:
            config = make()
        except NAMED_ERRORS as error:
            assert str(error)
            outcomes["refused"] += 1
            return
        outcomes["works"] += 1
        assert config.grid_shape and config.head_dim and math.prod(config.grid_shape) > 0
        config.validate()
        config.to_json_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert AxialConfig.from_json_file(file) == AxialConfig(**config.to_dict()) == config

    @settings(max_examples=300)
    @given(json_configs())
    def check(values):
        file.write_text(json.dumps(AxialConfig._encode_special_floats(values)))
        attempt(lambda: AxialConfig(**values))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt(lambda: AxialConfig.from_pretrained(tmp_path))

    check()
    assert outcomes["works"] > 100 and outcomes["refused"] > 300, outcomes


# ---- stages of a backbone ----


@pytest.mark.parametrize(
    ("values", "out_features", "out_indices"),
    [
        ({}, ["stage4"], [4]),
        ({"out_features": None, "out_indices": None}, ["stage4"], [4]),
        ({"out_features": ["stage1", "stage3"]}, ["stage1", "stage3"], [1, 3]),
        ({"out_indices": (0, 2)}, ["stem", "stage2"], [0, 2]),
        ({"out_indices": [-2, -1]}, ["stage3", "stage4"], [-2, -1]),
        ({"out_features": ["stem", "stage1"], "out_indices": [0, 1]}, ["stem", "stage1"], [0, 1]),
    ],
    ids=str,
)
def test_stages(values, out_features, out_indices, tmp_path):
    config = tiny_config(num_hidden_layers=4, **values)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    config.save_pretrained(tmp_path)
    for same in (config, AxialConfig.from_pretrained(tmp_path), AxialConfig(**config.to_dict())):
        assert (same.out_features, same.out_indices) == (out_features, out_indices) and same == config
    assert AxialConfig.from_pretrained(tmp_path, out_indices=[0]).out_features == ["stem"]


def test_no_chosen_stage_is_the_last_of_any_number_of_layers(tmp_path):
    tiny_config(num_hidden_layers=4).save_pretrained(tmp_path)
    assert AxialConfig.from_pretrained(tmp_path, num_hidden_layers=2).out_features == ["stage2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out_features": ["stage1", "stage2"], "out_indices": [0, 2]}, "same stages"),
        ({"out_features": ["stage5"]}, "stage5"),
        ({"out_features": ["stage2", "stage1"]}, "same order"),
        ({"out_features": ["stage1", "stage1"]}, "duplicates"),
        ({"out_indices": [5]}, "valid indices"),
        ({"out_indices": ["1"]}, "out_indices"),
        ({"out_features": "stage1"}, "out_features"),
        ({"stage_names": ["stem"]}, "stage_names"),
    ],
    ids=str,
)
def test_bad_stages_are_refused(values, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(num_hidden_layers=4, **values)
