"""The script that makes the README's pictures: its terminal view. The pages have tests of their own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import optuna
import pytest

from hpsearch.errors import StudyError
from scripts import pictures
from tests.made_studies import make_study


def _lines(drawing: str) -> str:
    texts = ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(text.itertext()).replace("\xa0", " ") for text in texts)


def test_the_terminal_view_is_that_of_the_study() -> None:
    study = make_study(optuna.storages.InMemoryStorage(), "영화평", gains=(0.0, 0.125, None, 0.0625, None))
    drawing = pictures.terminal(study)
    lines = _lines(drawing)
    assert "hpsearch run --study 영화평" in lines
    for words in ("<- best so far", "f1 0.8750", "pruned", "trial 3", "evaluation 3/4", "f1 now 0.8125", "75 %"):
        assert words in lines
    assert "trial 4" not in lines  # it came after the trial that is shown running
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", drawing))
    assert addresses == {"http://www.w3.org/2000/svg", "https://www.textualize.io"}  # a namespace and a comment


def test_a_study_with_too_few_trials_has_no_terminal_view() -> None:
    study = make_study(optuna.storages.InMemoryStorage(), gains=(0.0, None))
    with pytest.raises(StudyError, match="expected three finished trials or more, got 2"):
        pictures.terminal(study)
