"""Work that is shared out to processes of one machine, which end with the program that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from common import signals

Task, Result = TypeVar("Task"), TypeVar("Result")
Work = Callable[[Task, Callable[[], bool]], Result]

_stop: Event | None = None  # of this process, if it is a worker


def in_processes(work: Work, tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results of `work(task, stopped)`, as they come; with one worker in this process.

    `stopped()` becomes true when the results are not wanted any more, because of a signal or an error: then `work` may
    raise what it likes.

    Raises:
        OSError: a worker was killed.
        What `work` raises.
    """
    if workers <= 1:
        yield from (work(task, _never) for task in tasks)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # forked ones would have locks of threads that are not there
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(stop,))
    waiting: set[Future] = set()
    try:
        for task in tasks:
            with signals.held_back():
                waiting.add(pool.submit(_run, work, task))
            if len(waiting) > workers:  # one task is ready when a worker is
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps because memory ran out; start again to go on, with fewer workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _never() -> bool:
    return False


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop
    signals.obey_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    with contextlib.suppress(OSError):
        wait_for([parent.sentinel])  # a killed parent tells its workers nothing
    os._exit(1)


def _run(work: Work, task: Any) -> Any:
    return work(task, _stop.is_set)
