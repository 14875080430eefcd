"""Executors: how a trunk runs its pairs of residual functions (f, g), whatever f and g compute.

An executor is made once per forward call of the trunk and knows nothing about modules: `streams = executor.enter(x)`,
then `streams = executor.couple(f, g, *streams)` for each pair, then `executor.leave(*streams)`.

Its class attribute `stored` is the executor of the same numbers that stores activations, if it does not so itself.

`OneStream` is the ordinary residual network. `TwoStream` is the reversible one of Gomez et al. 2017 (RevNet; brought to
transformers by Kitaev et al. 2020, Reformer) with its activations stored. `RebuiltTwoStream` computes the same numbers
and stores no activations: memory in training does not grow with depth, for the price of one more forward pass.

How activations are rebuilt. f and g run in an ordinary autograd graph, and what they save for backward is dropped. When
backward asks for it, the function runs again and all it saves is put back. Its input is not stored either:

    running g(y1) again also yields  x2 = y2 - g(y1),  the input of f;
    running f(x2) again also yields  x1 = y1 - f(x2),  and (x1, x2) are the outputs of the pair before.

So only the outputs of the last pair are held, and backward walks from them to the first pair. It need not visit every
pair (a loss on one stream or on an intermediate state skips some): streams that are missing when they are needed are
rebuilt from the nearest later ones that are held.

How this differs from the papers and from packages such as axial_attention: no autograd Function runs backward by
itself and writes `.grad`. Parameters are inputs of an ordinary graph, so what works on such graphs works here: an input
that needs no gradient, frozen parts, `torch.autograd.grad`, hooks, double backward, accumulation, DDP, FSDP2. f and g
run again under the autocast and random state of their first run, in eval mode as well.

What f and g must do: keep the shape, leave their input unchanged, and do the same when run again, drawing from nothing
but the default generators of the CPU and of their input's device. As they do run again, forward hooks inside them fire
twice, and state that they move (running statistics, spectral norm) is refused. A custom Function inside them must keep
its tensors by `save_for_backward`, or they stay in memory. With FSDP2 around each layer the loss must depend on the
last layer: a layer that no gradient reaches is not gathered, so it cannot be run again.

How much of that is noticed. Buffers and the tensors of a closure, a default or a partial are looked at after both runs
(those of the function inside, where it is wrapped by `functools.wraps`), and so is how often every saved tensor was
written to. All else (Python attributes, `random`, other generators, tensors kept as attributes) is judged by 16 numbers
of each output, when backward ends. They may differ by the cube root of the coarsest precision, 0.5 % in float32 and
20 % in bfloat16, or by ten times what those of a later function did, as the rounding of streams adds up on the way
back. What moves an output less, or in few cells, or moves nothing but itself (a Python counter, which counts twice) is
not noticed, nor is any such state if the output is a DTensor.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import skip
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version, saved_tensors_hooks

Residual = Callable[[Tensor], Tensor]
Sample = list[float] | Tensor

SAMPLE_SIZE = 16  # numbers of an output that are kept, to see in backward that it is the same
NO_BACKWARD = -1  # as torch numbers the backward passes that run


def in_full_under_autocast(hidden_states: Tensor) -> Tensor:
    """What a trunk enters: under autocast in at least float32, so that the sums of residuals keep full precision."""
    device_type = hidden_states.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return hidden_states.to(dtype=torch.promote_types(hidden_states.dtype, torch.float32))
    return hidden_states


class OneStream:
    """Plain residuals: x = x + f(x), then x = x + g(x)."""

    stored: ClassVar[type | None] = None

    def enter(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The stream that the pairs run on: `(x,)`."""
        return (hidden_states,)

    def couple(self, f: Residual, g: Residual, *streams: Tensor) -> tuple[Tensor, ...]:
        """One pair: the stream in, the stream out."""
        (x,) = streams
        x = x + f(x)
        return (x + g(x),)

    def leave(self, *streams: Tensor) -> Tensor:
        """What the stream stands for: itself."""
        (x,) = streams
        return x


class TwoStream:
    """Two streams, activations stored: y1 = x1 + f(x2), then y2 = x2 + g(y1).

    The sums are kept in at least float32, while f and g take the dtype that was entered, and the result has it. Sums in
    bfloat16 would lose the last bits of what each pair adds, and streams could not be rebuilt from them.
    """

    stored: ClassVar[type | None] = None
    dtype: torch.dtype | None = None  # that was entered

    def enter(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The streams that the pairs run on: `(x, x)`."""
        self.dtype = hidden_states.dtype
        stream = hidden_states.to(torch.promote_types(self.dtype, torch.float32))
        return stream, stream

    def couple(self, f: Residual, g: Residual, *streams: Tensor) -> tuple[Tensor, ...]:
        """One pair: `(x1, x2)` in, `(y1, y2)` out."""
        x1, x2 = streams
        y1 = x1 + f(x2.to(dtype=self.dtype))
        return y1, x2 + g(y1.to(dtype=self.dtype))

    def leave(self, *streams: Tensor) -> Tensor:
        """What the streams stand for: their mean."""
        y1, y2 = streams
        return ((y1 + y2) / 2).to(dtype=self.dtype)


class RebuiltTwoStream(TwoStream):
    """`TwoStream` with the activations rebuilt in backward: the same numbers, in the memory of one pair.

    Streams that were changed between two pairs end one chain of rebuilt pairs and begin the next, at the cost of
    keeping two streams. Without gradients this is `TwoStream`, and inside `torch.compile` too: to have both, compile f
    and g.
    """

    stored = TwoStream

    def __init__(self) -> None:
        self._last: _Streams | None = None
        self._outputs = _Outputs()

    def couple(self, f: Residual, g: Residual, *streams: Tensor) -> tuple[Tensor, ...]:
        """One pair: `(x1, x2)` in, `(y1, y2)` of the same shapes out.

        Raises `ValueError` for what cannot be rebuilt: f or g changes the shape, its input, or a buffer or other
        tensor that it holds, such as running statistics; a torch.func transform is active. Backward raises `ValueError`
        if f or g does not save the same tensors or give the same output when it runs again, if a parameter, another
        tensor that f or g reads, or the last streams were changed after forward, and for forward-mode derivatives.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().couple(f, g, *streams)
        if torch._C._are_functorch_transforms_active():
            raise ValueError("torch.func transforms (grad, vjp, vmap, ...) cannot rebuild activations: use TwoStream")
        x1, x2 = streams
        before = self._last if self._last is not None and self._last.same(x1, x2) else _Streams(x1, x2)
        before.f, before.g = _Call(f, self._outputs), _Call(g, self._outputs)
        y1 = x1 + before.f.run(x2.to(dtype=self.dtype), before.run_f)
        y2 = x2 + before.g.run(y1.to(dtype=self.dtype), before.run_g)
        if (y1.shape, y2.shape) != (x1.shape, x2.shape):
            raise ValueError(
                f"f and g must keep the shapes of the streams, got {tuple(x1.shape)}, {tuple(x2.shape)} -> "
                f"{tuple(y1.shape)}, {tuple(y2.shape)}: expand the streams before the first pair"
            )
        self._last = before.after = _Streams(y1, y2)
        before.drop()
        return y1, y2


class _Streams:
    """The two streams at one depth: held, or rebuilt from the streams `after` the pair (f, g) that took them over.

    References lead forward only, from the graph to the streams that a function ran on and on to those after them:
    there are no cycles, and everything is freed with the graph.
    """

    f: "_Call"
    g: "_Call"
    after: "_Streams"

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.held: tuple[Tensor, Tensor] | None = (first.detach(), second.detach())
        self.second: Tensor | None = None  # g has run again, f has not
        self.versions = first._version, second._version

    def same(self, first: Tensor, second: Tensor) -> bool:
        """Whether these are the same, unchanged streams; compared by storage, as FSDP2 hands them on in new tensors."""
        return self.held is not None and all(
            new.untyped_storage()._cdata == old.untyped_storage()._cdata
            and (new.shape, new.stride(), new.storage_offset()) == (old.shape, old.stride(), old.storage_offset())
            and (new.dtype, new._version) == (old.dtype, version)
            for new, old, version in zip((first, second), self.held, self.versions, strict=True)
        )

    def drop(self) -> None:
        """Lets go of what can be rebuilt from the streams after these; the last streams keep theirs."""
        if hasattr(self, "after"):
            self.held = self.second = None
            self.f.restored.clear()
            self.g.restored.clear()

    def get(self) -> tuple[Tensor, Tensor]:
        """The two streams, if need be rebuilt, pair by pair, from the nearest later ones that are held."""
        missing, streams = [], self
        while (held := streams.held) is None:
            missing.append(streams)
            streams = streams.after
        if not hasattr(streams, "after") and (held[0]._version, held[1]._version) != streams.versions:
            raise ValueError("the last streams were changed in place, but backward rebuilds from them: change a copy")
        for streams in reversed(missing):
            held = streams.run_f()
        return held

    def run_g(self) -> Tensor:
        """Runs g(y1) again, for what it saves and for x2 = y2 - g(y1)."""
        y1, y2 = self.after.get()
        self.second = y2 - self.g.run_again(y1)
        return self.second

    def run_f(self) -> tuple[Tensor, Tensor]:
        """Runs f(x2) again, for what it saves and for x1 = y1 - f(x2)."""
        x2 = self.run_g() if self.second is None else self.second
        output = self.f.run_again(x2)
        if self.held is None:
            y1, _ = self.after.get()
            self.held = y1 - output, x2
            self.after.drop()
        return self.held


class _Call:
    """One call of f or g: runs it in forward, and again, under the same conditions, in backward."""

    def __init__(self, function: Residual, outputs: "_Outputs") -> None:
        inner = inspect.unwrap(function)
        modules = _modules(inner)
        for module in modules:
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats:
                raise ValueError(
                    f"{module} would update its running statistics twice, as f and g run again in backward: use a norm "
                    "without running statistics, put it in eval mode, or use TwoStream"
                )
        self.function, self.outputs = function, outputs
        self.state = _State(inner, modules)
        self.marks: list[tuple] = []  # of the tensors saved in forward, in order
        self.restored: dict[int, Tensor] = {}  # those tensors, from when function runs again until autograd takes them

    def run(self, x: Tensor, run_again: Callable[[], object]) -> Tensor:
        """function(x) in the ordinary graph, which holds, in place of each tensor it saves, the way to get it back."""
        self.requires_grad, self.dtype, self.version = x.requires_grad, x.dtype, x._version
        self.origin = _parameter(x)
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in {"cpu", x.device.type}
            if torch.amp.is_autocast_available(kind)
        ]
        random_states = _random_states(x)
        try:
            # what is saved stays until function returns: it may itself take gradients
            self.running = True
            with saved_tensors_hooks(partial(self.pack, run_again), _unpack):
                output = self.function(x)
        finally:
            self.running = False
            self.restored.clear()
        self.random_states = None if all(map(torch.equal, random_states, _random_states(x))) else random_states
        if x._version != self.version:
            raise ValueError("f and g must not change their input in place: the stream changes with it; change a copy")
        if changed := self.state.changed():
            raise ValueError(
                f"f or g changes {changed} whenever it runs, and it runs again in backward: use TwoStream, or eval "
                "mode if that keeps its state as it is"
            )
        self.sample = self.outputs.sample(output)
        return output

    def run_again(self, x: Tensor) -> Tensor:
        """The output of function(x) without a graph, and in `restored` all that it saves."""
        if forward_ad._current_level >= 0:
            raise ValueError("forward-mode derivatives of a backward pass cannot be rebuilt: use TwoStream")
        x = x.detach().to(dtype=self.dtype).requires_grad_(self.requires_grad)
        while x._version < self.version:
            increment_version(x)  # which saved tensors that share its memory have too
        indices = count()
        with ExitStack() as conditions:
            conditions.enter_context(torch.enable_grad())
            for kind, dtype, enabled in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    # without the cache, which would keep all cast weights until backward's own region ends
                    conditions.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            if self.random_states is not None:
                cpu_state, *device_states = self.random_states
                devices = [x.device] * len(device_states)
                conditions.enter_context(torch.random.fork_rng(devices, device_type=x.device.type))
                torch.set_rng_state(cpu_state)
                for state in device_states:
                    torch.get_device_module(x.device).set_rng_state(state, x.device)
            with saved_tensors_hooks(partial(self.pack_again, indices, x), lambda tensor: tensor):
                output = self.function(x).detach()
        saved = next(indices)
        if saved != len(self.marks):
            _compare((f"{len(self.marks)} tensors",), (f"{saved} tensors",))
        if changed := self.state.changed():
            _refuse_changed(f"{changed} of f or g")
        if self.sample is not None:
            dtypes = {mark[1] for mark in self.marks} | {dtype for _, dtype, enabled in self.autocast if enabled}
            self.outputs.compare(self.sample, self.outputs.sample(output), dtypes | {self.dtype, output.dtype})
        return output

    # The hooks are called inside f and g, so where these are compiled they would be traced: hence the decorator on them
    # and on all that they call. `torch.compiler.disable` does as much in a wrapper that costs more than the hook.

    @skip
    def pack(self, run_again: Callable[[], object], tensor: Tensor) -> tuple:
        index = len(self.marks)
        self.marks.append(_mark(tensor, self.origin))
        self.restored[index] = tensor
        return self, index, run_again

    @skip
    def pack_again(self, indices: Iterator[int], x: Tensor, tensor: Tensor) -> Tensor:
        index = next(indices)
        if index < len(self.marks):
            _compare(self.marks[index], _mark(tensor, self.origin, x))
        self.restored[index] = tensor.detach()
        return self.restored[index]


class _State:
    """The tensors that a function finds beside its input: the buffers of its modules, and tensors that it holds."""

    def __init__(self, function: Residual, modules: list[nn.Module]) -> None:
        self.buffers = [
            (module._buffers, name, buffer, buffer._version)
            for module in modules
            if module._buffers
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]
        held = [tensor for tensor in _tensors(_held(function)) if not tensor.is_inference()]
        # Detached, a tensor has the same memory and version, and keeps no graph.
        self.held = [(tensor.detach(), tensor._version) for tensor in held]

    def changed(self) -> str:
        """What is no longer as it was, in words; empty if all is."""
        words = [
            f"the buffer {name!r}"
            for place, name, buffer, version in self.buffers
            if place.get(name) is not buffer or buffer._version != version
        ]
        words += [f"a tensor {tuple(tensor.shape)}" for tensor, version in self.held if tensor._version != version]
        return ", ".join(words)


class _Outputs:
    """Whether functions give the same when they run again, judged by a few numbers of each output.

    The numbers are compared when a backward ends, as to read one is to wait for all that an accelerator has been given
    to do.
    """

    def __init__(self) -> None:
        self.places: dict[tuple[int, torch.device], Tensor] = {}
        self.pending: dict[int, list[tuple[Sample, Sample, set[torch.dtype]]]] = {}  # of each backward that runs

    def sample(self, output: Tensor) -> Sample | None:
        """Numbers from all over the output, on an accelerator still as a tensor; None of what has none, such as fake
        tensors."""
        size = output.numel()
        if type(output) is not Tensor or output.device.type == "meta" or not output.is_floating_point() or not size:
            return None
        if (size, output.device) not in self.places:
            # Not a multiple of the number of channels apart, or all would be of the same channel.
            places = torch.arange(SAMPLE_SIZE, device=output.device) * (size // SAMPLE_SIZE + 1) % size
            self.places[size, output.device] = places
        numbers = output.detach().reshape(-1).index_select(0, self.places[size, output.device])
        return numbers.tolist() if numbers.device.type == "cpu" else numbers

    def compare(self, forward: Sample, again: Sample | None, dtypes: set[torch.dtype]) -> None:
        """Raises `ValueError`, now or when the backward that runs ends, if the samples of the output in forward and of
        that in the next run differ by more than rounding in `dtypes` explains."""
        backward = torch._C._current_graph_task_id()
        if backward not in self.pending:
            self.pending[backward] = []
            if backward != NO_BACKWARD:
                torch.autograd.Variable._execution_engine.queue_callback(partial(self.judge, backward))
        if again is not None:
            self.pending[backward].append((forward, again, dtypes))
        if backward == NO_BACKWARD:
            self.judge(backward)

    def judge(self, backward: int) -> None:
        drift = 0.0  # relative difference of the function that differed most so far
        for forward, again, dtypes in self.pending.pop(backward):
            precision = [torch.finfo(dtype) for dtype in dtypes if dtype.is_floating_point]
            first, second = (sample if isinstance(sample, list) else sample.tolist() for sample in (forward, again))
            size, difference = math.hypot(*first), math.dist(first, second)
            # Rounding of the rebuilt streams grows from pair to pair, from nothing; other state shows as a jump.
            tolerance = max(max(dtype.eps for dtype in precision) ** (1 / 3), 10 * drift)
            # Numbers that are not finite pass: they show by themselves.
            if difference > tolerance * size + SAMPLE_SIZE * max(dtype.smallest_normal for dtype in precision):
                raise ValueError(
                    f"f or g gave another output when it ran again in backward, off by {difference:.1e} where its size "
                    f"is {size:.1e}: it must do the same both times (no state in a Python attribute, no `random`, no "
                    "generator of its own) and not magnify the rounding of the streams; if it cannot, use TwoStream"
                )
            if size:
                drift = max(drift, difference / size)


def _unpack(saved: tuple[_Call, int, Callable[[], object]]) -> Tensor:
    call, index, run_again = saved
    if index not in call.restored:
        run_again()
    return call.restored[index] if call.running else call.restored.pop(index)


@skip
def _compare(forward: tuple, again: tuple) -> None:
    if forward[:2] != again[:2]:
        raise ValueError(
            f"f or g saved {forward[:2]} in forward, but {again[:2]} when it ran again in backward: it must do the "
            "same both times (no train(), eval(), freezing or other kernels in between); if it cannot, use TwoStream"
        )
    if forward[2] is not again[2] or forward[3] != again[3]:
        _refuse_changed("a parameter of f or g, or another tensor that it reads,")


def _refuse_changed(what: str) -> NoReturn:
    raise ValueError(
        f"{what} was changed or replaced between forward and backward (an optimizer step, functional_call, a mask "
        "written in place): run backward first, or use TwoStream"
    )


@skip
def _mark(tensor: Tensor, origin: Tensor | None, x: Tensor | None = None) -> tuple:
    """How a saved tensor is recognised in the next run: shape, dtype, the parameter it shows (but for the input), and
    how often that, or the tensor itself, was written to."""
    parameter = _parameter(tensor)
    if parameter is None or parameter is origin or parameter is x:
        return tensor.shape, tensor.dtype, None, tensor._version
    return tensor.shape, tensor.dtype, parameter, parameter._version


@skip
def _parameter(tensor: Tensor) -> Tensor | None:
    """The parameter (or other leaf) that a tensor is, views or copies: weights are saved transposed, or in bfloat16."""
    leaf = tensor if tensor._base is None else tensor._base
    if leaf.grad_fn is not None:
        origins = leaf.grad_fn.next_functions
        return getattr(origins[0][0], "variable", None) if len(origins) == 1 else None
    # issubclass, because isinstance(..., nn.Parameter) costs twenty times more
    return leaf if leaf.requires_grad or issubclass(type(leaf), nn.Parameter) else None


def _random_states(x: Tensor) -> list[Tensor]:
    """The states of the random generators of the CPU and of a tensor's device; none for a fake tensor."""
    if isinstance(x, FakeTensor):
        return []
    if x.device.type in ("cpu", "meta"):
        return [torch.get_rng_state()]
    return [torch.get_rng_state(), torch.get_device_module(x.device).get_rng_state(x.device)]


def _modules(function: Residual) -> list[nn.Module]:
    """The modules that a callable leads to: itself, a method's owner, what a partial wraps or what it holds; and all
    below, in a quarter of the time of `nn.Module.modules`."""
    owners = function, getattr(function, "__self__", None), getattr(function, "func", None), *_held(function)
    found = {owner: None for owner in owners if isinstance(owner, nn.Module)}
    pending = list(found)
    for module in pending:
        for child in module._modules.values():
            if child is not None and child not in found:
                found[child] = None
                pending.append(child)
    return pending


def _tensors(content: object) -> Iterator[Tensor]:
    """The tensors in a tensor, or in tuples, lists and dicts of such."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _tensors(part)


def _held(function: Residual) -> list:
    """What a callable holds beside its code: what is in its closure, default values, the arguments of a partial."""
    if isinstance(function, partial):
        return [*function.args, *function.keywords.values()]
    closure = getattr(function, "__closure__", None) or ()
    return [*(cell.cell_contents for cell in closure), *(getattr(function, "__defaults__", None) or ())]
