"""State dicts in files of Open-MAGVIT2 (arXiv:2409.04410) and IBQ (arXiv:2412.02692) as those of our models.

Pure functions, nothing is read here. Both projects write the same two kinds of training files:

tokenizer   our names; `loss.*` (discriminator, LPIPS); `model_ema.*`, averages under names without dots
generator   `transformer.*`, and a frozen tokenizer, `first_stage_model.*`, of which there are no averages

A generator's tokens are those of the tokenizer in its own file. The files of Open-MAGVIT2 hold the raw weights there,
those of IBQ the averaged ones; published reconstructions are of averaged ones.
"""

from collections.abc import Callable, Mapping

import torch

State = dict[str, torch.Tensor]

AVERAGED, LOSSES, GENERATOR, FIRST_STAGE = "model_ema.", "loss.", "transformer.", "first_stage_model."
COUNTERS = ("decay", "num_updates")  # of the averages


def from_magvit2_tokenizer(state: Mapping[str, torch.Tensor]) -> State:
    """The tokenizer of a file: averaged weights, or raw ones if the file has no averages.

    Raises:
        ValueError: the file averages some weights, but not all that the tokenizer needs, or others.
    """
    raw = {name: tensor for name, tensor in state.items() if not name.startswith((LOSSES, AVERAGED))}
    averages = {name.removeprefix(AVERAGED): t for name, t in state.items() if name.startswith(AVERAGED)}
    losses = LOSSES.replace(".", "")
    rest = {name for name in averages if name not in COUNTERS and not name.startswith(losses)}
    if not averages:
        return raw
    found: State = {}
    for name in raw:
        flat = name.replace(".", "")
        if flat not in rest:
            raise ValueError(
                f"the file averages weights, but lacks the entry '{AVERAGED}{flat}' for {name!r}"
            )
        found[name] = averages[flat]
    surplus = sorted(rest - {name.replace(".", "") for name in raw})
    if surplus:
        raise ValueError(f"the file has the entry '{AVERAGED}{surplus[0]}', an average of no weight in it")
    return found


def from_magvit2_first_stage(state: Mapping[str, torch.Tensor]) -> State:
    """The tokenizer in a generator's file."""
    return _part(state, FIRST_STAGE, beside=GENERATOR)


def from_magvit2_generator(state: Mapping[str, torch.Tensor]) -> State:
    """The generator in its file."""
    return _part(state, GENERATOR, beside=FIRST_STAGE)


def _part(state: Mapping[str, torch.Tensor], prefix: str, *, beside: str) -> State:
    """Entries without `prefix`, and without those that begin with `beside`.

    Names with neither stay as they are: those of a converted file are ours, in any other they are errors to be found.
    """
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if not n.startswith(beside)}


MAGVIT2_FORMATS: dict[str, Callable[[Mapping[str, torch.Tensor]], State]] = {
    "magvit2": from_magvit2_tokenizer,
    "magvit2_first_stage": from_magvit2_first_stage,
    "magvit2_generator": from_magvit2_generator,
}
