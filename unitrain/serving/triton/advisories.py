"""Triton's releases, and the known vulnerabilities that each release fixed."""

import re
from collections.abc import Collection
from dataclasses import dataclass

AS_OF = "2026-11-24"
"""Day on which `ADVISORIES` was compared with NVIDIA's bulletins."""

Release = tuple[int, int]
"""(year, month) of an NVIDIA release: 26.07 is (26, 7)."""

INFERENCE, HTTP, MODEL_CONTROL, SHARED_MEMORY = "inference", "HTTP", "model control", "shared memory"
EVERY_API = frozenset({INFERENCE, HTTP, MODEL_CONTROL, SHARED_MEMORY})
"""APIs that an attacker may reach."""
REACHABLE_APIS = frozenset({INFERENCE})
"""APIs of a Triton started by `serve` that other users reach; HTTP is on a private Unix socket."""


@dataclass(frozen=True)
class Advisory:
    """One vulnerability of Triton.

    Attributes:
        cve: identifier.
        fixed: first release without the vulnerability.
        component: faulty part of Triton.
        through: API that an attacker must reach to use it.
    """

    cve: str
    fixed: Release
    component: str
    through: str


ADVISORIES = (
    Advisory("CVE-2025-23310", (25, 7), "HTTP server, stack overflow by chunks", HTTP),
    Advisory("CVE-2025-23311", (25, 7), "HTTP server, stack overflow by chunks", HTTP),
    Advisory("CVE-2025-23319", (25, 7), "Python backend, out-of-bounds write", SHARED_MEMORY),
    Advisory("CVE-2025-23320", (25, 7), "Python backend, its region's name in an error", SHARED_MEMORY),
    Advisory("CVE-2025-23334", (25, 7), "Python backend, out-of-bounds read", SHARED_MEMORY),
    Advisory("CVE-2025-23316", (25, 8), "Python backend, code by a model's name", MODEL_CONTROL),
    # Their bulletin names no component. The fixes of that release are in the SageMaker and Vertex AI
    # endpoints, which are HTTP.
    Advisory("CVE-2026-24206", (26, 3), "authentication bypass", HTTP),
    Advisory("CVE-2026-24207", (26, 3), "authentication bypass", HTTP),
    # No component is known: every client that may send an inference is assumed to reach them.
    Advisory("CVE-2026-47625", (26, 4), "missing authorization", INFERENCE),
    Advisory("CVE-2026-47627", (26, 6), "path traversal", INFERENCE),
    Advisory("CVE-2026-16497", (26, 7), "not published", INFERENCE),
)
"""NVIDIA's bulletins for Triton since 25.07 that concern the parts which `serve` starts."""

FLOOR: Release = max(advisory.fixed for advisory in ADVISORIES)
"""Oldest release without a known vulnerability; an older one must not listen on a network."""

CLIENT_SHM_FLAG: Release = (26, 5)
"""Since this release client shared memory needs `--allow-client-shm=true`; older releases refuse the flag."""

_TAG = re.compile(r"(\d\d)\.(\d\d)(?:-|$)")
_VERSION = re.compile(r"2\.(\d+)\.(\d+)")
_FIRST, _FIRST_MINOR = (24, 1), 42
_SHARED_MINOR = 59
"""2.59.0 is 25.06, and 2.59.1 is 25.07; every other release has a separate minor version."""


def release_of(text: str) -> Release | None:
    """Return the release at the start of an image's tag or `NVIDIA_TRITON_SERVER_VERSION`; None if there is none."""
    found = _TAG.match(text)
    return (int(found[1]), int(found[2])) if found else None


def release_of_version(version: str) -> Release | None:
    """Return the release of a Triton version: 2.51.0 is 24.10. None if it is older than 24.01 or no version."""
    found = _VERSION.match(version)
    if found is None or int(found[1]) < _FIRST_MINOR:
        return None
    minor, patch = int(found[1]), int(found[2])
    months = minor - _FIRST_MINOR + int(minor > _SHARED_MINOR or (minor == _SHARED_MINOR and patch > 0))
    return (_FIRST[0] + months // 12, _FIRST[1] + months % 12)


def text_of(release: Release) -> str:
    """Format a release: 26.07 for (26, 7)."""
    return f"{release[0]}.{release[1]:02d}"


def advisories(release: Release | None, reachable: Collection[str] = EVERY_API) -> list[Advisory]:
    """Return the known vulnerabilities of a release that can be used through reachable APIs.

    Args:
        release: release of Triton; None: unknown, so it may have any of them.
        reachable: APIs that other users than the server's own reach.
    """
    return [
        advisory
        for advisory in ADVISORIES
        if (release is None or release < advisory.fixed) and advisory.through in reachable
    ]
