"""The processes that train together: where each of them works, and what they tell each other.

`torchrun` or `accelerate launch` starts them, on one node or on several; one process alone is the usual case.
Training is shared out by the loop. What is drawn, chosen or written once is made by the main process, and the
others wait for it in `from_main`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, get_int_from_env, reduce
from torch import Tensor, nn

from dekag.training.devices import check_device
from dekag.types import FieldError, InputError

WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers (torchrun, accelerate, mpirun) put the number of processes."""
PATIENCE = timedelta(days=1)
"""Longest work of the main process that the others wait for. It is no time to notice a fault in: a process that
ends closes its connections, which ends those that wait for it."""

T = TypeVar("T")


def device_of(name: str) -> torch.device:
    """The device of that name: `cpu`, `cuda`, one GPU as `cuda:1`, or `auto`, a GPU if there is one.

    Raises InputError if it is not there.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= found:
        raise InputError(f"there is no device {name}: torch finds {found} GPUs here")
    return torch.device(name)


@contextmanager
def joined(name: str) -> Iterator[torch.device]:
    """Join the processes that were launched together and leave them afterwards; yields this one's device.

    `name` is as in `device_of`; of several processes each takes a GPU of its own, or all of them the CPU.
    Raises InputError if the device is not there, or GPUs are too few for the processes of this node.
    """
    device, launched = device_of(name), get_int_from_env(WORLD_SIZES, 1)
    if device.type == "cuda":
        if launched > 1:
            device = _own_gpu(device)
        torch.cuda.set_device(device)
    processes = processes_on(device)
    yield device
    processes.wait_for_everyone()  # nobody leaves while another still talks to it
    processes.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process among those of its node."""
    if device.index is not None:
        raise FieldError(f"each process takes a GPU of its own: device must be cuda, got {device}", "device")
    here, found = get_int_from_env(["LOCAL_WORLD_SIZE"], 1), torch.cuda.device_count()
    if here > found:
        raise InputError(
            f"{here} processes were launched on a machine with {found} GPUs: launch at most {found}"
        )
    return torch.device("cuda", get_int_from_env(["LOCAL_RANK"], 0))


def processes_on(device: torch.device) -> Any:
    """Accelerate's view of the processes that train together; gloo joins them if the model is on the CPU.

    Raises InputError if not all that were launched are joined, or this one is to work on another device.
    """
    launched = get_int_from_env(WORLD_SIZES, 1)
    processes = _complete(PartialState(cpu=launched > 1 and device.type == "cpu"))
    elsewhere = processes.device.type != device.type or (device.type != "cpu" and processes.device != device)
    if processes.num_processes > 1 and elsewhere:
        raise InputError(f"the model is on {device}, but this process trains on {processes.device}: move it")
    return processes


def _complete(processes: Any) -> Any:
    """The same, once it is sure that it has all processes."""
    launched = get_int_from_env(WORLD_SIZES, 1)
    if processes.num_processes < launched:
        raise InputError(
            f"{launched} processes were launched, but accelerate joined {processes.num_processes}: use accelerate "
            "launch on GPUs or torchrun on CPUs, and make no PartialState before, or one with cpu=True"
        )
    return processes


def process_count() -> int:
    """How many processes train together; InputError if not all that were launched are joined."""
    return int(_complete(PartialState()).num_processes)


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    return bool(PartialState().is_main_process)


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the main process; the others do not call it and wait, however long it takes.

    It must be possible to pickle it, and its tensors are on the CPU. An InputError or OSError of the main process
    ends the others with an InputError of the same words.
    """
    if process_count() == 1:
        return make()
    group, value, failure = _patient_group(), None, None
    if is_main():
        try:
            value = make()
        except (InputError, OSError) as error:
            failure = error
    message: list[Any] = [value, failure and str(failure)]
    torch.distributed.broadcast_object_list(message, src=0, group=group)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise InputError(message[1])
    given: T = message[0]
    return given


@cache
def _patient_group() -> Any:
    """All processes over gloo: NCCL would give up after ten minutes, and keep a GPU busy with waiting."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


@torch.no_grad()
def take_from_main(tensors: Sequence[Tensor]) -> None:
    """Give every process the main process's values."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor.data for tensor in tensors if tensor.dtype == dtype]
        _spread(broadcast(torch.cat([tensor.flatten() for tensor in same])), same)


@torch.no_grad()
def mean_over_processes(parameters: Iterable[nn.Parameter], value: Tensor) -> Tensor:
    """Put the mean gradient of all processes in place of each one's own; returns the mean of `value`."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    everything = [*gradients, value.clone()]
    _spread(reduce(torch.cat([tensor.flatten() for tensor in everything]), "mean"), everything)
    return everything[-1]


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy consecutive stretches of `flat` into the tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
