"""Command lines of the example scripts: dataclasses, with defaults from a YAML recipe."""

import argparse
import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import fields
from typing import Any

import yaml
from transformers import HfArgumentParser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and tells each argument once, with its default."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        once = copy(action)  # without --learning-rate, which is --learning_rate
        once.option_strings = [option for option in action.option_strings if "-" not in option.lstrip("-")]
        return super()._format_action_invocation(once)


class Parser(HfArgumentParser):
    """Adds arguments to the section of the help that the last `subject` has named."""

    section: argparse._ArgumentGroup | None = None

    def add_argument(self, *names: str, subject: str | None = None, **options) -> argparse.Action:
        if subject is not None:
            sections = {section.title: section for section in self._action_groups}
            self.section = sections.get(subject) or self.add_argument_group(subject)
        return (self.section or super()).add_argument(*names, **options)


def parse_arguments(*dataclass_types: type, argv: Sequence[str], description: str | None = None) -> tuple:
    """
    Parses `[recipe.yaml] [--name value ...]` into one instance of each dataclass. `--help` begins with the description,
    which is the docstring of a script. A field whose metadata have a `subject` begins a section of it, or goes on
    with that of this name; the fields behind it belong there, up to the next such field.

    A recipe is a command line written as YAML: a mapping from argument names to values. What is given on the command
    line overrides it, and both pass the same checks: a value is the text that stands there, so `no` is the text `no`,
    and only `null`, `~` or nothing leaves an argument at its default. A leading `~` or `~user` in a text is expanded to
    a home directory, as a shell does with the words of a command line.

    Raises:
        `ValueError`: if the recipe is not such a mapping, has a key twice, or a key is no argument; the nearest name is
            suggested.
        `SystemExit`: as in argparse, for an argument that is unknown, missing or has a wrong value.
    """
    names = [field.name for dataclass_type in dataclass_types for field in fields(dataclass_type)]
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = _recipe_arguments(argv[0], names) + argv[1:]
    parser = Parser(
        dataclass_types,
        usage="%(prog)s [recipe.yaml] [--name value ...]",
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    *instances, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    for instance in instances:
        for name, value in vars(instance).items():
            if isinstance(value, str):
                setattr(instance, name, os.path.expanduser(value))
    return tuple(instances)


def _recipe_arguments(path: str | os.PathLike, names: Sequence[str]) -> list[str]:
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        try:  # as nodes, in which a value is the text that stands there: YAML 1.1 would make False of `no`
            recipe = yaml.compose(file, yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"the recipe {path} cannot be read as YAML: {error}") from error
    if not isinstance(recipe, yaml.MappingNode):
        raise ValueError(f"the recipe {path} must be a mapping from argument names to values")
    arguments = {}
    for key, value in recipe.value:
        name, line = key.value, key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"the recipe {path} has in line {line} a key that is no name of an argument")
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1)
            suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"the recipe {path} has the key {name!r}, which is no argument{suggestion}")
        if name in arguments:
            raise ValueError(f"the recipe {path} gives {name} twice, again in line {line}; leave one of them out")
        if not isinstance(value, yaml.ScalarNode) or value.tag not in yaml.SafeLoader.yaml_constructors:
            raise ValueError(
                f"the recipe {path} gives {name} in line {line} more than a single value without a tag; a text with "
                "brackets or braces needs quotes"
            )
        arguments[name] = [] if value.tag == "tag:yaml.org,2002:null" else [f"--{name}={value.value}"]
    return sum(arguments.values(), [])


class FixedArguments:
    """
    Lets a checkpoint refuse to be continued with other arguments, which would be neither the old run nor the new one.
    Register it with `accelerator.register_for_checkpointing`.

    Args:
        free: names of values that a checkpoint holds, and that may change.
        added: values of arguments that earlier checkpoints lack, as they were without them.
        values: the arguments that shape the course of a run, as plain values.
    """

    def __init__(self, free: Collection[str] = (), added: Mapping[str, Any] | None = None, **values: Any):
        self.free, self.added = frozenset(free), added or {}
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = {**self.added, **state_dict}
        for name in sorted((state_dict.keys() | self.values.keys()) - self.free):
            if state_dict.get(name) != self.values.get(name):
                raise ValueError(
                    f"the checkpoint was made with {name}={state_dict.get(name)!r}, this run has "
                    f"{name}={self.values.get(name)!r}. Continue with the same arguments, or start a new run in "
                    "another folder"
                )
