"""Functions run on several processes of this machine, the ranks of a group with the gloo backend, which meet at a file.

`run_on_ranks` starts them from a test. `fork_ranks` is what a fresh process does then; it needs torch only.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def run_on_ranks(function, *arguments, world_size=2, timeout=240):
    """
    [what a function returns on each rank]. It is one of a module, which a fresh process imports before the ranks are
    forked from it. Its arguments arrive as text, as those of a script; it asks `torch.distributed` for its rank, and
    returns what JSON can hold.

    Raises:
        `RuntimeError`: with all that was printed, if a rank fails or they are not done after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = (
            f"import sys; from {function.__module__} import {function.__name__} as function; "
            f"from tests.ranks import fork_ranks; fork_ranks(function, sys.argv[1:], {folder!r}, {world_size})"
        )
        printed = Path(folder, "printed")
        with printed.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                print(f"not done after {timeout} seconds", file=output)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # the ranks as well
        if process.wait():
            raise RuntimeError(f"{function.__name__} failed on its ranks:\n{printed.read_text()}")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world_size)]


def fork_ranks(function, arguments, folder, world_size):
    """Calls a function on each rank, in a group; what it returns is written to `folder/<rank>.json`."""
    arguments = (world_size, folder, function, arguments)
    try:  # the first that fails ends the others
        torch.multiprocessing.start_processes(rank_main, arguments, world_size, start_method="fork")
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(f"rank {error.error_index} failed first, with exit code {error.exit_code}")


def rank_main(rank, world_size, folder, function, arguments):
    # As torchrun sets them.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
        Path(folder, f"{rank}.json").write_text(json.dumps(function(*arguments)))
        dist.barrier()
    except BaseException:
        print(f"rank {rank}: {traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)  # gloo's threads may still let go of tensors: a Python that shuts down meanwhile is aborted, rarely


def held_share(split):
    """Share of a model's parameters that this rank holds."""
    held = sum(parameter.to_local().numel() for parameter in split.parameters() if isinstance(parameter, DTensor))
    return held / sum(parameter.numel() for parameter in split.parameters())


def gradient_error(split, plain):
    """Relative difference of the gradients of a model that is split over the ranks to those of the same model whole."""
    gradients = [[parameter.grad for parameter in model.parameters()] for model in (split, plain)]
    ours, theirs = (torch.cat([whole(gradient).flatten() for gradient in each]) for each in gradients)
    return ((ours - theirs).norm() / theirs.norm()).item()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
