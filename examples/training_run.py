"""What the training scripts share: their common arguments, and a run that no interruption harms."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, set_seed
from curves import draw_curves
from huggingface_hub import HfApi
from run_in_words import closing_lines, opening_lines
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, SchedulerType, get_scheduler
from transformers.utils.logging import disable_progress_bar

from modeling_axial.distributed import shard_axis
from modeling_axial.training import (
    AxisAccelerator,
    FixedArguments,
    MetricsLog,
    ResumableSampler,
    StopRequest,
    end_processes,
    find_checkpoint,
    ignore_stop_signals,
    load_state,
    lock_folder,
    save_state,
)

# All of transformers but those that follow a measured number instead of the step.
SCHEDULES = sorted({schedule.value for schedule in SchedulerType} - {"reduce_lr_on_plateau", "greedy"})


def described(default, text: str, subject: str | None = None):
    """A dataclass field with a help text. With a `subject` it begins a section of the help."""
    return field(default=default, metadata={"help": text} | ({"subject": subject} if subject else {}))


def check_at_least(smallest: int, arguments, *names: str) -> None:
    """`ValueError` for an argument that is less, infinite or no number; None passes."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not smallest <= value < math.inf:
            finite = "finite and " if isinstance(value, float) else ""
            raise ValueError(f"{name} must be {finite}at least {smallest}, got {value}")


def check_one_source(arguments) -> None:
    """`ValueError` unless there is either a `dataset_name`, or both a `train_dir` and a `validation_dir`."""
    folders = [arguments.train_dir, arguments.validation_dir]
    if (arguments.dataset_name is None) == (folders == [None, None]):
        raise ValueError("give either --dataset_name, or --train_dir and --validation_dir")
    if arguments.dataset_name is None and None in folders:
        raise ValueError("--train_dir and --validation_dir go together: the one to learn from, the other to measure")
    if "" in folders:
        raise ValueError("--train_dir or --validation_dir is an empty text; leave it out, or say which")


@dataclass
class TrainingArguments:
    """What shapes the course of a run. A checkpoint is resumed with the same values only."""

    num_train_epochs: int = described(10, "Pass over the training data so many times.", "training")
    max_train_steps: int | None = described(None, "Take so many optimizer steps, instead of num_train_epochs.")
    per_device_train_batch_size: int = described(64, "Give each process so many examples at a time.")
    gradient_accumulation_steps: int = described(1, "Add up the gradients of so many batches for one optimizer step.")
    learning_rate: float = described(1e-3, "Let this be the largest learning rate of the schedule.")
    weight_decay: float = described(0.05, "Shrink all parameters but biases and norms by this.")
    max_grad_norm: float = described(1.0, "Scale gradients down to this Euclidean norm; 0 leaves them as they are.")
    lr_scheduler_type: str = described("cosine", f"Take this schedule of transformers: {', '.join(SCHEDULES)}.")
    lr_scheduler_kwargs: str | None = described(
        None, 'Say more about the schedule, as JSON, such as {"min_lr_rate": 0.1}.'
    )
    num_warmup_steps: int = described(0, "Let the learning rate rise from 0 over so many optimizer steps.")
    seed: int = described(0, "Draw the initial weights, the order of the data, dropout and augmentation from this.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = described(
        None, "Compute in this precision. None follows `accelerate launch`.", "hardware"
    )
    axis_parallel_size: int = described(
        1, "Let so many processes work on each example: the longest axis of the model's grid is split over them."
    )

    def __post_init__(self):
        check_at_least(
            1,
            self,
            "num_train_epochs",
            "max_train_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "axis_parallel_size",
        )
        check_at_least(0, self, "learning_rate", "weight_decay", "num_warmup_steps")
        if not self.max_grad_norm >= 0:
            raise ValueError(
                f"max_grad_norm must be at least 0, which leaves gradients alone, got {self.max_grad_norm}"
            )
        if not 0 <= self.seed < 2**31:  # processes add their number, and NumPy takes 32 bits
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        """That there is such a schedule, and that its learning rates are finite and not negative."""
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type must be one of {', '.join(SCHEDULES)}, got {self.lr_scheduler_type!r}")
        if self.lr_scheduler_type == "constant" and self.num_warmup_steps:
            raise ValueError(
                f"lr_scheduler_type=constant has no num_warmup_steps={self.num_warmup_steps}: take constant_with_warmup"
            )
        if self.lr_scheduler_type.startswith("constant") and self.lr_scheduler_kwargs is not None:
            raise ValueError(f"lr_scheduler_type={self.lr_scheduler_type} takes no lr_scheduler_kwargs: leave them out")
        try:
            steps = self.max_train_steps or 1000 + self.num_warmup_steps
            json.dumps(json.loads(self.lr_scheduler_kwargs or "{}"), allow_nan=False)
            schedule = self.make_schedule(torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate), steps)
            rates = [schedule.lr_lambdas[0](steps * i // 100) for i in range(101)]
            if not all(0 <= rate < math.inf for rate in rates):
                raise ValueError(f"the learning rate is multiplied by {min(rates):g} to {max(rates):g}")
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(
                f"lr_scheduler_kwargs={self.lr_scheduler_kwargs} does not fit lr_scheduler_type="
                f"{self.lr_scheduler_type}: {error}"
            ) from error

    def make_schedule(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule of the learning rate of an optimizer, a function of the step alone."""
        return get_scheduler(
            self.lr_scheduler_type,
            optimizer,
            num_warmup_steps=self.num_warmup_steps,
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=json.loads(self.lr_scheduler_kwargs or "{}"),
        )


@dataclass
class RunArguments:
    output_dir: str = described("outputs", "Write the results and checkpoints into this folder.", "results")
    checkpointing_steps: str = described("epoch", "Save a checkpoint after so many optimizer steps, or each `epoch`.")
    checkpoints_total_limit: int | None = described(2, "Remove earlier checkpoints down to this number.")
    resume_from_checkpoint: str | None = described(None, "Go on from this: `latest`, or the path of a checkpoint.")
    per_device_eval_batch_size: int = described(256, "Measure so many examples of a process at a time.", "evaluation")
    deterministic: bool = described(
        False,
        "Use only algorithms that give the same numbers each time: on a GPU a run resumes exactly with them alone.",
        "hardware",
    )
    logging_steps: int = described(10, "Write a line of metrics.jsonl after so many optimizer steps.", "logging")
    with_tracking: bool = described(False, "Report the metrics to experiment trackers, too.")
    report_to: str = described("all", "Report to this tracker: tensorboard, wandb, ..., or all that are installed.")
    push_to_hub: bool = described(False, "Upload the result to the Hub.", "hub")
    hub_model_id: str | None = described(
        None, "Upload it there: user/name. Without it, that is your name and that of output_dir."
    )
    hub_token: str | None = described(None, "Use this token, instead of that which `hf auth login` has stored.")

    def __post_init__(self):
        check_at_least(1, self, "per_device_eval_batch_size", "logging_steps", "checkpoints_total_limit")
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
    `introduce`, `fit`, and, when the results are written, `finish`, or `close`, which says nothing.

    Attributes: `accelerator`; `output_dir`; after `load`, the `sampler` that knows the position in the data, and
    `steps_per_epoch`; after `fit`, the `cpu_seconds` that it took in this process, None if the run was resumed.

    Raises:
        `ValueError`: if the folder is in use, there is no checkpoint or tracker as asked for, or the processes make no
            whole groups of `axis_parallel_size`.
    """

    def __init__(self, training: TrainingArguments, run: RunArguments):
        self.training, self.run = training, run
        self.output_dir = Path(run.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products refuse to run
            torch.use_deterministic_algorithms(True)
        self.accelerator = AxisAccelerator(
            training.axis_parallel_size,
            cpu=not torch.accelerator.is_available(),  # said so, or several processes on CPUs would not find each other
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            step_scheduler_with_optimizer=False,  # it would step once for every process, and not where fp16 overflows
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
            *accelerator.share,
        )
        # A generator of its own: otherwise an epoch that starts draws from the global one.
        self._loader = prepare_data_loader(  # by itself, because the sampler has split the data already
            DataLoader(
                dataset,
                batch_size=training.per_device_train_batch_size,
                sampler=self.sampler,
                num_workers=num_workers,
                worker_init_fn=ignore_stop_signals,
                generator=torch.Generator(),
                pin_memory=accelerator.device.type == "cuda",
            ),
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )
        self._samples_per_step = (
            training.per_device_train_batch_size * training.gradient_accumulation_steps * accelerator.share[1]
        )
        self.steps_per_epoch = math.ceil(self.sampler.samples_per_epoch / self._samples_per_step)
        self._total_steps = training.max_train_steps or training.num_train_epochs * self.steps_per_epoch

    def introduce(
        self, trained_on: str, measured_on: str, classes: Sequence[str] | str, model: PreTrainedModel
    ) -> None:
        """Says in five lines what is to be done; after `load`."""
        each = min(self._samples_per_step, self.sampler.samples_per_epoch)
        steps = f"{self._total_steps:,} of {each:,} examples each; an epoch has {self.steps_per_epoch:,}"
        self.accelerator.print(*opening_lines(trained_on, measured_on, classes, model, steps), sep="\n", flush=True)

    def load_validation(self, dataset: Dataset, num_workers: int = 0) -> DataLoader:
        """A loader of what to evaluate on, which shares it out to the processes, or groups of them."""
        loader = DataLoader(
            dataset,
            batch_size=self.run.per_device_eval_batch_size,
            num_workers=num_workers,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),
            pin_memory=self.accelerator.device.type == "cuda",
        )
        number, count = self.accelerator.share
        return prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=count,
            process_index=number,
            put_on_device=True,
            non_blocking=True,
        )

    def fit(
        self,
        model: PreTrainedModel,
        optimizers: list[torch.optim.Optimizer],
        batch_loss: Callable[[torch.nn.Module, Any], tuple[torch.Tensor, int]],
        evaluate: Callable[[torch.nn.Module], dict[str, float]],
        after_step: Callable[[torch.nn.Module], None] = lambda model: None,
        also_saved: tuple = (),
        units: Mapping[str, str] | None = None,
    ) -> torch.nn.Module:
        """
        Trains from the checkpoint that was asked for, or from zero, to the last step. Returns the prepared model. A
        checkpoint may be of a run with another number of steps: the schedule is that of the new number from then on.
        What was reported is drawn in `curves.png`.

        Args:
            batch_loss: (prepared model, batch) -> (mean loss over the examples of this process, their number).
            evaluate: prepared model -> what to report, after each epoch and the last step.
            after_step: called with the prepared model after each optimizer step.
            also_saved: objects with `state_dict` and `load_state_dict` that checkpoints hold as well.
            units: of the reported numbers that have one, by their names; `loss` is the mean of `batch_loss`.

        Raises:
            `FloatingPointError`: for a loss that is not finite, and instead of saving weights that are not.
            `SystemExit`: with STOPPED_EXIT_CODE or INTERRUPTED_EXIT_CODE, when SIGTERM or SIGINT has asked to stop and
                a checkpoint is saved.
            `ValueError`: if the checkpoint was made with other arguments, or is behind the last step, or the model
                cannot be split over `axis_parallel_size` processes.
        """
        self._prepare(model, optimizers, also_saved)
        set_seed(self.training.seed, device_specific=True)  # dropout differs between the processes, the weights do not
        self._step = self._resume()
        self._open_reports(units)
        from_zero, start = self._step == 0, time.process_time()
        self._train_steps(batch_loss, evaluate, after_step)
        self.cpu_seconds = time.process_time() - start if from_zero else None
        self._bar.close()
        if self._log is not None:
            self._log.close()
            draw_curves(self.output_dir)
        return self._model

    def _prepare(self, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], also_saved: tuple) -> None:
        """Hands what is trained, with a schedule for each optimizer, to accelerate, and says what checkpoints hold."""
        accelerator, training = self.accelerator, self.training
        if accelerator.axis_mesh is not None:
            longest = max(model.config.grid_shape)
            if longest < training.axis_parallel_size:
                raise ValueError(
                    f"axis_parallel_size={training.axis_parallel_size} must be at most {longest}, the cells along the "
                    f"longest axis of the grid {tuple(model.config.grid_shape)} of the model"
                )
            shard_axis(model, accelerator.axis_mesh)
        schedules = [training.make_schedule(optimizer, self._total_steps) for optimizer in optimizers]
        shape_of_run = asdict(training) | {"mixed_precision": accelerator.mixed_precision}
        shape_of_run |= {
            f"config.{name}": value for name, value in model.config.to_dict().items() if name != "transformers_version"
        }
        self._model, *prepared = accelerator.prepare(model, *optimizers, *schedules)
        self._optimizers, self._schedules = prepared[: len(optimizers)], prepared[len(optimizers) :]
        # An argument that there was not yet when a checkpoint was made has its default in it.
        added = {argument.name: argument.default for argument in fields(training)}
        fixed = FixedArguments(free=("num_train_epochs", "max_train_steps"), added=added, **shape_of_run)
        accelerator.register_for_checkpointing(self.sampler, fixed, *also_saved)

    def _resume(self) -> int:
        """The step to go on after: that of the checkpoint, which is loaded, or 0."""
        if self._checkpoint is None:
            if self.run.resume_from_checkpoint is not None:
                self.accelerator.print(f"There is no checkpoint in {self.output_dir} yet: starting from zero.")
            return 0
        step = load_state(self.accelerator, self._checkpoint)
        if step > self._total_steps:
            raise ValueError(
                f"{self._checkpoint} is behind the last of {self._total_steps} steps: raise max_train_steps or "
                "num_train_epochs, or start a new run in another folder"
            )
        self.accelerator.print(f"Resuming from {self._checkpoint}.")
        self._set_schedules(step)
        return step

    def _set_schedules(self, step: int) -> None:
        """Learning rates as this run has them after a step: those of the checkpoint may be of another length."""
        before = self._optimizers[0].param_groups[0]["lr"]
        for schedule in self._schedules:
            schedule.scheduler.last_epoch = step - 1
            schedule.step()
        if (now := self._schedules[0].get_last_lr()[0]) != before:
            self.accelerator.print(
                f"The schedule is now that of {self._total_steps} steps: after step {step} the learning rate is "
                f"{now:.3g} instead of {before:.3g}."
            )

    def _open_reports(self, units: Mapping[str, str] | None) -> None:
        """Where the numbers of the steps go: metrics.jsonl, experiment trackers, and a bar or lines."""
        is_main = self.accelerator.is_main_process
        self._log = MetricsLog(self.output_dir / "metrics.jsonl", self._step, units) if is_main else None
        if self.run.with_tracking:
            self.accelerator.init_trackers(Path(sys.argv[0]).stem, asdict(self.training))
        # None: a bar on a terminal, and without one lines instead.
        self._bar = tqdm(total=self._total_steps, initial=self._step, disable=None if is_main else True)

    def _report(self, **values: float) -> None:
        """Reports numbers of the step that was taken last."""
        if self._log is not None:
            self._log.write(self._step, **values)
        self.accelerator.log(values, self._step)
        if self._bar.disable:
            numbers = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            self.accelerator.print(f"step {self._step} of {self._total_steps}: {numbers}", flush=True)

    def _train_steps(self, batch_loss: Callable, evaluate: Callable, after_step: Callable) -> None:
        """Takes the steps that are left; arguments as those of `fit`."""
        self._step_loss = torch.zeros((), device=self.accelerator.device)  # of the batches of a step so far
        stop = StopRequest(self.accelerator)
        self._model.train()
        while self._step < self._total_steps:
            for batch in self._loader:  # from where the sampler stands to the end of the epoch
                self._train_batch(batch, batch_loss)
                if not self.accelerator.sync_gradients:
                    continue
                self._step += 1
                for schedule in self._schedules:
                    schedule.step()
                after_step(self._model)
                self._bar.update()
                self._end_step(evaluate, stop)
                if self._step == self._total_steps:
                    break
        stop.close()

    def _train_batch(self, batch: Any, batch_loss: Callable) -> None:
        """Adds up the gradients of a batch and, with the last batch of a step, changes the weights."""
        accelerator = self.accelerator
        with accelerator.accumulate(self._model):
            loss, samples = self._share_of_loss(batch, batch_loss)
            accelerator.backward(loss * self.training.gradient_accumulation_steps)  # it divides by that number
            self._step_loss += loss.detach()
            if accelerator.sync_gradients:
                max_norm = self.training.max_grad_norm or math.inf
                self._grad_norm = accelerator.clip_grad_norm_(self._model.parameters(), max_norm)
            for optimizer in self._optimizers:
                optimizer.step()
            for optimizer in self._optimizers:
                optimizer.zero_grad()
        self.sampler.advance(samples)

    def _share_of_loss(self, batch: Any, batch_loss: Callable) -> tuple[torch.Tensor, int]:
        """What a batch adds to the mean loss over all samples of its step, and how many samples all processes have."""
        loss, samples = batch_loss(self._model, batch)
        samples *= self.accelerator.share[1]
        # The last step of an epoch may have fewer samples; in each step all of its samples count the same.
        first = self.sampler.offset - self.sampler.offset % self._samples_per_step
        return loss * (samples / min(self._samples_per_step, self.sampler.samples_per_epoch - first)), samples

    def _end_step(self, evaluate: Callable, stop: StopRequest) -> None:
        """What is due after an optimizer step: to log, to evaluate, to save and, if asked to, to stop."""
        run, accelerator, step = self.run, self.accelerator, self._step
        last = step == self._total_steps
        epoch_ends = self.sampler.offset == 0
        stopping = stop.agreed()
        due = epoch_ends if run.checkpointing_steps == "epoch" else step % int(run.checkpointing_steps) == 0
        save = last or stopping or due
        log = step % run.logging_steps == 0
        if save or log:
            mean_loss = self._mean_loss()
        if save:
            self._check_weights()
        if log:
            learning_rate = self._schedules[0].get_last_lr()[0]
            self._report(loss=mean_loss, learning_rate=learning_rate, grad_norm=float(self._grad_norm))
        self._step_loss.zero_()
        if last or epoch_ends:
            self._report(epoch=self.sampler.epoch, **evaluate(self._model))
            self._model.train()
        if save:
            if self._log is not None:
                self._log.sync()
            save_state(accelerator, self.output_dir, step, run.checkpoints_total_limit)
        if stopping:
            accelerator.print(f"Stopped as asked, with step {step} saved: --resume_from_checkpoint latest goes on.")
            end_processes(accelerator)
            sys.exit(stop.exit_code)

    def _mean_loss(self) -> float:
        """The loss of the step, over all processes, which must be finite."""
        mean_loss = self.accelerator.reduce(self._step_loss, "mean").item()
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss of step {self._step} is {mean_loss}; the checkpoints before it are kept"
            )
        self._bar.set_postfix(loss=f"{mean_loss:.4f}")
        return mean_loss

    def _check_weights(self) -> None:
        """`FloatingPointError` for weights that are not finite: a finite loss may have a gradient that is not."""
        largest = float(get_total_norm(self._model.parameters(), math.inf))
        if not math.isfinite(largest):
            raise FloatingPointError(
                f"the largest weight after step {self._step} is {largest}; the checkpoints before it are kept"
            )

    def save_model(self, model: torch.nn.Module) -> None:
        """Writes what `fit` has returned into the folder, as `from_pretrained` reads it."""
        accelerator = self.accelerator
        accelerator.unwrap_model(model).save_pretrained(
            self.output_dir,
            accelerator.is_main_process,
            accelerator.get_state_dict(model),
            save_function=accelerator.save,
        )

    def finish(self, commit_message: str, pictures: Sequence[str], use: str, command: str | None = None) -> None:
        """Uploads the folder if that was asked for, says what to do with it, as `closing_lines`, and closes the run."""
        run = self.run
        if self.accelerator.is_main_process:
            if run.push_to_hub:
                push_to_hub(self.output_dir, run.hub_model_id, run.hub_token, commit_message)
            print(*closing_lines(run.output_dir, ["curves.png", *pictures], use, command), sep="\n")
        self.close()

    def release(self) -> None:
        """Lets go of the folder."""
        if self._lock is not None:
            self._lock.release()

    def close(self) -> None:
        """Lets go of the folder, and ends the processes together."""
        self.release()
        end_processes(self.accelerator)


def push_to_hub(output_dir: Path, hub_model_id: str | None, token: str | None, message: str) -> None:
    """Uploads the folder of a run without its checkpoints, then the model card with loading lines pinned to that."""
    api = HfApi(token=token)
    repo_id = api.create_repo(hub_model_id or output_dir.resolve().name, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        ignore_patterns=["*checkpoint-*", "*.lock"],  # those of a peer in a subfolder, too
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
