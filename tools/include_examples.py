"""Puts the files of examples/ into the documents that show them, between two markers.

    <!-- examples/own_engine.py -->
    <!-- end -->

python tools/include_examples.py            writes them
python tools/include_examples.py --check    fails where a document shows another text, and writes nothing
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- (examples/\w+\.py) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """The documents that may show examples."""
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def filled(text: str, root: Path = ROOT) -> str:
    """`text` with the examples that its markers name."""

    def block(match: re.Match[str]) -> str:
        code = (root / match[2]).read_text(encoding="utf-8").rstrip()
        return f"{match[1]}```python\n{code}\n```\n{match[3]}"

    return MARKED.sub(block, text)


def main() -> int:
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    changed = {path: new for path, text in texts.items() if (new := filled(text)) != text}
    if "--check" in sys.argv[1:]:
        for path in changed:
            print(f"{path.relative_to(ROOT)} shows another text than examples/ holds: run make docs", file=sys.stderr)
        return 1 if changed else 0
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
