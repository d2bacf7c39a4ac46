"""Puts what `compare.py --json benchmarks/results/NAME.json` wrote into `docs/performance.md`."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def table(path: Path) -> str:
    """The rows of one file, with what they were measured on."""
    content = json.loads(path.read_text(encoding="utf-8"))
    settings = ", ".join(f"{name} {content[name]}" for name in ("device", "precision", "threads") if name in content)
    published = content["sides"][1]["version"]
    lines = [
        f"**{content.get('machine', path.stem)}**, {settings}, published {published}:",
        "",
        "| task | ours, ms | published, ms | ratio | ours, MB | published, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        times = [f"{1e3 * row[f'{side}_wall']:.1f}" for side in ("ours", "published")]
        peaks = [f"{row[f'{side}_peak']:.0f}" if f"{side}_peak" in row else "" for side in ("ours", "published")]
        lines.append("| " + " | ".join([row["task"], *times, f"{row['ratio_wall']:.2f}", *peaks]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    tables = "\n".join(table(path) for path in sorted(HERE.joinpath("results").glob("*.json")))
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:before]}\n{tables}\n{text[after:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
