"""Hooks of the documentation site: the README is its home page, and pages may link to files outside of `docs/`.

Tables and pictures outside of `docs/` become part of the site. Links to other files lead to the repository if
`repo_url` is set, else they are plain text. So each link works in the repository and on the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", re.DOTALL)
SHOWN = {".md", ".png", ".gif", ".svg"}
OUTSIDE = "repository"  # the folder of the site for files from outside of docs/


def path_of(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def uri_of(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def targets_of(markdown: str, path: str) -> list[str]:
    """Return the paths in the repository of all files that a page links to."""
    parts = FENCE.split(markdown)[::2]
    links = [match.group(2) for part in parts for match in LINK.finditer(part)]
    return [own for link in links if (own := target_of(link, path)) is not None]


def target_of(link: str, path: str) -> str | None:
    """Return the path in the repository of a link's target; None if it is elsewhere, or an anchor."""
    address = link.partition("#")[0]
    if not address or ":" in address:
        return None
    found = normpath(str(PurePosixPath(path).parent / address))
    return None if found.startswith("..") else found


def without_badges(markdown: str) -> str:
    """Return a page without its badges, which belong to the repository."""
    return re.sub(r"^\[!\[.*\n", "", markdown, flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the README, and all tables and pictures that pages link to."""
    text = without_badges((ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    queue = [file.src_uri for file in files if file.src_uri.endswith(".md")]
    while queue:
        path = path_of(queue.pop())
        for target in targets_of((ROOT / path).read_text(encoding="utf-8"), path):
            uri = uri_of(target)
            if (ROOT / target).suffix in SHOWN and (ROOT / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
                queue += [uri] if uri.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let each link of a page lead to the site's own file, or to the repository."""
    uri = page.file.src_uri
    replace = replacer(uri, config["repo_url"], files)
    parts = FENCE.split(markdown)
    return "".join(part if index % 2 else LINK.sub(replace, part) for index, part in enumerate(parts))


def replacer(uri: str, repository: str, files: Files) -> Callable[[re.Match[str]], str]:
    """Return a function that rewrites a link of the page `uri`."""

    def replace(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = target_of(link, path_of(uri))
        if target is None:
            return match.group() if ":" in link or link.startswith("#") else text.strip("[]")
        anchor = link.partition("#")[1] + link.partition("#")[2]
        place = uri_of(target)
        if files.get_file_from_path(place) is not None or target.startswith("docs/"):
            return f"{text}({relpath(place, PurePosixPath(uri).parent)}{anchor})"
        if repository:
            return f"{text}({repository.rstrip('/')}/blob/main/{target}{anchor})"
        return text.removeprefix("[").removesuffix("]")

    return replace
