"""What the dashboard shows besides the stock server's own: pictures of each trial, the study's report, notes.

All of it is made when it is asked for and handed in between the stock server's functions and their answers. Nothing is
written to the storage, so that opening a dashboard changes no study, a trial has its pictures as soon as there is
something to show, and a thousand trials cost nothing until one is looked at. Notes and artifacts that people make
themselves stay the stock server's: where there is a note, it is shown and no other.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from bottle import HTTPResponse

from hpsearch.errors import UsageError
from hpsearch.note import study_note, trial_note
from hpsearch.study import StudyPaths, label_names, stored_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from bottle import Route
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    Answer = Callable[..., Any]

_STYLE = """<style>
    p.MuiTypography-body1 { white-space: normal !important; overflow-wrap: anywhere }
    img { max-width: 100% }
</style>
</head>"""
"""The stock page keeps an attribute on one line, and a trial's effective settings make it 5,000 pixels wide."""

_drawing = threading.Lock()  # matplotlib's settings belong to the process


@dataclass(frozen=True, slots=True)
class _Exhibit:
    """Something that is made on demand, listed among the artifacts of a trial or a study."""

    kind: str
    owner: int
    """Id of the trial or study."""
    title: str
    filename: str
    mimetype: str

    @property
    def id(self) -> str:
        """Return its artifact id: hexadecimal digits and dashes, as the stock server wants it.

        Those of real artifacts are UUIDs, with four dashes.
        """
        return f"{self.kind}-{self.owner:x}"

    def entry(self) -> dict[str, Any]:
        """Return what the stock page needs to know of an artifact."""
        return {"artifact_id": self.id, "filename": self.filename, "mimetype": self.mimetype, "encoding": None}


_CURVE, _CONFUSION, _REPORT = "c0", "cf", "e0"
_ID = re.compile(rf"({_CURVE}|{_CONFUSION}|{_REPORT})-([0-9a-f]{{1,15}})")  # more digits are no id of a database


class Exhibits:
    """A plugin of Bottle that adds to the answers of optuna-dashboard.

    Source:
        optuna-dashboard 0.21.0, `_app.py` (`dashboard`, `get_study_detail`), `_serializer.py`
        (`serialize_study_detail`) and `artifact/_backend.py`; Bottle 0.13, "Plugin API 2".
    """

    name = "hpsearch"
    api = 2

    def __init__(self, storage: BaseStorage, storage_url: str) -> None:
        """Take the storage and its URL, beside which the studies' folders are."""
        self._storage = storage
        self._url = storage_url

    def apply(self, answer: Answer, route: Route) -> Answer:
        """Return what answers a route: with something added, or as it is."""
        artifact = "<artifact_id:re:[0-9a-fA-F-]+>"
        answers: dict[tuple[str, str], Callable[..., Any]] = {
            ("GET", "/dashboard<:re:(/.*)?>"): _page,
            ("GET", "/api/studies/<study_id:int>"): self._detail,
            ("GET", f"/artifacts/<study_id:int>/{artifact}"): self._artifact,
            ("GET", f"/artifacts/<study_id:int>/<trial_id:int>/{artifact}"): self._artifact,
            ("DELETE", f"/api/artifacts/<study_id:int>/{artifact}"): _deletion,
            ("DELETE", f"/api/artifacts/<study_id:int>/<trial_id:int>/{artifact}"): _deletion,
        }
        added = answers.get((route.method, route.rule))
        return functools.partial(added, answer) if added else answer

    def _detail(self, answer: Answer, study_id: int) -> Any:
        """Add a study's exhibits to the document that its pages are made of."""
        detail = answer(study_id=study_id)
        study = self._study(study_id)
        if study is None or not isinstance(detail, dict):
            return detail
        for trial in (*detail["trials"], *detail["best_trials"]):
            attributes = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
            pictures = _pictures_of(trial, attributes)
            trial["artifacts"] += [picture.entry() for picture in pictures]
            if trial["note"]["version"] == 0:
                addresses = {each.title: f"/artifacts/{study_id}/{trial['trial_id']}/{each.id}" for each in pictures}
                trial["note"]["body"] = trial_note(attributes, addresses)
        report = _Exhibit(_REPORT, study_id, "report", "report.html", "text/html")
        is_there = StudyPaths.of(self._url, study.study_name).report.is_file()
        if is_there:
            detail["artifacts"].append(report.entry())
        if detail["note"]["version"] == 0:
            detail["note"]["body"] = study_note(
                study, report=f"/artifacts/{study_id}/{report.id}" if is_there else None
            )
        return detail

    def _artifact(self, answer: Answer, artifact_id: str, study_id: int, **trial_id: int) -> Any:
        """Draw a picture or read a report; other artifacts are the stock server's."""
        exhibit = _ID.fullmatch(artifact_id)
        if exhibit is None:
            return answer(artifact_id=artifact_id, study_id=study_id, **trial_id)
        kind, owner = exhibit[1], int(exhibit[2], 16)
        study = self._study(study_id)
        try:
            if study is None:
                raise KeyError(study_id)
            if kind == _REPORT:
                return _file(StudyPaths.of(self._url, study.study_name).report.read_bytes(), "text/html")
            return _file(_picture(study, self._storage.get_trial(owner), kind), "image/svg+xml")
        except (KeyError, OSError):
            return HTTPResponse("Not Found", 404, {"Content-Type": "text/plain; charset=utf-8"})

    def _study(self, study_id: int) -> optuna.Study | None:
        """Return a study that hpsearch started, or None."""
        try:
            name = self._storage.get_study_name_from_id(study_id)
            study = optuna.load_study(study_name=name, storage=self._storage)
            stored_config(study)
        except (KeyError, UsageError):
            return None
        return study


def _page(answer: Answer, *matched: str) -> Any:
    """Add a style to the page."""
    page = answer(*matched)
    if not hasattr(page.body, "read"):  # of a file that the browser has already, or of a HEAD request
        return page
    with page.body as file:
        page.body = file.read().decode().replace("</head>", _STYLE).encode()
    page.content_length = len(page.body)
    return page


def _deletion(answer: Answer, artifact_id: str, **ids: int) -> Any:
    if _ID.fullmatch(artifact_id) is None:
        return answer(artifact_id=artifact_id, **ids)
    reason = json.dumps({"reason": "This is made from the study, and cannot be deleted."})
    return HTTPResponse(reason, 403, {"Content-Type": "application/json"})


def _pictures_of(trial: dict[str, Any], attributes: dict[str, str]) -> list[_Exhibit]:
    """Return the pictures that can be drawn of a trial."""
    name = f"trial-{trial['number']:04d}"
    return [
        _Exhibit(kind, trial["trial_id"], title, f"{name}-{title.replace(' ', '-')}.svg", "image/svg+xml")
        for kind, title, is_there in (
            (_CURVE, "learning curve", bool(trial["intermediate_values"])),
            (_CONFUSION, "confusion matrix", "confusion" in attributes),
        )
        if is_there
    ]


def _picture(study: optuna.Study, trial: FrozenTrial, kind: str) -> bytes:
    """Return a picture as SVG, in which the reader's own fonts show every script.

    Raises:
        KeyError: If there is nothing to draw.
    """
    from hpsearch import plots

    with _drawing:
        if kind == _CURVE:
            figure = plots.learning_curve(trial, (study.metric_names or ["value"])[0])
        else:
            counts = trial.user_attrs["confusion"]
            figure = plots.confusion(counts, label_names(study, len(counts)))
        return plots.svg(figure).encode()


def _file(content: bytes, kind: str) -> HTTPResponse:
    return HTTPResponse(content, 200, {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-store"})
