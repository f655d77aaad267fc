"""Small real parts that tests share: a tiny BERT on disk, toy rows it can learn, and a finished study."""

from __future__ import annotations

import os

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HPSEARCH_WORKERS"] = "1"  # others load the libraries anew, which takes longer than most tests
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does: a busy neighbour costs little

import csv
import importlib.util
import logging
import random
import shutil
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from benchmarks.servers import PostgresServer
    from hpsearch.config import Config
    from tests.watching import Watched

# `HYPOTHESIS_PROFILE=campaign pytest tests/test_bad_configs.py` looks further than the suite has time for.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("campaign", settings.get_profile("suite"), max_examples=3000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# As a terminal starts programs: those in the background inherit that these are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = Path(__file__).parents[2] / "shared"
"""Real reviews and models beside the checkout, where the developers have them."""

WORDS = [
    "film",
    "story",
    "actor",
    "scene",
    "music",
    "end",
    "plot",
    "start",
    "light",
    "sound",
    "crowd",
    "camera",
    "voice",
    "joke",
    "mood",
]
GOOD, BAD = "wonderful", "dreadful"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real reviews and models; users do not have it, CI must."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {SHARED}")
        pytest.skip(f"needs the developers' folder {SHARED.name}/ beside the checkout: real reviews and models")
    return SHARED


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium, Debian's; CI must have it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium")
        pytest.skip("needs chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        # As root there is no sandbox; without the others it looks up hosts of its own at every start.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Return a PostgreSQL server of Debian's; CI must have it."""
    from benchmarks.servers import binaries, postgres

    missing = "PostgreSQL (apt-get install postgresql)" if binaries() is None else None
    if missing is None and importlib.util.find_spec("psycopg") is None:
        missing = "psycopg (pip install 'hpsearch[postgres]')"
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {missing}")
        pytest.skip(f"needs {missing}")
    with postgres(durable=False) as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    """Return the name of a new and empty database of the server."""
    return postgres_server.make_database()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a BERT of 2 layers and 16 hidden units over some 20 words, saved as any model is."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, GOOD, BAD])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def toy_rows(n_rows: int, seed: int) -> list[tuple[str, str]]:
    """Return texts and labels; one word in each text gives the label away."""
    rng = random.Random(seed)
    rows = []
    for i in range(n_rows):
        words = rng.choices(WORDS, k=rng.randint(3, 12))
        words.insert(rng.randint(0, len(words)), GOOD if i % 2 else BAD)
        rows.append((" ".join(words), "good" if i % 2 else "bad"))
    return rows


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv file of 400 toy rows with the columns text and label."""
    path = tmp_path_factory.mktemp("data") / "toy.csv"
    write_csv(path, toy_rows(400, seed=1))
    return path


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> None:
    """Write rows with a header, quoted where needed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def toy_tree(tiny_model: Path, toy_csv: Path) -> dict[str, Any]:
    """Return the keys of a configuration that trains the tiny model on the toy rows in well under a second."""
    return {
        "study": "toy",
        "model": {"name": str(tiny_model)},
        "data": {"train": str(toy_csv), "train_rows": 80, "validation_rows": 40, "test_rows": 40},
        "defaults": {
            "learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 16, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "space": {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "num_train_epochs": {"type": "int", "low": 1, "high": 3},
            "per_device_train_batch_size": {"type": "categorical", "choices": [8, 16]},
        },
        "search": {"trials": 3, "evaluations": 4, "seed": 7},
    }  # fmt: skip


@pytest.fixture
def make_config(toy_tree: dict[str, Any]) -> Callable[..., Config]:
    """Return a maker of toy configurations from `KEY=VALUE` overrides."""
    from hpsearch.config import build_config

    return lambda *overrides: build_config(toy_tree, overrides, where="toy")


@pytest.fixture
def toy_yaml(toy_tree: dict[str, Any], tmp_path: Path) -> Path:
    """Return the toy configuration as a file."""
    from ruamel.yaml import YAML

    path = tmp_path / "toy.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(toy_tree, file)
    return path


LOGGERS = ("", "optuna", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub", "py.warnings")


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the process back as it was: the command line sets up logging and warnings for a process of its own."""
    import transformers.utils.logging as verbosity

    monkeypatch.delenv("HPSEARCH_STORAGE", raising=False)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    level = verbosity.get_verbosity()
    with warnings.catch_warnings():
        yield
        logging.captureWarnings(capture=False)
    for logger, (handlers, old_level, propagate) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(old_level)
        logger.propagate = propagate
    verbosity.set_verbosity(level)
    verbosity.enable_progress_bar()


@pytest.fixture(scope="session")
def watched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Return what was seen of a whole use of hpsearch, with a password in the storage's URL."""
    from tests.watching import watch

    world = tmp_path_factory.mktemp("world")
    (world / "project").mkdir()
    write_csv(world / "project" / "toy.csv", toy_rows(120, seed=1))
    return watch(world, tmp_path_factory.mktemp("watch"), tiny_model)
