"""The threads on which the controller's questions wait for Ray and for object stores, in place of its loop."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Threads:
    """Each kind of question has its own: many jobs that start at once, each for a while, keep the controller neither from seeing
    that Ray lives nor from hearing of the jobs that run; nor does an object store that hangs."""

    def __init__(self) -> None:
        self.looks = ThreadPoolExecutor(max_workers=3, thread_name_prefix="look")
        """At the cluster: its nodes, and what the autoscaler does and is told; one of each at a time."""
        self.starts = ThreadPoolExecutor(max_workers=16, thread_name_prefix="start")
        self.asks = ThreadPoolExecutor(max_workers=16, thread_name_prefix="ask")
        """Of supervisors."""
        self.results = ThreadPoolExecutor(max_workers=16, thread_name_prefix="result")
        """From object stores, which may keep silent for minutes."""
        self.releases = ThreadPoolExecutor(max_workers=16, thread_name_prefix="release")
