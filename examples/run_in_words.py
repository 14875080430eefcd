"""What a training script says in plain lines: five before the run, and at its end where to look and what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from image_classification_data import first_few
from transformers import PreTrainedModel

from modeling_axial import AxialConfig


def opening_lines(
    trained_on: str, measured_on: str, classes: Sequence[str] | str, model: PreTrainedModel, steps: str
) -> list[str]:
    """Data, classes (their names, of which there may be none, or a text), model, parameters and steps of a run."""
    if not isinstance(classes, str):
        classes = f"{len(classes):,}: {first_few(classes)}" if classes else "none"
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    size, trained = sum(number for number, _ in numbers), sum(number for number, learns in numbers if learns)
    parts = {
        "data": f"{trained_on}; measured on {measured_on}",
        "classes": classes,
        "model": model_in_words(model),
        "parameters": f"{size:,}" + (f", of which {trained:,} are trained" if trained < size else ""),
        "steps": steps,
    }
    return [f"{name + ':':12}{text}" for name, text in parts.items()]


def model_in_words(model: PreTrainedModel) -> str:
    """The class of a model and, of an axial encoder, its depth, its width and its grid."""
    name, config = type(model).__name__, model.config
    if not isinstance(config, AxialConfig):
        return name
    grid, patch = (" x ".join(map(str, lengths)) for lengths in (config.grid_shape, config.patch_shape))
    return f"{name}, {config.num_hidden_layers} layers of width {config.hidden_size}, {grid} patches of {patch} pixels"


def closing_lines(folder: str, pictures: Sequence[str], use: str, command: str | None = None) -> list[str]:
    """
    Where to look, and what to do next.

    Args:
        folder: that of the run, in which the `pictures` are.
        use: lines of Python that load the model.
        command: the arguments of `python` that use it, with `{folder}` in place of the folder.
    """
    lines = [f"Look at {', '.join(str(Path(folder, picture)) for picture in pictures)}. Load the model with", "", use]
    if command is not None:
        lines += ["", "Use it on the command line with", "", f"python {command.format(folder=shlex.quote(folder))}"]
    return lines
