"""Command lines of the example scripts: dataclasses, with defaults from a YAML recipe."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_arguments(*dataclass_types: type, argv: Sequence[str]) -> tuple:
    """
    Parses `[recipe.yaml] [--name value ...]` into one instance of each dataclass.

    A recipe is a command line written as YAML: a mapping from argument names to values. What is given on the command
    line overrides it, and both pass the same checks. `null` leaves an argument at its default.

    Raises:
        `ValueError`: if the recipe is not such a mapping, or a key is no argument; the nearest name is suggested.
        `SystemExit`: as in argparse, for an argument that is unknown, missing or has a wrong value.
    """
    names = [field.name for dataclass_type in dataclass_types for field in fields(dataclass_type)]
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = _recipe_arguments(argv[0], names) + argv[1:]
    parser = HfArgumentParser(dataclass_types, usage="%(prog)s [recipe.yaml] [--name value ...]", allow_abbrev=False)
    *instances, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return tuple(instances)


def _recipe_arguments(path: str | os.PathLike, names: Sequence[str]) -> list[str]:
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} must be a mapping from argument names to values, got {recipe!r}")
    arguments = []
    for name, value in recipe.items():
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1)
            suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"the recipe {path} has the key {name!r}, which is no argument{suggestion}")
        if isinstance(value, dict | list):
            raise ValueError(f"the recipe {path} gives {name} = {value!r}; it must be a single value")
        if value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


class FixedArguments:
    """
    Lets a checkpoint refuse to be continued with other arguments, which would be neither the old run nor the new one.
    Register it with `accelerator.register_for_checkpointing`.

    Args:
        values: the arguments that shape the course of a run, as plain values.
    """

    def __init__(self, **values: Any):
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in sorted(state_dict.keys() | self.values.keys()):
            if state_dict.get(name) != self.values.get(name):
                raise ValueError(
                    f"the checkpoint was made with {name}={state_dict.get(name)!r}, this run has "
                    f"{name}={self.values.get(name)!r}. Continue with the same arguments, or start a new run in "
                    "another folder"
                )
