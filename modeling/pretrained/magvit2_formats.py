"""State dicts of Open-MAGVIT2 (arXiv:2409.04410) and IBQ (arXiv:2412.02692) under our names; pure functions.

Both projects write the same two kinds of training files:

tokenizer   our names; `loss.*` (discriminator, LPIPS); `model_ema.*`, averages under names without dots
generator   `transformer.*`, and the frozen tokenizer of its tokens, `first_stage_model.*`, without averages

That frozen tokenizer has the raw weights in Open-MAGVIT2's files and the averaged ones in IBQ's; published
reconstructions are made with averaged weights.
"""

from collections.abc import Callable, Mapping

import torch

State = dict[str, torch.Tensor]

AVERAGED, LOSSES, GENERATOR, FIRST_STAGE = "model_ema.", "loss.", "transformer.", "first_stage_model."
COUNTERS = ("decay", "num_updates")  # beside the averages, under the same prefix


def from_magvit2_tokenizer(state: Mapping[str, torch.Tensor]) -> State:
    """The averaged weights of a tokenizer, or the raw ones if there are no averages; ValueError if some are missing."""
    raw = {name: tensor for name, tensor in state.items() if not name.startswith((LOSSES, AVERAGED))}
    averages = {name.removeprefix(AVERAGED): t for name, t in state.items() if name.startswith(AVERAGED)}
    losses = LOSSES.replace(".", "")
    rest = {name for name in averages if name not in COUNTERS and not name.startswith(losses)}
    if not averages:
        return raw
    found: State = {}
    for name in raw:
        flat = name.replace(".", "")  # buffers cannot have dots in their names
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
    """Entries without `prefix`, and without those that begin with `beside`."""
    # Names with neither stay: a converted file has ours, and in any other file strict loading reports them.
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if not n.startswith(beside)}


MAGVIT2_FORMATS: dict[str, Callable[[Mapping[str, torch.Tensor]], State]] = {
    "magvit2": from_magvit2_tokenizer,
    "magvit2_first_stage": from_magvit2_first_stage,
    "magvit2_generator": from_magvit2_generator,
}
