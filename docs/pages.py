"""Pages of the site that stand elsewhere, or follow from the code: a hook of mkdocs.yml."""

import re
from pathlib import Path
from posixpath import dirname, normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import gnnrl_ray

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster.md",
}
# What docstrings say to Sphinx, as it comes out here.
_ROLE = re.compile(r":[a-z]+:<code>(~[\w.]+\.)?([\w.]+)</code>")
_DIRECTIVE = "<p>.. code-block:: python</p>"
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    for source, page in ELSEWHERE.items():
        text = linked((ROOT / source).read_text(), source)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend the links of a page that lies in docs/."""
    if page.file.generated_by:
        return markdown
    return linked(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take out what docstrings have for Sphinx alone."""
    return _ROLE.sub(r"<code>\2</code>", html).replace(_DIRECTIVE, "")


def linked(text: str, source: str) -> str:
    """Return a page with links that hold on the site; what is not on it is only named."""

    def link(found: re.Match) -> str:
        said, path, anchor = found.groups(default="")
        target = normpath(f"{dirname(source)}/{path}").lstrip("/")
        if not (ROOT / target).exists():
            return found[0]
        inside = ELSEWHERE.get(target) or target.removeprefix("docs/")
        if inside != target or target.startswith("docs/"):
            return f"[{said}]({inside}{anchor})"
        return said

    return _LINK.sub(link, text)


def reference() -> str:
    """Return the page of all that the package exports."""
    names = sorted(gnnrl_ray._HOMES.items())
    parts = [f"::: gnnrl_ray.{home}.{name}\n" for name, home in names]
    return "\n".join(["# Reference", "\nAll of it is imported from `gnnrl_ray`.\n", *parts])
