"""Predict the GPU search's times from the kernels' machine code; no GPU is used.

    python benchmarks/gpu_predict.py > benchmarks/results/gpu-predicted.md

Model: a warp instruction occupies its unit of one of the four parts of a multiprocessor for
32 / (lanes a clock) cycles; every instruction takes one issue slot; a scan takes the time of its
busiest unit or that of reading the codes once, whichever is longer. Rates are those of the CUDA
programming guide's throughput table for 8.0 and 9.0; the rate of BMMA is an assumption (below).
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

from tests.runtime.cuda import sass  # noqa: E402

from metah_runtime.cuda import fatbin, interface, planner  # noqa: E402

PARTS = 4  # of a multiprocessor
POPC_LANES = 16 / PARTS  # results a clock and part
INT_LANES = 64 / PARTS
SHARED_LANES = 32 / PARTS
BMMA_CLOCKS = {"168128": (3.7, 7.4), "168256": (7.4, 7.4)}  # a part; best and worst assumption
INTEGER = ("LOP3", "VIMNMX", "VIMNMX3", "IMNMX", "ISETP", "IADD3", "VIADD", "SHF", "VIADDMNMX")


@dataclass(frozen=True)
class Card:
    """What the model needs of a card: data-sheet values."""

    name: str
    arch: int
    processors: int
    clock: float  # Hz
    memory: float  # bytes a second


CARDS = (
    Card("A100 SXM 80 GB", 80, 108, 1.41e9, 2.04e12),
    Card("H100 SXM", 90, 132, 1.755e9, 3.35e12),
    Card("H200 SXM", 90, 132, 1.755e9, 4.8e12),
)


def clocks(tally: Counter[str], opcodes: list[str], worst: bool) -> dict[str, float]:
    """Cycles that one pass of the inner loop occupies each unit of a part."""
    shapes = [o.split(".")[1] for o in opcodes if o.startswith("BMMA")]
    return {
        "POPC": tally["POPC"] * 32 / POPC_LANES,
        "integer": sum(tally[o] for o in INTEGER) * 32 / INT_LANES,
        "shared": tally["LDS"] * 32 / SHARED_LANES,
        "tensor": sum(BMMA_CLOCKS[s][worst] for s in shapes),
        "issue": float(sum(tally.values())),
    }


def predict(
    card: Card, kernels: dict[str, list[sass.Instruction]], bits: int, rows: int, queries: int
) -> tuple[str, str, float, float, float]:
    """Return (kernel, limit, best and worst seconds of the scan, seconds of reading once)."""
    plan = planner.plan_scan(
        bits=bits, rows=rows, queries=queries, arch=card.arch, processors=card.processors
    )
    hot = sass.hot_loop(kernels[plan.kernel])
    tensor = plan.kernel.startswith("mma")
    passes = -(-queries // 8) if tensor else queries
    warps = plan.grid[0] * 8
    read = planner.code_bytes(rows, bits) / card.memory
    times, limits = [], []
    for worst in (False, True):
        units = clocks(sass.opcode_counts(hot), [o.opcode for o in hot], worst)
        limit, cycles = max(units.items(), key=lambda item: item[1])
        seconds = cycles * warps * passes / (PARTS * card.processors * card.clock)
        times.append(max(seconds, read))
        limits.append(limit if seconds > read else "memory")
    return plan.kernel, limits[-1], times[0], times[1], read


def crossing(card: Card, kernels: dict[str, list[sass.Instruction]], words: int) -> int:
    """Queries from which POPC takes longer than reading the codes and than the tensor cores.

    The worst rate of the tensor cores; below, a scan waits for memory either way.
    """
    header = interface.load()
    speed = PARTS * card.processors * card.clock
    times = []
    for kind, codes in (
        ("scan", 32 * header.popc_codes[words]),
        ("mma", 16 * header.mma_tiles[words]),
    ):
        hot = sass.hot_loop(kernels[f"{kind}_w{words}"])
        units = clocks(sass.opcode_counts(hot), [o.opcode for o in hot], True)
        times.append(max(units.values()) / codes / speed)
    popc, group = times
    read = 4 * words / card.memory
    return next(q for q in range(1, 1000) if q * popc > max(read, -(-q // 8) * group))


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    print(
        "# Predicted times of the GPU scan\n\n"
        "**Predicted, not measured: no GPU was used.** From the instructions of the inner\n"
        "loops (`cuobjdump -sass`) and data-sheet rates, by `python benchmarks/gpu_predict.py`.\n"
        "Only the scan is counted, without launches, sample, selection and the rare path of a\n"
        "hit; a real kernel reaches perhaps 70 to 80 % of such a bound. Tensor-core rows are a\n"
        "range: best with one BMMA.168128 in 3.7 cycles of a quarter multiprocessor, worst in\n"
        "7.4 as for BMMA.168256; neither was measured here.\n\n"
        f"{options.rows:,} codes; times in ms; ns/row is the time for one row and query.\n"
    )
    print("| card | bits | queries | kernel | limited by | predicted ms | ns/row | reading once |")
    print("|---|---|---|---|---|---|---|---|")
    image = fatbin.load_image()
    for card in CARDS:
        kernels = sass.disassemble(image, card.arch)
        for bits in (32, 48, 64, 128, 256, 512, 1024):
            for queries in (1, 16, 1024):
                kernel, limit, best, worst, read = predict(
                    card, kernels, bits, options.rows, queries
                )
                ms = " to ".join(dict.fromkeys(f"{1e3 * t:.3g}" for t in (best, worst)))
                row = " to ".join(
                    dict.fromkeys(f"{1e9 * t / options.rows / queries:.2g}" for t in (best, worst))
                )
                print(
                    f"| {card.name} | {bits} | {queries} | {kernel} | {limit} | {ms} | {row} "
                    f"| {1e3 * read:.3g} |"
                )
    print("\nQueries from which the tensor cores are faster, by card, and the planner's table:\n")
    print(f"| words | {' | '.join(card.name for card in CARDS)} | planner |")
    print("|---" * (len(CARDS) + 2) + "|")
    codes = [(card, sass.disassemble(image, card.arch)) for card in CARDS]
    for words, planned in planner.MMA_QUERIES.items():
        cells = " | ".join(str(crossing(card, kernels, words)) for card, kernels in codes)
        print(f"| {words} | {cells} | {planned} |")
    print("\nInstructions of one pass of the inner loop (a warp, one query or one group of 8):\n")
    print("| arch | kernel | all | POPC | LOP3 | BMMA | LDS |")
    print("|---|---|---|---|---|---|---|")
    for arch in fatbin.read_settings(fatbin.source_folder()).archs:
        kernels = sass.disassemble(image, arch)
        for words in planner.WIDTHS:
            for name in (f"scan_w{words}", f"mma_w{words}"):
                if name in kernels:
                    count = sass.opcode_counts(sass.hot_loop(kernels[name]))
                    cells = " | ".join(str(count[o]) for o in ("POPC", "LOP3", "BMMA", "LDS"))
                    print(f"| sm_{arch} | {name} | {sum(count.values())} | {cells} |")


if __name__ == "__main__":
    main()
