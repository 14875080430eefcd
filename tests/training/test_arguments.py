"""parse_arguments: a recipe is a command line in YAML; FixedArguments: no continuation under other arguments."""

import re
import time
from dataclasses import dataclass, field
from typing import Literal

import pytest

from modeling_axial.training import FixedArguments, parse_arguments


@dataclass
class Model:
    config_name: str | None = field(default=None, metadata={"help": "A preset."})
    mixed_precision: Literal["no", "bf16"] = "no"


@dataclass
class Training:
    learning_rate: float = 0.1
    num_train_epochs: int = 3
    max_train_steps: int | None = None
    with_tracking: bool = False


@pytest.fixture
def parse(tmp_path):
    def parse(recipe, *argv):
        if recipe is None:
            return parse_arguments(Model, Training, argv=argv)
        (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        return parse_arguments(Model, Training, argv=[str(tmp_path / "recipe.yaml"), *argv])

    return parse


def test_a_recipe_is_read_as_utf_8(monkeypatch, parse):
    """Whatever the encoding of the system."""
    encodings = []

    def watched(*args, encoding=None):
        encodings.append(encoding)
        return open(*args, encoding="utf-8")

    monkeypatch.setattr("modeling_axial.training.arguments.open", watched, raising=False)
    assert parse("config_name: zähler\n")[0].config_name == "zähler" and encodings == ["utf-8"]


def test_help_begins_with_the_description_as_it_stands(capsys):
    description = "One.\n\n    python one.py \\\n        --100%\n"
    with pytest.raises(SystemExit):
        parse_arguments(Model, Training, argv=["--help"], description=description)
    usage, found, rest = capsys.readouterr().out.partition(description)
    assert found and usage.startswith("usage") and "A preset. (default: None)" in rest


def test_help_has_a_section_for_each_subject_and_names_an_argument_once(capsys):
    @dataclass
    class Two:
        general: int = 1
        in_one: int = field(default=2, metadata={"subject": "first"})
        after_it: bool = field(default=True, metadata={"help": "More."})
        in_other: int = field(default=3, metadata={"subject": "second"})

    @dataclass
    class More:
        last_one: int = field(default=4, metadata={"subject": "first"})

    with pytest.raises(SystemExit):
        parse_arguments(Two, More, argv=["--help"])
    printed = capsys.readouterr().out
    sections = re.split(r"^(\w+):\n", printed, flags=re.MULTILINE)[1:]
    found = {
        name: re.findall(r"^  (--\w+)", text, re.MULTILINE) for name, text in zip(*[iter(sections)] * 2, strict=True)
    }
    assert found["options"] == ["--general"]  # behind -h
    assert found["first"] == ["--in_one", "--after_it", "--no_after_it", "--last_one"]
    assert found["second"] == ["--in_other"] and "--in-one" not in printed
    two, more = parse_arguments(Two, More, argv=["--in-one", "7", "--last_one=8", "--no_after_it"])
    assert two == Two(1, 7, False, 3) and more == More(8)


def test_arguments_may_be_any_sequence(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 0.2")
    parsed = parse_arguments(Model, Training, argv=(str(recipe), "--num_train_epochs", "5"))
    assert parsed == (Model(), Training(0.2, 5))


def test_defaults_recipe_and_command_line_in_rising_order(parse):
    recipe = "config_name: digits\nlearning_rate: 1e-3\nmax_train_steps: 7\nwith_tracking: true\n"
    assert parse(None) == (Model(), Training())
    assert parse(recipe) == (Model("digits"), Training(1e-3, 3, 7, True))
    overridden = parse(recipe, "--learning_rate", "0.5", "--with_tracking", "no", "--num_train_epochs=9")
    assert overridden == (Model("digits"), Training(0.5, 9, 7, False))


def test_null_keeps_the_default(parse):
    assert parse("max_train_steps: null\nconfig_name:\n") == (Model(), Training())


@pytest.mark.parametrize(
    "text", ["no", "off", "on", "yes", "True", "1:30", "12:30:45", "0x10", "010", "1_000", "1e3", "2001-01-01", "-.inf"]
)
def test_a_value_is_the_text_that_stands_there(parse, text):
    """YAML 1.1, as PyYAML reads it, makes False of `no` and 90 of `1:30`."""
    assert parse(f"config_name: {text}\n")[0].config_name == text
    assert parse(f"config_name: '{text}'  # quoted\n")[0].config_name == text


def test_no_is_a_choice_and_quoted_null_a_text(parse):
    assert parse("mixed_precision: no\n", "--mixed_precision=no") == (Model(), Training())
    assert parse("mixed_precision: bf16\n", "--mixed_precision=no") == (Model(), Training())
    assert parse("config_name: 'null'\n")[0].config_name == "null"


@pytest.mark.parametrize(
    "text, value", [("true", True), ("True", True), ("yes", True), ("false", False), ("NO", False)]
)
def test_booleans(parse, text, value):
    assert parse(f"with_tracking: {text}\n", "--num_train_epochs=3")[1].with_tracking is value


def test_a_tilde_is_expanded_as_in_a_shell(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("config_name: ~/models/x\n")[0].config_name == str(tmp_path / "models" / "x")
    assert parse(None, "--config_name=~/x")[0].config_name == str(tmp_path / "x")
    assert parse("config_name: models/~x\n")[0].config_name == "models/~x"
    parse("learning_rate: 0.5\n")
    assert parse_arguments(Training, argv=["~/recipe.yaml"]) == (Training(0.5),)


def test_a_value_may_begin_with_a_dash(parse):
    assert parse("config_name: -x\n")[0].config_name == "-x"


def test_the_same_command_line_dashed(parse):
    assert parse(None, "--learning-rate", "0.5")[1].learning_rate == 0.5


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("learning_rat: 0.1\n", "'learning_rat', which is no argument; did you mean 'learning_rate'"),
        ("zzzz: 1\n", "'zzzz', which is no argument$"),
        ("7: 1\n", "key '7', which is no argument"),
        ("", "must be a mapping from argument names to values"),
        ("- learning_rate\n", "must be a mapping"),
        ("seed: 1\n---\nseed: 2\n", "expected a single document"),
        ("learning_rate: {max: 1}\n", "gives learning_rate in line 1 more than a single value"),
        ("learning_rate: [1, 2]\n", "more than a single value without a tag"),
        ("config_name: !secret x\n", "more than a single value without a tag"),
        ("learning_rate: 1\nconfig_name: x\nlearning_rate: 2\n", "gives learning_rate twice, again in line 3"),
        ("[a]: 1\n", "has in line 1 a key that is no name of an argument"),
        ("config_name: 'x\n", "(?s)cannot be read as YAML: .*line 1"),
        ("config_name: " + "[" * 100_000, "cannot be read as YAML"),
    ],
)
def test_a_wrong_recipe_is_named(parse, recipe, message):
    with pytest.raises(ValueError, match=message):
        parse(recipe)


@pytest.mark.parametrize(
    "recipe, argv, message",
    [
        ("learning_rate: fast\n", [], "learning-rate: invalid float value: 'fast'"),
        ("num_train_epochs: 2.5\n", [], "invalid int value: '2.5'"),
        ("mixed_precision: fp99\n", [], "invalid choice: 'fp99'"),
        ("with_tracking: perhaps\n", [], "--with_tracking"),
        (None, ["--learning_rat", "1"], "unknown arguments: --learning_rat 1"),
        (None, ["--config_name", "a", "b"], "unknown arguments: b"),
    ],
)
def test_a_wrong_value_ends_the_program_with_its_name(parse, capsys, recipe, argv, message):
    with pytest.raises(SystemExit) as exit_status:
        parse(recipe, *argv)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


def test_references_do_not_multiply(parse):
    layers = [f"l{n + 1}: &l{n + 1} [{', '.join([f'*l{n}'] * 9)}]" for n in range(12)]  # 9 ** 12 values
    start = time.monotonic()
    with pytest.raises(ValueError, match="'l0', which is no argument"):
        parse("\n".join(["l0: &l0 x", *layers]))
    with pytest.raises(ValueError, match="config_name in line 1 more than a single value"):
        parse("\n".join(["config_name: &l0 [x]", *layers]))
    with pytest.raises(ValueError, match="in line 1 a key that is no name"):
        parse("{[&l0 x, " + ", ".join(layer.partition(" ")[2] for layer in layers) + "]: 1}")
    assert time.monotonic() - start < 5


def test_a_missing_recipe_is_an_error():
    with pytest.raises(FileNotFoundError, match="no-such-recipe.yaml"):
        parse_arguments(Model, argv=["no-such-recipe.yaml"])


def test_a_recipe_runs_no_code(parse, tmp_path):
    with pytest.raises(Exception, match="more than a single value without a tag"):
        parse(f"config_name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert not (tmp_path / "made").exists()


def test_fixed_arguments_refuse_another_value():
    FixedArguments(learning_rate=0.1, seed=None).load_state_dict({"learning_rate": 0.1, "seed": None})
    with pytest.raises(ValueError, match="made with learning_rate=0.1, this run has learning_rate=0.2"):
        FixedArguments(learning_rate=0.2).load_state_dict(FixedArguments(learning_rate=0.1).state_dict())
    with pytest.raises(ValueError, match="made with seed=None, this run has seed=1"):
        FixedArguments(seed=1).load_state_dict({})
    added = FixedArguments(added={"axis_parallel_size": 1}, seed=1, axis_parallel_size=1)
    added.load_state_dict({"seed": 1})
    added.load_state_dict(added.state_dict())
    with pytest.raises(ValueError, match="made with axis_parallel_size=2, this run has axis_parallel_size=1"):
        added.load_state_dict({"seed": 1, "axis_parallel_size": 2})
    longer = FixedArguments(free=("max_train_steps",), seed=1, max_train_steps=9)
    longer.load_state_dict({"seed": 1, "max_train_steps": 5})
    with pytest.raises(ValueError, match="seed=2"):
        longer.load_state_dict({"seed": 2, "max_train_steps": 9})
