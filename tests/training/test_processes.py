"""StopRequest inside one process; the training scripts are stopped as a whole in tests/examples."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from modeling_axial.training import (
    INTERRUPTED_EXIT_CODE,
    STOPPED_EXIT_CODE,
    StopRequest,
    end_processes,
    ignore_stop_signals,
)

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number, exit_code", SIGNALS.items())
def test_the_first_signal_is_noted_and_the_handlers_before_come_back(number, exit_code):
    before = [signal.getsignal(each) for each in SIGNALS]
    stop = StopRequest(Accelerator(cpu=True))
    try:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed() and stop.exit_code == exit_code
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 2, "a second one ends the process"
    finally:
        stop.close()
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_exit_codes():
    assert (INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE) == (130, 143)


def status_of_a_child(action):
    if (child := os.fork()) == 0:
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_process(first, second):
    def action():
        StopRequest(Accelerator(cpu=True))
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)

    status = status_of_a_child(action)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == second


def test_a_worker_goes_on():
    def action():
        ignore_stop_signals(0)
        for number in SIGNALS:
            os.kill(os.getpid(), number)

    assert status_of_a_child(action) == 0


def test_a_worker_ignores_both_signals(monkeypatch):
    calls = []
    monkeypatch.setattr(signal, "signal", lambda *call: calls.append(call))
    ignore_stop_signals(0)
    assert calls == [(number, signal.SIG_IGN) for number in SIGNALS]


def test_what_any_process_received_stops_all(monkeypatch):
    """Two processes, of which the other has received SIGTERM; they agree over their CPUs, whatever their device is."""
    asked = []

    def all_reduce(own, operation, group):
        asked.append((own.device.type, own.item(), operation, group))
        own.fill_(signal.SIGTERM)

    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: f"group of {backend}")
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stop = StopRequest(SimpleNamespace(num_processes=2, device=torch.device("meta")))
    try:
        assert stop.agreed() is True
        assert asked == [("cpu", 0, torch.distributed.ReduceOp.MAX, "group of gloo")]
        assert type(stop.exit_code) is int and stop.exit_code == STOPPED_EXIT_CODE  # a tensor is no exit code
    finally:
        stop.close()


def test_processes_end_one_after_the_other(monkeypatch):
    steps = []
    monkeypatch.setattr(signal, "signal", lambda *call: steps.append(call))
    monkeypatch.setattr(time, "sleep", steps.append)
    names = "wait_for_everyone", "end_training"
    end_processes(SimpleNamespace(**{name: lambda name=name: steps.append(name) for name in names}))
    assert steps == ["wait_for_everyone", (signal.SIGTERM, signal.SIG_IGN), 0.5, "end_training"]
