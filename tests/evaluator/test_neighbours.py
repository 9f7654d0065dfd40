import torch

from evaluator import neighbours
from evaluator.neighbours import balls_hit, nearest_rows, squared_distances

DRAWS = torch.Generator().manual_seed(0)
ROWS, QUERIES = torch.randn(57, 6, generator=DRAWS), torch.randn(31, 6, generator=DRAWS)


def test_tiles_do_not_change_neighbours(monkeypatch):
    exact = torch.cdist(QUERIES.double(), ROWS.double())
    within = torch.cdist(ROWS.double(), ROWS.double()).fill_diagonal_(torch.inf)
    for tile in (2048, 10, 3):
        monkeypatch.setattr(neighbours, "TILE", tile)
        found = nearest_rows(QUERIES, ROWS, 4)
        assert torch.equal(found.indices, exact.argsort(1)[:, :4])
        torch.testing.assert_close(found.squares.sqrt(), exact.sort(1).values[:, :4], rtol=1e-10, atol=0)
        assert torch.equal(nearest_rows(ROWS, ROWS, 2, same=True).indices, within.argsort(1)[:, :2])
        radii = torch.full((57,), 4.0)
        inside, around = balls_hit(ROWS, radii, QUERIES)
        assert torch.equal(inside, (exact < 2).sum(0)) and torch.equal(around, (exact < 2).sum(1))


def test_equal_rows_have_no_distance_far_from_zero():
    rows = ROWS.double() + 1e6
    assert (squared_distances(rows, rows).diagonal() == 0).all()
    torch.testing.assert_close(
        squared_distances(rows + 1e-4, rows).diagonal(), torch.full((57,), 6e-8).double(), rtol=1e-4, atol=0
    )
