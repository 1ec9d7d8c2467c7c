"""What is in deploy/ fits `serve`, as far as that shows without Docker, Apptainer or a cluster."""

import ipaddress
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from unitrain.commands.serve import _parser
from unitrain.serving.triton.advisories import FLOOR, release_of
from unitrain.serving.triton.distribution import IMAGE, image_release

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DEFINITIONS = ["serving.def", "training.def"]


def _manifests() -> dict[str, dict[str, Any]]:
    texts = [(DEPLOY / "kubernetes" / name).read_text() for name in ("repository.yaml", "serving.yaml")]
    found = [document for text in texts for document in yaml.safe_load_all(text)]
    return {document["kind"]: document for document in found}


def _entry_point() -> list[str]:
    line = re.search(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert line is not None
    return json.loads(line[1])


def test_the_dockerfile_starts_serve_as_it_can_be_started() -> None:
    """Its options are parsed by `serve` itself, together with what the Deployment adds."""
    words = _entry_point()
    assert words[:4] == ["python", "-m", "unitrain", "serve"]
    added = _manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    options = _parser().parse_args([*words[4:], *added])
    assert ipaddress.IPv4Address(options.host).is_unspecified
    assert (str(options.model_repository), options.http_port) == ("/models", None)


@pytest.mark.parametrize("name", ["Dockerfile", "serving.def"])
def test_the_images_release_has_the_security_fixes(name: str) -> None:
    """The one that `serve --container` runs, too."""
    text = (DEPLOY / name).read_text()
    release = release_of(re.search(r"(?:TRITON=|tritonserver:)(\d\d\.\d\d)", text)[1])
    assert release is not None
    assert release >= FLOOR
    assert release == image_release(IMAGE)


@pytest.mark.parametrize("name", ["Dockerfile", *DEFINITIONS])
def test_what_is_copied_in_exists(name: str) -> None:
    """Each source of COPY and %files lies in the project, and .dockerignore lets it in."""
    text = (DEPLOY / name).read_text()
    if name == "Dockerfile":
        copied = [
            word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in shlex.split(line)[:-1]
        ]
        let_in = {
            line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"
        }
        assert set(copied) <= let_in
    else:
        section = text.partition("%files\n")[2].partition("\n\n")[0]
        copied = [line.split()[0] for line in section.splitlines()]
    assert copied
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_no_torch_goes_into_the_serving_images() -> None:
    """Both list the same packages, each of which the lock pins."""
    lists = []
    for name in ("Dockerfile", "serving.def"):
        found = re.search(r"^\s+(grpcio [\w ]+?)\s*\\?$", (DEPLOY / name).read_text(), re.MULTILINE)
        assert found is not None
        lists.append(found[1].split())
    assert lists[0] == lists[1]
    assert not {"torch", "pytorch-lightning", "lightning"} & set(lists[0])
    locked = {
        line.partition("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    assert {package.lower() for package in lists[0]} <= locked


def test_the_manifests_fit_each_other_and_serve() -> None:
    """Ports by name, the claim, the volumes, the time to end."""
    manifests = _manifests()
    deployment, service, claim = (manifests[k] for k in ("Deployment", "Service", "PersistentVolumeClaim"))
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8001, "metrics": 8002}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["repository"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert mounts["repository"]["mountPath"] == "/models"
    assert mounts["repository"]["readOnly"]
    grace = int(container["args"][container["args"].index("--grace") + 1])
    paused = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= grace + paused + 5
    assert (
        container["readinessProbe"]["grpc"]["port"]
        == container["startupProbe"]["grpc"]["port"]
        == ports["grpc"]
    )


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_kubectl_builds_the_manifests() -> None:
    """Names and images as kustomization.yaml says."""
    built = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, check=True
    ).stdout
    kinds = [document["kind"] for document in yaml.safe_load_all(built)]
    assert sorted(kinds) == ["Deployment", "PersistentVolumeClaim", "Service"]
    assert "image: registry.example.org/unitrain-serving:0.2.0" in built


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_definitions_have_the_sections_of_apptainer(name: str) -> None:
    """A header, and a run script that starts unitrain."""
    text = (DEPLOY / name).read_text()
    assert text.startswith("Bootstrap: docker\nFrom: ")
    sections = re.findall(r"^%(\w+)$", text, re.MULTILINE)
    assert {"files", "post", "environment", "runscript"} <= set(sections)
    assert "exec python -m unitrain" in text.partition("%runscript")[2]
