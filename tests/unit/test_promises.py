"""What files promise, and YAML of run folders."""

import pytest

from msh.checked import A_BYTE, FEW, check_promised, parsed
from msh.files.header import Shapes, check_sizes
from msh.files.yaml_files import read_config, read_overrides


def test_a_file_may_promise_what_it_can_hold():
    check_promised(FEW, 1, "weights")
    check_promised(A_BYTE * FEW, FEW, "weights")
    check_sizes({"a": [1024, 1024], "b": [3, 1024, 1024]}, 1)
    with pytest.raises(ValueError, match=r"it has 10 bytes, and its header claims 4194305 weights"):
        check_promised(FEW + 1, 10, "weights")
    with pytest.raises(ValueError, match=r"claims 4198400 weights"):
        check_sizes({"a": [1024, 1024], "b": [3, 1024, 1024], "c": [4096]}, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "shapes: Invalid JSON"),
        ("[]", "shapes: Input should be an object"),
        ('{"a": [2, -1]}', "shapes: a.1: Input should be greater than or equal to 0"),
        ('{"a": [2, 1.5]}', "shapes: a.1: Input should be a valid integer"),
        ('{"a": ["2"]}', "shapes: a.0: Input should be a valid integer"),
        ('{"a": [' + "9" * 30 + "]}", "shapes: a.0: Input should be less than"),
        ('{"a":' + "[" * 10_000 + "}", "shapes: Invalid JSON: recursion limit"),
    ],
)
def test_a_header_of_another_type_is_refused_by_key(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parsed({"shapes": text}, "shapes", Shapes)


def test_a_header_that_is_right_is_read():
    assert parsed({"shapes": '{"a": [2, 3], "b": []}'}, "shapes", Shapes) == {"a": [2, 3], "b": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: &a [x, x]\nb: [*a, *a]\n", "line 2 has a YAML alias"),
        (b"x: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        (b"x: " + b"[" * 3000, "cannot be read"),
        (b"x: 0x" + b"f" * 5000, "cannot be read: Exceeds the limit"),
        (b"x: \xff", "cannot be read: 'utf-8' codec"),
        (b"x: ${", "cannot be read"),
        (b"- a\n", "has no settings"),
    ],
)
def test_a_config_that_is_damaged_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="config.yaml.*" + message.replace("(", r"\(")):
        read_config(path)


def test_overrides_are_a_list_of_texts(tmp_path):
    path = tmp_path / "overrides.yaml"
    path.write_text("- seed=1\n- a=${b}\n")
    assert read_overrides(path) == ["seed=1", "a=${b}"]
    for content in ("seed: 1\n", "- [seed=1]\n", "- 1\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"overrides\.yaml is not a list of overrides"):
            read_overrides(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.yaml"):
        read_overrides(tmp_path / "none.yaml")
