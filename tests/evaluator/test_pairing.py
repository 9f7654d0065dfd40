import pytest

from evaluator.pairing import pair_by_name

NUMBERS = sorted(f"r_{i}.png" for i in range(12))  # r_0, r_1, r_10, r_11, r_2, ...


@pytest.mark.parametrize(
    "samples, original",
    [
        (NUMBERS, lambda name: f"r_{int(name[2:-4]):03d}.png"),
        (NUMBERS, lambda name: name[:-4] + "_rec.png"),
        (NUMBERS, lambda name: name[:-4] + "-fake_B.jpg"),
        (NUMBERS, lambda name: name[:-4] + ".JPEG"),
        (NUMBERS, lambda name: "val/" + name),
        (NUMBERS, lambda name: "shard-00.tar/" + name),
        (NUMBERS, lambda name: f"rec_{int(name[2:-4]):05d}.png"),
        (NUMBERS, lambda name: f"{int(name[2:-4]):05d}.png"),
        (["a/1.png", "a/2.png", "b/1.png"], lambda name: name.replace("/", "_")),
        (["a/1.png", "a/2.png", "b/1.png"], lambda name: name.replace(".png", ".webp")),
        (["n01/x_10.JPEG", "n02/y_9.JPEG"], lambda name: name[4:-5] + "_rec.png"),
        (["cat.png", "car.png", "dog.png"], lambda name: "rec_" + name),
        (["cat.png", "car.png"], lambda name: "rec_" + name),
        (["a.png", "a.jpg", "b.png"], lambda name: name),
        (["caf\u00e9.png", "the.png"], lambda name: name.replace("\u00e9", "e\u0301")),
        (["1.png"], lambda name: "0001.jpg"),
    ],
)
def test_names_find_their_partner_in_any_order(samples, original):
    originals = sorted(map(original, samples), reverse=True)
    for first, second, partner in [(samples, originals, original), (originals, samples, None)]:
        found = pair_by_name(first, second).originals
        assert sorted(found) == list(range(len(samples)))
        for name, place in zip(first, found, strict=True):
            assert (partner(name) == second[place]) if partner else (original(second[place]) == name)


def test_the_strictest_form_wins():
    """Equal paths pair whatever the numbers in them are."""
    names = ["01.png", "1.png", "2.png"]
    assert pair_by_name(names, names[::-1]).originals.tolist() == [2, 1, 0]
    assert pair_by_name(names, names).rule == "path"


@pytest.mark.parametrize(
    "samples, originals, message",
    [
        (
            ["0.png", "1.png", "2.png"],
            ["1.png", "2.png", "3.png"],
            "to the sample '0.png' .*sample is '3.png'",
        ),
        (["a.png", "b.png"], ["a.png", "c.png"], "no original belongs to the sample 'b.png' .* 'c.png'"),
        (["x/1.png", "y/1.png"], ["1.png", "2.png"], "'x/1.png' and 'y/1.png' have one name|belongs to"),
        (["a.png"], ["b.png"], "no original belongs to the sample 'a.png'"),
        (["1.png", "01.png", "2.png"], ["1.jpg", "2.jpg", "3.jpg"], "sample"),
        (["a.png", "b.png"], ["a.png", "b.png", "c.png"], "no sample belongs to the original 'c.png'"),
    ],
)
def test_names_without_a_partner_are_named(samples, originals, message):
    with pytest.raises(ValueError, match=rf"cannot be paired by name: .*({message}).*pairs=order"):
        pair_by_name(samples, originals)


def test_originals_may_be_left_over_if_that_is_said():
    originals = [f"{i:03d}.png" for i in range(20)]
    assert pair_by_name(["9.png", "10.png"], originals, some=True).originals.tolist() == [9, 10]
