"""docs/zoo.md says what the zoo is, and zoo/README.md names all of it."""

import re

import pytest
from gallery import PAGE, PICTURES, draw, files, page, parameters, picture, stated
from peers import ENTRIES
from proof import ZOO

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    """All but what was measured and counted. `gallery.py` writes it anew."""
    assert page(*stated(TEXT)) == TEXT


def test_every_stated_difference_is_one_that_a_proof_would_let_pass():
    for file, difference in stated(TEXT)[0].items():
        assert 0 <= float(difference.removesuffix(" (small)")) < 1e-5, file


def test_every_file_of_the_zoo_is_of_a_model_on_the_page():
    listed = {file for entry in ENTRIES for file in files(ZOO / entry.file)}
    assert listed == {path.resolve() for path in ZOO.rglob("*.yaml") if not path.name.endswith(".keys.yaml")}


def test_every_key_map_of_the_zoo_is_on_the_page_and_every_link_leads_somewhere():
    maps = {str(path.relative_to(ZOO)) for path in ZOO.rglob("*.keys.yaml")}
    assert maps == {entry.keys for entry in ENTRIES} - {None}
    for text, folder in ((TEXT, PAGE.parent), ((ZOO / "README.md").read_text(encoding="utf-8"), ZOO)):
        for target in re.findall(r"\]\(([^#)]+)\)", text):
            assert (folder / target).exists(), target


def test_the_readme_names_every_model_of_the_page():
    told = re.findall(r"\]\(([\w/]+\.yaml)\)", (ZOO / "README.md").read_text(encoding="utf-8"))
    assert sorted(told) == sorted(entry.file for entry in ENTRIES)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.file)
def test_the_parameters_and_the_pictures_are_up_to_date(entry):
    assert stated(TEXT)[1][entry.file] == parameters(entry)
    drawn = (PICTURES / picture(entry)).read_text(encoding="utf-8")
    assert drawn == draw(entry)
    assert len(drawn) < 60_000
