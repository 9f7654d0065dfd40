"""From a folder of images to a tokenizer, a generator, samples and a report, by the ordinary programs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import find_file
from common.console import Clock, banner, duration, say
from jobs.options.own_images import OwnImagesOptions
from jobs.own_images_plan import Chosen, known_plan, make_plan, memory, rows, training_arguments
from jobs.own_images_report import write_report
from jobs.recipe_runs import launch, train_once
from storage.locks import reserved_folder
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun


@dataclass(frozen=True)
class Stage:
    """A program with its arguments; of a training also its settings and its run folder."""

    title: str
    program: str
    arguments: Sequence[str]
    training: tuple[type, Path] | None = None

    @property
    def command(self) -> str:
        """What a person would type."""
        return f"python {self.program} {shlex.join(self.arguments)}"

    def run(self) -> None:
        """Do what is not done yet."""
        if self.training is None:
            launch(self.program, self.arguments)
        else:
            train_once(self.program, *self.training, self.arguments)


def stages(options: OwnImagesOptions, chosen: Chosen) -> list[Stage]:
    """All programs in order; each of them skips what it has done before."""
    folder, kind = options.folder, options.generator
    tokenizer = f"tokenizer={folder / 'titok' / 'best'}"

    def training(title: str, program: str, settings: type, name: str) -> Stage:
        arguments = training_arguments(options, chosen.recipes, name)
        return Stage(title, program, arguments, (settings, folder / name))

    def tokens(split: str, crops: str) -> Stage:
        arguments = [tokenizer, f"split={split}", f"crops={crops}", "num_workers=0"]
        output = f"output={folder / f'{split}.tokens'}"
        return Stage(f"tokens of {split} images", "scripts/pretokenize.py", [*arguments, output])

    drawn = [f"generator={folder / kind / 'best'}", tokenizer, f"num_samples={chosen.samples}"]
    drawn += [f"seed={options.seed}", "png=false", f"output={folder / 'samples'}"]
    return [
        training("tokenizer", "train_titok.py", TokenizerRun, "titok"),
        tokens("train", chosen.crops),
        tokens("validation", "plain"),
        training("generator", "train_rar.py", GeneratorRun, kind),
        Stage("samples", "sample_imagenet.py", drawn),
    ]


def own_images(options: OwnImagesOptions) -> None:
    """Plan, say what will be done, and do it; what an earlier call has done is not repeated."""
    clock = Clock()
    say(f"own images: {options.images} -> {options.folder}")
    find_file(options.images, "images")
    with reserved_folder(options.folder):
        chosen = known_plan(options) or make_plan(options)
        banner("Plan", rows(options, chosen))
        for line in memory(options, chosen):
            say(line)
        planned = stages(options, chosen)
        say("\n".join(stage.command for stage in planned))
        if options.plan:
            say(
                f"the chosen values are in {options.folder}/*.yaml; without plan=true, these commands are run"
            )
            return
        for number, stage in enumerate(planned, start=1):
            say(f"\n== {number}/{len(planned)} {stage.title}\n{stage.command}")
            stage.run()
        write_report(options, chosen, [stage.command for stage in planned])
    say(f"{duration(clock.lap())}; see {options.folder}/report.md and picture.png")
