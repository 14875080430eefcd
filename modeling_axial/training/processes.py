"""How the processes of a run end together: asked to by SIGTERM, or because the work is done."""

import signal
import time

import torch
from accelerate import Accelerator

STOPPED_EXIT_CODE = 128 + signal.SIGTERM  # 143, as shells report a process that SIGTERM has ended


class StopRequest:
    """Notes that SIGTERM asks this run to stop, so that the step at hand can be finished and saved.

    It listens from its construction in the main thread to `close()`. A second SIGTERM ends the process at once.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._received = False
        self._handler_before = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame) -> None:
        self._received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def close(self) -> None:
        signal.signal(signal.SIGTERM, self._handler_before)

    def agreed(self) -> bool:
        """Whether any process was asked to stop: the same answer on all of them, each of which must ask."""
        if self._accelerator.num_processes == 1:
            return self._received
        received = torch.tensor(float(self._received), device=self._accelerator.device)
        return self._accelerator.reduce(received, "sum").item() > 0


def end_processes(accelerator: Accelerator) -> None:
    """Closes the trackers and the process group, once no process needs it any more."""
    accelerator.wait_for_everyone()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it to the others when the first has ended
    # The threads of the group may still let go of tensors: they wait for the interpreter, and its destructor, which
    # holds the interpreter, for them. Seen once in dozens of runs on a busy machine.
    time.sleep(0.5)
    accelerator.end_training()
