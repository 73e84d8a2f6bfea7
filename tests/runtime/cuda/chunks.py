"""Codes on a simulated device, for tests that launch single kernels."""

import numpy as np

from metah_runtime.cuda import planner
from metah_runtime.cuda.chunk import NO_KEY, DeviceChunk
from metah_runtime.cuda.uploader import Uploader
from metah_runtime.cuda.workspace import Workspace


def load(device, codes, removed=None):
    """Return the chunk of codes, (n, width) uint8, without the rows removed, (n,) bool."""
    rows, width = codes.shape
    mask = 0
    if removed is not None:
        bits = np.packbits(removed, bitorder="little")
        words = np.append(bits, np.zeros(-len(bits) % 4, np.uint8))
        mask = device.alloc(words.nbytes)
        device.write(mask, words)
    address = device.alloc(planner.code_bytes(rows, 8 * width))
    uploader = Uploader(device)
    uploader.upload(codes, address)
    device.wait_event(uploader.done)
    return DeviceChunk(
        device=device,
        workspace=Workspace(device),
        bits=8 * width,
        rows=rows,
        codes=address,
        alive=rows if removed is None else rows - int(removed.sum()),
        removed=mask,
    )


def put_queries(chunk, queries):
    """Return the address of queries as the kernels take them."""
    address = chunk.workspace.get("queries", 4 * len(queries) * chunk.words)
    chunk.put_queries(queries, address)
    return address


def sample(chunk, plan, queries, ceilings=None):
    """Run one sample; return (histograms (q, bins), bounds (q,)), which no search shows."""
    n, device = len(queries), chunk.device
    sizes = {"histogram": chunk.histogram_bytes(n), "tickets": chunk.ticket_bytes(n)}
    buffers = {name: device.alloc(size) for name, size in sizes.items()}
    for name, address in buffers.items():
        device.fill(address, 0, sizes[name])
    buffers |= {name: device.alloc(8 * n) for name in ("ceilings", "bounds")}
    limits = np.full(n, NO_KEY) if ceilings is None else ceilings
    device.write(buffers["ceilings"], limits)
    chunk.sample(plan, put_queries(chunk, queries), n, **buffers)
    histogram, bounds = np.empty((n, chunk.bins), np.uint32), np.empty(n, np.uint64)
    device.read(buffers["histogram"], histogram)
    device.read(buffers["bounds"], bounds)
    for address in buffers.values():
        device.free(address)
    return histogram, bounds
