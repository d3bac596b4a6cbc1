"""The documents say what is there."""

import re
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[1]


def test_the_table_of_settings_has_each_of_them_and_no_other() -> None:
    described = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE))
    settings = {
        str(field.validation_alias or f"HEADROOM_{name.upper()}") for name, field in Settings.model_fields.items()
    }
    assert described == settings


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []
