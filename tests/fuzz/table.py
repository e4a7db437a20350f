"""The table of ``docs/security.md`` from ``bench/results/fuzz.json``: ``python tests/fuzz/table.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, SUMMARY = ROOT / "docs" / "security.md", ROOT / "bench" / "results" / "fuzz.json"

INPUTS = {
    "manifest": ("`manifest.json`", "`Bundle.open`, its prompts, `info`"),
    "tokenizer": ("`tokenizer.json`", "the same; reading a checkpoint"),
    "template": ("chat template", "the same"),
    "checkpoint": ("configs, safetensors header", "the export's plan"),
    "images": ("images of nine formats, arrays", "`load_image`"),
    "clips": ("clips of five formats", "`load_clip` and its frames"),
    "questions": ("JSONL of questions", "`read_questions`, `load_dataset`"),
    "engine_record": ("`engines.json`", "reading and mapping engines"),
    "decoding": ("questions, options of decoding", "`Pipeline.ask`"),
    "requests": ("bodies of requests", "`python -m runtime serve`, behind HTTP"),
    "arguments": ("arguments", "`python -m runtime`, `python -m export`"),
}


def rewritten(page: str, summary: str) -> str:
    """Return the page with the table of the summary."""
    found = json.loads(summary)["classes"]
    rows = [
        "| input | entry point | cases | refused in a sentence | faults |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, (title, entry) in INPUTS.items():
        counts = found[name]
        rows.append(
            f"| {title} | {entry} | {counts['cases']:,} | {counts['refused']:,} | {counts['faults']} |"
        )
    total = (sum(counts[key] for counts in found.values()) for key in ("cases", "refused", "faults"))
    rows.append("| all | | {:,} | {:,} | {} |".format(*total))
    return re.sub(r"(?<=<!-- fuzz -->\n).*?(?=<!-- /fuzz -->)", "\n".join(rows) + "\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(
        rewritten(PAGE.read_text(encoding="utf-8"), SUMMARY.read_text(encoding="utf-8")), encoding="utf-8"
    )
