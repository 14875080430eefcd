"""parse_arguments: a recipe is a command line in YAML; FixedArguments: no continuation under other arguments."""

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
        (tmp_path / "recipe.yaml").write_text(recipe)
        return parse_arguments(Model, Training, argv=[str(tmp_path / "recipe.yaml"), *argv])

    return parse


def test_defaults_recipe_and_command_line_in_rising_order(parse):
    recipe = "config_name: digits\nlearning_rate: 1e-3\nmax_train_steps: 7\nwith_tracking: true\n"
    assert parse(None) == (Model(), Training())
    assert parse(recipe) == (Model("digits"), Training(1e-3, 3, 7, True))
    overridden = parse(recipe, "--learning_rate", "0.5", "--with_tracking", "no", "--num_train_epochs=9")
    assert overridden == (Model("digits"), Training(0.5, 9, 7, False))


def test_null_keeps_the_default(parse):
    assert parse("max_train_steps: null\nconfig_name:\n") == (Model(), Training())


def test_a_value_may_begin_with_a_dash(parse):
    assert parse("config_name: -x\n")[0].config_name == "-x"


def test_the_same_command_line_dashed(parse):
    assert parse(None, "--learning-rate", "0.5")[1].learning_rate == 0.5


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("learning_rat: 0.1\n", "'learning_rat', which is no argument; did you mean 'learning_rate'"),
        ("zzzz: 1\n", "'zzzz', which is no argument$"),
        ("7: 1\n", "key 7, which is no argument"),
        ("", "must be a mapping from argument names to values, got None"),
        ("- learning_rate\n", "must be a mapping"),
        ("learning_rate: {max: 1}\n", "learning_rate = {'max': 1}; it must be a single value"),
        ("learning_rate: [1, 2]\n", "must be a single value"),
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


def test_a_missing_recipe_is_an_error():
    with pytest.raises(FileNotFoundError, match="no-such-recipe.yaml"):
        parse_arguments(Model, argv=["no-such-recipe.yaml"])


def test_a_recipe_runs_no_code(parse, tmp_path):
    with pytest.raises(Exception, match="could not determine a constructor"):
        parse(f"config_name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert not (tmp_path / "made").exists()


def test_fixed_arguments_refuse_another_value():
    FixedArguments(learning_rate=0.1, seed=None).load_state_dict({"learning_rate": 0.1, "seed": None})
    with pytest.raises(ValueError, match="made with learning_rate=0.1, this run has learning_rate=0.2"):
        FixedArguments(learning_rate=0.2).load_state_dict(FixedArguments(learning_rate=0.1).state_dict())
    with pytest.raises(ValueError, match="made with seed=None, this run has seed=1"):
        FixedArguments(seed=1).load_state_dict({})
