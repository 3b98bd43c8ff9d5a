"""Whom the records of all ranks blame, and when."""

from dataclasses import replace

from maskshards.train.distributed.lost_ranks import DONE, Record, Watch, elsewhere, ended_words, failed, named


def sign(beat: int, step: int = 5, doing: str = "computing", since_s: float = 0.0, ended: str = "") -> Record:
    return Record(beat, step, doing, since_s, ended)


def test_ranks_that_move_are_left_in_peace() -> None:
    watch = Watch()
    for second in range(0, 600, 2):
        assert (
            watch.changes({0: sign(second), 1: sign(second, doing="waiting for data")}, float(second)) == ""
        )


def test_a_silent_rank_is_named_once_and_again_after_twice_the_time() -> None:
    watch, said = Watch(), {}
    for second in range(0, 400, 2):
        warning = watch.changes({0: sign(second), 1: sign(min(second, 10), step=7)}, float(second))
        if warning:
            said[second] = warning
    assert list(said) == [70, 130, 250]
    assert said[70] == "no sign of life for 60 s from rank 1 (last heard in step 7, computing for 0 s)"


def test_who_keeps_the_others_waiting_is_named_although_it_lives() -> None:
    signs = {rank: sign(1, since_s=61.0) for rank in range(4)}
    signs[2] = sign(1, doing="waiting for data", since_s=62.0)
    assert Watch().changes(signs, 0.0) == (
        "no step for 61 s: rank 2 (last heard in step 5, waiting for data for 62 s); 3 at step 5, computing"
    )


def test_ranks_that_do_the_same_for_long_are_no_news() -> None:
    signs = {rank: sign(1, doing="evaluating", since_s=900.0) for rank in range(4)}
    assert Watch().changes(signs, 0.0) == ""


def test_many_ranks_are_counted() -> None:
    said = named({rank: sign(1) for rank in range(20)})
    assert said.endswith("rank 7 (last heard in step 5, computing for 0 s) and 12 more")


def test_an_error_of_its_own_comes_before_those_who_waited_for_it() -> None:
    waited = Record(3, 5, "computing", 0.0, ended="LostRankError: ended: rank 2 (...)")
    own = Record(3, 5, "saving", 0.0, ended="OSError: disk")
    assert failed({0: waited, 1: sign(4), 2: own}) == {2: own}
    assert failed({0: waited, 1: sign(4)}) == {0: waited}
    assert ended_words({2: own}) == "ended: rank 2 (in step 5, saving: OSError: disk)"
    assert ended_words({0: waited}) == "ended: rank 2 (...)"  # not that rank 0 ended for it


def test_who_has_only_just_come_to_its_place_blames_nobody() -> None:
    waiting, stuck = Record(3, 5, "computing", 100.0), Record(3, 5, "waiting for data", 100.0)
    assert elsewhere({0: waiting, 1: stuck, 2: waiting}, 0) == {1: stuck}
    assert elsewhere({0: Record(3, 5, "computing", 1.0), 1: stuck}, 0) == {}
    assert elsewhere({0: waiting, 1: Record(3, 5, "saving", 100.0, ended="LostRankError")}, 0) == {}


def watched(seconds: int, **last: Record) -> str:
    """The first verdict within `seconds` of two ranks that write every 2 s; `last`: what they say from the
    first second on, with `since_s` as it grows. A rank whose record has beat 0 is silent.
    """
    watch = Watch()
    for second in range(0, seconds, 2):
        records = {
            rank: one if one.ended or not one.beat else replace(one, beat=second + 1, since_s=float(second))
            for rank, one in enumerate(last.values())
        }
        if said := watch.verdict(records, float(second)):
            return f"{second}: {said}"
    return ""


WAITS = Record(1, 5, "computing", 0.0, waits=True, patience_s=100.0)


def test_who_lives_and_is_waited_for_too_long_is_named_after_its_patience() -> None:
    stuck = Record(1, 5, "waiting for data", 0.0, patience_s=100.0)
    assert watched(400, a=WAITS, b=stuck) == (
        "100: no progress of rank 1 (last heard in step 5, waiting for data for 100 s)"
    )
    assert watched(400, a=stuck, b=WAITS).startswith("100: no progress of rank 0")
    patient = replace(stuck, doing="starting", patience_s=300.0)
    assert watched(400, a=WAITS, b=patient).startswith("300: no progress of rank 1 (last heard in step 5, st")


def test_who_is_silent_for_too_long_is_named_wherever_it_was() -> None:
    silent = Record(0, 5, "computing", 3.0, waits=True, patience_s=100.0)
    assert watched(400, a=WAITS, b=silent) == (
        "100: no sign of life from rank 1 (last heard in step 5, computing for 3 s)"
    )


def test_who_fell_silent_at_the_start_is_not_given_the_time_of_a_start() -> None:
    watch, silent = Watch(50.0), Record(0, 0, "starting", 3.0, patience_s=300.0)
    for second in range(0, 50, 2):
        waits = replace(WAITS, beat=second + 1, since_s=float(second))
        assert watch.verdict({0: waits, 1: silent}, float(second)) == ""
    said = watch.verdict({0: replace(WAITS, beat=99, since_s=50.0), 1: silent}, 50.0)
    assert said == "no sign of life from rank 1 (last heard in step 0, starting for 3 s)"


def test_nobody_is_blamed_while_nobody_waits_or_all_do() -> None:
    stuck = Record(1, 5, "waiting for data", 0.0, patience_s=100.0)
    assert watched(4000, a=stuck, b=replace(stuck, step=6)) == ""
    assert watched(4000, a=WAITS, b=WAITS) == ""
    silent = Record(0, 5, "computing", 3.0, waits=True, patience_s=100.0)
    assert watched(4000, a=stuck, b=silent) == ""


def test_the_error_of_a_rank_ends_the_others_soon() -> None:
    stuck = Record(1, 5, "waiting for data", 0.0, patience_s=100.0)
    failed_rank = Record(3, 5, "saving", 0.0, ended="OSError: disk")
    assert watched(400, a=stuck, b=failed_rank) == "30: ended: rank 1 (in step 5, saving: OSError: disk)"
    assert watched(400, a=WAITS, b=Record(3, 5, "saving", 0.0, ended=DONE)) == ""


def test_who_waits_is_blamed_last() -> None:
    own = Record(3, 5, "saving", 100.0, waits=True)
    saving = Record(3, 5, "saving", 100.0)
    assert elsewhere({0: saving, 1: own, 2: own}, 1) == {0: saving}
    late = Record(3, 4, "computing", 100.0, waits=True)
    assert elsewhere({0: saving, 1: own, 2: late}, 1) == {0: saving}
    assert elsewhere({1: own, 2: late}, 1) == {2: late}
