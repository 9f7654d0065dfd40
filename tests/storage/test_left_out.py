"""What a reader leaves out is counted by reason, and shown with the first names."""

import json

from storage.left_out import LeftOut


def test_reasons_are_counted_and_the_first_names_shown(capsys):
    left = LeftOut()
    assert not left and left.lines("a") == [] and left.explain() == ""
    for number in range(5):
        left.add("not an image", f"{number}.pdf")
    left.add("hidden", ".a\udce9\n.png")
    assert left.lines("photos") == [
        "photos: 5 left out, not an image: 0.pdf, 1.pdf, 2.pdf, ...",
        "photos: 1 left out, hidden: .a\\xe9\\n.png",
    ]
    assert (
        left.explain().startswith(" (5 left out, not an image: 0.pdf,")
        and "; 1 left out, hidden" in left.explain()
    )
    left.warn("photos")
    assert capsys.readouterr().err.splitlines()[1] == "warning: photos: 1 left out, hidden: .a\\xe9\\n.png"


def test_counts_of_several_readers_add_up():
    whole, part = LeftOut(), LeftOut()
    for number in range(2):
        part.add("hidden", f".{number}")
    whole.extend(part, "a.tar: ")
    whole.extend(part, "b.tar: ")
    assert whole.lines("all") == ["all: 4 left out, hidden: a.tar: .0, a.tar: .1, b.tar: .0, ..."]
    whole.add("hidden", ".9")
    assert len(whole.names["hidden"]) == 3 and len(part.names["hidden"]) == 2
    assert LeftOut.from_tree(json.loads(json.dumps(whole.to_tree()))) == whole
