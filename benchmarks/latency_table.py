"""The tables of README.md, made from the JSON lines of benchmarks/latency.py.

    python benchmarks/latency_table.py benchmarks/results/latency-zen5.jsonl README.md

The block between the two markers is replaced; a test compares it with the file it names.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
BLOCK = re.compile(r"<!-- latency: begin -->\n.*?<!-- latency: end -->\n", re.DOTALL)
BACKENDS = ("torch eager", "torch.compile", "onnxruntime", "onnxruntime int8")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown between the markers; rows of a GPU are left out."""
    machine = next(row for row in rows if row["stage"] == "machine")
    if machine["device"] != "cpu":
        raise SystemExit(f"README.md shows times of a CPU, got rows of {machine['device']}")
    versions = machine["versions"]
    how = (
        f"`make bench` on {machine['machine']}; PyTorch {versions['torch']}, ONNX Runtime "
        f"{versions.get('onnxruntime', '-')}, FAISS {versions.get('faiss-cpu', '-')}; medians, "
        f"{machine['threads']} threads each, backends in turns."
    )
    if machine["quick"]:
        how += " **From a quick run: rough.**"
    return "\n\n".join(part for part in (how, _encode(rows), _search(rows), _whole(rows)) if part)


def _encode(rows: Sequence[Row]) -> str:
    found = {
        (r["model"], r["batch"], r["backend"]): r
        for r in rows
        if r["stage"] == "encode" and "skipped" not in r
    }
    cases = list(dict.fromkeys(key[:2] for key in found))
    lines = [
        "| image to code, ms a batch | batch | PyTorch | torch.compile | ONNX Runtime | int8 | "
        "ONNX Runtime to PyTorch | to torch.compile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, batch in cases:
        cells = [found.get((model, batch, backend)) for backend in BACKENDS]
        ours = found[model, batch, "onnxruntime"]
        ratios = [ours.get(f"speed_of_{peer}") for peer in BACKENDS[:2]]
        shown = [_ms(cell) for cell in cells] + [_ratio(ratio) for ratio in ratios]
        lines.append(f"| {model} | {batch} | {' | '.join(shown)} |")
    return "\n".join(lines) if cases else ""


def _search(rows: Sequence[Row]) -> str:
    found = {(r["batch"], r["backend"]): r for r in rows if r["stage"] == "search"}
    if not found:
        return ""
    first = next(iter(found.values()))
    lines = [
        f"| code to {first['k']} neighbours of {first['codes']:,}, {first['bits']} bits, ms a batch"
        " | METAH | FAISS | PyTorch | METAH to FAISS |",
        "|---|---|---|---|---|",
    ]
    for batch in dict.fromkeys(key[0] for key in found):
        cells = [found.get((batch, name)) for name in ("metah", "faiss", "torch")]
        ratio = found[batch, "metah"].get("speed_of_faiss")
        lines.append(
            f"| batch {batch} | {' | '.join(_ms(cell) for cell in cells)} | {_ratio(ratio)} |"
        )
    return "\n".join(lines)


def _whole(rows: Sequence[Row]) -> str:
    found = [r for r in rows if r["stage"] == "end_to_end"]
    if not found:
        return ""
    lines = [
        f"| file to {found[0]['k']} neighbours of {found[0]['codes']:,} | batch | ms, median | "
        "p99 | decode | encode | search | other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        shares = " | ".join(
            f"{row['shares'][s]:.0%}" for s in ("decode", "encode", "search", "other")
        )
        lines.append(
            f"| {row['model']} | {row['batch']} | {_number(row['p50_ms'])} | "
            f"{_number(row['p99_ms'])} | {shares} |"
        )
    return "\n".join(lines)


def _ms(row: Row | None) -> str:
    return "-" if row is None else _number(row["p50_ms"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def update(readme: Path, rows: Sequence[Row]) -> None:
    """Put the table between the markers."""
    text = readme.read_text(encoding="utf-8")
    block = f"<!-- latency: begin -->\n{table(rows)}\n<!-- latency: end -->\n"
    if len(BLOCK.findall(text)) != 1:
        raise SystemExit(f"{readme} must have the markers of the table once")
    readme.write_text(BLOCK.sub(lambda _: block, text), encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[2]), read(Path(sys.argv[1])))
