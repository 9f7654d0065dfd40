"""Images per second of the feature network: ours beside torch-fidelity's, in one run.

    python benchmarks/inception.py
    python benchmarks/inception.py --batch 32 --size 256 --rounds 8 --threads 2
    python benchmarks/inception.py --device cuda --batch 64

Weights are random, the same in all networks. The networks take turns and the fastest round of each counts, so that
other work on the machine disturbs all of them alike. Differences are relative (L2): to our network in float64, and to
the network of the first line. Peak memory is what two calls add to a process of their own, or to the graphics card.
Without torch-fidelity (`pip install torch-fidelity`) only our networks are measured.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import argument_parser, bytes_now, clock, in_new_process, peak_bytes
from evaluator.inception_fast import FastInception, full_precision
from evaluator.inception_network import InceptionV3

Features = Callable[[torch.Tensor], torch.Tensor]
NAMES = {
    "torch-fidelity": "torch-fidelity, float32",
    "plain": "ours as published, float32",
    "fast": "ours fast, float32",
    "bfloat16": "ours fast, bfloat16 (approximate)",
}


def random_network(seed: int = 0) -> InceptionV3:
    """Random weights that keep the signal alive through all layers, as trained ones do."""
    torch.manual_seed(seed)
    network = InceptionV3()
    for name, tensor in network.state_dict().items():
        if name.endswith("conv.weight"):
            tensor.normal_(std=1.5 / tensor[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(std=0.02)
    return network


def torch_fidelity(network: InceptionV3) -> torch.nn.Module:
    """torch-fidelity's extractor with the weights of `network`; it reads weights from files only."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = dict(network.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        # A plain dict: with torch's version metadata, counters of batches would have to be there.
        torch.save({name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
        return FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )


def build(kind: str, device: str) -> Features:
    """A function from uint8 images to pool features [B, 2048]."""
    network = random_network()
    if kind == "torch-fidelity":
        extractor = torch_fidelity(network).to(device)
        return lambda images: extractor(images)[0]
    if kind == "plain":
        network = network.to(device)
        return lambda images: network(images).pool
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    fast = FastInception(network, device=device, dtype=dtype)
    return lambda images: fast(images).pool


def difference(pool: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((pool - expected).norm() / expected.norm())


def peak_megabytes(kind: str, images: torch.Tensor, device: str, threads: int) -> float:
    """Growth of the peak of memory in two calls, in this process (meant to be a new one)."""
    torch.set_num_threads(threads)
    run = build(kind, device)
    before = bytes_now(device)
    with torch.inference_mode():
        for _ in range(2):  # the first also allocates workspaces
            run(images.to(device))
    return (peak_bytes(device) - before) / 1e6


def main() -> None:
    parser = argument_parser(__doc__, device="cpu")
    parser.add_argument("--batch", type=int, default=16, help="images per call")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the fastest counts")
    parser.add_argument("--check", type=int, default=4, help="images compared with float64, at most --batch")
    parser.add_argument("--no-memory", action="store_true", help="leave out the measurement of memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    kinds = list(NAMES)
    if importlib.util.find_spec("torch_fidelity") is None:
        kinds.remove("torch-fidelity")
        print("torch-fidelity is missing (pip install torch-fidelity); only our networks are measured\n")
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    peaks = {}
    if not arguments.no_memory:  # first, while this process is small: children may inherit its peak
        shared = images, arguments.device, arguments.threads
        peaks = {kind: in_new_process(peak_megabytes, kind, *shared) for kind in kinds}
    runs = {kind: build(kind, arguments.device) for kind in kinds}

    exact = random_network().double()(images[: arguments.check]).pool
    pools, seconds = {}, {kind: float("inf") for kind in kinds}
    on_device = images.to(arguments.device)
    with torch.inference_mode(), full_precision(torch.device(arguments.device)):
        for kind, run in runs.items():
            pools[kind] = run(on_device)[: arguments.check].double().cpu()
        for _ in range(arguments.rounds):
            for kind, run in runs.items():  # in turns: other work on the machine disturbs all alike
                start = clock(arguments.device)
                run(on_device)
                seconds[kind] = min(seconds[kind], clock(arguments.device) - start)

    print(
        f"{arguments.batch} images of {arguments.size} x {arguments.size}, {arguments.device}, "
        f"{arguments.threads} thread(s), torch {torch.__version__}, best of {arguments.rounds}"
    )
    print(f"{'':36}{'images/s':>10}{'speed':>8}{'peak MB':>10}{'to float64':>12}{'to line 1':>12}")
    first = kinds[0]
    for kind in kinds:
        peak = f"{peaks[kind]:.0f}" if kind in peaks else "-"
        rate, speed = arguments.batch / seconds[kind], seconds[first] / seconds[kind]
        print(
            f"{NAMES[kind]:36}{rate:10.2f}{speed:7.2f}x{peak:>10}"
            f"{difference(pools[kind], exact):12.1e}{difference(pools[kind], pools[first]):12.1e}"
        )


if __name__ == "__main__":
    main()
