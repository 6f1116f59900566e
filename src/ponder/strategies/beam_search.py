"""Step-level beam search: the best beginnings are kept, and each goes on in several ways.

    B_0 = n first steps;   B_{t+1} = { y + s_j : y in top_k(B_t; r), s_j ~ p(s | x, y), j = 1..w },  k = n / w

with r the value of a beginning by a verifier that scores steps, its latest step (`last`) unless told
otherwise. A beam that has answered keeps its place; the answer is that of the highest value among those.
All under one budget: as it runs low fewer beams go on, and the last tokens are for the best one's answer.

Sources: Snell et al., Scaling LLM Test-Time Compute Optimally (2024), section 5.1 and appendix E;
Xie et al., Self-Evaluation Guided Beam Search for Reasoning (2023).
"""

from __future__ import annotations

from ponder.protocols import Strategy, Verifier
from ponder.strategies.best_of_n import Aggregate
from ponder.strategies.defaults import checked_arithmetic
from ponder.strategies.tree import Tree, check_shape, distinct, ranked, search_strategy


def beam_search(
    n: int = 4,
    width: int = 2,
    verifier: Verifier | None = None,
    *,
    aggregate: Aggregate = "last",
    step: int = 64,
    steps: int = 40,
) -> Strategy:
    """`n` beams, of which the n / `width` best go on in `width` ways each after every step.

    A step is a line, or `step` tokens of one; `steps` bounds how many there are before the best beam has to
    end. Without a verifier, the arithmetic of the steps is checked. `aggregate` as for `best_of_n`.
    """
    check_shape(n, width, step, steps)

    async def search(tree: Tree) -> None:
        beams = await tree.begin(n)
        for _ in range(steps):
            await tree.score(beams)
            places = n // width - sum(branch.answered for branch in tree.branches)
            kept = distinct(ranked(branch for branch in beams if not branch.over))[: max(0, places)]
            fits = tree.fits() // width
            tree.drop(branch for branch in beams if branch not in kept[: max(1, fits)])
            if not kept or fits < 1 or tree.ending:
                return
            families = await tree.grow(kept[:fits], width)
            beams = [branch for family in families for branch in family]
        await tree.score(beams)

    return search_strategy(f"beam_search({n}, {width})", search, verifier or checked_arithmetic(), aggregate, step)
