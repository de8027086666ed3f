"""How far a share is, as it is written down."""

from unittest.mock import Mock

import pytest

from dispytch_sqlite.delivery import Share, SQLiteDelivery


@pytest.fixture
def share() -> Share:
    """Of five events that were delivered, 1 to 5, none is settled."""
    share = Share(Mock(), "orders", 0, 0, cursor=1, epoch=1)
    share.position = 5
    for seq in range(1, 6):
        SQLiteDelivery(share, seq, "orders", b"", "42", (), 1)
    return share


def test_a_mark_lists_what_is_open_before_the_last_one_settled(share: Share) -> None:
    """What lies beyond needs no list, as nothing of it is done: to the next owner it is new."""
    share.let_go(share.held[3])
    assert (share.mark.position, share.mark.open) == (3, [(1, 1), (2, 1)])
    share.let_go(share.held[1])
    assert (share.mark.position, share.mark.open) == (3, [(2, 1)])
    share.let_go(share.held[5])
    assert (share.mark.position, share.mark.open) == (5, [(2, 1), (4, 1)])


def test_a_share_that_is_left_tells_what_was_delivered(share: Share) -> None:
    """The next owner delivers again, as the second time, all that was not settled."""
    share.let_go(share.held[2])
    share.lose()
    assert (share.mark.position, share.mark.open) == (5, [(1, 1), (3, 1), (4, 1), (5, 1)])
