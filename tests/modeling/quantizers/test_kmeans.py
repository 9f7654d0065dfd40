"""Lloyd's algorithm: reference values with empty clusters, batches and processes against one pass."""

import pytest
import torch

from common.distributed import all_reduce_sum
from modeling.quantizers import kmeans as module
from modeling.quantizers.kmeans import accumulate, assign, kmeans, move_centroids, prepare
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.parity import assert_close, golden


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_iterations_equal_the_reference(metric):
    data = golden(f"ut_kmeans_{metric}")
    x, start = torch.from_numpy(data["x"]), torch.from_numpy(data["init"])
    assert (assign(x, start)[0].numpy() == data["assign_init"]).all()
    once, final = (kmeans(x, start, iterations=n, metric=metric) for n in (1, 10))
    assert_close(once, data["means_after_1"], rtol=1e-4, atol=1e-5)
    assert_close(final, data["means_final"], rtol=1e-4, atol=1e-5)
    assert (assign(x, final)[0].numpy() == data["assign_final"]).all()
    before_last = kmeans(x, start, iterations=9, metric=metric)
    for centroids, bins in ((start, "bins_at_1"), (before_last, "bins_last_iter")):
        counts = torch.bincount(assign(x, centroids)[0], minlength=len(start))
        assert (counts.numpy() == data[bins]).all()
    empty = data["bins_last_iter"] == 0
    assert empty.any() and torch.equal(final[empty], start[empty])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_batches_give_what_all_vectors_give_at_once(metric, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    torch.manual_seed(0)
    vectors, start = torch.randn(50, 4), torch.randn(6, 4)
    centroids = prepare(start, metric)
    for _ in range(3):
        sums, counts = torch.zeros(6, 4, dtype=torch.float64), torch.zeros(6)
        for batch in prepare(vectors, metric).split(11):
            accumulate(batch, assign(batch, centroids)[0], sums, counts)
        centroids = move_centroids(centroids, sums, counts, metric)
    torch.testing.assert_close(centroids, naive(vectors, start, 3, metric), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kmeans(vectors, start, iterations=3, metric=metric), centroids)


def naive(vectors, centroids, iterations, metric):
    """The textbook, one cluster after the other, in float64."""

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True) if metric == "cosine" else x

    vectors, centroids = unit(vectors.double()), unit(centroids.double())
    for _ in range(iterations):
        nearest = torch.cdist(vectors, centroids).argmin(dim=1)
        centroids = torch.stack(
            [
                unit(vectors[nearest == k].mean(dim=0)) if (nearest == k).any() else old
                for k, old in enumerate(centroids)
            ]
        )
    return centroids.float()


def test_distances_are_squared_and_complete():
    vectors, centroids = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    tokens, distances = assign(vectors, centroids)
    assert tokens.tolist() == [1, 1] and distances.tolist() == [18.0, 0.0]
    with pytest.raises(ValueError, match="metric='manhattan' is unknown"):
        prepare(vectors, "manhattan")


@needs_fork
def test_two_processes_equal_one(tmp_path):
    torch.manual_seed(0)
    vectors, start = torch.randn(40, 4), torch.randn(6, 4)
    expected = kmeans(vectors, start, iterations=4, metric="euclidean")

    def work(rank):
        share = vectors[: 15 if rank == 0 else 40][0 if rank == 0 else 15 :]
        assert all_reduce_sum(torch.tensor(len(share))) == 40
        found = kmeans(share, start, iterations=4, metric="euclidean")
        torch.testing.assert_close(found, expected)

    in_two_processes(work, tmp_path)
