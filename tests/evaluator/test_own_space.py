import torch

from evaluator.metrics.fid import frechet_distance
from evaluator.own_space import OWN_SPACE, load_own_space
from tests.evaluator.toy import tensor, toy_images


def test_more_noise_is_farther_away_and_any_size_is_taken():
    extractor = load_own_space()
    images = tensor(toy_images(200, side=64))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def distance(others):
        sets = [extractor(x).titok_openmoji for x in (images, others)]
        assert sets[0].shape == (200, extractor.dims[OWN_SPACE]) == (200, 128)
        statistics = [value for x in sets for value in (x.mean(dim=0), torch.cov(x.T))]
        return frechet_distance(*statistics)

    changed = [(images + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 20, 60, 120)]
    distances = [distance(others) for others in changed]
    assert distances == sorted(distances) and distances[0] < 1e-6 < distances[1]


def test_features_do_not_depend_on_the_batch():
    extractor, images = load_own_space(), tensor(toy_images(6, side=48))
    together = extractor(images).titok_openmoji
    alone = torch.cat([extractor(image[None]).titok_openmoji for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
