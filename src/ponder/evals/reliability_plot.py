"""A router's reliability as a picture: for each arm, how often it was right against how often that was expected."""

from __future__ import annotations

from pathlib import Path

from ponder.errors import MissingExtra
from ponder.evals.routing import Calibrated

COLOURS = ("#6b7280", "#1f6feb", "#c2570c", "#0f7b4f", "#7c3aed", "#be185d")


def draw(calibrated: Calibrated, title: str, path: Path) -> None:
    """Writes the picture; the ending of `path` names its format. Raises MissingExtra without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("pictures need matplotlib", "pip install 'ponder[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(5, 4.6), constrained_layout=True)
    try:
        panel.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":", label="as it should be")
        for place, arm in enumerate(calibrated.arms):
            bins = arm.reliability.bins
            right = [b.right for b in bins]
            # Rounding may put a share an ulp outside its own interval, which matplotlib refuses.
            below = [max(0.0, b.right - b.interval.low) for b in bins]
            above = [max(0.0, b.interval.high - b.right) for b in bins]
            label = f"{arm.setting.strategy}, {arm.setting.budget.tokens:,} tokens".replace("$", r"\$")
            colour = COLOURS[place % len(COLOURS)]
            panel.errorbar([b.predicted for b in bins], right, (below, above), fmt="o-", color=colour, label=label,
                           markersize=4, linewidth=1, elinewidth=1, capsize=2)  # fmt: skip
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="expected to be right", ylabel="were right")
        panel.set_title(title.replace("$", r"\$"), fontsize=10)
        panel.legend(fontsize=8, loc="upper left")
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)
