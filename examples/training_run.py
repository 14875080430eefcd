"""What the training scripts share: their common arguments, and a run that no interruption harms."""

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub import HfApi
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler
from transformers.utils.logging import disable_progress_bar

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
    save_state,
)


def described(default, text: str):
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": text})


def check_positive(arguments, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class TrainingArguments:
    """What shapes the course of a run. A checkpoint is resumed with the same values only."""

    num_train_epochs: int = described(10, "Passes over the training data.")
    max_train_steps: int | None = described(None, "Optimizer steps, instead of num_train_epochs.")
    per_device_train_batch_size: int = described(64, "Examples of one process at a time.")
    gradient_accumulation_steps: int = described(1, "Batches whose gradients are added up for one optimizer step.")
    learning_rate: float = described(1e-3, "Largest learning rate of the schedule.")
    weight_decay: float = described(0.05, "On all parameters but biases and norms.")
    max_grad_norm: float = described(1.0, "Gradients are scaled down to this Euclidean norm.")
    lr_scheduler_type: str = described("cosine", "A schedule of transformers: linear, cosine, constant, ...")
    num_warmup_steps: int = described(0, "Optimizer steps over which the learning rate rises from 0.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = described(None, "None follows `accelerate launch`.")
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
    per_device_eval_batch_size: int = described(256, "Examples of one process at a time when evaluating.")
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


def make_adamw(parameters: Iterable[torch.nn.Parameter], training: TrainingArguments) -> torch.optim.AdamW:
    """AdamW on the parameters that are to be trained; biases and norms do not decay."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused, as a small model otherwise waits for some ten kernels for each of its parameters.
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


class TrainingRun:
    """
    A run of a training script in its folder. To be used in this order: the constructor, `load` with the training data,
    `fit`, and, when the results are written, `close`.

    Attributes: `accelerator`; `output_dir`; after `load`, the `sampler` that knows the position in the data, and
    `steps_per_epoch`.

    Raises:
        `ValueError`: if the folder is in use, or there is no checkpoint or tracker as asked for.
    """

    def __init__(self, training: TrainingArguments, run: RunArguments):
        self.training, self.run = training, run
        self.output_dir = Path(run.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # said so, or several processes on CPUs would not find each other
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            mixed_precision=training.mixed_precision,
            log_with=run.report_to if run.with_tracking else None,
            project_dir=self.output_dir,
        )
        if run.with_tracking and not self.accelerator.log_with:
            raise ValueError(
                f"no experiment tracker for report_to={run.report_to!r} is installed: pip install tensorboard"
            )
        is_main = self.accelerator.is_main_process
        self._lock = lock_folder(self.output_dir) if is_main else None
        checkpoint = [find_checkpoint(self.output_dir, run.resume_from_checkpoint) if is_main else None]
        broadcast_object_list(checkpoint)
        self._checkpoint = checkpoint[0]
        set_seed(training.seed)
        disable_progress_bar()  # those of loading and saving, beside our own

    def load(self, dataset: Dataset, num_workers: int = 0) -> None:
        """Takes the data to train on."""
        training, accelerator = self.training, self.accelerator
        self.sampler = ResumableSampler(
            len(dataset),  # pyrefly: ignore[bad-argument-type]  map-style data sets have a length
            training.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        # A generator of its own: otherwise an epoch that starts draws from the global one.
        self._loader = prepare_data_loader(  # by itself, because the sampler has split the data already
            DataLoader(
                dataset,
                batch_size=training.per_device_train_batch_size,
                sampler=self.sampler,
                num_workers=num_workers,
                generator=torch.Generator(),
            ),
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
        )
        self._samples_per_step = (
            training.per_device_train_batch_size * training.gradient_accumulation_steps * accelerator.num_processes
        )
        self.steps_per_epoch = math.ceil(self.sampler.samples_per_epoch / self._samples_per_step)

    def load_validation(self, dataset: Dataset, num_workers: int = 0) -> DataLoader:
        """A loader of what to evaluate on, which splits it over the processes."""
        loader = DataLoader(
            dataset,
            batch_size=self.run.per_device_eval_batch_size,
            num_workers=num_workers,
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def fit(
        self,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        batch_loss: Callable[[torch.nn.Module, Any], tuple[torch.Tensor, int]],
        evaluate: Callable[[torch.nn.Module], dict[str, float]],
        after_step: Callable[[torch.nn.Module], None] = lambda model: None,
        also_saved: tuple = (),
    ) -> torch.nn.Module:
        """
        Trains from the checkpoint that was asked for, or from zero, to the last step. Returns the prepared model.

        Args:
            batch_loss: (prepared model, batch) -> (mean loss over the examples of this process, their number).
            evaluate: prepared model -> what to report, after each epoch and the last step.
            after_step: called with the prepared model after each optimizer step.
            also_saved: objects with `state_dict` and `load_state_dict` that checkpoints hold as well.

        Raises:
            `FloatingPointError`: for a loss that is not finite, and instead of saving weights that are not.
            `SystemExit`: with STOPPED_EXIT_CODE, when SIGTERM has asked to stop and a checkpoint is saved.
        """
        training, run, accelerator, sampler = self.training, self.run, self.accelerator, self.sampler
        total_steps = training.max_train_steps or training.num_train_epochs * self.steps_per_epoch
        schedules = [
            get_scheduler(
                training.lr_scheduler_type,
                optimizer,
                # Accelerate moves the schedule on once for every process.
                num_warmup_steps=training.num_warmup_steps * accelerator.num_processes,
                num_training_steps=total_steps * accelerator.num_processes,
            )
            for optimizer in optimizers
        ]
        shape_of_run = asdict(training) | {"mixed_precision": accelerator.mixed_precision}
        shape_of_run |= {
            f"config.{name}": value for name, value in model.config.to_dict().items() if name != "transformers_version"
        }
        model, *prepared = accelerator.prepare(model, *optimizers, *schedules)
        optimizers, schedules = prepared[: len(optimizers)], prepared[len(optimizers) :]
        accelerator.register_for_checkpointing(sampler, FixedArguments(**shape_of_run), *also_saved)

        set_seed(training.seed, device_specific=True)  # dropout differs between the processes, the weights do not
        step = 0
        if self._checkpoint is not None:
            step = load_state(accelerator, self._checkpoint)
            accelerator.print(f"Resuming from {self._checkpoint}.")
        elif run.resume_from_checkpoint is not None:
            accelerator.print(f"There is no checkpoint in {self.output_dir} yet: starting from zero.")
        log = MetricsLog(self.output_dir / "metrics.jsonl", step) if accelerator.is_main_process else None
        if run.with_tracking:
            accelerator.init_trackers(Path(sys.argv[0]).stem, asdict(training))

        def report(**values: float) -> None:
            if log is not None:
                log.write(step, **values)
            accelerator.log(values, step)

        progress = tqdm(total=total_steps, initial=step, disable=not accelerator.is_main_process)
        step_loss = torch.zeros((), device=accelerator.device)
        stop = StopRequest(accelerator)
        model.train()
        while step < total_steps:
            for batch in self._loader:  # from where the sampler stands to the end of the epoch
                with accelerator.accumulate(model):
                    loss, samples = batch_loss(model, batch)
                    samples *= accelerator.num_processes
                    # The last step of an epoch may have fewer samples; in each step all of its samples count the same.
                    first = sampler.offset - sampler.offset % self._samples_per_step
                    loss = loss * (samples / min(self._samples_per_step, sampler.samples_per_epoch - first))
                    accelerator.backward(loss * training.gradient_accumulation_steps)  # it divides by that number
                    step_loss += loss.detach()
                    if accelerator.sync_gradients:
                        grad_norm = accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)
                    for optimizer in optimizers:
                        optimizer.step()
                    for schedule in schedules:
                        schedule.step()
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                sampler.advance(samples)
                if not accelerator.sync_gradients:
                    continue

                step += 1
                after_step(model)
                progress.update()
                last = step == total_steps
                epoch_ends = sampler.offset == 0
                stopping = stop.agreed()
                due = epoch_ends if run.checkpointing_steps == "epoch" else step % int(run.checkpointing_steps) == 0
                save = last or stopping or due
                if save or step % run.logging_steps == 0:
                    mean_loss = accelerator.reduce(step_loss, "mean").item()
                    if not math.isfinite(mean_loss):
                        raise FloatingPointError(
                            f"the loss of step {step} is {mean_loss}; the checkpoints before it are kept"
                        )
                    progress.set_postfix(loss=f"{mean_loss:.4f}")
                if save and not math.isfinite(largest := float(get_total_norm(model.parameters(), math.inf))):
                    raise FloatingPointError(  # a finite loss may have a gradient that is not
                        f"the largest weight after step {step} is {largest}; the checkpoints before it are kept"
                    )
                if step % run.logging_steps == 0:
                    report(loss=mean_loss, learning_rate=schedules[0].get_last_lr()[0], grad_norm=float(grad_norm))
                step_loss.zero_()
                if last or epoch_ends:
                    report(epoch=sampler.epoch, **evaluate(model))
                    model.train()
                if save:
                    if log is not None:
                        log.sync()
                    save_state(accelerator, self.output_dir, step, run.checkpoints_total_limit)
                if stopping:
                    accelerator.print(
                        f"Stopped as asked, with step {step} saved: --resume_from_checkpoint latest goes on."
                    )
                    end_processes(accelerator)
                    sys.exit(STOPPED_EXIT_CODE)
                if last:
                    break
        stop.close()
        progress.close()
        return model

    def close(self) -> None:
        """Lets go of the folder, and ends the processes together."""
        if self._lock is not None:
            self._lock.release()
        end_processes(self.accelerator)


def push_to_hub(output_dir: Path, hub_model_id: str | None, token: str | None, message: str) -> None:
    """Uploads the folder of a run without its checkpoints, then the model card with loading lines pinned to that."""
    api = HfApi(token=token)
    repo_id = api.create_repo(hub_model_id or output_dir.resolve().name, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        ignore_patterns=["checkpoint-*", "unfinished-checkpoint-*", ".lock"],
        commit_message=message,
    ).oid
    card = (output_dir / "README.md").read_text(encoding="utf-8")
    literal = r"""(["'])(?:\\.|(?!\1)[^\\])*\1"""  # of a text in Python
    pinned = re.sub(rf"from_pretrained\({literal}, ", f'from_pretrained("{repo_id}", revision="{commit}", ', card)
    api.upload_file(
        repo_id=repo_id,
        path_or_fileobj=pinned.encode(),
        path_in_repo="README.md",
        commit_message=f"Loading lines open {commit[:7]}",
    )
