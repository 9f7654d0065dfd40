from evaluator.protocol import PROTOCOLS


def test_protocols_split_the_inception_score_as_their_tools_do():
    found = {name: (p.is_splits, p.is_order, p.is_block, p.half_distances) for name, p in PROTOCOLS.items()}
    assert found == {
        "adm": (None, "stored", 5000, True),
        "torch-fidelity": (10, "shuffled", None, False),
        "tokenizer": (1, "stored", None, False),
    }
    assert all(name == p.name == p.facts()["name"] for name, p in PROTOCOLS.items())
