"""Pictures prepared in threads: order, faults at their place, how far ahead, and what a pass waits for."""

from __future__ import annotations

import threading

import cv2
import pytest

from jseg.data import decode
from jseg.data.decode import quiet_opencv, tell_of_decoding
from jseg.engine.prepare import PreparedPictures

SECONDS = 20  # nothing here waits so long unless it is broken


def test_results_and_faults_come_in_order_and_two_at_most_ahead():
    asked, seen, threads = [-1], [], set()

    def prepare(place):
        seen.append((place, asked[0]))
        threads.add(threading.current_thread())
        if place % 5 == 3:
            raise ValueError(f"place {place}")
        return place * place

    with PreparedPictures(prepare, 12) as pictures:
        for place in range(12):
            asked[0] = place
            if place % 5 == 3:
                with pytest.raises(ValueError, match=f"place {place}$"):
                    pictures.get(place)
            else:
                assert pictures.get(place) == place * place
            if place == 1:
                assert threads == {threading.current_thread()}, "no thread before the first pass"
            if place >= 1:
                pictures.settle()
    assert sorted(place for place, _ in seen) == list(range(12)), "each once"
    assert all(place - ahead <= 2 for place, ahead in seen) and len(threads) > 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jseg-pictures")]


def test_one_thread_takes_a_stream_in_order_to_its_end():
    frames = iter(range(40))
    with PreparedPictures(lambda _: next(frames, None), threads=1) as pictures:
        found = []
        for place in range(41):
            found.append(pictures.get(place))
            pictures.settle()
    assert found == [*range(40), None]


def test_a_pass_begins_when_the_threads_decode_not_when_they_are_done():
    decodes, decoded, settled = threading.Event(), threading.Event(), threading.Event()

    def prepare(place):
        if place != 1:
            return place
        assert decodes.wait(SECONDS)
        tell_of_decoding()
        assert decoded.wait(SECONDS)
        return place

    with PreparedPictures(prepare, 2) as pictures:
        pictures.settle()
        pictures.get(0)
        waiting = threading.Thread(target=lambda: (pictures.settle(), settled.set()))
        waiting.start()
        assert not settled.wait(0.05), "the thread has not come to its decoder"
        decodes.set()
        assert settled.wait(SECONDS)
        waiting.join()
        decoded.set()
        assert pictures.get(1) == 1


def test_what_nobody_asked_for_is_dropped_at_the_end():
    with pytest.raises(KeyboardInterrupt):
        with PreparedPictures(lambda place: place, 1000) as pictures:
            pictures.settle()
            pictures.get(0)
            raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jseg-pictures")]


def test_opencv_stays_quiet_until_the_last_thread_is_done(monkeypatch):
    levels = [3]

    def set_level(level):
        levels.append(level)
        return levels[-2]

    monkeypatch.setattr(cv2, "setLogLevel", set_level, raising=False)
    first, second = quiet_opencv(), quiet_opencv()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert levels[-1] == 0
    second.__exit__(None, None, None)
    assert levels[-1] == 3 and not decode._quiet_bodies
