"""What ranks say of one that is dead, stopped or gone while all of them join."""

import signal
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from maskshards.train.distributed import connect as module
from maskshards.train.distributed import heartbeat, lost_ranks
from maskshards.train.distributed.connect import appear, connect
from maskshards.train.distributed.heartbeat import Heartbeat
from maskshards.train.distributed.launch import Launch
from maskshards.train.distributed.lost_ranks import LostRankError
from tests.train.launch import free_port, ranks_of

SOON = timedelta(seconds=0.3)


class Gone(dist.HashStore):
    """As a TCPStore whose server has ended."""

    def set(self, key: str, value: str) -> None:
        raise dist.DistNetworkError("[/pytorch/TCPStore.cpp:1] Broken pipe\nframe #0: in C++")


def test_a_store_that_goes_before_all_have_met_is_told_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_store", lambda *_: Gone())
    with pytest.raises(ConnectionError, match=r"^rank 1 of 2: the launch's store.* logs \(Broken pipe\)$"):
        appear(Launch(1, 2, 1, "127.0.0.1", free_port()), {}, SOON, 10.0)


def test_a_store_that_takes_questions_and_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FAREWELL_TIMEOUT", timedelta(0))
    monkeypatch.setattr(module, "open_store", lambda *_: dist.HashStore())
    monkeypatch.setattr(module, "meet", lambda *_: heartbeat.pause(600))
    with pytest.raises(ConnectionError, match=r"^rank 1 of 2 got no answer from rank 0 at .*stopped"):
        appear(Launch(1, 2, 1, "127.0.0.1", 5), {}, SOON, 10.0)


def test_tasks_that_nobody_started_are_told_how_to_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_store", lambda *_: dist.HashStore())
    words = r"^ranks \[1\] of 2 did not appear .* up"
    with pytest.raises(ConnectionError, match=words + "$"):
        appear(Launch(0, 2, 0, "127.0.0.1", 5), {}, SOON, 10.0)
    with pytest.raises(ConnectionError, match=words + r" \(SLURM_STEP_ID .*unset SLURM_STEP_ID to run alone"):
        appear(Launch(0, 2, 0, "127.0.0.1", 5, slurm=True), {}, SOON, 10.0)


def test_an_address_that_cannot_be_reached_is_told_without_the_words_of_gloo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:144] Connection refused")

    monkeypatch.setattr(dist, "init_process_group", refused)
    beat = silent_beat(monkeypatch)
    with pytest.raises(LostRankError, match=r"rank 1 of 2 met all others, .* other: Connection refused$"):
        connect(dist.HashStore(), beat, "gloo", SOON, SOON, SOON)


def silent_beat(monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    """Rank 1 of 2, which tells nobody."""
    monkeypatch.setattr(Heartbeat, "_write", lambda self: None)
    beat = Heartbeat.__new__(Heartbeat)
    beat.rank, beat.num_ranks, beat.verdict, beat.patience_s = 1, 2, "", 10.0
    beat._host = "gpu01"
    beat._clock = heartbeat.RunningClock()
    beat._place = lost_ranks.Record(0, 0, "starting", 0.0)
    return beat


def test_groups_of_a_gpu_are_built_on_the_gpu_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA keeps the current device by thread, and the groups are built in a thread of their own."""
    used = threading.local()
    devices: list[int] = []
    used.device = 3
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(used, "device", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(used, "device", device))
    monkeypatch.setattr(
        dist, "init_process_group", lambda *_, **__: devices.append(torch.cuda.current_device())
    )
    monkeypatch.setattr(dist, "new_group", lambda **_: "hosts")
    beat = silent_beat(monkeypatch)
    wait = timedelta(seconds=30)
    assert connect(dist.HashStore(), beat, "cpu:gloo,cuda:nccl", wait, wait, wait) == "hosts"
    assert devices == [3]


# Rank 1 dies, is stopped or fails at a place of its joining.
DIES = """
import os, signal, sys
from datetime import timedelta
import torch.distributed as dist
from maskshards.train.distributed import connect, lost_ranks, ranks
lost_ranks.BEAT_S = 0.2
number, (owner, name) = int(sys.argv[1]), {
    "store": (connect, "meet"), "beat": (connect, "Heartbeat"), "group": (dist, "init_process_group"),
    "hosts": (dist, "new_group"),
}[sys.argv[2]]
whole = getattr(owner, name)
def dies(*words, **named):
    os.kill(os.getpid(), number)
    return whole(*words, **named)
if os.environ["RANK"] == sys.argv[3]:
    setattr(owner, name, dies)
try:
    with ranks.joined(step_timeout=timedelta(seconds=600), join_timeout=timedelta(seconds=6)):
        pass
except ConnectionError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    ("place", "rank", "said"),
    [
        ("store", 1, "ranks [1] of 3 did not appear within 6 s"),
        ("beat", 1, "no sign of life from rank 1 (last heard in step 0, starting for 0 s)"),
        ("group", 1, "no sign of life from rank 1 (last heard in step 0, "),
        ("hosts", 1, "no sign of life from rank 1 (last heard in step 0, "),
        ("store", 0, "rank {rank} of 3"),
        ("hosts", 0, "no answer from rank 0 at 127.0.0.1, with which the launch's store lives"),
    ],
)
def test_a_rank_that_is_lost_while_all_join_is_named_on_the_others(
    number: signal.Signals, place: str, rank: int, said: str
) -> None:
    with ranks_of(["-c", DIES, str(int(number)), place, str(rank)], 3) as members:
        others = [one for one in range(3) if one != rank]
        heard = {one: members[one].communicate(timeout=900)[1] for one in others}
        for one, words in heard.items():
            assert members[one].returncode in (1, 2), words
            assert "Traceback" not in words
            assert words.splitlines()[-1].startswith(f"error: {said.format(rank=one)}"), words
