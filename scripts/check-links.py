#!/usr/bin/env python3
"""Checks that every link between the project's own pages leads somewhere, and that every test
named by ARCHITECTURE.md exists."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pages():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()
    return [ROOT / name for name in listed]


def anchors(text):
    """The anchors of a page's headings, spelled as the usual forges spell them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"[`*]", "", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken_links(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(ROOT)}: {target} does not exist"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8")):
            yield f"{page.relative_to(ROOT)}: {target} has no such heading"


def missing_tests():
    """Names in ARCHITECTURE.md that are said to be tests and are none."""
    page = ROOT / "ARCHITECTURE.md"
    sources = "\n".join(
        file.read_text(encoding="utf-8")
        for crate in ("core", "server", "client", "history")
        for file in (ROOT / crate).rglob("*.rs")
    )
    for name in re.findall(r"[Hh]eld by `([a-z0-9_]+)`", page.read_text(encoding="utf-8")):
        if not re.search(rf"\bfn {name}\b", sources):
            yield f"ARCHITECTURE.md: there is no test `{name}`"


def main():
    problems = [problem for page in pages() for problem in broken_links(page)]
    problems += missing_tests()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"links: {len(pages())} pages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
