"""The whole way on toy rows through the real command line: search, resume, kill, export, compare, predict."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import HTTPCookieProcessor, build_opener

import numpy as np
import pytest
from click.testing import CliRunner

from hpsearch.flips import read_flips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

pytestmark = pytest.mark.slow


def hpsearch(folder: Path, *arguments: str, stdin: str | None = None, code: int = 0) -> Result:
    """Run a command in this process, where the libraries are imported once, with `folder` as working directory."""
    from hpsearch.cli import cli

    root = logging.getLogger()
    handlers, before = root.handlers[:], Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(cli, arguments, input=stdin)
    finally:
        os.chdir(before)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        logging.captureWarnings(capture=False)
    assert result.exit_code == code, result.output
    return result


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hpsearch", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip


def document(folder: Path, *arguments: str) -> Any:
    return json.loads(hpsearch(folder, *arguments, "--json").stdout)


@contextlib.contextmanager
def dashboard_of(folder: Path, *arguments: str) -> Iterator[Callable[[str], Any]]:
    """Start `hpsearch dashboard` and let a browser in; yield what returns the document at a path."""
    process = start(folder, "dashboard", "--port", "0", *arguments)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().strip()
        page = url.partition("?")[0]
        browser = build_opener(HTTPCookieProcessor())
        with browser.open(url, timeout=20) as answer:
            assert answer.url == f"{page}dashboard"
        assert process.stderr.readline().startswith(f"a browser was let in; for another one: {page}?token=")

        def ask(path: str) -> Any:
            with browser.open(f"{page}{path}", timeout=20) as answer:
                return json.load(answer)

        yield ask
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def wait_for_trial(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until a trial has reported an intermediate value and is still running."""
    database = folder / "studies" / "hpsearch.db"
    query = (
        "select count(*) from trials t join trial_intermediate_values v using (trial_id) "
        "where t.number = ? and t.state = 'RUNNING'"
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if database.exists():
            try:
                with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                    if connection.execute(query, (number,)).fetchone()[0]:
                        return
            except sqlite3.OperationalError:
                pass  # the tables are not there yet
        time.sleep(0.01)
    pytest.fail(f"trial {number} did not start")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, toy_csv: Path) -> tuple[Path, dict[str, Any]]:
    """Return a folder in which a search of 4 trials has run, and the study as `show --json` gives it."""
    folder = tmp_path_factory.mktemp("searched")
    write_config(folder, tiny_model, toy_csv)
    hpsearch(folder, "run", "--config", "toy.yaml", "--trials", "4")
    return folder, document(folder, "show", "toy")


def write_config(folder: Path, tiny_model: Path, toy_csv: Path, epochs: str = "{type: int, low: 2, high: 4}") -> None:
    (folder / "toy.yaml").write_text(
        f"""
model: {{name: {tiny_model}}}
data: {{train: {toy_csv}, train_rows: 240, validation_rows: 40, test_rows: 40}}
defaults: {{learning_rate: 1e-2, num_train_epochs: 3, per_device_train_batch_size: 8, hidden_dropout_prob: 0.0}}
space:
  learning_rate: {{type: float, low: 3e-3, high: 2e-2, log: true}}
  num_train_epochs: {epochs}
  per_device_train_batch_size: {{type: categorical, choices: [8, 16]}}
search: {{evaluations: 4, seed: 7}}
""",
        encoding="utf-8",
    )


def test_a_search_finishes_the_trials_asked_for_and_starts_with_the_defaults(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    _, study = searched
    assert study["n_complete"] + study["n_pruned"] == 4
    assert study["metric"] == "f1"
    assert study["direction"] == "maximize"
    first = study["trials"][0]
    assert first["attrs"]["role"] == "defaults"
    assert first["params"] == {"learning_rate": 1e-2, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    assert first["state"] == "complete"
    assert first["value"] > 0.9  # the toy task is learnt
    assert len(first["intermediate_values"]) == 4
    best = max((trial for trial in study["trials"] if trial["state"] == "complete"), key=lambda trial: trial["value"])
    assert study["best"]["value"] == best["value"]


def test_running_again_adds_only_what_is_missing(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, before = searched
    hpsearch(folder, "run", "--study", "toy", "--trials", "4")
    assert document(folder, "show", "toy") == before


def test_only_the_best_checkpoints_stay(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, study = searched
    complete = [trial for trial in study["trials"] if trial["state"] == "complete"]
    ranked = sorted(complete, key=lambda trial: (-trial["value"], trial["number"]))[:3]
    kept = {path.name for path in (folder / "studies" / "toy").glob("*trial-*")}
    assert kept == {f"trial-{trial['number']:04d}" for trial in ranked}


def test_another_space_data_or_seed_is_refused_with_the_difference(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, before = searched
    changes = ("space.learning_rate.high=3e-2", "data.shuffle_seed=1", "search.seed=8", "metric=accuracy")
    flags = [flag for change in changes for flag in ("--set", change)]
    result = hpsearch(folder, "run", "--config", "toy.yaml", *flags, code=2)
    for expected in (
        "space.learning_rate.high: started with 0.02, now 0.03",
        "data: started with",
        "seed: started with 7, now 8",
        'metric: started with "f1", now "accuracy"',
    ):
        assert expected in result.stderr
    assert document(folder, "show", "toy") == before


def test_export_is_a_plain_folder_that_scores_the_stored_value_without_hpsearch(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, study = searched
    output = tmp_path / "model"
    exported = document(folder, "export-best", "--output", str(output))
    assert exported["value"] == study["best"]["value"]
    assert exported["reloaded_value"] == pytest.approx(exported["value"], abs=5e-5)
    assert {path.name for path in output.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "manifest.json",
    }  # fmt: skip
    program = (
        "import sys, json; from transformers import pipeline\n"
        f"classify = pipeline('text-classification', {str(output)!r})\n"
        "answers = classify(['story wonderful actor scene', 'story dreadful actor scene'])\n"
        "assert 'hpsearch' not in sys.modules; print(json.dumps([a['label'] for a in answers]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["good", "bad"]


def test_an_existing_folder_is_replaced_only_when_asked_and_only_if_it_is_ours(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = searched
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work", encoding="utf-8")
    for flags in ([], ["--overwrite"]):
        result = hpsearch(folder, "export-best", "--output", str(foreign), *flags, code=2)
        assert "expected a f" in result.stderr
    assert [path.name for path in foreign.iterdir()] == ["chapter.txt"]
    output = tmp_path / "model"
    hpsearch(folder, "export-best", "--output", str(output))
    hpsearch(folder, "export-best", "--output", str(output), code=2)
    hpsearch(folder, "export-best", "--output", str(output), "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "thesis"]


def test_a_changed_checkpoint_is_not_exported(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(searched[0], folder)
    weights = folder / "studies" / "toy" / f"trial-{searched[1]['best']['number']:04d}" / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.weight"] = -tensors["classifier.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    result = hpsearch(folder, "export-best", code=1)
    assert "expected the reloaded model to score the stored f1" in result.stderr
    assert not (folder / "studies" / "toy" / "best").exists()


def test_compare_scores_both_sides_on_the_same_seeds_and_keeps_what_it_finished(
    searched: tuple[Path, dict[str, Any]],
) -> None:
    folder, study = searched
    result = document(folder, "compare", "--seeds", "2")
    assert set(result) >= {"metric", "test_rows", "seeds", "default", "tuned", "linear", "difference", "verdict"}
    assert result["test_rows"] == 40
    assert result["seeds"] == [8, 9]
    assert len(result["default"]["f1"]) == len(result["tuned"]["accuracy"]) == 2
    assert (result["tuned"]["params"], result["chosen_by"]) == (study["best"]["params"], "search")
    low, high = result["difference"]["ci95"]
    assert low <= result["difference"]["mean"] <= high
    assert np.sum(result["tuned"]["confusion"]) == 2 * 40
    assert sum(part["rows"] for part in result["slices"] if part["name"].startswith("label")) == 40
    flips = read_flips(folder / "studies" / "toy" / result["flips"]["file"])
    assert len(flips) == result["flips"]["gained"] + result["flips"]["lost"]
    kept = sorted((folder / "studies" / "toy" / "comparison").glob("*.json"))
    assert len(kept) == 2  # the defaults are this search's best, and one training is both sides
    assert (result["answer"], low, high) == ("no evidence", 0.0, 0.0)
    times = [path.stat().st_mtime_ns for path in kept]
    again = document(folder, "compare", "--seeds", "2")
    # The same trainings shown again are one more look at the test split.
    assert {**again, "date": ""} == {**result, "looks": result["looks"] + 1, "date": ""}
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_predict_reads_arguments_or_lines(searched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = searched
    model = tmp_path / "model"
    hpsearch(folder, "export-best", "--output", str(model))
    by_argument = hpsearch(folder, "predict", str(model), "actor scene wonderful plot music").stdout
    by_line = hpsearch(
        folder, "predict", str(model), stdin="actor scene wonderful plot music\nactor scene dreadful plot music\n"
    ).stdout
    assert by_line.splitlines()[0] == by_argument.strip()
    assert [line.split("\t")[0] for line in by_line.splitlines()] == ["good", "bad"]
    answers = json.loads(
        hpsearch(folder, "predict", str(model), "--json", stdin="light dreadful crowd scene end\n").stdout
    )
    assert answers[0]["label"] == "bad"
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


def test_neither_search_nor_confirmation_opens_the_test_file(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    sealed = tmp_path / "sealed.csv"
    sealed.write_bytes(b"\xff\xfe not a csv file: who opens it fails")
    seal = ["--set", f"data.test={sealed}", "--set", "data.keep_overlaps=true", "--set", "data.test_rows=null"]
    hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "2", *seal)
    assert document(tmp_path, "show", "toy")["n_complete"] == 2
    assert len(document(tmp_path, "confirm", "--top", "1", "--seeds", "1")["candidates"]) == 2
    assert "sealed.csv" in hpsearch(tmp_path, "compare", "--seeds", "1", code=2).stderr


@pytest.mark.parametrize("number", [0, 2])
def test_a_killed_search_loses_only_the_running_trial_and_then_draws_as_if_undisturbed(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_model: Path, toy_csv: Path, number: int
) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    command = ["run", "--config", "toy.yaml", "--trials", "4"]
    process = start(tmp_path, *command)
    wait_for_trial(tmp_path, number, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with contextlib.closing(sqlite3.connect(tmp_path / "studies" / "hpsearch.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    hpsearch(tmp_path, *command)

    study = document(tmp_path, "show", "toy")
    assert study["n_complete"] + study["n_pruned"] == 4
    assert study["n_running"] == 0
    killed = [trial for trial in study["trials"] if trial["state"] == "failed"]
    assert [trial["number"] for trial in killed] == [number]
    again = next(trial for trial in study["trials"] if trial["attrs"].get("retry_of") == number)
    assert again["params"] == killed[0]["params"]
    assert again["attrs"].get("role") == killed[0]["attrs"].get("role")
    undisturbed = {json.dumps(trial["params"]): trial["value"] for trial in searched[1]["trials"][: number + 1]}
    finished = {json.dumps(trial["params"]): trial["value"] for trial in study["trials"] if trial["state"] != "failed"}
    assert undisturbed.items() <= finished.items()
    document(tmp_path, "export-best")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_closes_the_trial_and_says_how_to_go_on(
    tmp_path: Path, tiny_model: Path, toy_csv: Path, number: int
) -> None:
    write_config(tmp_path, tiny_model, toy_csv, epochs="{type: int, low: 1, high: 200}")
    command = ["run", "--config", "toy.yaml", "--trials", "3", "--set", "defaults.num_train_epochs=200"]
    process = start(tmp_path, *command)
    wait_for_trial(tmp_path, 0, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    study = document(tmp_path, "show", "toy")
    assert [trial["state"] for trial in study["trials"]] == ["failed", "waiting"]
    assert study["trials"][0]["attrs"]["failure"] == "interrupted"
    assert study["trials"][1]["attrs"] == {"role": "defaults", "retry_of": 0}


def test_two_commands_run_one_study_together(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    command = ["run", "--config", "toy.yaml", "--trials", "7", "--workers", "1"]
    processes = [start(tmp_path, *command) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    study = json.loads(hpsearch(tmp_path, "show", "toy", "--json").stdout)
    assert study["n_complete"] + study["n_pruned"] == 7
    assert len(study["trials"]) == 7, "none too many was started"
    assert study["trials"][0]["attrs"]["role"] == "defaults"
    assert sum(trial["attrs"].get("role") == "defaults" for trial in study["trials"]) == 1


def test_a_study_is_exported_from_another_folder_too(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    write_config(home, tiny_model, toy_csv)
    (home / "rows.csv").write_bytes(toy_csv.read_bytes())
    hpsearch(home, "run", "--config", "toy.yaml", "--trials", "1", "--set", "data.train=rows.csv")
    storage = ["--storage", f"sqlite:///{home}/studies/hpsearch.db"]
    hpsearch(elsewhere, "export-best", "--output", "model", *storage)
    card = (elsewhere / "model" / "README.md").read_text(encoding="utf-8")
    assert "`rows.csv`" in card
    assert str(home) not in card
    hpsearch(elsewhere, "run", "--study", "toy", "--trials", "1", *storage)


def test_texts_that_a_search_cuts_are_cut_by_the_export_too(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "1", "--set", "model.max_length=6")
    exported = document(tmp_path, "export-best")
    assert exported["reloaded_value"] == pytest.approx(exported["value"], abs=5e-5)
    saved = json.loads((tmp_path / "studies/toy/best/tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["model_max_length"] == 6


def test_weights_that_do_not_load_start_no_study(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    write_config(tmp_path, broken, toy_csv)
    result = hpsearch(tmp_path, "run", "--config", "toy.yaml", code=2)
    assert "expected safetensors weights of an encoder, to be given a head of 2 labels" in result.stderr
    assert not (tmp_path / "studies").exists()


def test_a_comparison_with_another_model_is_refused(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(searched[0], folder)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "extra.txt").write_text("another tokenizer file", encoding="utf-8")
    moved = ["--config", "toy.yaml", "--set", f"model.name={tmp_path / 'model'}"]
    assert "model: started with" in hpsearch(folder, "run", *moved, code=2).stderr
    (tmp_path / "model" / "extra.txt").unlink()
    hpsearch(folder, "run", *moved, "--trials", "4")  # the same model in another place goes on
    (tmp_path / "model" / "extra.txt").write_text("another tokenizer file", encoding="utf-8")
    result = hpsearch(folder, "compare", "--seeds", "1", code=2)
    assert "expected the model that study 'toy' was run on" in result.stderr


def test_progress_goes_to_stderr_and_results_to_stdout(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    result = hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "1")
    assert "trial 0 complete" in result.stderr
    assert result.stdout.startswith("study toy   f1, maximize   1 complete, 0 pruned, 0 failed")
    for noise in ("Warning", "warn", "[I ", "it/s", "LOAD REPORT"):
        assert noise not in result.stdout + result.stderr
    assert (tmp_path / "studies" / "toy" / "run.log").stat().st_size > 0


def test_time_that_is_up_starts_no_trial(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv, epochs="{type: int, low: 1, high: 60}")
    flags = ["--set", "defaults.num_train_epochs=60", "--timeout", "1s"]
    result = hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "50", *flags)
    assert "time is up with" in result.stderr
    assert document(tmp_path, "show", "toy")["n_complete"] < 50


def test_the_dashboard_answers_while_a_search_is_writing(tmp_path: Path, tiny_model: Path, toy_csv: Path) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    search = start(tmp_path, "run", "--config", "toy.yaml", "--trials", "12", "--set", "search.pruner=none")
    wait_for_trial(tmp_path, 0, search)
    with dashboard_of(tmp_path) as ask:
        answers = 0
        while search.poll() is None:
            assert ask("api/studies")["study_summaries"][0]["study_name"] == "toy"
            answers += 1
            time.sleep(0.1)
        detail = ask("api/studies/1")
    assert [len(trial["artifacts"]) for trial in detail["trials"]] == [2] * 12
    assert "## toy" in detail["note"]["body"]
    assert answers > 5
    search.communicate()
    assert search.returncode == 0
    assert document(tmp_path, "show", "toy")["n_complete"] == 12


def test_environment_of_these_tests_reaches_no_hub() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
