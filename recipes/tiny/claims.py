"""What this recipe claims, checked on its results, and the table of its README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KEPT = 0.8
"""The share of its teacher's gain that the student keeps at the least."""
RISEN = 0.05
"""How much the mean reward of the last quarter of the steps lies above that of the first."""


class Claim(NamedTuple):
    """A sentence, and whether the results bear it out."""

    says: str
    holds: bool


def checked(found: Mapping[str, Any]) -> list[Claim]:
    """Every claim. Differences are paired by question; one holds where its 95% interval lies above 0."""
    reward, differences, kept = found["reward"], found["differences"], found["kept"]
    claims = [
        Claim(
            f"the reward rises in training: {reward['first']:.2f} to {reward['last']:.2f}",
            reward["last"] - reward["first"] >= RISEN,
        )
    ]
    for name, says in {
        "reinforced over cold start": "reinforcement learning raises the accuracy of samples on new chains",
        "thinking over direct": "thinking beats answering at once",
        "judge over vote": "the process reward model beats the majority",
    }.items():
        claims.append(Claim(f"{says}: {points(differences[name])} points", differences[name]["low"] > 0))
    rising = found["budgets"]
    told = ", ".join(points(each) for each in rising)
    claims.append(
        Claim(f"each larger budget for thinking buys accuracy: {told} points", all(each["low"] > 0 for each in rising))
    )
    share = f"{kept['value']:.0%} [{kept['low']:.0%}, {kept['high']:.0%}]" if kept else "nothing"
    return [*claims, Claim(f"the student keeps {share} of its teacher's gain", kept.get("value", 0.0) >= KEPT)]


def points(found: Mapping[str, float]) -> str:
    """+12.0 [+8.1, +15.9]"""
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


BEGIN, END = "<!-- results -->", "<!-- end of the results -->"


def report(found: Mapping[str, Any]) -> str:
    """The table, the claims and the time, in Markdown."""
    said = [f"- {'holds' if claim.holds else '**fails**'}: {claim.says}" for claim in checked(found)]
    took = dict(found["seconds"])
    whole, cores = took.pop("all", sum(took.values())), took.pop("of a core", None)
    each = ", ".join(f"{name} {value:.0f}" for name, value in took.items())
    busy = "" if cores is None else f", {cores:.0f} s of a core"
    said += ["", f"All of it took {whole:.0f} s{busy}. The stages: {each}."]
    return "\n".join([table(found), "", *said])


def placed(readme: str, report: str) -> str:
    """The README with another report between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{report}\n{END}{after}"


def table(found: Mapping[str, Any]) -> str:
    """The accuracies, in Markdown."""
    lines = [f"| {found['n']} chains | accuracy | 95% interval |", "| --- | ---: | --- |"]
    chosen = found["selection"]
    rows = dict(found["accuracy"])
    names = {
        "vote": "majority",
        "weighted": "majority weighted by the process reward model",
        "judge": "process reward model's choice",
        "coverage": "coverage",
    }
    for key, name in names.items():
        rows[f"rl, {name} of {found['samples']} samples"] = chosen[key]
    for name, each in rows.items():
        name = f"rl, thinking in {name[4:]} tokens" if name[4:].isdigit() else name
        lines.append(f"| {name} | {each['value']:.1%} | {100 * each['low']:.1f} to {100 * each['high']:.1f} |")
    return "\n".join(lines)
