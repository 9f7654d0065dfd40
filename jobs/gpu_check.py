"""The checks that need a GPU, within a given time: parity of kernels, speed of training, sampling and tokenizing."""

import importlib.util
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from common.console import banner, one_line, say
from jobs.gpu_models import coding, inception, sampling, training_step
from jobs.gpu_page import page
from jobs.gpu_parity import attention_parity, model_parity
from jobs.gpu_scales import SCALES
from jobs.options.gpu_check import GPUCheckOptions
from storage.files import write_json, write_text
from storage.locks import reserved_folder
from training.compiler import use_compile

# Shares of the time; what a section leaves goes to those after it.
SHARES = {"parity": 0.25, "training": 0.4, "sampling": 0.2, "coding": 0.1, "fid": 0.05}


class Check:
    """Rows of measurements by section, and what was left out or failed."""

    def __init__(self, options: GPUCheckOptions) -> None:
        self.device, self.scale = torch.device(options.device), SCALES[options.size]
        self.compile = options.compile and use_compile("auto", self.device)
        self.end, self.seconds = time.monotonic() + options.seconds, options.seconds
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SHARES}
        self.left_out: list[str] = []
        self.failed: list[str] = []

    def section(self, name: str) -> None:
        """Run a section until its share of the time is over."""
        later = sum(list(SHARES.values())[list(SHARES).index(name) + 1 :])
        deadline = self.end - later * self.seconds
        for title, measure in SECTIONS[name](self):
            if time.monotonic() > deadline:
                self.left_out.append(f"{name}: {title}")
                continue
            try:
                for row in measure():
                    self.rows[name].append({"name": title, **row})
                    if row.get("passed") is False:
                        self.failed.append(
                            f"{name}: {title}, {row['kind']}: further from float32 than {row['limit']}"
                        )
            except (
                Exception
            ) as error:  # out of memory, a kernel that is missing: the others are still measured
                self.failed.append(f"{name}: {title}: {one_line(error)[:300]}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def timed(self, run: Callable[[], Any], examples: int, repeats: int = 5, **facts: Any) -> dict[str, Any]:
        """A row with the median of the seconds of `run` after a first call, its examples per second, peak memory."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if sum(times[1:]) > 10:
                break
        seconds = sorted(times[1:])[len(times[1:]) // 2]
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        measured = {"seconds": seconds, "images_per_second": examples / seconds, "first_seconds": times[0]}
        return {**facts, "batch": examples, **measured, "peak_gigabytes": peak}


Measurement = tuple[str, Callable[[], Iterator[dict[str, Any]]]]


def _parity(check: Check) -> Iterator[Measurement]:
    for length in check.scale.attention:
        for causal in (False, True):
            title = f"flash attention, {length} tokens{', causal' if causal else ''}"
            yield title, lambda length=length, causal=causal: attention_parity(check.device, length, causal)
    for name, arguments in check.scale.parity.items():
        yield name, lambda a=arguments: model_parity(a, check.device, 2, compiled=check.compile)


def _training(check: Check) -> Iterator[Measurement]:
    size = check.scale.training_batch

    def measure(arguments: list[str], precision: str, compiled: bool) -> Iterator[dict[str, Any]]:
        step = training_step(arguments, check.device, precision=precision, compiled=compiled, batch_size=size)
        yield check.timed(step, size, precision=precision, compiled=compiled)

    for name, arguments in check.scale.training.items():
        yield name, lambda a=arguments: measure(a, "bf16", False)
    for name in check.scale.compiled:
        arguments = check.scale.training[name]
        yield f"{name}, float32", lambda a=arguments: measure(a, "float32", False)
        yield f"{name}, fp16", lambda a=arguments: measure(a, "fp16", False)
        if check.compile:
            yield f"{name}, compiled", lambda a=arguments: measure(a, "bf16", True)


def _sampling(check: Check) -> Iterator[Measurement]:
    for name, arguments in check.scale.sampling.items():
        made: list[Callable] = []

        def measure(
            size: int, arguments: list[str] = arguments, made: list[Callable] = made
        ) -> Iterator[dict]:
            made[:] = made or [sampling(arguments, check.device)]
            yield check.timed(made[0](size), size, repeats=2)

        for size in check.scale.sampling_batches:
            yield f"{name}, batch {size}", lambda size=size, measure=measure: measure(size)


def _coding(check: Check) -> Iterator[Measurement]:
    def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
        size = check.scale.coding_batch
        for what, run in coding(arguments, check.device, size).items():
            yield check.timed(run, size, what=what)

    for name, arguments in check.scale.coding.items():
        yield name, lambda a=arguments: measure(a)


def _fid(check: Check) -> Iterator[Measurement]:
    def measure() -> Iterator[dict[str, Any]]:
        size, side = check.scale.inception
        yield check.timed(inception(check.device, size, side), size)

    yield "Inception features, float32", measure


SECTIONS: dict[str, Callable[[Check], Iterator[Measurement]]] = {
    "parity": _parity,
    "training": _training,
    "sampling": _sampling,
    "coding": _coding,
    "fid": _fid,
}


def environment(device: torch.device) -> dict[str, Any]:
    """Card, driver and versions."""
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    facts |= {"device": str(device), "triton": importlib.util.find_spec("triton") is not None}
    if device.type != "cuda":
        return facts
    card = torch.cuda.get_device_properties(device)
    facts |= {"card": card.name, "memory_gigabytes": card.total_memory / 1e9, "cuda": torch.version.cuda}
    facts |= {"capability": f"{card.major}.{card.minor}", "cudnn": torch.backends.cudnn.version()}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return facts


def gpu_check(options: GPUCheckOptions) -> None:
    """Measure, and write result.json and page.md.

    Raises:
        SystemExit: something failed; the files are written.
    """
    with reserved_folder(options.output):
        _check_all(options)


def _check_all(options: GPUCheckOptions) -> None:
    check = Check(options)
    if (Path(options.output) / "result.json").exists():
        say(f"{options.output} holds an earlier result, which will be replaced")
    facts = environment(check.device)
    banner("GPU check", {**facts, "time": f"{options.seconds} s at most", "output": options.output})
    start = time.monotonic()
    for name in SHARES:
        check.section(name)
        say(f"{name:<10} {len(check.rows[name]):3d} measurements, {time.monotonic() - start:.0f} s")
    result = {"environment": facts, "size": options.size, "seconds": time.monotonic() - start, **check.rows}
    result |= {"left_out": check.left_out, "failed": check.failed}
    folder = Path(options.output)
    write_json(folder / "result.json", result)
    write_text(folder / "page.md", page(result))
    say(f"written: {folder}/result.json, {folder}/page.md")
    if check.failed:
        raise SystemExit("failed:\n" + "\n".join(check.failed))
