"""
Train a model that gives each pixel a class, on one CPU or many GPUs, and resume it exactly.

    python examples/train_semantic_segmentation.py configuration/training/nuclei2d.yaml --output_dir outputs/nuclei2d
    accelerate launch examples/train_semantic_segmentation.py --config_name nuclei3d --output_dir outputs/mine \
        --train_image_dir train/images --train_mask_dir train/masks \
        --validation_image_dir validation/images --validation_mask_dir validation/masks --crops_per_grid 100

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Folders hold
pictures, or arrays of any number of axes (`.npy`, TIFF, NIfTI), and masks of the same names, whose numbers are the
classes. Pictures are seen in grey or in colour as `num_channels` of the model says, 1 or 3: for colour, and for patches
of flat voxels, copy a preset of configuration/models, and give the path of the copy. The model learns on random crops,
`crops_per_grid` of each grid in an epoch (few grids need many), and is measured on whole grids. With `--peer unet` a
U-Net with as many parameters is trained in the same way, in `output_dir/unet`, and with `--peer highresnet` a network
of convolutions at full resolution. `output_dir` gets the model, `metrics.jsonl`, `results.json`, `curves.png`,
`predictions.png`, a model card and the checkpoints of the run. Needs the extra `segmentation`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from grid_augmentation import RandomGridChanges
from grid_warping import RandomWarping
from image_classification_data import check_checkpoint
from peers import check_peer, start_peer_run
from results import OURS, write_results
from segmentation_data import FolderPairs, LabelledGrid, for_model, random_crops, save_orientation
from segmentation_datasets import HubPairs
from segmentation_peer import NETWORKS, make_peer
from segmentation_report import SegmentationData, draw_predictions, loading_lines, score_lines, write_model_card
from segmentation_samples import BUILT_IN, IndianPines
from segmentation_scores import PixelClassifier, Scores, nearest_labels, otsu_map, predict, score_all
from tiles import axis_numbers, numbers_per_axis
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
)
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

from modeling_axial import AxialConfig, AxialForSemanticSegmentation
from modeling_axial.training import parse_arguments

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402

FOLDERS = ("train_image_dir", "train_mask_dir", "validation_image_dir", "validation_mask_dir")


@dataclass
class DataArguments:
    config_name: str | None = described(
        None,
        "Build a new model by this preset of configuration/models or JSON file; its classes follow from the data.",
        "model",
    )
    model_name_or_path: str | None = described(
        None,
        "Instead, start from this checkpoint, a folder or a model on the Hub; heads and losses are as it has them.",
    )
    ignore_mismatched_sizes: bool = described(False, "Start with a new last layer if the checkpoint has other classes.")
    dataset_name: str | None = described(
        None,
        "Learn from one half of this and measure on the other: `nuclei2d` or `nuclei3d`, nuclei in a picture or in a "
        "volume, in stardist; `brain_tissue`, tissue of the brain, in nilearn. Or from some blocks of `indian_pines`, "
        "crops in 200 wavelengths, in tensorly. Or from pictures and masks on the Hub, or in a folder that `datasets` "
        "reads.",
        "data",
    )
    image_column_name: str = described("image", "Find the pictures of the last in this column.")
    mask_column_name: str = described("label", "Find their masks in this column.")
    train_image_dir: str | None = described(None, "Instead, learn from the pictures or arrays in this folder.")
    train_mask_dir: str | None = described(
        None, "Find their masks in this folder: files of the same names but for the endings."
    )
    validation_image_dir: str | None = described(None, "Measure on the pictures or arrays in this folder.")
    validation_mask_dir: str | None = described(None, "Find the masks of these in this folder.")
    label_names: str | None = described(
        None,
        "Name the classes in the order of their numbers, with commas between. Default: numbers, as many as there are.",
    )
    binary_masks: bool = described(
        False, "Take all labels above 0 for class 1, as in masks of 0 and 255 or of instances."
    )
    channel_components: int | None = described(
        None,
        "Show the model so many principal components, of variance 1, of arrays with many channels. They are learnt "
        "from all pixels of the grids to learn from.",
    )
    tile_size: str | None = described(
        None,
        "Measure on overlapping tiles of this size, per_device_eval_batch_size at a time, where grids are too large to "
        "be seen at once. Give one number, or one for each axis with commas between.",
        "evaluation",
    )
    mirror_axes: str = described(
        "",
        "Measure on the mean over the mirror images along these axes, with commas between, such as training flips: "
        "twice the work for each.",
    )
    peer: Literal["unet", "highresnet"] | None = described(
        None,
        "Train another model in the same way, too: a U-Net with as many parameters, or residual convolutions at full "
        "resolution.",
        "comparison",
    )
    peer_steps: int | None = described(
        None, "Train it for so many optimizer steps, such as take as long as those of the model. Default: as many."
    )

    def __post_init__(self):
        if (self.config_name is None) == (self.model_name_or_path is None):
            raise ValueError(
                "give either --config_name (a new model), as the recipes in configuration/training do, or "
                "--model_name_or_path (a trained one)"
            )
        if self.model_name_or_path is not None and self.peer is not None:
            raise ValueError("--peer is for new models: a U-Net does not start from --model_name_or_path")
        given = [name for name in FOLDERS if getattr(self, name) is not None]
        if (self.dataset_name is None) == (not given):
            raise ValueError(f"give either --dataset_name, or all of --{', --'.join(FOLDERS)}")
        if given and len(given) < len(FOLDERS):
            missing = [name for name in FOLDERS if name not in given]
            raise ValueError(f"--{', --'.join(given)} must come with --{', --'.join(missing)}")
        check_at_least(1, self, "channel_components", "peer_steps")
        if self.dataset_name in BUILT_IN and (self.label_names is not None or self.binary_masks):
            raise ValueError("--label_names and --binary_masks are for data of yours; built-in ones have their classes")


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    fold: int = described(
        0,
        "Of the nuclei, learn from the left half (0) or the right one (1); of the brain, from the back half (0), the "
        "front one (1), or, of four quarters from the back, from the first and the third (2) or the others (3); of the "
        "crops, from this draw of blocks, 0 to 4.",
        "evaluation",
    )
    validation_share: float = described(
        0.0,
        "Leave what is held out of built-in data alone, and measure on this share of what is to learn from, to "
        "choose settings by.",
    )
    crop_size: str | None = described(
        None,
        "Learn from crops of so many pixels, whole patches: one number, or one for each axis with commas between. "
        "Default: the image_size of the model.",
        "augmentation",
    )
    crops_per_grid: int = described(1, "Take so many crops of each grid in an epoch.")
    augment_flip_axes: str = described("", "Mirror half of the crops along each of these axes, with commas between.")
    augment_exchange_axes: str = described(
        "", "Exchange these axes at random where crops are equally long: with mirrors, turns by 90 degrees."
    )
    augment_turn: float = described(
        0.0, "Turn crops by up to so many degrees in the plane of the last two axes, whose pixels are squares."
    )
    augment_zoom: float = described(0.0, "Make what they show larger or smaller, by up to the factor 1 + this.")
    augment_contrast: float = described(0.0, "Multiply values by a factor in [1 - this, 1 + this].")
    augment_brightness: float = described(0.0, "Add a number in [-this, this] to them, in standard deviations.")
    augment_noise: float = described(0.0, "Add a normal number of this deviation to each value, likewise.")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(0, self, "fold")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")
        check_at_least(1, self, "crops_per_grid")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, SegmentationTrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    check_peer(training, arguments.peer)
    config, data = load_data(arguments, training)
    crop = crop_size(training, config)
    tile = numbers_per_axis(arguments.tile_size, "tile_size", config.num_axes)
    mirrored = axis_numbers(arguments.mirror_axes, "mirror_axes", config.num_axes)
    augment = make_augmentation(training, config.num_axes)
    processor = data.make_processor(config)
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    for note in data.notes:
        accelerator.print(note)

    def map_by(model: torch.nn.Module) -> Callable[[LabelledGrid], torch.Tensor]:
        return lambda grid: predict(
            model, grid.values, processor, accelerator.device, tile, run_arguments.per_device_eval_batch_size, mirrored
        )

    def score(map_of: Callable[[LabelledGrid], torch.Tensor], grids: Sequence[LabelledGrid]) -> Scores:
        return score_all(map_of, grids, config.num_labels, config.semantic_loss_ignore_index, accelerator)

    def train(run: TrainingRun, model: PreTrainedModel) -> Scores:
        """Trains a model, saves it, and returns its scores."""
        run.load([number for number in range(len(data.train)) for _ in range(training.crops_per_grid)])
        run.introduce(data.trained_on, data.measured_on, data.label_names, model)

        def batch_loss(model: torch.nn.Module, numbers: torch.Tensor) -> tuple[torch.Tensor, int]:
            generator = run.sampler.generator()
            grids = [data.train[number] for number in numbers.tolist()]
            crops = random_crops(grids, crop, processor, generator, *accelerator.share)
            batch = augment(crops, generator, *accelerator.share)
            return model(**for_model(batch, accelerator.device)).loss, len(numbers)

        def measure(model: torch.nn.Module) -> dict[str, float]:
            return score(map_by(model), data.held_out).by_name(data.label_names)

        units = {} if config.dice_loss_weight else {"loss": "nats"}  # the Dice loss is a share
        model = run.fit(model, [make_adamw(model.parameters(), training)], batch_loss, measure, units=units)
        run.save_model(model)
        return score(map_by(model), data.held_out)

    model = make_model(arguments, config)
    sizes = {OURS: model.num_parameters()}
    scores = {OURS: train(run, model)}
    cpu_seconds = {OURS: run.cpu_seconds}
    if arguments.peer is not None:
        peer_run = start_peer_run(training, run_arguments, arguments.peer, arguments.peer_steps)
        peer = make_peer(arguments.peer, config, sizes[OURS])
        name = f"{NETWORKS[arguments.peer].title} with {peer.num_parameters():,} parameters"
        scores[name] = train(peer_run, peer)
        sizes[name], cpu_seconds[name] = peer.num_parameters(), peer_run.cpu_seconds
        peer_run.release()
    if config.num_labels == 2:
        maps = [partial(otsu_map, brighter=brighter) for brighter in (True, False)]
        best = max(maps, key=lambda map_of: score(map_of, data.train).ious[1])
        scores["Otsu's threshold"] = score(best, data.held_out)
    elif data.num_channels == 1:
        by_value = PixelClassifier.tree(data.train, config.semantic_loss_ignore_index)
        scores["decision tree on single pixels"] = score(by_value, data.held_out)
    if data.num_channels > 1:
        by_channels = PixelClassifier.logistic(data.train, config.semantic_loss_ignore_index)
        scores["logistic regression on single pixels"] = score(by_channels, data.held_out)
    if isinstance(data, IndianPines):  # where what is held out lies between what is learnt from
        nearest = nearest_labels(data.train[0].labels, config.semantic_loss_ignore_index)
        scores["the class of the nearest known pixel"] = score(lambda grid: nearest, data.held_out)

    # ---- results ----
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        save_orientation(output_dir, data.orientation)
        print(*score_lines(scores, data.label_names), sep="\n")
        by_name = {who: its.by_name(data.label_names) for who, its in scores.items()}
        write_results(output_dir, by_name, sizes, cpu_seconds)
        saved_model = AutoModelForSemanticSegmentation.from_pretrained(output_dir).to(accelerator.device)
        draw_predictions(
            output_dir / "predictions.png",
            map_by(saved_model),
            data.held_out,
            config.num_labels,
            config.semantic_loss_ignore_index,
        )
        write_model_card(output_dir, data, scores, config.num_axes, mirrored, run_arguments.hub_model_id)
    run.finish(
        "Train a segmentation model",
        ["predictions.png"],
        loading_lines(run_arguments.output_dir),
        "examples/predict.py {folder} FILES --output_dir predictions"
        + (f" --mirror_axes {arguments.mirror_axes}" if mirrored else ""),
    )


def load_data(
    arguments: DataArguments, training: SegmentationTrainingArguments
) -> tuple[AxialConfig, SegmentationData]:
    """The configuration of a model for the data, and these. `ValueError`: for what does not fit together."""
    config = starting_config(arguments)
    names = None
    if arguments.label_names is not None:
        names = [name.strip() for name in arguments.label_names.split(",")]
    if arguments.dataset_name in BUILT_IN:
        kind = BUILT_IN[arguments.dataset_name]
        if training.fold >= kind.num_folds:
            raise ValueError(f"{arguments.dataset_name} has the folds 0 to {kind.num_folds - 1}, got {training.fold}")
        data = kind(config, training.fold, training.validation_share)
    elif arguments.dataset_name is not None:
        columns = arguments.image_column_name, arguments.mask_column_name
        data = HubPairs(config, arguments.dataset_name, *columns, names, arguments.binary_masks)
    else:
        data = FolderPairs(
            config,
            (arguments.train_image_dir, arguments.train_mask_dir),
            (arguments.validation_image_dir, arguments.validation_mask_dir),
            names,
            arguments.binary_masks,
        )
    num_channels = arguments.channel_components or data.num_channels
    if num_channels > data.num_channels:
        raise ValueError(f"channel_components must be at most the {data.num_channels} channels, got {num_channels}")
    of_data = {
        "num_channels": num_channels,
        "num_labels": len(data.label_names),
        "id2label": dict(enumerate(data.label_names)),
        "label2id": {name: number for number, name in enumerate(data.label_names)},
    }
    if arguments.model_name_or_path is not None and num_channels != config.num_channels:
        raise ValueError(
            f"{arguments.model_name_or_path} takes {config.num_channels} channels, and the data have {num_channels}"
        )
    return starting_config(arguments, **of_data), data


def starting_config(arguments: DataArguments, **changes: Any) -> AxialConfig:
    """The configuration of a preset or of a checkpoint, with changes."""
    if arguments.model_name_or_path is None:
        config = load_preset(arguments.config_name, **changes)
    else:
        check_checkpoint(arguments.model_name_or_path)
        config = AutoConfig.from_pretrained(arguments.model_name_or_path, **changes)
    if not isinstance(config, AxialConfig):
        name = arguments.config_name or arguments.model_name_or_path
        raise ValueError(f"{name} has no dense head: it has model_type={config.model_type!r}")
    return config


def make_model(arguments: DataArguments, config: AxialConfig) -> AxialForSemanticSegmentation:
    """A new model, or one that starts from a checkpoint of any encoder; what that has not is drawn anew."""
    if arguments.model_name_or_path is None:
        return AxialForSemanticSegmentation(config)
    return AxialForSemanticSegmentation.from_pretrained(
        arguments.model_name_or_path, config=config, ignore_mismatched_sizes=arguments.ignore_mismatched_sizes
    )


def crop_size(training: SegmentationTrainingArguments, config: AxialConfig) -> tuple[int, ...]:
    crop = numbers_per_axis(training.crop_size, "crop_size", config.num_axes) or config.image_shape
    if any(side % patch for side, patch in zip(crop, config.patch_shape, strict=True)):
        raise ValueError(f"crop_size={crop} must be whole patches, multiples of patch_size={config.patch_shape}")
    return crop


def make_augmentation(training: SegmentationTrainingArguments, num_axes: int) -> Callable[..., dict[str, torch.Tensor]]:
    """Turns and sizes of crops, then all other changes, so that noise stays noise; called as `RandomGridChanges` is."""
    flipped, exchanged = (
        axis_numbers(getattr(training, name), name, num_axes) for name in ("augment_flip_axes", "augment_exchange_axes")
    )
    strengths = training.augment_contrast, training.augment_brightness, training.augment_noise
    warp = RandomWarping(num_axes, training.augment_turn, training.augment_zoom)
    change = RandomGridChanges(flipped, exchanged, *strengths)
    return lambda batch, *draws: change(warp(batch, *draws), *draws)


if __name__ == "__main__":
    main()
