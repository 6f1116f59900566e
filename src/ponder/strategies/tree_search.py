"""Monte-Carlo tree search over steps of thought: go where it was good, and where it was seldom looked.

    select   child c of node s with the highest  Q(c) + c_u sqrt(ln N(s) / N(c))      (UCT)
    expand   `width` next steps  s_j ~ p(s | x, y)
    value    r(x, y + s_j) by a verifier that scores steps; with `rollouts`, of a whole answer from there on
    back up  N += 1, Q += (value - Q) / N, from the child up to the root

until `simulations` are done or what is left of the budget is for one answer alone. The answer is that of the
highest value among all that were reached, rollouts included; where there is none, the best leaf goes on to its end.

Sources: Kocsis and Szepesvári, Bandit Based Monte-Carlo Planning (2006), for UCT; Hao et al., Reasoning with
Language Model is Planning with World Model (2023), section 3.2, for steps of thought as moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ponder.protocols import Strategy, Verifier
from ponder.strategies.best_of_n import Aggregate
from ponder.strategies.defaults import checked_arithmetic
from ponder.strategies.tree import Branch, Tree, distinct, search_strategy


@dataclass(eq=False)
class Node:
    """A beginning, and what came of it."""

    branch: Branch
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0

    @property
    def open(self) -> bool:
        """There is something here that can still grow."""
        return any(child.open for child in self.children) if self.children else not self.branch.over

    def back_up(self, value: float) -> None:
        node: Node | None = self
        while node is not None:
            node.visits += 1
            node.value += (value - node.value) / node.visits
            node = node.parent


def tree_search(
    simulations: int = 16,
    width: int = 2,
    verifier: Verifier | None = None,
    *,
    aggregate: Aggregate = "last",
    exploration: float = 1.0,
    rollouts: bool = False,
    step: int = 64,
) -> Strategy:
    """At most `simulations` expansions of `width` children each.

    `exploration` is c_u above, for values between 0 and 1. Without a verifier, the arithmetic of the steps is
    checked. `rollouts` values a step by an answer sampled from there on: for a verifier of answers alone.
    """
    if simulations < 1 or width < 1:
        raise ValueError(f"simulations and width must be at least 1, not {simulations} and {width}")
    if exploration < 0:
        raise ValueError(f"exploration must be at least 0, not {exploration}")
    if step < 1:
        raise ValueError(f"step must be at least 1, not {step}")

    async def search(tree: Tree) -> None:
        root = Node(tree.root)
        for _ in range(simulations):
            # One answer stays possible until there is one.
            kept = tree.answer_tokens if tree.best is None else 0
            fits = tree.fits(kept)
            if not root.open or fits < 1 or tree.ending:
                return
            leaf = _selected(root, exploration)
            (children,) = await tree.grow([leaf.branch], min(width, fits), kept)
            moves = distinct(children)
            tree.drop(branch for branch in children if branch not in moves)
            leaf.children = [Node(branch, leaf) for branch in moves]
            await tree.score(moves)
            for child in leaf.children:
                child.back_up(await tree.rollout(child.branch) if rollouts else child.branch.value)
            if not leaf.children:
                leaf.branch.over = True

    judge = verifier or checked_arithmetic()
    return search_strategy(f"tree_search({simulations}, {width})", search, judge, aggregate, step)


def _selected(root: Node, exploration: float) -> Node:
    """The leaf to expand: down from the root along the highest upper bound."""
    node = root
    while node.children:
        visits = math.log(max(1, node.visits))
        node = max(
            (child for child in node.children if child.open),
            key=lambda child: child.value + exploration * math.sqrt(visits / max(1, child.visits)),
        )
    return node
