"""Steps captured as CUDA graphs: one launch for what takes hundreds.

A graph is bound to its shapes, so there is one for each bucket of rows and of reach; a step runs in the smallest
bucket that holds it. The lanes beyond the living ones have ended, and a step changes nothing of an ended lane; so
running a step for real before capturing it does no harm either, once all lanes are marked as ended for that while.

The graphs read the weights where they live. Where `refresh` moved any, they are captured again.
"""

from __future__ import annotations

import torch

from ponder.engine.torch_decoder import ROUND
from ponder.engine.torch_lanes import STOP, Lanes


def rows_bucket(rows: int, slots: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, ...: at most a third of a bucket is empty."""
    size = 1
    while size < rows:
        size = size * 4 // 3 if size & (size - 1) and size > 1 else max(size + 1, size * 3 // 2)
    return min(size, slots)


def reach_bucket(reach: int, context: int) -> int:
    """A block, two, three, four, and so on as rows are counted."""
    blocks = -(-context // ROUND)
    return rows_bucket(-(-reach // ROUND), blocks) * ROUND


class Graphs:
    """`Lanes.step`, captured. Call it as that."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._addresses = lanes.decoder.addresses()

    def __call__(self, rows: int, reach: int) -> None:
        """One more token for the first `rows` lanes."""
        if (addresses := self._lanes.decoder.addresses()) != self._addresses:
            self._graphs, self._addresses = {}, addresses
        decoder = self._lanes.decoder
        bucket = rows_bucket(rows, decoder.slots), reach_bucket(reach, decoder.context)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._captured(*bucket)
        self._graphs[bucket].replay()

    def _captured(self, rows: int, reach: int) -> torch.cuda.CUDAGraph:
        finish = self._lanes.finish.clone()
        self._lanes.finish.fill_(STOP)
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):  # libraries set themselves up, kernels are compiled
                self._lanes.step(rows, reach)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._lanes.step(rows, reach)
        self._lanes.finish.copy_(finish)
        return graph
