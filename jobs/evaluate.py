"""Metrics of samples or reconstructions, as a result file."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import distributed
from common.console import Clock, banner, duration, say, warn
from common.launch import processes
from evaluator.copies import copy_warnings
from evaluator.image_set import ImageSet
from evaluator.metrics import METRICS
from evaluator.networks import extractor_facts
from evaluator.outcome import failure
from evaluator.provenance import image_facts, network_warnings
from evaluator.reference import write_reference
from jobs.copies import picture_path, save_closest_pairs, training_copies
from jobs.evaluation_report import report_lines, write_pictures
from jobs.evaluation_run import Run
from jobs.measuring import found, pass_through
from jobs.options.evaluate import EvaluateOptions
from storage.files import OUTPUT_ROOM, check_output_file, require_space, write_json
from storage.locks import reserved_file, reserved_folder

REFERENCE_ROOM = 1 << 27  # bytes: statistics of all kinds of features; images come on top


def make_reference(run: Run) -> None:
    """Write mean and covariance of the samples' features."""
    options, metrics = run.options, [METRICS[name] for name in run.metrics if not METRICS[name].parts]
    wrong = [m.name for m in metrics if not m.in_references]
    if wrong:
        known = ", ".join(m.name for m in METRICS.values() if m.in_references)
        raise ValueError(f"make_ref: metrics {', '.join(wrong)} have no statistics; expected some of {known}")
    pixels = min(options.keep_images, run.samples.count) * 3 * run.samples.size[0] * run.samples.size[1]
    room, what = REFERENCE_ROOM + pixels, f"a reference with {options.keep_images} images"
    distributed.on_main(lambda: require_space(Path(options.make_ref).parent, room, what, "make_ref"))
    networks = run.networks()
    images = ImageSet(list(networks.values()), metrics, keep=run.keep(run.samples), reference=True)
    pass_through(images.update, run.samples, options.batch_size, "reference", images.todo())
    count, fingerprint = images.counted()
    results, failed = images.results(run.device)
    if failed:
        raise ValueError(f"make_ref: {next(iter(failed.values()))}")
    statistics = {metric.features: results[metric.reference_key] for metric in metrics}
    about = {
        "image_set": options.reference_set or "unknown",
        "images": image_facts(run.samples) | run.samples.pixel_facts(),
        "crop": run.crop,
        "pixels_fingerprint": fingerprint,
        "extractors": extractor_facts(networks),
    }
    distributed.on_main(
        lambda: write_reference(options.make_ref, statistics, about, run.samples, options.keep_images)
    )
    say(f"{count} images, {', '.join(statistics)} features: {options.make_ref}")


@contextmanager
def reserved_output(options: EvaluateOptions) -> Iterator[None]:
    """See that what comes out in the end can be written, before anything is measured."""
    path, key, begins, room = options.output, "output", b"{", OUTPUT_ROOM
    if options.make_ref is not None:
        path, key, begins, room = options.make_ref, "make_ref", b"PK", REFERENCE_ROOM
    distributed.on_main(lambda: check_output_file(path, key=key, begins=begins, room=room))
    with ExitStack() as held:
        held.enter_context(reserved_file(path, key=key))
        if options.features is not None:
            held.enter_context(reserved_folder(options.features, key="features"))
        yield


def _show_pairs(run: Run, details: Mapping[str, Any]) -> None:
    """Pictures of the closest pairs that metrics found, beside the result."""
    if run.reference is None:  # reconstructions and their originals
        return
    for name, said in details.items():
        if pairs := said.get("closest_pairs"):
            path = picture_path(run.options.output, name)
            save_closest_pairs(path, pairs, run.samples, run.reference.images)
            say(f"samples and the images nearest to them: {path}")


def evaluate(options: EvaluateOptions) -> None:
    """Measure, print, and write the result with its protocol.

    A metric that cannot be computed is an error at the very end, when the others are printed and written.
    """
    with processes() as device, reserved_output(options):
        run, clock = Run(options, device), Clock()
        about = {"images": run.samples.count, "size": "{} x {}".format(*run.samples.size), "crop": run.crop}
        about |= {} if run.paired_by is None else {"paired by": run.paired_by}
        about |= {"metrics": ", ".join(run.metrics), "protocol": run.protocol}
        if Path(options.make_ref or options.output).exists():
            about["replaces"] = options.make_ref or options.output
        title = "Reference" if options.make_ref else "Evaluation"
        banner(title, {**about, "processes": distributed.world_size()})
        if options.make_ref is not None:
            make_reference(run)
            return
        evaluator = run.evaluator()
        facts = run.facts()
        if options.training_tokens is not None:  # before hours of measuring: the file may be missing
            tokens = found(options.samples), found(options.training_tokens)
            facts["token_copies"] = distributed.on_main(lambda: training_copies(*tokens))
        notes = run.warnings(facts) + network_warnings(extractor_facts(evaluator.extractors))
        for note in notes:
            warn(note)
        values, errors = run.measure(evaluator)
        facts = {
            **facts,
            **evaluator.facts(),
            **({"details": evaluator.details} if evaluator.details else {}),
        }
        late = run.describe_pixels(facts) + copy_warnings(facts)
        for note in late:
            warn(note)
        # Printed first: if the file cannot be written after all, the numbers are there.
        banner("Results", report_lines(values, facts))
        result = {"metrics": values, "warnings": notes + late, "protocol": facts}
        result |= {"errors": errors} if errors else {}
        distributed.on_main(lambda: write_json(options.output, result, default=str))
        distributed.on_main(lambda: _show_pairs(run, evaluator.details))
        if path := write_pictures(options.output, run.pictures, run.samples, options.pictures):
            say(f"pictures: {path}")
        say(f"{run.samples.count} images in {duration(clock.lap())}; see {options.output}")
        if errors:
            raise ValueError(f"{failure(errors)}; {options.output} holds the other metrics")
