"""Who runs a trial: a process that can be looked up, or one elsewhere whose signs of life are timed here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.owner import BEAT, OWNER, RHYTHM, Heart, Owner, Rhythm, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

_ME = Owner.me()
_ELSEWHERE = replace(_ME, host="elsewhere", machine="another boot/1")


def _trial(owner: Owner | None, beat: int = 0) -> FrozenTrial:
    attrs = {**owner.attributes(), BEAT: beat} if owner else {}
    return create_trial(state=TrialState.RUNNING, system_attrs=attrs)


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_an_owner_is_read_back_as_it_was_stored() -> None:
    assert Owner.of(_trial(_ME)) == _ME
    assert Owner.of(_trial(_ME)).versions == _ME.versions  # type: ignore[union-attr]
    assert Owner.of(_trial(None)) is None
    assert set(_trial(_ME).system_attrs) == {OWNER, BEAT}


def test_a_process_lives_until_it_is_killed_also_while_nobody_has_collected_it() -> None:
    code = "from hpsearch.owner import Owner; me = Owner.me(); print(me.pid, me.started, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pid, started = map(int, child.stdout.readline().split())
        other = replace(_ME, pid=pid, started=started)
        watch = Watch(_ME)
        assert other.is_alive()
        assert not watch.is_gone(_trial(other))
        assert not replace(other, started=started - 1).is_alive(), "its id was another process's before"
        os.kill(pid, 9)
        _until(lambda: not other.is_alive())  # a zombie: not waited for yet
        assert child.returncode is None
        assert watch.is_gone(_trial(other))
    assert not other.is_alive()


@pytest.mark.parametrize("owner", [None, _ME])
def test_between_trials_ones_own_and_those_of_nobody_are_gone(owner: Owner | None) -> None:
    assert Watch(_ME).is_gone(_trial(owner))


def test_a_worker_elsewhere_is_gone_when_it_has_stood_still_for_the_grace_period() -> None:
    now = 0.0
    watch = Watch(_ME, clock=lambda: now)
    for beat in range(5):  # however slowly it beats
        assert not watch.is_gone(_trial(_ELSEWHERE, beat))
        now += RHYTHM.grace_s - 1
        assert not watch.is_gone(_trial(_ELSEWHERE, beat))
    now += 2
    assert watch.is_gone(_trial(_ELSEWHERE, 4))
    assert not watch.is_gone(_trial(_ELSEWHERE, 5)), "a late sign of life is one"


def test_nobody_is_gone_at_first_sight_whatever_the_clocks_say() -> None:
    assert not Watch(_ME, clock=lambda: 1e9).is_gone(_trial(_ELSEWHERE))


def test_a_worker_gives_up_before_others_take_its_trial() -> None:
    assert RHYTHM.beat_s < RHYTHM.give_up_s < RHYTHM.grace_s


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _heart(write: Callable[[int, int], Any], clock: _Clock) -> Heart:
    return Heart(write, rhythm=Rhythm(beat_s=0.01), clock=clock)


def test_a_heart_beats_for_its_trial_until_it_rests() -> None:
    beats: list[tuple[int, int]] = []
    heart = _heart(lambda *beat: beats.append(beat), _Clock())
    heart.beat_for(7)
    _until(lambda: len(beats) >= 3)
    heart.beat_for(8)
    _until(lambda: (8, 2) in beats)
    heart.rest()
    assert beats[:3] == [(7, 1), (7, 2), (7, 3)]
    time.sleep(0.05)
    n_beats = len(beats)
    time.sleep(0.1)
    assert len(beats) == n_beats
    assert not heart.is_lost()


def test_a_locked_database_does_not_end_the_signs_of_life() -> None:
    tries: list[int] = []
    clock = _Clock()

    def write(_: int, count: int) -> None:
        tries.append(count)
        if count < 4:
            raise StorageInternalError("database is locked")

    heart = _heart(write, clock)
    heart.beat_for(1)
    _until(lambda: len(tries) >= 4)
    assert not heart.is_lost()
    heart.rest()


def test_a_worker_that_is_not_heard_for_too_long_has_lost_its_trial() -> None:
    clock = _Clock()

    def write(*_: int) -> None:
        raise StorageInternalError("server closed the connection")

    heart = _heart(write, clock)
    heart.beat_for(1)
    assert not heart.is_lost()
    clock.now = RHYTHM.give_up_s + 1
    assert heart.is_lost()
    heart.rest()
    assert heart.is_lost(), "still known when the trial has been closed"
    heart.beat_for(2)
    assert not heart.is_lost()
    heart.rest()


def test_a_trial_that_another_worker_has_ended_is_lost() -> None:
    def write(*_: int) -> None:
        raise UpdateFinishedTrialError("trial 1 has finished")

    heart = _heart(write, _Clock())
    heart.beat_for(1)
    _until(heart.is_lost)
    heart.rest()
