"""Known vulnerabilities by release, and what of them reaches a server."""

import re
from pathlib import Path

import pytest

from unitrain import doctor as diagnosis
from unitrain.serving.triton import wheel as install
from unitrain.serving.triton.advisories import (
    ADVISORIES,
    AS_OF,
    FLOOR,
    HTTP,
    REACHABLE_APIS,
    advisories,
    release_of,
    release_of_version,
    text_of,
)
from unitrain.serving.triton.distribution import IMAGE, image_release

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2.42.0", (24, 1)),
        ("2.51.0", (24, 10)),
        ("2.54.0", (25, 1)),
        ("2.59.0", (25, 6)),
        ("2.59.1", (25, 7)),
        ("2.60.0", (25, 8)),
        ("2.65.0", (26, 1)),
        ("2.69.0", (26, 5)),
        ("2.71.0", (26, 7)),
        ("2.30.0", None),
        ("nightly", None),
    ],
)
def test_a_tritons_version_tells_its_release(version: str, release: tuple[int, int] | None) -> None:
    """As the branches of Triton's own repository have them."""
    assert release_of_version(version) == release


def test_tags_tell_their_release() -> None:
    """With or without what follows it."""
    assert [release_of(text) for text in ("26.07-py3", "26.07", "mine", "")] == [(26, 7), (26, 7), None, None]


def test_the_floor_has_no_known_vulnerability_and_the_one_before_has() -> None:
    """It is what containers run; what is unknown may have all of them."""
    assert text_of(FLOOR) == "26.07"
    assert advisories(FLOOR) == []
    assert [advisory.cve for advisory in advisories((26, 6))] == ["CVE-2026-16497"]
    assert advisories(None) == list(ADVISORIES)
    assert (image_release(IMAGE) or (0, 0)) >= FLOOR


def test_only_what_others_reach_is_named(monkeypatch: pytest.MonkeyPatch, triton_wheel: Path) -> None:
    """HTTP, model control and shared memory of the wheel's Triton are out of reach; doctor names the rest."""
    assert release_of_version("2.51.0") == install.WHEEL_RELEASE
    named = {advisory.cve for advisory in advisories(install.WHEEL_RELEASE, REACHABLE_APIS)}
    assert named == {"CVE-2026-47625", "CVE-2026-47627", "CVE-2026-16497"}
    with_http = {advisory.cve for advisory in advisories(install.WHEEL_RELEASE, REACHABLE_APIS | {HTTP})}
    assert {"CVE-2025-23310", "CVE-2025-23311"} < with_http - named
    [found] = diagnosis.diagnose(["triton"], start_triton=False)
    assert set(re.findall(r"CVE-\d+-\d+", found.text)) == named


def test_the_documentation_has_the_same_table() -> None:
    """Every row, and its date."""
    text = (ROOT / "docs" / "serving.md").read_text()
    assert AS_OF in text
    for advisory in ADVISORIES:
        row = f"| {advisory.cve} | {text_of(advisory.fixed)} | {advisory.component} | {advisory.through} |"
        assert row in text
