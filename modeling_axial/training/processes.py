"""How the processes of a run end together: asked to by a signal, or because the work is done."""

import signal
import time

import torch
from accelerate import Accelerator

# As shells report a process that the signal has ended.
STOPPED_EXIT_CODE = 128 + signal.SIGTERM  # 143
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT  # 130

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes that SIGTERM or SIGINT (Ctrl-C) asks this run to stop, so that the step at hand can be finished and saved.

    It listens from its construction in the main thread to `close()`. A second signal ends the process at once.

    Attributes: `exit_code`, with which to end once the processes have `agreed()` to stop: STOPPED_EXIT_CODE or
    INTERRUPTED_EXIT_CODE.
    """

    def __init__(self, accelerator: Accelerator):
        self.exit_code = 0
        # Asked in each step: over the CPUs, so that no other device has to be waited for.
        several = accelerator.num_processes > 1
        self._group = torch.distributed.new_group(backend="gloo") if several else None
        self._received = 0
        self._handlers_before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number, frame) -> None:
        self._received = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def close(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether any process was asked to stop: the same answer on all of them, each of which must ask."""
        received = self._received
        if self._group is not None:
            largest = torch.tensor(received)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, self._group)
            received = int(largest)
        if received:
            self.exit_code = 128 + received
        return received > 0


def ignore_stop_signals(worker_id: int) -> None:
    """The `worker_init_fn` of a `DataLoader` whose workers are to serve the last step after a signal to all processes.

    A terminal sends Ctrl-C to the whole group, and launchers do so with SIGTERM. Workers end with their loader, or, if
    the main process is gone, by themselves.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_processes(accelerator: Accelerator) -> None:
    """Closes the trackers and the process group, once no process needs it any more."""
    accelerator.wait_for_everyone()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it to the others when the first has ended
    # The threads of the group may still let go of tensors: they wait for the interpreter, and its destructor, which
    # holds the interpreter, for them. Seen once in dozens of runs on a busy machine.
    time.sleep(0.5)
    accelerator.end_training()
