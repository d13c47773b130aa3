"""Find words in source, docs and tutorials that the field has plainer ones for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PLAIN = {
    r"(?<!\.)tells?|told|said|speaks? for": "predict, show, report",
    r"thie(f|ves)": "model-stealing attacker",
    r"whoever": "anyone who",
    r"anew": "again",
    r"likewise": "also",
    r"all the same": "nevertheless",
    r"for want of": "without",
    r"betray(s|ed)?": "collude",
    r"fellow site": "honest-but-curious site",
}
_NO_ZERO = re.compile(r"(?<![\w.)\]/~`'\"])\.\d")  # .83 beside 0.83
_FENCE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$", re.DOTALL)


def texts(path: Path) -> Iterator[str]:
    """A file, or the texts of a notebook."""
    if path.suffix == ".ipynb":
        yield from ("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    else:
        yield path.read_text()


def faults(path: Path) -> Iterator[str]:
    """What should be said otherwise, line by line."""
    for text in texts(path):
        for word, plain in PLAIN.items():
            for found in re.finditer(rf"\b({word})\b", text, re.IGNORECASE):
                yield f"{path}:{text.count(chr(10), 0, found.start()) + 1}: '{found[0]}': say {plain}"
        if path.suffix == ".md":
            prose = _FENCE.sub(lambda code: re.sub(r"\S", "x", code[0]), text)
            for found in _NO_ZERO.finditer(prose):
                yield f"{path}:{prose.count(chr(10), 0, found.start()) + 1}: '{found[0]}…': write 0{found[0]}…"


def main(names: list[str]) -> int:
    """Print what was found; 1 if there is something."""
    own = Path(__file__)
    folders = [
        *Path("src").rglob("*.py"),
        *Path("docs").rglob("*.md"),
        *Path().glob("*.md"),
        *Path("tutorials").glob("*.ipynb"),
    ]
    paths = [Path(name) for name in names] or [p for p in folders if "_build" not in p.parts and p != own]
    found = [fault for path in sorted(paths) for fault in faults(path)]
    sys.stdout.write("\n".join(found or [f"{len(paths)} files: no retired word"]) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
