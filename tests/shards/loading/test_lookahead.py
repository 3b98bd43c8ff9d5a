"""What is prepared in advance comes once, in its turn, and so do errors."""

from collections.abc import Iterator

import pytest

from maskshards.shards.loading.lookahead import Lookahead


def test_every_batch_comes_once_in_its_turn() -> None:
    at_hand = [True]
    ahead = Lookahead(iter([1, 2, 3]), str, lambda: at_hand[0])
    assert next(ahead) == 1
    ahead.meanwhile()
    ahead.meanwhile()  # one batch ahead, however often it is asked
    assert next(ahead) == "2"
    at_hand[0] = False
    ahead.meanwhile()
    assert next(ahead) == 3
    at_hand[0] = True
    ahead.meanwhile()
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_of_the_next_batch_is_raised_in_its_turn() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("shard 7")

    ahead = Lookahead(broken(), str, lambda: True)
    assert next(ahead) == 1
    ahead.meanwhile()
    with pytest.raises(OSError, match="shard 7"):
        next(ahead)
