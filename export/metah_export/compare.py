"""Bundles side by side: size, flipped bits, MAP and speed of every artefact that runs here."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_export import parity
from metah_export.onnx_rules import MAX_BATCH
from metah_export.parity import Parity
from metah_export.reference_set import ReferenceSet
from metah_export.verify import (
    check_rules,
    limits_of,
    load_reference_set,
    onnx_runners,
    stored_parity,
)
from metah_runtime.checks import usable_cores
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BackendUnavailable, ConfigError, EngineError, ParityError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners.interface import Runner
from metah_runtime.reporting import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock time of one batch size, from uint8 images in memory to codes in memory.

    calls: measured calls after warm-up; p50, p99: milliseconds an image; rate: images a second.
    """

    batch: int
    calls: int
    p50: float
    p99: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One artefact of one bundle.

    artefact: 'onnx' or the engine's kind and targets, with the domain where it is the source;
    runs_on: what ran it, None if nothing here
    can; note: why not, or what is special; parity: with the reference set, on this machine;
    problem: the limit that is broken, None if none is; timings: by batch size.
    """

    bundle: str
    artefact: str
    precision: str
    megabytes: float
    runs_on: str | None
    note: str | None
    parity: Parity | None
    problem: str | None
    timings: tuple[Timing, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, and the machine that they were measured on. runs: distinct training runs."""

    rows: tuple[Artefact, ...]
    machine: str
    versions: dict[str, str]
    threads: int
    runs: int


def compare(
    paths: Sequence[str | Path],
    *,
    device: str = "cpu",
    batches: Sequence[int] = (1, 8, 64),
    seconds: float = 1.0,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = no_progress,
) -> Comparison:
    """Measure every artefact of the bundles at ``paths`` on this machine.

    device: what runs the ONNX files, 'cpu' or 'cuda'; engines run on 'tensorrt' where they can;
    batches: sizes to time; seconds: measuring time of each. A broken parity limit is noted in its
    row. Raises BundleError for a damaged bundle and ConfigError for options out of range.
    """
    if not paths:
        raise ConfigError("compare needs at least one bundle")
    if not batches or min(batches) < 1 or max(batches) > MAX_BATCH:
        raise ConfigError(f"batches must be whole numbers in 1..{MAX_BATCH}, got {list(batches)}")
    if not 0 < seconds <= 3600:
        raise ConfigError(f"seconds must be in (0, 3600], got {seconds}")
    bundles = [Bundle.open(path) for path in paths]
    for bundle in bundles:
        check_rules(bundle)
    rows: list[Artefact] = []
    for bundle, name in zip(bundles, _names(bundles), strict=True):
        for domain in bundle.domains:
            bench = _Bench(
                bundle=bundle,
                domain=domain,
                name=name,
                reference=load_reference_set(bundle, domain),
                device=device,
                threads=threads,
                batches=batches,
                seconds=seconds,
                clock=clock,
                progress=progress,
            )
            rows += [bench.artefact(engine) for engine in (None, *bundle.engines(domain))]
    runs = {str(bundle.manifest.training.get("run")) for bundle in bundles}
    return Comparison(
        rows=tuple(rows),
        machine=machine(),
        versions=_versions(),
        threads=threads or usable_cores(),
        runs=len(runs),
    )


def measure(
    runner: Runner,
    images: NDArray[np.uint8],
    batch: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time calls of ``batch`` images for about ``seconds`` after a warm-up of three calls."""
    part = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    for _ in range(3):
        runner.run(part)
    times: list[float] = []
    end = clock() + seconds
    while len(times) < 5 or (clock() < end and len(times) < 100_000):
        start = clock()
        runner.run(part)
        times.append(clock() - start)
    ms = np.array(times) * 1000 / batch
    return Timing(
        batch=batch,
        calls=len(times),
        p50=float(np.percentile(ms, 50)),
        p99=float(np.percentile(ms, 99)),
        rate=float(batch * len(times) / max(sum(times), 1e-9)),
    )


def machine() -> str:
    """Name the processor and the number of its cores that may be used."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {usable_cores()} cores, {platform.system()}"


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What is needed to measure the artefacts of a domain of one bundle; see ``compare``."""

    bundle: Bundle
    domain: Domain
    name: str
    reference: ReferenceSet | None
    device: str
    threads: int | None
    batches: Sequence[int]
    seconds: float
    clock: Callable[[], float]
    progress: Progress

    def artefact(self, engine: Engine | None) -> Artefact:
        """Measure an engine, or the ONNX file for None.

        Where the CPU has no kernels for the ONNX file its rounding is emulated, and not timed.
        """
        bundle, note = self.bundle, None
        runner: Any = None
        try:
            runner = self._open(engine)
        except (BackendUnavailable, EngineError) as error:
            if engine is None and self.device != "cpu":
                raise
            note = str(error)
        timings = () if runner is None else self._time(runner)
        report, problem = None, None
        if engine is None:
            cpu = self.device == "cpu"
            found = [(self.device, runner)]
            if cpu:
                found = onnx_runners(bundle, "cpu", self.threads, self.domain)
            report, problem = self._compare_codes(found)
            label, file = "onnx", bundle.model_file(self.domain)
        else:
            label, file = f"{engine.kind} {', '.join(engine.targets)}", engine.file
            if runner is not None:
                found = [(f"{engine.kind} {engine.builder}", runner)]
                report, problem = self._compare_codes(found)
                runner.close()
            elif engine.parity is not None:
                report = stored_parity(bundle, engine.parity)
        return Artefact(
            bundle=self.name,
            artefact=label if self.domain == TARGET else f"{label}, {self.domain}",
            precision=bundle.manifest.precision,
            megabytes=bundle.manifest.files[file].size / 1e6,
            runs_on=None if runner is None else str(runner.device),
            note=note,
            parity=report,
            problem=problem,
            timings=timings,
        )

    def _open(self, engine: Engine | None) -> Any:
        if engine is None:
            return runners.open(self.bundle, self.device, domain=self.domain, threads=self.threads)
        from metah_runtime.model.runners.tensorrt_runner import open_trt

        return open_trt(self.bundle, only=engine)

    def _time(self, runner: Runner) -> tuple[Timing, ...]:
        images = _images(self.bundle, self.reference, max(self.batches))
        found = []
        with self.progress(
            f"timing {self.name}", len(self.batches), "sizes", redraw="advance"
        ) as advance:
            for n in self.batches:
                advance(0, note=f"batches of {n}")
                found.append(measure(runner, images, n, self.seconds, self.clock))
                advance()
        return tuple(found)

    def _compare_codes(
        self, found: Sequence[tuple[str, Runner]]
    ) -> tuple[Parity | None, str | None]:
        """Return the report with the most flips, and the first broken rule in words."""
        if self.reference is None:
            return None, None
        reports: list[Parity] = []
        for label, runner in found:
            try:
                report = parity.measure(
                    runner,
                    self.reference,
                    precision=self.bundle.manifest.precision,
                    limits=limits_of(self.bundle),
                    label=label,
                    progress=self.progress,
                )
            except ParityError as error:
                return None, str(error)
            reports.append(report)
        worst = max(reports, key=lambda report: report.flips)
        broken = [text for report in reports for text in report.violations]
        return worst, "; ".join(broken) or None


def _images(bundle: Bundle, reference: ReferenceSet | None, count: int) -> NDArray[np.uint8]:
    if reference is not None:
        return reference.images
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *bundle.preprocess.shape), dtype=np.uint8)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Name bundles by their folder; by their path where folders share a name."""
    short = [bundle.path.resolve().name for bundle in bundles]
    return [
        name if short.count(name) == 1 else str(bundle.path)
        for name, bundle in zip(short, bundles, strict=True)
    ]


def _versions() -> dict[str, str]:
    def each() -> Iterator[tuple[str, str]]:
        for name in ("metah", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx_cu13"):
            try:
                yield name, importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue

    return dict(each())


def table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns and rows of the table that ``metah-export compare`` prints."""
    columns = (
        "bundle", "artefact", "precision", "MB", "runs on", "flipped bits", "worst |logit|",
        "MAP@H2", "change", "top-10 kept", "ms/image p50", "p99", "images/s", "limits",
    )  # fmt: skip
    return columns, [_cells(row) for row in comparison.rows]


def _cells(row: Artefact) -> tuple[Any, ...]:
    report = row.parity
    bits: tuple[str, ...] = ("-",) * 5
    if report is not None:
        score = "-" if report.map_h2 is None else f"{report.map_h2:.4f}"
        delta = "-" if report.map_delta is None else f"{report.map_delta:+.4f}"
        kept = "-" if report.top10_overlap is None else f"{report.top10_overlap:.2%}"
        flips = f"{report.flip_rate:.4%}"
        if report.detail is not None:
            flips += f" + {report.detail.flip_rate:.4%}"
        bits = (flips, f"{report.worst_flip:.2g}", score, delta, kept)
    speed: tuple[str, ...] = ("-",) * 3
    if row.timings:
        first = min(row.timings, key=lambda timing: timing.batch)
        best = max(row.timings, key=lambda timing: timing.rate)
        speed = (f"{first.p50:.3f}", f"{first.p99:.3f}", f"{best.rate:,.0f} (batch {best.batch})")
    verdict = "not measured" if report is None and row.problem is None else "kept"
    return (
        row.bundle,
        row.artefact,
        row.precision,
        f"{row.megabytes:.2f}",
        row.runs_on or "not here",
        *bits,
        *speed,
        "BROKEN" if row.problem else verdict,
    )
