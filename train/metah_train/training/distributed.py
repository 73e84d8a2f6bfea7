"""Train one network in several processes, or in mixed precision; lightning-fabric does the work.

Each process loads its part of a step's images and runs the backbone on it; features are gathered,
and heads and losses are computed on the whole batch, in float32. So pairs reach over all processes,
and the batch, its noise, its dropout, its batch statistics and its loss are those of one process.

Gradients: every process has the same loss L. Gathering sums the gradients that the ``size``
processes send back, ``size`` dL/df for features f, and the mean over processes is taken of every
parameter's gradient: for the backbone the sum over the parts of the batch, for a head the mean of
equal values. Both are the gradient of L.
"""

import functools
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from metah_runtime.errors import MetahError, RunError, require
from metah_train.config import Config
from metah_train.data.base import ImageSet
from metah_train.methods.base import DeepMethod
from metah_train.methods.rank import Network, Rank

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class FabricRank(Rank):
    """One of ``size`` processes, each with a device of its own."""

    def __init__(self, fabric: "Fabric") -> None:
        self.fabric = fabric
        self.number, self.size = fabric.global_rank, fabric.world_size

    def load(self, images: ImageSet, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """Return the images of a step; this process decodes its own part of them."""
        return self.gather(super().load(images, self.part(rows), device))

    def features(self, network: Network, pixels: torch.Tensor) -> torch.Tensor:
        """Run the network on the own part, in the precision asked for, and gather its features."""
        with self.fabric.autocast():
            features = network(self.part(pixels))
        return self.gather(features.float())

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the mean over processes, by one message per type of number."""
        if self.size == 1:
            return
        found: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                found.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for grads in found.values():
            mean = self.fabric.all_reduce(torch.cat([grad.reshape(-1) for grad in grads]))
            assert isinstance(mean, torch.Tensor)
            parts = torch.split(mean, [grad.numel() for grad in grads])
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))

    def part(self, batch: Any) -> Any:
        """Return the rows of this process: the rank-th of ``size`` consecutive parts."""
        count = len(batch) // self.size
        return batch[self.number * count : (self.number + 1) * count]

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """(n / size, ...) of each process -> (n, ...), in the order of ranks, with gradients."""
        if self.size == 1:
            return part
        gathered: torch.Tensor = _Gather.apply(part.contiguous(), self.number)  # type: ignore[no-untyped-call]
        return gathered


class _Gather(torch.autograd.Function):
    """Concatenate the parts of all processes; backward: the own part of the sum of gradients."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, rank: int) -> torch.Tensor:
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part)
        ctx.rows = slice(rank * len(part), (rank + 1) * len(part))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total[ctx.rows], None


@contextmanager
def joined(method: DeepMethod[Any], rank: Rank, *, synced: bool | None = None) -> Iterator[None]:
    """Let a method do the part of ``rank`` in each step.

    Batch norm and dropout of its backbone act on the batch of all processes. Dropout draws for the
    whole batch in every process and keeps its part, so the draws are those of one process. Other
    random layers (stochastic depth) draw alike in every process. synced: use torch's SyncBatchNorm,
    which knows GPUs alone; default: on a GPU.
    """
    with ExitStack() as stack:
        stack.callback(setattr, method, "rank", method.rank)
        method.rank = rank
        if isinstance(rank, FabricRank) and rank.size > 1:
            synced = method.model.mean.is_cuda if synced is None else synced
            for parent in list(method.model.backbone.modules()):
                _span(parent, rank, synced, stack)
        yield


def _span(parent: nn.Module, rank: FabricRank, synced: bool, stack: ExitStack) -> None:
    """Let batch norm and dropout right below ``parent`` span all processes until ``stack`` ends."""
    for name, layer in list(parent.named_children()):
        if isinstance(layer, _BatchNorm) and synced:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            setattr(parent, name, convert(layer))  # type: ignore[no-untyped-call]
            stack.callback(setattr, parent, name, layer)
            continue
        if isinstance(layer, _BatchNorm):
            forward = functools.partial(_batch_norm, layer, rank)
        elif isinstance(layer, _DropoutNd):
            forward = functools.partial(_dropout, layer, rank)
        else:
            continue
        setattr(layer, "forward", forward)  # noqa: B010
        stack.callback(delattr, layer, "forward")


def _batch_norm(layer: _BatchNorm, rank: FabricRank, x: torch.Tensor) -> torch.Tensor:
    """Batch norm of (n / size, C, ...) with mean and variance over all processes.

    mean = mean_r m_r, variance = mean_r (v_r + (m_r - mean)^2): m_r, v_r of the equal parts.
    """
    if not layer.training:
        return type(layer).forward(layer, x)
    wide = x.float()
    variance, mean = torch.var_mean(wide, [d for d in range(x.ndim) if d != 1], correction=0)
    parts = rank.gather(torch.stack([mean, variance])[None])
    mean = parts[:, 0].mean(0)
    variance = (parts[:, 1] + (parts[:, 0] - mean).square()).mean(0)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y: torch.Tensor = (wide - mean.view(shape)) * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    if layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        momentum = layer.momentum
        rate = 1 / float(layer.num_batches_tracked) if momentum is None else momentum
        count = x.numel() // x.shape[1] * rank.size
        with torch.no_grad():
            layer.running_mean.lerp_(mean, rate)
            layer.running_var.lerp_(variance * (count / (count - 1)), rate)
    return y.to(x.dtype)


def _dropout(layer: _DropoutNd, rank: FabricRank, x: torch.Tensor) -> torch.Tensor:
    """Dropout of (n / size, ...) by this process's part of the draws for the whole batch."""
    forward: Network = functools.partial(type(layer).forward, layer)
    if not layer.training:
        return forward(x)
    ones = x.new_ones((len(x) * rank.size, *x.shape[1:]))
    kept: torch.Tensor = rank.part(forward(ones))
    return x * kept


Assist = Callable[..., None]
"""What a helper process runs: called with (rank, *arguments), it takes the same steps."""


@contextmanager
def ranks(config: Config, assist: Assist, arguments: tuple[Any, ...]) -> Iterator[Rank]:
    """Start ``config.devices`` - 1 helper processes and yield the rank of this one, the first.

    Each helper runs ``assist(rank, *arguments)``, which must be importable and picklable, and
    ends with the block. Nothing is started, and lightning-fabric not imported, for one device in
    precision 32-true. Raises MissingExtra; RunError where a helper fails.
    """
    if config.devices == 1 and config.precision == "32-true":
        yield Rank()
        return
    require("lightning_fabric")
    port = _free_port()
    helpers: list[_Helper] = []
    try:
        helpers.extend(
            _Helper(number, port, config, assist, arguments) for number in range(1, config.devices)
        )
        for helper in helpers:
            helper.hear()
        with _group(config, 0, port) as rank:
            yield rank
        for helper in helpers:
            helper.hear()
    except Exception as error:
        for helper in helpers:
            helper.explain(error)
        raise
    finally:
        for helper in helpers:
            helper.stop()


class _Helper:
    """A process that takes part in each step; it says ``ready``, then ``done`` or what failed."""

    def __init__(self, number: int, port: int, config: Config, *work: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_help, args=(theirs, number, port, config, *work), daemon=True
        )
        self.process.start()
        theirs.close()

    def hear(self) -> None:
        """Wait for the next message; raise RunError if it tells of a failure."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            message = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        if message:
            raise RunError(f"training process {self.number}: {message}")

    def explain(self, error: Exception) -> None:
        """Raise the helper's own error in place of the broken connection that it causes here."""
        if isinstance(error, MetahError):
            return
        if self.pipe.poll(5):
            try:
                self.hear()
            except RunError as cause:
                raise cause from None

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _help(
    pipe: Connection,
    number: int,
    port: int,
    config: Config,
    assist: Assist,
    arguments: tuple[Any, ...],
) -> None:
    """Body of a helper process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        require("lightning_fabric")
        torch.set_num_threads(config.threads)
        pipe.send("")
        with _group(config, number, port) as rank:
            assist(rank, *arguments)
        pipe.send("")
    except Exception as error:
        known = isinstance(error, MetahError | OSError)
        pipe.send(str(error) if known else f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _group(config: Config, number: int, port: int) -> Iterator[FabricRank]:
    """Join the processes of one training, as process ``number``."""
    import logging
    import warnings

    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    class Environment(LightningEnvironment):
        """Processes that are there already, on this machine."""

        @property
        def creates_processes_externally(self) -> bool:
            return True

        @property
        def main_address(self) -> str:
            return "127.0.0.1"

        @property
        def main_port(self) -> int:
            return port

        def local_rank(self) -> int:
            return number

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    settings: Mapping[str, Any] = (
        {"strategy": "ddp", "plugins": [Environment()]} if config.devices > 1 else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=config.device,
            devices=config.devices,
            precision=config.precision,  # type: ignore[arg-type]
            **settings,
        )
        fabric.launch()
    try:
        yield FabricRank(fabric)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
