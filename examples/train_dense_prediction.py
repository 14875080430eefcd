"""
Train a model that forecasts fields, such as next month's sea surface temperature, on one CPU or many GPUs, and resume
it exactly.

    python examples/train_dense_prediction.py configuration/training/sst.yaml --output_dir outputs/sst --peer unet
    accelerate launch examples/train_dense_prediction.py --config_name sst --data_file mine.nc --output_dir outputs/mine

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Data are split by
time: the last steps are held out, and to choose settings by, `--validation_steps` measures on those before them
instead. The model sees fields less their mean in the training time, by calendar month where steps are months, and
learns the change from the last step. Missing values are NaN, or what the file declares as such, and stay missing in
forecasts. Where longitudes are no full circle, copy a preset of configuration/models and set `periodic` to false there.
`output_dir` gets the model, `climatology.npy` (that mean), `forecast.json` (what examples/predict.py needs beside),
`metrics.jsonl`, `results.json`, `curves.png`, `predictions.png`, a model card and the checkpoints of the run; a U-Net
to compare with lies in `output_dir/unet`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from dense_prediction_data import (
    BUILT_IN,
    ForecastData,
    ForecastSetup,
    MeasuredPasts,
    TrainingPairs,
    check_grid,
    read_fields,
    split_by_time,
)
from dense_prediction_peer import unet_for
from dense_prediction_report import draw_forecasts, headings, loading_lines, score_lines, write_model_card
from dense_prediction_scores import forecast_all, rmse, score_all
from peers import check_peer, start_peer_run
from results import OURS, write_results
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
)
from transformers import PreTrainedModel

from modeling_axial import AxialConfig, AxialForDensePrediction
from modeling_axial.training import parse_arguments

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402


@dataclass
class DataArguments:
    config_name: str | None = described(
        None,
        "Build a new model by this preset of configuration/models or JSON file; its image_size and channels are those "
        "of the data. `sst` takes its last axis for a circle of longitudes: for a part of it, copy the preset and set "
        "periodic to false.",
        "model",
    )
    dataset_name: Literal["sst", "air_temperature"] | None = described(
        None,
        "Learn from monthly sea surface temperature or yearly air temperature, in iris-sample-data.",
        "data",
    )
    data_file: str | None = described(
        None,
        "Instead, learn from this NetCDF file, zarr store, or .npy array (time, *grid) or (time, *grid, channels).",
    )
    variable_names: str | None = described(
        None, "Take these variables of the file, with commas between, as channels. Default: the only one that fits."
    )
    time_name: str = described("time", "Take this dimension of the file for time.")
    dataloader_num_workers: int = described(
        0, "Let so many processes prepare data; 0 prepares them in the main process."
    )
    rollout: int = described(1, "Measure so many forecasts in a row, each made from the one before.", "evaluation")
    peer: Literal["unet"] | None = described(
        None, "Train another model in the same way, too: a circular U-Net with as many parameters.", "comparison"
    )
    peer_steps: int | None = described(
        None, "Train it for so many optimizer steps, such as take as long as those of the model. Default: as many."
    )

    def __post_init__(self):
        if self.config_name is None:
            raise ValueError("--config_name is missing; the recipes in configuration/training have it")
        if (self.dataset_name is None) == (self.data_file is None):
            raise ValueError("give either --dataset_name or --data_file")
        if self.variable_names is not None and self.data_file is None:
            raise ValueError("--variable_names goes with --data_file")
        check_at_least(1, self, "rollout", "peer_steps")
        check_at_least(0, self, "dataloader_num_workers")


@dataclass
class ForecastTrainingArguments(TrainingArguments):
    history: int = described(2, "Make a forecast from so many steps.", "task")
    lead_time: int = described(1, "Forecast so many steps ahead.")
    drifting: bool = described(
        False,
        "Show the model how earlier steps differ from the last, but not the last itself, so that it also serves where "
        "values have left those of the training time.",
    )
    weight_by_latitude: bool = described(False, "Count points as the cosine of their latitude, in loss and errors.")
    held_out_steps: int = described(12, "Measure on so many last steps, and do not learn from them.", "evaluation")
    validation_steps: int = described(
        0, "Leave the held-out steps alone, and measure on so many before them, to choose settings by."
    )
    augment_sign: bool = described(
        False,
        "Give half of the examples the other sign, as what is warm may as well be cold.",
        "augmentation",
    )

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "history", "lead_time", "held_out_steps")
        check_at_least(0, self, "validation_steps")
        if self.drifting and self.history < 2:
            raise ValueError(f"drifting needs steps before the last: history of at least 2, got {self.history}")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, ForecastTrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    check_peer(training, arguments.peer)
    config, data = load_data(arguments, training)
    weights = data.fields.weights if training.weight_by_latitude else None
    processor = data.make_processor(config)
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir

    channels = data.fields.channel_names
    names = ["rmse"] if len(channels) == 1 else [f"rmse {name}" for name in channels]
    units = {name: unit for name, unit in zip(names, data.fields.units, strict=True) if unit}

    def numbers(errors: np.ndarray) -> dict[str, float]:
        """Those of the first lead, of errors (leads, channels)."""
        return dict(zip(names, errors[0].tolist(), strict=True))

    def train(run: TrainingRun, model: PreTrainedModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trains a model, saves it, and returns what `forecast_all` says of it."""
        accelerator = run.accelerator
        run.load(TrainingPairs(data, processor, weights), arguments.dataloader_num_workers)
        loader = run.load_validation(MeasuredPasts(data, arguments.rollout))
        run.introduce(data.fields.name, f"the {data.split.measured_on}", [], model)

        def batch_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
            if training.augment_sign:
                batch = change_signs(batch, run.sampler.generator(), *accelerator.share)
            return model(**batch).loss, len(batch["labels"])

        def measure(model: torch.nn.Module) -> dict[str, float]:
            _, forecasts, truth = forecast_all(accelerator, model, data, processor, loader, rollout=1)
            return numbers(rmse(forecasts, truth, weights))

        model = run.fit(model, [make_adamw(model.parameters(), training)], batch_loss, measure, units=units)
        run.save_model(model)
        return forecast_all(accelerator, model, data, processor, loader, arguments.rollout)

    model = AxialForDensePrediction(config)
    sizes = {OURS: model.num_parameters()}
    last, forecast, truth = train(run, model)
    forecasts, cpu_seconds = {OURS: forecast}, {OURS: run.cpu_seconds}
    if arguments.peer is not None:
        peer_run = start_peer_run(training, run_arguments, arguments.peer, arguments.peer_steps)
        peer = unet_for(config, sizes[OURS])
        name = f"circular U-Net with {peer.num_parameters():,} parameters"
        _, forecasts[name], _ = train(peer_run, peer)
        sizes[name], cpu_seconds[name] = peer.num_parameters(), peer_run.cpu_seconds
        peer_run.release()

    # ---- results ----
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
        np.save(output_dir / "climatology.npy", data.climatology)
        data.setup.save(output_dir)
        scores = score_all(data, forecasts, last, truth, weights)
        titles = headings(data, arguments.rollout, training.weight_by_latitude)
        print(*score_lines(scores, titles), sep="\n")
        write_results(output_dir, {name: numbers(errors) for name, errors in scores.items()}, sizes, cpu_seconds)
        draw_forecasts(output_dir / "predictions.png", data, forecast, truth, scores)
        write_model_card(output_dir, data, scores, titles, run_arguments.hub_model_id)
    run.finish(
        "Train a forecaster of fields",
        ["predictions.png"],
        loading_lines(run_arguments.output_dir),
        "examples/predict.py {folder} FILES --output_dir predictions",
    )


def load_data(arguments: DataArguments, training: ForecastTrainingArguments) -> tuple[AxialConfig, ForecastData]:
    """The configuration of a model for the data, and these. `ValueError`: for what does not fit together."""
    config = load_preset(arguments.config_name)
    if not isinstance(config, AxialConfig):
        raise ValueError(f"{arguments.config_name} has no dense head: it has model_type={config.model_type!r}")
    if config.prediction_loss == "quantile":
        raise ValueError(
            f"{arguments.config_name} predicts quantiles, which cannot be rolled out: set prediction_loss to squared "
            "or absolute"
        )
    if training.history > 1 and training.lead_time > 1 and arguments.rollout > 1:
        raise ValueError(
            f"rollout={arguments.rollout} with lead_time={training.lead_time} lacks the steps between its forecasts, "
            f"so it needs history=1, got {training.history}"
        )
    if arguments.dataset_name is not None:
        fields = BUILT_IN[arguments.dataset_name].read(config.num_axes)
    else:
        names = [name.strip() for name in (arguments.variable_names or "").split(",") if name.strip()]
        fields = read_fields(Path(arguments.data_file), config.num_axes, names, arguments.time_name)
    if training.weight_by_latitude and fields.weights is None:
        raise ValueError(f"{fields.name} has no latitudes (a coordinate in degrees_north): no --weight_by_latitude")
    split = split_by_time(
        fields, training.held_out_steps, training.validation_steps, training.history, training.lead_time
    )
    setup = ForecastSetup(
        training.history,
        training.lead_time,
        training.drifting,
        fields.channel_names,
        arguments.time_name,
        fields.step,
        fields.units,
        fields.ends,
    )
    data = ForecastData(fields, split, setup)
    sizes = {
        "image_size": list(check_grid(config, fields.grid, fields.arcs)),
        "num_channels": setup.num_channels,
        "num_target_channels": len(fields.channel_names),
    }
    return load_preset(arguments.config_name, **sizes), data


def change_signs(
    batch: dict[str, torch.Tensor], generator: torch.Generator, process_index: int = 0, num_processes: int = 1
) -> dict[str, torch.Tensor]:
    """
    Pasts and changes of a batch times 1 or -1 at random. Processes that share a step give equal generators, and get
    what one process with all their examples would, in which example `i` of this one is number
    `i·num_processes + process_index`.
    """
    values = batch["pixel_values"]
    signs = 2 * torch.randint(2, (len(values) * num_processes,), generator=generator)[process_index::num_processes] - 1
    signs = signs.to(values).view(-1, *[1] * (values.ndim - 1))
    return batch | {"pixel_values": signs * values, "labels": signs * batch["labels"]}


if __name__ == "__main__":
    main()
