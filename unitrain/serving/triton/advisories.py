"""Triton's releases, and the vulnerabilities that each of them fixed."""

import re
from collections.abc import Collection
from dataclasses import dataclass

AS_OF = "2026-11-24"
"""The day on which `ADVISORIES` was held against NVIDIA's bulletins."""

Release = tuple[int, int]
"""(year, month) of an NVIDIA release: 26.07 is (26, 7)."""

INFERENCE, HTTP, MODEL_CONTROL, SHARED_MEMORY = "inference", "HTTP", "model control", "shared memory"
EVERY_API = frozenset({INFERENCE, HTTP, MODEL_CONTROL, SHARED_MEMORY})
"""APIs that an attacker may reach."""


@dataclass(frozen=True)
class Advisory:
    """One vulnerability of Triton.

    Attributes:
        fixed: the first release without it.
        component: the part of Triton at fault.
        through: the API that an attacker must reach; without it the vulnerability can't be used.
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
    # No component is known of these: whoever may send an inference is taken to reach them.
    Advisory("CVE-2026-47625", (26, 4), "missing authorization", INFERENCE),
    Advisory("CVE-2026-47627", (26, 6), "path traversal", INFERENCE),
    Advisory("CVE-2026-16497", (26, 7), "not published", INFERENCE),
)
"""NVIDIA's bulletins for Triton from 25.07 on, as far as they bear on what `serve` starts."""

FLOOR: Release = max(advisory.fixed for advisory in ADVISORIES)
"""The oldest release without a known vulnerability; an older one must not face a network."""

CLIENT_SHM_FLAG: Release = (26, 5)
"""From this release on client shared memory is off without `--allow-client-shm=true`; older ones refuse the flag."""

_TAG = re.compile(r"(\d\d)\.(\d\d)(?:-|$)")
_VERSION = re.compile(r"2\.(\d+)\.(\d+)")
_FIRST, _FIRST_MINOR = (24, 1), 42
_TWICE = 59
"""2.59.0 is 25.06, and 2.59.1 is 25.07; every other release has a minor version of its own."""


def release_of(text: str) -> Release | None:
    """The release that an image's tag or `NVIDIA_TRITON_SERVER_VERSION` begins with; None if it names none."""
    found = _TAG.match(text)
    return (int(found[1]), int(found[2])) if found else None


def release_of_version(version: str) -> Release | None:
    """The release of a Triton by its own version: 2.51.0 is 24.10. None if it is older than 24.01 or no version."""
    found = _VERSION.match(version)
    if found is None or int(found[1]) < _FIRST_MINOR:
        return None
    minor, patch = int(found[1]), int(found[2])
    months = minor - _FIRST_MINOR + int(minor > _TWICE or (minor == _TWICE and patch > 0))
    return (_FIRST[0] + months // 12, _FIRST[1] + months % 12)


def text_of(release: Release) -> str:
    """26.07 for (26, 7)."""
    return f"{release[0]}.{release[1]:02d}"


def advisories(release: Release | None, reachable: Collection[str] = EVERY_API) -> list[Advisory]:
    """The known vulnerabilities of a release that can be used through APIs that others reach.

    Args:
        release: None: unknown, so any of them may be there.
        reachable: the APIs that others than the server's own user reach.
    """
    return [
        advisory
        for advisory in ADVISORIES
        if (release is None or release < advisory.fixed) and advisory.through in reachable
    ]


def reachable_apis(*, http: bool) -> frozenset[str]:
    """The APIs of a Triton started by `serve` that others than its user reach.

    Args:
        http: whether HTTP is served on TCP; else it is on a Unix socket of the user's alone.
    """
    return frozenset({INFERENCE, HTTP} if http else {INFERENCE})
