"""
Kills a training run at every one of its 30 steps, resumes it each time, and compares with the unbroken run:
`python -m tests.examples.kill_at_every_step [--ranks 1 2]`, some minutes for one rank and more for two.

With 0 and 2 workers, 1 and 3 batches per step, on one rank and on two. Step 1 kills the run, what is resumed is killed
at step 2, and so on; checkpoints are written every third step, so that most starts repeat steps, too. Every number that
is logged and every weight, those of the optimizer included, must come out equal to the last bit. The tests run some of
these cases.
"""

import argparse
import itertools
import signal
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

from tests.examples.test_train_image_classification import (
    SCRIPT,
    assert_same_run,
    make_inputs,
    pictures_arguments,
    train,
)
from tests.examples.test_train_image_classification_distributed import launch, with_trap

STEPS = 30


def start(ranks: int, folder: Path, arguments: list[str], kill_at: int | None) -> tuple[int, str]:
    """(exit code, all that was printed) of the run, killed when it has logged step `kill_at`."""
    if ranks == 1:
        return train(*arguments, kill_at=None if kill_at is None else ("line written", kill_at))
    return launch(SCRIPT if kill_at is None else with_trap(folder, f"'line written', {kill_at}"), arguments)


def check(ranks: int, workers: int, accumulation: int, folder: Path) -> None:
    inputs = make_inputs(folder)
    for name in ("unbroken", "killed"):
        arguments = [
            *pictures_arguments(inputs, folder / name),
            f"--max_train_steps={STEPS}",
            f"--dataloader_num_workers={workers}",
            f"--gradient_accumulation_steps={accumulation}",
            "--resume_from_checkpoint=latest",
        ]
        for step in tqdm(range(1, STEPS + 1), leave=False) if name == "killed" else ():
            exit_code, printed = start(ranks, folder, arguments, step)
            killed = exit_code == -signal.SIGKILL if ranks == 1 else exit_code == 1 and "SIGKILL" in printed
            if not killed:
                raise RuntimeError(f"not killed at step {step}: exit code {exit_code}\n{printed}")
        exit_code, printed = start(ranks, folder, arguments, None)
        if exit_code:
            raise RuntimeError(f"exit code {exit_code}\n{printed}")
    assert_same_run(folder / "killed", folder / "unbroken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    options = parser.parse_args()
    for ranks, workers, accumulation in itertools.product(options.ranks, (0, 2), (1, 3)):
        with tempfile.TemporaryDirectory() as folder:
            check(ranks, workers, accumulation, Path(folder))
        print(f"{ranks} rank(s), {workers} workers, {accumulation} batches a step: killed at {STEPS} steps, the same.")


if __name__ == "__main__":
    main()
