"""Early exit: thinking ends as soon as the answer has settled.

Every `every` tokens of thinking a probe looks what the answer would be now: a fork closes the thinking and
answers in a few tokens, which are charged as `probe`.

    exit at the first probe t with   canonical(a_t) = canonical(a_{t-1}) = ... = canonical(a_{t-m+1})

for m = `settled` probes in a row. The probe that settles it is the answer, so nothing is said twice; where none
does, thinking ends by itself or by the budget.

Sources: Fu et al., Efficiently Scaling LLM Reasoning with Certaindex (2024), section 4 (probing in the middle of
thinking); Yang et al., Dynamic Early Exit in Reasoning Models (2025).
"""

from __future__ import annotations

from ponder.protocols import Strategy
from ponder.strategies.defaults import Canonical, canonical_answers
from ponder.strategies.tree import Branch, Tree, search_strategy


def early_exit(every: int = 32, settled: int = 2, *, probe: int = 16, canonical: Canonical | None = None) -> Strategy:
    """One chain of thought that is probed every `every` tokens, in at most `probe` tokens beside the closing marker.

    `settled`: so many probes in a row have to agree. `canonical` as of `self_consistency`.
    """
    for name, value in (("every", every), ("settled", settled), ("probe", probe)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")

    async def search(tree: Tree) -> None:
        same = canonical or canonical_answers()
        answers: list[str | None] = []
        probing = tree.probe_tokens(probe)
        while not tree.root.over and tree.fits(probing) >= 1 and not tree.ending:
            await tree.grow([tree.root], 1, kept=probing)
            if tree.root.over or tree.left < probing + tree.answer_tokens or tree.ending:
                break
            found = await tree.probe(tree.root, probe)
            answers.append(same(found.draft.answer) if found.answered else None)
            if _settled(answers, settled):
                tree.adopt(found)
                return
            tree.drop([found])
        await _ended(tree, tree.root)

    return search_strategy(f"early_exit({every}, {settled})", search, None, "value", every, line="")


def _settled(answers: list[str | None], settled: int) -> bool:
    last = answers[-settled:]
    return len(last) == settled and last[0] is not None and len(set(last)) == 1


async def _ended(tree: Tree, branch: Branch) -> None:
    """No probe settled it: the thinking itself comes to its end."""
    if branch.answered:
        tree.adopt(branch)
    elif not branch.over and not tree.limits.stopped:
        await tree.finish(branch)
