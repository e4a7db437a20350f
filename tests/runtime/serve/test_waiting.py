"""The line of requests is bounded and fair."""

from __future__ import annotations

import threading

from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.serve.job import Conversation, Job
from divprune_edge.runtime.serve.waiting import FairQueue


def job(client: str) -> Job:
    return Job(Conversation((), None, Decoding()), client, 0.0, lambda event: None)


def test_clients_take_turns_however_many_each_has_sent() -> None:
    line = FairQueue()
    first = [job("a") for _ in range(3)]
    later = [job("b"), job("c")]
    for one in (*first, *later):
        assert line.put(one, full=False) is None
    assert [line.get() for _ in range(5)] == [first[0], later[0], later[1], first[1], first[2]]


def test_where_it_is_full_the_greediest_gives_way() -> None:
    line = FairQueue()
    greedy = [job("a") for _ in range(3)]
    for one in greedy:
        line.put(one, full=False)
    assert line.put(other := job("b"), full=True) is greedy[2]
    assert len(line) == 3
    assert line.put(more := job("a"), full=True) is more
    assert [line.get() for _ in range(3)] == [greedy[0], other, greedy[1]]


def test_no_one_gives_way_to_one_who_has_as_many() -> None:
    line = FairQueue()
    line.put(job("a"), full=False)
    assert line.put(other := job("b"), full=True) is other
    assert line.put(again := job("c"), full=True) is again


def test_a_job_can_leave_and_the_line_can_close() -> None:
    line = FairQueue()
    line.put(one := job("a"), full=False)
    assert line.remove(one)
    assert not line.remove(one)
    found: list[Job | None] = []
    waiter = threading.Thread(target=lambda: found.append(line.get()))
    waiter.start()
    line.close()
    waiter.join()
    assert found == [None]
    assert line.put(late := job("a"), full=False) is late
