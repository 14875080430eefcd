"""
What an autoregressive model draws, how it completes pictures, and how likely it finds them:

    python examples/sample.py --model_name_or_path outputs/pictures --num_samples 20 --class cat --output_dir drawn
    python examples/sample.py --model_name_or_path outputs/pictures --complete cat.png --known_rows 0.5 --class cat \
        --output_dir completed
    python examples/sample.py --model_name_or_path outputs/pictures --score cat.png tiger.png --class cat
    python examples/sample.py --model_name_or_path . --subfolder checkpoints/digits-autoregressive \
        --guidance_scale 2 --output_dir digits

The model is what `train_autoregressive_image.py` has trained. Each picture that it draws becomes a PNG file, and all of
them stand side by side in `samples.png` or `completions.png`. A clip becomes an animated PNG, and a row of its frames
there; to complete or score one, give a film or an animation. Files are cut at the sides and resized to the grid of the
model. Picture number 3 of a `--seed` is the same whatever the `--batch_size`, and however many are drawn.
"""

import argparse
import csv
import math
import sys
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from autoregressive_data import Tokens, check_grid, film_frames
from autoregressive_pictures import on_grid
from autoregressive_report import COLUMNS, class_names, draw_tiles, tile, tile_known, to_levels
from image_classification_data import check_checkpoint, first_few
from PIL import Image
from segmentation_data import errors_naming
from tqdm.auto import tqdm
from transformers import AutoConfig

from modeling_axial import AxialDecoderConfig, AxialForCausalImageModeling
from modeling_axial.image_processing_axial import read_image
from modeling_axial.sampling import SamplingOptions
from modeling_axial.training import seeded_generator

SAMPLING = ("temperature", "top_k", "top_p", "guidance_scale")
FRAME_MILLISECONDS = 125

# What is asked for


def load_config(checkpoint: str, subfolder: str) -> AxialDecoderConfig:
    """The configuration of a model that draws pictures or clips; `ValueError` for any other."""
    check_checkpoint(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint, subfolder=subfolder)
    if not isinstance(config, AxialDecoderConfig):
        raise ValueError(
            f"{Path(checkpoint, subfolder)} is a checkpoint of model_type={config.model_type!r}, none of an "
            "autoregressive model, which has 'axial_decoder'"
        )
    if len(config.image_size) not in (2, 3):
        raise ValueError(f"pictures have 2 axes and clips 3; the model has image_size={config.image_size}")
    kind = "pictures" if len(config.image_size) == 2 else "clips"
    check_grid(config, kind, num_channels=(1, 3), num_axes=len(config.image_size))
    return config


def class_number(config: AxialDecoderConfig, name: str | None) -> int | None:
    """The number of a class that was given by its name or its number."""
    names = class_names(config)
    if name is None:
        return None
    if not names:
        raise ValueError(f"the model has no classes: leave out --class, got {name!r}")
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise ValueError(f"the model has no class {name!r}; its classes are {first_few(names)}, or 0 to {len(names) - 1}")


def class_of_file(config: AxialDecoderConfig, number: int | None) -> int | None:
    """The class that a file is taken to be of; where that is not said, the unknown one, if the model has learnt it."""
    if number is not None or not config.num_classes:
        return number
    if not config.class_dropout_prob:
        raise ValueError(f"the model asks for the class: say --class, one of {first_few(class_names(config))}")
    return config.unknown_class


def number_of_rows(text: str, num_rows: int) -> int:
    """`7` rows, or a share such as `0.5` of all, rounded: at least one, and not all."""
    try:
        count = round(float(text) * num_rows) if 0 < float(text) < 1 else int(text)
    except ValueError as error:
        raise ValueError(f"known_rows must be a whole number, or a share such as 0.5, got {text!r}") from error
    if not 0 < count < num_rows:
        raise ValueError(f"known_rows must leave 1 to {num_rows - 1} of the {num_rows} rows or frames, got {text}")
    return count


def check_options(arguments: argparse.Namespace) -> None:
    """`ValueError` for options that are missing, impossible, or mean nothing beside the others."""
    if arguments.complete is None and arguments.known_rows is not None:
        raise ValueError("known_rows is for --complete")
    if arguments.score is None and arguments.output_dir is None:
        raise ValueError("--output_dir is missing: where what is drawn goes")
    if arguments.score is not None:
        given = [name for name in ("num_samples", *SAMPLING) if getattr(arguments, name) is not None]
        if given:
            raise ValueError(f"{', '.join(given)} is for drawing, which --score does not")
    for name in ("num_samples", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    files = arguments.score or ([] if arguments.complete is None else [arguments.complete])
    if missing := [str(file) for file in files if not file.exists()]:
        raise ValueError(f"no such file: {', '.join(missing)}")


def check_new(paths: Sequence[Path], overwrite: bool) -> None:
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise ValueError(f"{first_few(there)} is there already: take another output_dir, or --overwrite")


# Files to what the model reads


def read_file(path: Path, config: AxialDecoderConfig) -> torch.Tensor:
    """A picture, or the first frames of a film or an animation: int64 (C, *grid). Tells what it had to change."""
    height, width = config.image_size[-2:]
    if len(config.image_size) == 2:
        picture = read_image(path)
        pixels, size = on_grid(picture, config), picture.size
        is_grey = Image.getmodebase(picture.mode) == "L"
        if is_grey != (config.num_channels == 1):
            seen = "grey" if config.num_channels == 1 else "colour"
            print(f"{path} is {'grey' if is_grey else 'in colour'}; the model sees it in {seen}.")
    else:
        length = config.image_size[0]
        with errors_naming(path):
            frames = [Image.fromarray(frame) for frame in islice(film_frames(path), length)]
        if len(frames) < length:
            raise ValueError(f"{path} has {len(frames)} frames; the model takes clips of {length}")
        pixels, size = np.stack([on_grid(frame, config) for frame in frames], 1), frames[0].size
    if size != (width, height):
        print(f"{path} has {size[0]} x {size[1]} pixels; cut and resized to {width} x {height}.")
    return Tokens(pixels[None], config.vocab_size)[0]["input_ids"]


# What the model does


def draw(
    model: AxialForCausalImageModeling,
    labels: torch.Tensor | None,
    known: tuple[torch.Tensor, torch.Tensor] | None,
    num_samples: int,
    batch_size: int,
    seed: int,
    **options,
) -> torch.Tensor:
    """
    So many pictures, int64 (num_samples, C, *grid), each by a generator of its own. `known` and `options`: as in
    `generate`; `labels`, (num_samples,).
    """
    drawn = []
    for numbers in torch.arange(num_samples).split(batch_size):
        drawn.append(
            model.generate(
                len(numbers),
                class_labels=None if labels is None else labels[numbers].to(model.device),
                known=known,
                generator=[seeded_generator(seed, number) for number in numbers.tolist()],
                show_progress=sys.stderr.isatty(),
                **options,
            ).cpu()
        )
    return torch.cat(drawn)


@torch.no_grad()
def bits_per_dim(
    model: AxialForCausalImageModeling, pictures: torch.Tensor, label: int | None, batch_size: int
) -> list[float]:
    """Of each of some pictures (N, C, *grid), all of one class."""
    bits = []
    for batch in tqdm(pictures.split(batch_size), unit="batch", disable=None):
        labels = None if label is None else torch.full((len(batch),), label, device=model.device)
        log_prob = model.log_prob(batch.to(model.device), class_labels=labels)
        bits += (-log_prob / math.log(2) / batch[0].numel()).tolist()
    return bits


# What is written


def sheet_and_files(output_dir: Path, stem: str, num_samples: int, overwrite: bool) -> tuple[Path, list[Path]]:
    """Where all pictures go together, and each by itself; `ValueError` where such a file is there already."""
    digits = len(str(num_samples - 1))
    sheet = output_dir / f"{stem}s.png"
    files = [output_dir / f"{stem}_{number:0{digits}d}.png" for number in range(num_samples)]
    check_new([sheet, *files], overwrite)
    return sheet, files


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """uint8 (height, width, C), or a clip (time, height, width, C) as an animated PNG."""
    frames = pixels if pixels.ndim == 4 else pixels[None]
    first, *others = (Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames)
    animation = {"save_all": True, "append_images": others, "duration": FRAME_MILLISECONDS, "loop": 0}
    first.save(path, **(animation if others else {}))


def write_all(sheet: Path, files: Sequence[Path], pictures: np.ndarray, panels: dict[str, np.ndarray]) -> None:
    sheet.parent.mkdir(parents=True, exist_ok=True)
    for file, pixels in zip(files, pictures, strict=True):
        write_picture(file, pixels)
    draw_tiles(sheet, panels)
    print(
        f"Written to {sheet}, and picture by picture to {files[0].name}"
        + (f" to {files[-1].name}." if len(files) > 1 else ".")
    )


# Start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="Open this trained model: a folder, or one on the Hub.")
    add("--subfolder", default="", help="Find it in this subfolder of that.")
    add("--device", help="Compute there. Default: an accelerator if there is one.")
    add("--batch_size", type=int, default=64, help="Show the model so many pictures at a time. Default: 64.")
    task = parser.add_argument_group("what to do")
    asked, add = task.add_mutually_exclusive_group(), task.add_argument
    asked.add_argument("--complete", type=Path, metavar="FILE", help="Draw the rest of this, instead of new pictures.")
    asked.add_argument("--score", type=Path, nargs="+", metavar="FILE", help="Only say how likely these are.")
    add("--known_rows", help="Keep so many rows, or frames, of what is completed, or this share. Default: 0.5.")
    add("--num_samples", type=int, help=f"Draw so many. Default: {COLUMNS}.")
    add(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="Draw this class, by name or number. Default: of new pictures, all in turn.",
    )
    add = parser.add_argument_group("how to draw").add_argument
    add("--temperature", type=float, help="Below 1, draw likelier values, above 1 less likely ones.")
    add("--top_k", type=int, help="Draw from so many likeliest values.")
    add("--top_p", type=float, help="Draw from the likeliest values that together have this probability.")
    add("--guidance_scale", type=float, help="Above 1, draw what is more typical of the class, for twice the work.")
    add("--seed", type=int, default=0, help="Draw by this seed. Default: 0.")
    add = parser.add_argument_group("results").add_argument
    add("--output_dir", type=Path, help="Write the pictures, or scores.csv, into this folder.")
    add("--overwrite", action="store_true", help="Write over what is there already.")
    arguments = parser.parse_args()
    check_options(arguments)
    config = load_config(arguments.model_name_or_path, arguments.subfolder)
    label = class_number(config, arguments.class_name)
    if arguments.score is not None:
        score_files(arguments, config, class_of_file(config, label))
    elif arguments.complete is not None:
        complete_file(arguments, config, class_of_file(config, label))
    else:
        draw_new(arguments, config, label)


def load_model(arguments: argparse.Namespace) -> AxialForCausalImageModeling:
    model = AxialForCausalImageModeling.from_pretrained(arguments.model_name_or_path, subfolder=arguments.subfolder)
    return model.eval().to(arguments.device or PartialState().device)


def draw_new(arguments: argparse.Namespace, config: AxialDecoderConfig, label: int | None) -> None:
    """Pictures of a class, or of all classes in turn."""
    options, num_samples = sampling_options(arguments, config), arguments.num_samples or COLUMNS
    sheet, files = sheet_and_files(arguments.output_dir, "sample", num_samples, arguments.overwrite)
    labels, title = None, "drawn by the model"
    if label is not None:
        labels, title = torch.full((num_samples,), label), f"{title}: {class_names(config)[label]}"
    elif config.num_classes:
        labels = torch.arange(num_samples) % config.num_classes
        title = f"{title}, in turn: {', '.join(class_names(config)[:num_samples])}"
    drawn = draw(load_model(arguments), labels, None, num_samples, arguments.batch_size, arguments.seed, **options)
    pictures = to_levels(drawn, config.vocab_size)
    columns = min(num_samples, COLUMNS) if len(config.image_size) == 2 else 1
    write_all(sheet, files, pictures, {textwrap.shorten(title, 100): tile(pictures, columns)})


def complete_file(arguments: argparse.Namespace, config: AxialDecoderConfig, label: int | None) -> None:
    """A picture or a clip whose first rows, or frames, are known, beside what the model makes of it."""
    options, num_samples = sampling_options(arguments, config), arguments.num_samples or COLUMNS
    if options.get("guidance_scale", 1) > 1 and label == config.unknown_class:
        raise ValueError(f"guidance_scale={options['guidance_scale']} leads to a class: say --class")
    rows = number_of_rows(arguments.known_rows or "0.5", config.image_size[0])
    sheet, files = sheet_and_files(arguments.output_dir, "completion", num_samples, arguments.overwrite)
    original = read_file(arguments.complete, config)[None]
    mask = torch.zeros_like(original, dtype=torch.bool)
    mask[:, :, :rows] = True
    labels = None if label is None else torch.full((num_samples,), label)
    known, model = (original, mask), load_model(arguments)
    drawn = draw(model, labels, known, num_samples, arguments.batch_size, arguments.seed, **options)
    pictures, given = (to_levels(values, config.vocab_size) for values in (drawn, original))
    columns = min(num_samples, COLUMNS // 2) if len(config.image_size) == 2 else 1
    write_all(
        sheet,
        files,
        pictures,
        {"given": tile_known(given, mask[:, 0].numpy(), 1), "drawn by the model": tile(pictures, columns)},
    )


def sampling_options(arguments: argparse.Namespace, config: AxialDecoderConfig) -> dict[str, float]:
    """What the command line says of how values are drawn; `ValueError` for what is impossible."""
    options = {name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None}
    if SamplingOptions(**options).is_guided and not config.class_dropout_prob:
        raise ValueError(f"guidance_scale={arguments.guidance_scale} needs a model with class_dropout_prob above 0")
    return options


def score_files(arguments: argparse.Namespace, config: AxialDecoderConfig, label: int | None) -> None:
    """Prints the bits per dimension of files, and writes them to scores.csv where there is an output_dir."""
    if arguments.output_dir is not None:
        check_new([arguments.output_dir / "scores.csv"], arguments.overwrite)
    pictures = torch.stack([read_file(file, config) for file in arguments.score])
    bits = bits_per_dim(load_model(arguments), pictures, label, arguments.batch_size)
    uniform = math.log2(config.vocab_size)
    for file, of_file in zip(arguments.score, bits, strict=True):
        print(f"{of_file:.4f} of {uniform:.4g} bits per dimension  {file}")
    if arguments.output_dir is not None:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        with (arguments.output_dir / "scores.csv").open("w", newline="", encoding="utf-8") as output:
            table = csv.writer(output)
            table.writerow(["file", "bits_per_dim", "bits_per_dim_of_uniform"])
            table.writerows(
                [file, f"{of_file:.6f}", f"{uniform:.6f}"] for file, of_file in zip(arguments.score, bits, strict=True)
            )


if __name__ == "__main__":
    main()
