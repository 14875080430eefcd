"""
Train a classifier of tables that learns in context, on drawn tables alone, on one CPU or many GPUs, and resume it
exactly.

    python examples/train_tabular_in_context.py configuration/training/tables.yaml --output_dir outputs/tables
    accelerate launch examples/train_tabular_in_context.py --config_name tables --max_train_steps 9000

The first argument may be a recipe, a YAML file of arguments; those on the command line override it. Every step draws
new tables, which are functions of the seed and of their number. Measured are accuracies on iris, wine, breast cancer
and the digits 3, 8 and 9, all in scikit-learn, after 10 and 30 labelled rows, beside classifiers that are fitted to
these rows. Settings were chosen on other tables: `--measured_on development`. `output_dir` gets the model,
`metrics.jsonl`, `results.json`, `curves.png`, `predictions.png`, a model card and the checkpoints of the run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from results import OURS, write_results
from tabular_data import TABLES, DrawnTables
from tabular_in_context import AxialForTableClassification, check_table_config
from tabular_report import draw_report, loading_lines, score_table, write_model_card
from tabular_scores import accuracies, named_means
from training_run import (
    RunArguments,
    TrainingArguments,
    TrainingRun,
    check_at_least,
    described,
    make_adamw,
)

from modeling_axial import AxialConfig
from modeling_axial.training import parse_arguments

sys.path.append(str(Path(__file__).parents[1]))  # configuration/ is part of the repository, and not installed
from configuration import load_preset  # noqa: E402

MEASURED_ON = {"held_out": "held out", "development": "to choose settings by"}
ENDLESS = 1_000_000  # groups of tables that can be drawn


@dataclass
class DataArguments:
    config_name: str | None = described(
        None, "Build a new model by this preset of configuration/models or JSON file.", "model"
    )
    dataloader_num_workers: int = described(
        0, "Let so many processes draw tables; 0 draws them in the main process.", "data"
    )
    measured_on: Literal["held_out", "development"] = described(
        "held_out", "Measure on the tables to tell about, or on others, to choose settings by.", "evaluation"
    )
    num_draws: int = described(16, "Measure so many choices of labelled rows of each table and number.")

    def __post_init__(self):
        if self.config_name is None:
            raise ValueError("--config_name is missing; the recipes in configuration/training have it")
        check_at_least(1, self, "num_draws")
        check_at_least(0, self, "dataloader_num_workers")


@dataclass
class TableTrainingArguments(TrainingArguments):
    per_device_train_batch_size: int = described(
        1, "Give each process so many groups of tables at a time: 1, as shapes differ."
    )
    cells_per_group: int = described(
        8000, "Draw groups of tables of about so many cells, counted for each class.", "data"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.per_device_train_batch_size != 1:
            raise ValueError(
                f"per_device_train_batch_size must be 1, got {self.per_device_train_batch_size}: groups of tables have "
                "different shapes. Raise gradient_accumulation_steps or cells_per_group instead"
            )
        if self.max_train_steps is None:
            raise ValueError("max_train_steps is missing: there are as many tables as are asked for")
        check_at_least(1, self, "cells_per_group")


def main() -> None:
    arguments, training, run_arguments = parse_arguments(
        DataArguments, TableTrainingArguments, RunArguments, argv=sys.argv[1:], description=__doc__
    )
    config = load_preset(arguments.config_name)
    if not isinstance(config, AxialConfig):
        raise ValueError(f"{arguments.config_name} is no model of tables: it has model_type={config.model_type!r}")
    check_table_config(config)
    run = TrainingRun(training, run_arguments)
    accelerator, output_dir = run.accelerator, run.output_dir
    run.load(DrawnTables(ENDLESS, training.seed, training.cells_per_group, config), arguments.dataloader_num_workers)
    others = DrawnTables(64, -1, training.cells_per_group, config)  # seeds are not negative

    def batch_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        return model(**{name: values[0] for name, values in batch.items()}).loss, 1

    tables = TABLES[arguments.measured_on]
    measured_on = f"{', '.join(tables)} ({MEASURED_ON[arguments.measured_on]})"
    model = AxialForTableClassification(config)
    run.introduce("drawn tables", measured_on, f"up to {config.num_labels} of each table", model)
    num_parameters = model.num_parameters()
    model = run.fit(
        model,
        [make_adamw(model.parameters(), training)],
        batch_loss,
        evaluate=lambda model: on_drawn_tables(model, others, accelerator.device),
        units={"loss": "nats", "drawn_loss": "nats"},
    )
    run.save_model(model)

    # ---- results ----
    if accelerator.is_main_process:
        found = accuracies(output_dir, tables, arguments.num_draws)
        print(*score_table(found), sep="\n")
        scores = {name: named_means(of_tables) for name, of_tables in found.items()}
        write_results(output_dir, scores, {OURS: num_parameters}, {OURS: run.cpu_seconds})
        draw_report(output_dir / "predictions.png", output_dir, tables, found)
        groups = training.max_train_steps * training.gradient_accumulation_steps * accelerator.num_processes
        trained_on = f"{groups:,} groups of drawn tables, of about {training.cells_per_group:,} cells each"
        write_model_card(output_dir, found, trained_on, measured_on, run_arguments.hub_model_id)
    run.finish(
        "Train a classifier of tables",
        ["predictions.png"],
        f"{loading_lines(run_arguments.output_dir)}.fit(features, labels)\nclassifier.predict(new_features)",
    )


@torch.no_grad()
def on_drawn_tables(model: torch.nn.Module, tables: DrawnTables, device: torch.device) -> dict[str, float]:
    """Loss and accuracy, all groups counting the same."""
    model.eval()
    loss, accuracy = 0.0, 0.0
    for index in range(len(tables)):
        batch = {name: values.to(device) for name, values in tables[index].items()}
        output = model(**batch)
        loss += output.loss.item() / len(tables)
        accuracy += (output.logits.argmax(-1) == batch["targets"]).float().mean().item() / len(tables)
    return {"drawn_loss": loss, "drawn_accuracy": accuracy}


if __name__ == "__main__":
    main()
