"""Diverse verifier tree search: several beam searches of their own, none of which crowds out another.

    n / w subtrees;  in each:  y_{t+1} = argmax_j r(y_t + s_j),  s_j ~ p(s | x, y_t),  j = 1..w

The best child of each subtree goes on, whatever the others are worth, so the beginnings stay different.
The answer is that of the highest value over all subtrees.

Source: Beeching, Tunstall and Rush, Scaling Test-Time Compute with Open Models (2024), "DVTS".
"""

from __future__ import annotations

from ponder.protocols import Strategy, Verifier
from ponder.strategies.best_of_n import Aggregate
from ponder.strategies.defaults import checked_arithmetic
from ponder.strategies.tree import Branch, Tree, check_shape, ranked, search_strategy


def diverse_tree_search(
    n: int = 4,
    width: int = 2,
    verifier: Verifier | None = None,
    *,
    aggregate: Aggregate = "last",
    step: int = 64,
    steps: int = 40,
) -> Strategy:
    """n / `width` subtrees, in each of which the best of `width` next steps is taken. Settings as of `beam_search`."""
    check_shape(n, width, step, steps)

    async def search(tree: Tree) -> None:
        heads = await tree.begin(n // width)
        await tree.score(heads)
        for _ in range(steps):
            growing = ranked(branch for branch in heads if not branch.over)
            fits = tree.fits() // width
            tree.drop(growing[max(1, fits) :])
            if not growing or fits < 1 or tree.ending:
                return
            families = await tree.grow(growing[:fits], width)
            await tree.score([branch for family in families for branch in family])
            heads = [_head(tree, family) for family in families if family]

    return search_strategy(
        f"diverse_tree_search({n}, {width})", search, verifier or checked_arithmetic(), aggregate, step
    )


def _head(tree: Tree, family: list[Branch]) -> Branch:
    """The best child, which may have answered already; the others end here."""
    head, *others = ranked(family)
    tree.drop(others)
    return head
