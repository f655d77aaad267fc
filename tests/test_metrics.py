"""The metrics against scikit-learn's, with classes that are absent or never predicted, and in batches."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from hpsearch.metrics import METRICS, accuracy, confusion_matrix, f1, mcc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

# scikit-learn's MCC warns about answers that know one class only; its value, 0, is what is compared.
_one_label_only = pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")


@st.composite
def _answers(draw: st.DrawFn, *, min_classes: int = 2, max_classes: int = 5) -> tuple[int, Integers, Integers]:
    """Draw a number of classes, labels and predictions; some classes may come up in neither."""
    n_classes = draw(st.integers(min_classes, max_classes))
    used = st.integers(0, draw(st.integers(0, n_classes - 1)))
    pairs = draw(st.lists(st.tuples(used, used), min_size=1, max_size=40))
    labels, predicted = np.array(pairs, dtype=np.int64).T
    return n_classes, labels, predicted


def _oracle(labels: Any, predicted: Any, n_classes: int) -> dict[str, float]:
    """Return scikit-learn's values."""
    if n_classes == 2:
        f1_value = f1_score(labels, predicted, zero_division=0)
    else:
        f1_value = f1_score(labels, predicted, labels=range(n_classes), average="macro", zero_division=0)
    return {
        "f1": f1_value,
        "accuracy": accuracy_score(labels, predicted),
        "mcc": matthews_corrcoef(labels, predicted),
    }


def _values(labels: Integers, predicted: Integers, n_classes: int) -> dict[str, float]:
    confusion = confusion_matrix(labels, predicted, n_classes)
    return {name: float(metric(confusion)) for name, metric in METRICS.items()}


@_one_label_only
@given(_answers(max_classes=2))
def test_two_classes_score_as_in_scikit_learn(answers: tuple[int, Integers, Integers]) -> None:
    n_classes, labels, predicted = answers
    assert _values(labels, predicted, n_classes) == pytest.approx(_oracle(labels, predicted, n_classes))


@_one_label_only
@given(_answers(min_classes=3))
def test_more_classes_score_as_in_scikit_learn_over_all_classes(answers: tuple[int, Integers, Integers]) -> None:
    n_classes, labels, predicted = answers
    assert _values(labels, predicted, n_classes) == pytest.approx(_oracle(labels, predicted, n_classes))


@pytest.mark.parametrize(
    ("labels", "predicted", "n_classes", "expected"),
    [
        pytest.param([0, 1, 1, 0], [0, 1, 1, 0], 2, (1.0, 1.0, 1.0), id="all right"),
        pytest.param([0, 1, 1, 0], [1, 0, 0, 1], 2, (0.0, 0.0, -1.0), id="all wrong"),
        pytest.param([0, 1, 1, 1], [1, 1, 1, 1], 2, (6 / 7, 0.75, 0.0), id="only class 1 predicted"),
        pytest.param([0, 1, 0, 0], [0, 0, 0, 0], 2, (0.0, 0.75, 0.0), id="only class 0 predicted"),
        pytest.param([0, 0, 0], [0, 0, 0], 2, (0.0, 1.0, 0.0), id="class 1 absent"),
        pytest.param([0, 1, 0, 1], [0, 1, 0, 1], 3, (2 / 3, 1.0, 1.0), id="third class absent counts 0"),
        pytest.param([0, 1, 2], [0, 1, 1], 3, ((1 + 2 / 3) / 3, 2 / 3, 3 / 24**0.5), id="third class never predicted"),
    ],
)
def test_degenerate_answers_have_these_values(
    labels: list[int], predicted: list[int], n_classes: int, expected: tuple[float, float, float]
) -> None:
    confusion = confusion_matrix(np.array(labels), np.array(predicted), n_classes)
    assert (f1(confusion), accuracy(confusion), mcc(confusion)) == pytest.approx(expected)


def test_no_rows_score_zero_rather_than_nan() -> None:
    assert {name: float(metric(np.zeros((3, 3), dtype=np.int64))) for name, metric in METRICS.items()} == {
        "f1": 0.0,
        "accuracy": 0.0,
        "mcc": 0.0,
    }


def test_mcc_of_a_hundred_million_rows_does_not_overflow() -> None:
    confusion = np.array([[40, 10], [10, 40]], dtype=np.int64)
    assert mcc(confusion * 1_000_000) == pytest.approx(mcc(confusion)) == pytest.approx(0.6)


def test_rows_of_a_confusion_matrix_are_the_true_classes() -> None:
    confusion = confusion_matrix(np.array([0, 0, 0, 2]), np.array([1, 1, 0, 2]), 3)
    assert confusion.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_a_confusion_matrix_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as many predictions as labels, got \(2,\) and \(3,\)"):
        confusion_matrix(np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.int64), 2)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_batch_scores_as_its_members_do(name: str, n_classes: int) -> None:
    confusions = np.random.default_rng(0).integers(0, 4, size=(3, 5, n_classes, n_classes))
    confusions[0, 0] = 0
    values = METRICS[name](confusions)
    assert values.shape == (3, 5)
    for index in np.ndindex(3, 5):
        assert values[index] == METRICS[name](confusions[index])


@given(_answers(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(answers: tuple[int, Integers, Integers], random: Any) -> None:
    n_classes, labels, predicted = answers
    order = list(range(len(labels)))
    random.shuffle(order)
    assert _values(labels[order], predicted[order], n_classes) == _values(labels, predicted, n_classes)


@pytest.mark.slow  # `evaluate` takes seconds to import
@pytest.mark.parametrize("n_classes", [2, 4])
def test_evaluate_computes_the_same_without_a_network(n_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    from hpsearch.scores import classification_scores

    rng = np.random.default_rng(n_classes)
    labels, predicted = rng.integers(n_classes, size=(2, 200))
    scores = classification_scores()
    for rows in (slice(None), slice(0, 30)):  # a second call holds nothing of the first
        result = scores.compute(predictions=predicted[rows], references=labels[rows], n_classes=n_classes)
        confusion = result.pop("confusion")
        assert result == pytest.approx(_oracle(labels[rows], predicted[rows], n_classes))
        assert confusion == confusion_matrix(labels[rows], predicted[rows], n_classes).tolist()
        assert type(confusion[0][0]) is int, "it is stored as JSON"
