import threading
from datetime import timedelta

import pytest

from maskshards.train.distributed.bounded_wait import NotInTimeError, in_time, plain_words

SOON, LATE = timedelta(seconds=0.05), timedelta(seconds=600)


def test_an_answer_comes_back_also_if_it_is_none_and_an_error_as_it_is() -> None:
    assert in_time(lambda: 3, LATE) == 3
    assert in_time(lambda: None, LATE) is None
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, LATE)


def test_work_that_never_answers_is_left_and_what_looks_may_end_the_wait() -> None:
    never, looks = threading.Event(), []
    with pytest.raises(NotInTimeError, match="no answer within"):
        in_time(never.wait, SOON, lambda: looks.append(1))
    assert looks == [1]
    with pytest.raises(ConnectionError, match="rank 1 is lost"):
        in_time(never.wait, LATE, lambda: (_ for _ in ()).throw(ConnectionError("rank 1 is lost")).send(None))
    never.set()


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed", "Connection closed"),
        ("[enforce fail at ../gloo/transport/tcp/device.cc:84] ifa != nullptr. no", "ifa != nullptr. no"),
        ("wait timeout after 2 ms\nException raised from f at /x.cpp:1\nframe #0", "wait timeout after 2 ms"),
        ("Connection closed. This is typically caused by a remote worker. GLHF!", "Connection closed."),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_words_of_torch_lose_their_places_and_frames(told: str, plain: str) -> None:
    assert plain_words(RuntimeError(told)) == plain
