"""Lists of images as people write them, and the errors that name their place."""

import json

import pytest

from storage.image_lists import read_image_list, write_image_list


def listed(tmp_path, content, name="list.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_image_list(path)


def values(found):
    return [(row.path, row.label, row.caption) for row in found.rows]


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.jpg,3\nb.jpg,0\n",
        "﻿path,label\r\na.jpg,3\r\n\r\nb.jpg,0\r\n",
        "File_Name;Label\na.jpg;3\nb.jpg;0",
        'image\tother\tLABEL\n"a.jpg"\t"x\ny"\t 3.0 \nb.jpg\tz\t0\n',
    ],
)
def test_csv_in_any_dress(tmp_path, content):
    found = listed(tmp_path, content)
    assert values(found) == [("a.jpg", 3, None), ("b.jpg", 0, None)]
    assert found.has_labels and not found.has_captions


def test_captions_with_quotes_and_missing_values(tmp_path):
    found = listed(tmp_path, 'file_name,text\na.jpg,"a ""red"", round\nball"\nb.jpg,\n', "metadata.csv")
    assert values(found) == [("a.jpg", None, 'a "red", round\nball'), ("b.jpg", None, "")]
    assert found.has_captions and not found.has_labels


def test_json_in_three_forms(tmp_path):
    records = [{"path": "a.jpg", "label": 3}, {"path": "b.jpg", "label": "0"}]
    expected = [("a.jpg", 3, None), ("b.jpg", 0, None)]
    assert values(listed(tmp_path, json.dumps(records), "x.json")) == expected
    assert values(listed(tmp_path, '{"a.jpg": 3, "b.jpg": 0}', "x.json")) == expected
    assert values(listed(tmp_path, "\n\n".join(map(json.dumps, records)), "x.jsonl")) == expected


def test_numbers_are_classes_unless_the_column_says_names(tmp_path):
    assert [r.label for r in listed(tmp_path, "path,label\na.jpg,2023\nb.jpg,\n").rows] == [2023, None]
    assert [r.label for r in listed(tmp_path, "path,label\na.jpg,2023\nb.jpg,home\n").rows] == [
        "2023",
        "home",
    ]
    assert [r.label for r in listed(tmp_path, "path,class\na.jpg,2023\nb.jpg,2024\n").rows] == [
        "2023",
        "2024",
    ]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("path,label\na.jpg,1\nb.jpg,-1\n", "x.csv", r"x.csv: line 3: label '-1' is no class number"),
        ("path,label\na.jpg,1\nb.jpg,3.7\n", "x.csv", r"x.csv: line 3: label '3.7' is no class number"),
        ("path,label\n'a\nb.jpg,1,2\n", "x.csv", r"x.csv: line 2 has 1 fields, the header 2"),
        ('path,label\n"a"b,1\n', "x.csv", r"x.csv: line 2 is not CSV"),
        ('path,label\na.jpg,1\n"b.jpg,1\n', "x.csv", r"x.csv: line 3 is not CSV"),
        ("name,label\na.jpg,1\n", "x.csv", r"must name a column path, file_name, .*; found: name, label"),
        ("path,file,label\na,b,1\n", "x.csv", r"several columns of one meaning: path, file"),
        ("path,label,class\na,1,b\n", "x.csv", r'has "label" and "class"'),
        ("path,label\na.jpg,1\na.jpg,2\n", "x.csv", r"line 3: a.jpg has the label '2', in line 2 '1'"),
        (b"path,label\na.jpg,caf\xe9\n", "x.csv", r"line 2: the label is not UTF-8: 'caf\\\\xe9'"),
        ("path,label\na.jpg,1\n".encode("utf-16"), "x.csv", r"UTF-16; save it as UTF-8"),
        ("path,label\n", "x.csv", "lists no image"),
        ("", "x.csv", "found: nothing"),
        ('[{"path": "a.jpg", "label": true}]', "x.json", r"x.json: entry 1: label 'True'"),
        ('[{"file": 3}]', "x.json", r"entry 1: the path must be a text, found '3'"),
        ('[{"label": 3}]', "x.json", r"entry 1 has no key path"),
        ('{"path": "a.jpg"}\n{"path": \n', "x.jsonl", r"x.jsonl: line 2 is not JSON"),
        ('{"path": "a.jpg", "caption": 3}', "x.jsonl", r"line 1: the caption must be a text"),
        ("3", "x.json", "must hold a list"),
        ("path", "x.txt", "no list of images by its suffix"),
    ],
)
def test_errors_name_the_file_the_line_and_the_value(tmp_path, content, name, message):
    with pytest.raises(ValueError, match=message) as error:
        listed(tmp_path, content, name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_what_is_written_is_read_again(tmp_path):
    odd = ["a,b.jpg", 'q".jpg', "line\nbreak.jpg", "\udce9.jpg", " blank .jpg", "a;b\t.jpg", "cr\r.jpg"]
    write_image_list(tmp_path / "x.csv", [[name, "7", ""] for name in odd], ["path", "class", "caption"])
    assert values(read_image_list(tmp_path / "x.csv")) == [(name, "7", "") for name in odd]
