"""training.compile on every debug twin: what becomes a graph, that none breaks, and that nothing is compiled twice."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from common.config import REPOSITORY, read_yaml
from modeling.layers.trainable import CompileUnit, compile_units
from modeling.layers.transformer import TransformerBlock
from tests.twins import TWINS, twin_trainer
from training import trainer
from training.compiler import compile_by_units, eagerly

pytestmark = pytest.mark.usefixtures("engine")

# Graphs of the units of a twin's models in the first step, and in the second, where the discriminator begins: it has
# one for judging and one for learning. A generator has a graph for all its blocks, or one per kind of block.
DISCRIMINATOR = 2
GRAPHS = {
    "cluster_online": (1, 0),
    "cluster_pixels": (4, DISCRIMINATOR),
    "cvq": (8, DISCRIMINATOR),
    "factorized_ar": (2, 0),
    "fsq": (7, DISCRIMINATOR),
    "gpt": (1, 0),
    "ibq": (8, DISCRIMINATOR),
    "ibq_ar": (1, 0),
    "magvit2": (10, DISCRIMINATOR),
    "maskgit": (1, 0),
    "maskgit_vqgan": (10, 0),
    "rar": (1, 0),
    "tatitok_vae": (2, DISCRIMINATOR),
    "tatitok_vq": (2, DISCRIMINATOR),
    "titok": (2, DISCRIMINATOR),
    "titok_stage1": (2, 0),
    "titok_stage2": (8, DISCRIMINATOR),
    "titok_vae": (2, DISCRIMINATOR),
    "uvit": (2, 0),
    "vqgan": (8, DISCRIMINATOR),
    "vqkd": (2, 0),
    "vqkd_pixels": (9, DISCRIMINATOR),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The step in which each graph was made, in a run that is compiled without code being generated."""
    made, now = [], [-1]

    def backend(module: nn.Module, inputs: list[Tensor]) -> Callable:
        made.append(now[0])
        return module.forward

    def seed_step(seed: int, step: int) -> None:
        now[0] = step
        original_seed_step(seed, step)

    original_compile, original_seed_step = torch.compile, trainer.seed_step
    monkeypatch.setattr(
        torch, "compile", lambda function, **o: original_compile(function, backend=backend, **o)
    )
    monkeypatch.setattr(trainer, "seed_step", seed_step)
    torch._dynamo.reset()
    counters.clear()
    yield made
    torch._dynamo.reset()


# Their modules are those of another twin.
ALIKE = {"cvq", "fsq", "ibq", "tatitok_vae", "titok_vae", "titok_stage1", "cluster_online"}
ALIKE |= {"cluster_pixels", "vqkd_pixels"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in TWINS]
)
def test_units_are_compiled_once(name, tmp_path, monkeypatch, graphs):
    """Ten steps and three evaluations: nothing breaks a graph, and after the second step none is made."""
    options = ["training.max_steps=10", "training.evaluate_every=4", "training.compile=true"]
    if "discriminator" in read_yaml(REPOSITORY / f"configs/debug/{name}.yaml"):
        options.append("losses.discriminator_start=1")
    if name == "rar":  # random orders, both, then raster order
        options += ["rar.randomness_anneal_start=3", "rar.randomness_anneal_end=6"]
    twin_trainer(name, tmp_path / "run", monkeypatch, *options).fit()
    assert [graphs.count(0), graphs.count(1), len(graphs)] == [*GRAPHS[name], sum(GRAPHS[name])]
    assert not counters["graph_break"]


class Chain(nn.Sequential):
    """Six transformer blocks."""

    def __init__(self) -> None:
        super().__init__(*(TransformerBlock(hidden_size=8, num_heads=2) for _ in range(6)))


def test_blocks_of_one_shape_share_a_graph_also_when_they_are_recomputed(graphs):
    chain = Chain()
    compile_by_units(chain)
    for _ in range(2):
        x = torch.zeros(2, 3, 8, requires_grad=True)
        for block in chain:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        x.sum().backward()
    assert len(graphs) == 1 and not counters["graph_break"]
    with eagerly(), torch.no_grad():
        chain(torch.zeros(1, 5, 8))
    assert len(graphs) == 1


def test_units_are_the_outermost_and_a_module_without_any_is_one():
    class Stage(CompileUnit):
        def __init__(self) -> None:
            super().__init__()
            self.block = TransformerBlock(hidden_size=8, num_heads=2)

    model = nn.ModuleList(
        [Stage(), nn.ModuleList([TransformerBlock(hidden_size=8, num_heads=2)]), nn.Linear(1, 1)]
    )
    assert compile_units(model) == [model[0], model[1][0]]
    plain = nn.Linear(1, 1)
    assert compile_units(plain) == [plain]


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_are_sent_while_earlier_blocks_are_computed(graphs, one_process):
    """Data-parallel training: the first bucket leaves before the first block's gradients are there."""
    chain = Chain()
    compile_by_units(chain)
    wrapped, events = DistributedDataParallel(chain, bucket_cap_mb=0.002), []

    def send(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        events.append("sent")
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, send)
    for _ in range(2):  # buckets are arranged anew after the first
        events.clear()
        x = torch.zeros(2, 3, 8, requires_grad=True)
        x.register_hook(lambda gradient: events.append("first block is done"))
        wrapped(x).sum().backward()
    assert len(events) > 4 and events.index("first block is done") >= len(events) - 2
    assert len(graphs) == 1 and not counters["graph_break"]


def test_hooks_of_sharding_stay_outside_of_graphs(graphs, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    chain, mesh = Chain(), init_device_mesh("cpu", (1,))
    for block in chain:
        fully_shard(block, mesh=mesh)
    fully_shard(chain, mesh=mesh)
    compile_by_units(chain)
    for _ in range(2):
        chain(torch.zeros(2, 3, 8, requires_grad=True)).sum().backward()
    assert len(graphs) == 1 and not counters["graph_break"]
    assert all(parameter.grad is not None for parameter in chain.parameters())
