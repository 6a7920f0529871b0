"""Tables of concepts are read or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemax.diffusion import concepts
from safemax.diffusion.condition import Prompt
from safemax.errors import InputError


def table(folder: Path, text: str) -> Path:
    path = folder / "concepts.csv"
    path.write_text(text)
    return path


def test_a_table_names_classes_prompts_roles_and_images(tmp_path: Path) -> None:
    found = concepts.read(
        table(tmp_path, "prompt, name, role, images\na cat,cat,retain,cats\na dog,dog,forget,\nthe hound,dog,held_out,\n"
              "a puppy,dog,forget,\na bird,,,\n")
    )  # fmt: skip
    assert found.names == ("cat", "dog", "a bird")
    assert found.forget == ("dog",)
    assert found.images == {"cat": tmp_path / "cats"}
    assert [each.text for each in found.prompts] == ["a cat", "a dog", "a bird", "the hound", "a puppy"]
    assert [each.text for each in found.prompts if each.held_out] == ["the hound"]
    assert [each.name for each in found.in_order_of(("a bird", "dog", "cat"))][:1] == ["a bird"]
    with pytest.raises(InputError, match="the concepts are cat, dog, a bird, the classes of the data cat, dog"):
        found.in_order_of(("cat", "dog"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,role\ncat,forget\n", "has the columns name, role; they are prompt, name, role, images"),
        ("prompt,nmae\na cat,cat\n", "has the columns prompt, nmae"),
        ("prompt,role\na cat,forgot\n", "line 2: unknown role 'forgot' .did you mean 'forget'"),
        ("prompt,name,role\na cat,cat,forget\ncats,cat,retain\n", "line 3: 'cat' is both to be forgotten"),
        ("prompt,role\na cat,forget\na dog,forget\n", "2 of 2 classes have the role forget"),
        ("prompt\na cat\na dog\n", "0 of 2 classes have the role forget"),
        ("prompt,role\na cat,forget\nA  CAT,\n", "'a cat' is given twice"),
    ],
)
def test_a_table_that_says_no_concepts_is_refused_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        concepts.read(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="concepts = .* cannot be read"):
        concepts.read(tmp_path / "none.csv")


def test_a_template_makes_a_prompt_of_each_name() -> None:
    assert concepts.from_template("a {}, drawn", ("x", "y")).prompts == (
        Prompt("a x, drawn", "x"),
        Prompt("a y, drawn", "y"),
    )
    with pytest.raises(InputError, match="must contain {} once, in place of the class name"):
        concepts.from_template("a photo", ("x",))
