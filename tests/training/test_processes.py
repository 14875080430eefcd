"""StopRequest inside one process; the training scripts are stopped as a whole in tests/examples."""

import os
import signal

from accelerate import Accelerator

from modeling_axial.training import STOPPED_EXIT_CODE, StopRequest


def test_the_first_sigterm_is_noted_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest(Accelerator(cpu=True))
    try:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
    finally:
        stop.close()
    assert signal.getsignal(signal.SIGTERM) == before
    assert STOPPED_EXIT_CODE == 143


def test_the_second_sigterm_ends_the_process():
    if (child := os.fork()) == 0:
        StopRequest(Accelerator(cpu=True))
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
