"""Checkpoints in a place for all machines: what lies there, what is deleted, what is fetched, and what is refused."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpsearch.artifacts import Place, check_place, place_of, remember
from hpsearch.checkpoints import checkpoint_of, share_checkpoints
from hpsearch.errors import StudyError, UsageError
from hpsearch.folders import MANIFEST, read_manifest, write_manifest
from hpsearch.study import StudyPaths
from tests.test_end_to_end import dashboard_of, document, hpsearch, write_config

if TYPE_CHECKING:
    from benchmarks.servers import PostgresServer


@pytest.fixture(params=["folder", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{secrets.token_hex(4)}" if request.param == "object store" else str(tmp_path / "공유 folder")


def _study(*values: float) -> optuna.Study:
    study = optuna.create_study(study_name="reviews", direction="maximize")
    study.set_user_attr("uid", "u1")
    for value in values:
        study.add_trial(create_trial(value=value))
    return study


def _checkpoint(paths: StudyPaths, number: int) -> Path:
    folder = paths.checkpoint(number)
    (folder / "more").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(secrets.token_bytes(1000))
    (folder / "more" / "vocab.txt").write_text("재미\n", encoding="utf-8")
    write_manifest(folder, {"study": "reviews", "uid": "u1", "trial": number})
    return folder


def _content(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.name != MANIFEST else read_manifest(folder)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_put_is_fetched_on_another_machine(url: str, tmp_path: Path) -> None:
    study, here, there = (
        _study(0.5),
        StudyPaths(tmp_path / "here", "reviews"),
        StudyPaths(tmp_path / "there", "reviews"),
    )
    remember(study, check_place(url))
    put = _checkpoint(here, 0)
    share_checkpoints(study, here, 3)
    fetched = checkpoint_of(study, there, study.trials[0])
    assert fetched == there.checkpoint(0)
    assert _content(fetched) == _content(put)
    assert [path.name for path in there.folder.iterdir()] == ["trial-0000"]


def test_the_best_stay_whoever_has_them_and_what_runs_is_left_alone(url: str, tmp_path: Path) -> None:
    study = _study(0.5, 0.9, 0.7)
    study.add_trial(create_trial(state=TrialState.RUNNING))
    one, two = StudyPaths(tmp_path / "one", "reviews"), StudyPaths(tmp_path / "two", "reviews")
    remember(study, url)
    place = place_of(study)
    assert place is not None
    for number in (0, 1):
        _checkpoint(one, number)
    place.put(0, one.checkpoint(0))
    place.put(3, _checkpoint(two, 3))
    _checkpoint(two, 2)
    share_checkpoints(study, two, 2)
    assert place.numbers() == {2, 3}
    share_checkpoints(study, one, 2)
    assert place.numbers() == {1, 2, 3}
    study.tell(3, 0.8)
    share_checkpoints(study, one, 2)
    assert place.numbers() == {1, 3}


@pytest.mark.parametrize("manifest", [None, b"", b'{"trial"', b"[]", b'{"trial": 7}'])
def test_a_checkpoint_that_is_half_there_is_none(url: str, tmp_path: Path, manifest: bytes | None) -> None:
    study, paths = _study(0.5), StudyPaths(tmp_path, "reviews")
    remember(study, url)
    place = place_of(study)
    assert place is not None
    place.put(0, _checkpoint(paths, 0))
    files, root = fsspec.core.url_to_fs(place.url)
    files.rm_file(f"{root}/trial-0000/{MANIFEST}")
    if manifest is not None:
        files.pipe_file(f"{root}/trial-0000/{MANIFEST}", manifest)
    assert not place.has(0)
    shutil.rmtree(paths.checkpoint(0))
    with pytest.raises(StudyError, match=r"trial-0000: expected the checkpoint of trial 0, got none and none in "):
        checkpoint_of(study, paths, study.trials[0])
    _checkpoint(paths, 0)
    share_checkpoints(study, paths, 3)
    assert place.has(0)


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(url: str, tmp_path: Path, damage: bytes | None) -> None:
    paths = StudyPaths(tmp_path, "reviews")
    place = Place(url, "reviews-u1")
    place.put(7, _checkpoint(paths, 7))
    files, root = fsspec.core.url_to_fs(place.url)
    weights = f"{root}/trial-0007/model.safetensors"
    if damage is None:
        files.rm_file(weights)
    else:
        files.pipe_file(weights, damage)
    with pytest.raises(
        StudyError, match=r"expected a folder or an object store that can give the checkpoint of trial 7"
    ):
        place.fetch(7, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_manifest_leads_nowhere_else(url: str, tmp_path: Path) -> None:
    paths = StudyPaths(tmp_path, "reviews")
    place = Place(url, "reviews-u1")
    place.put(7, _checkpoint(paths, 7))
    files, root = fsspec.core.url_to_fs(place.url)
    files.pipe_file(f"{root}/trial-0007/../victim", b"x")
    files.pipe_file(f"{root}/trial-0007/{MANIFEST}", json.dumps({"files": {"../../victim": "0"}}).encode())
    with pytest.raises(StudyError, match=r"a file of the name '\.\./\.\./victim'"):
        place.fetch(7, tmp_path / "fetched")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nosuch://bucket", r"Protocol not known: nosuch"),
        ("s3://key:s3cret@bucket", r"--artifacts s3://key:\*\*\*@bucket: expected no password, which would be kept"),
        ("toy.csv/below", r"toy\.csv/below: expected a folder or an object store that can be written to, got: .*; see"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_done(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.csv").write_text("a file", encoding="utf-8")
    with pytest.raises(UsageError, match=message) as raised:
        check_place(given)
    assert "s3cret" not in str(raised.value)


def test_a_folder_is_kept_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_place("shared") == str(tmp_path / "shared")
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.slow
def test_a_machine_that_ran_no_trial_exports_and_compares(
    postgres_server: PostgresServer, database: str, tmp_path: Path, tiny_model: Path, toy_csv: Path
) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", postgres_server.url(database)
    here.mkdir()
    there.mkdir()
    write_config(here, tiny_model, toy_csv)
    shared = str(tmp_path / "shared")
    run = ("run", "--config", "toy.yaml", "--storage", url, "--trials")
    hpsearch(here, *run, "2")
    refused = hpsearch(there, "export-best", "--storage", url, code=1)
    assert "it was deleted or lies on another machine" in refused.stderr
    hpsearch(here, *run, "2", "--artifacts", shared)  # what lies there already is put there
    hpsearch(here, *run, "5")
    study = document(there, "show", "--storage", url)
    exported = document(there, "export-best", "--storage", url)
    assert exported["trial"] == study["best"]["number"]
    assert exported["reloaded_value"] == pytest.approx(study["best"]["value"])
    assert (there / "studies" / "toy" / "best" / "model.safetensors").exists()
    hpsearch(there, "compare", "--seeds", "1", "--storage", url)
    with dashboard_of(there, "--storage", url) as ask:
        summary = ask("api/studies")["study_summaries"][0]
        assert summary["study_name"] == "toy"
        assert len(ask(f"api/studies/{summary['study_id']}")["trials"]) == 5
    kept = {path.name for path in Path(shared).glob("toy-*/trial-*")}
    assert kept == {path.name for path in (here / "studies" / "toy").glob("trial-*")}
    assert len(kept) <= 3

    hidden = toy_csv.rename(toy_csv.with_suffix(".hidden"))
    try:
        missing = hpsearch(there, "compare", "--seeds", "1", "--storage", url, code=2)
    finally:
        hidden.rename(toy_csv)
    assert str(toy_csv) in missing.stderr
