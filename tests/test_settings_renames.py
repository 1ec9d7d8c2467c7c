"""Former names of settings work everywhere, with one line that names the new ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unitrain.errors import SettingsError
from unitrain.settings import SECTIONS, setting_names
from unitrain.settings_renames import RENAMED, deprecation_line, rename_flags, rename_settings

NAMES = {name for section, kind in SECTIONS.items() for name in (section, *setting_names(section, kind))}
VALUES = {"client": {"class_path": "a.B"}, "publish.require_improvement": True}


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return {section: {key: value}} for a dotted name."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("former", RENAMED)
def test_former_name_becomes_the_new_one(former: str) -> None:
    """A file and a flag give the same; the new name exists and the former one does not, unless it is a group."""
    new, value = RENAMED[former], VALUES.get(former, 3)
    expected = "best" if former == "publish.require_improvement" else value
    assert rename_settings(nested(former, value)) == (nested(new, expected), {former: new})
    flags, found = rename_flags([[f"--{former}", json.dumps(value)]])
    assert flags[0][0] == f"--{new}"
    assert yaml.safe_load(flags[0][1]) == expected
    assert found == {former: new}
    assert new in NAMES
    assert former not in NAMES or new.startswith(f"{former}.")


def test_new_names_stay_as_they_are() -> None:
    """Reading renamed settings again changes nothing, and the given mapping is not touched."""
    former: dict[str, Any] = {}
    for name in RENAMED:
        section, _, key = name.rpartition(".")
        (former.setdefault(section, {}) if section else former)[key] = VALUES.get(name, 3)
    before = json.dumps(former)
    renamed, found = rename_settings(former)
    assert json.dumps(former) == before
    assert len(found) == len(RENAMED)
    assert rename_settings(renamed) == (renamed, {})
    flags = [["--publish.golden.samples", "2"], ["--publish.golden", "{samples: 2}"], ["--print_config"]]
    assert rename_flags(flags) == (flags, {})


def test_sections_that_are_off_stay_off() -> None:
    """Null for a section is its meaning, under both names."""
    assert rename_settings({"publish": None, "client": None})[0] == {"publish": None, "client_io": None}
    assert rename_flags([["--publish", "null"], ["--client", "null"]])[0] == [
        ["--publish", "null"],
        ["--client_io", "null"],
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"publish": {"strict": True, "fail_on_error": True}}, "publish.strict is the former name of"),
        ({"client": None, "client_io": None}, "client is the former name of client_io"),
        (
            {"publish": {"opset": 20, "onnx": {"opset": 20}}},
            "publish.opset is the former name of publish.onnx.opset, and both are given; remove publish.opset",
        ),
        ({"publish": {"require_improvement": True, "policy": "every"}}, "means publish.policy: best"),
        ({"publish": {"tolerance": None}}, "publish.tolerance: expected a mapping, got null"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], words: str) -> None:
    """Both names in one place are an error, with the remedy."""
    with pytest.raises(SettingsError, match=words):
        rename_settings(settings)


def test_both_names_as_flags_are_refused() -> None:
    """The order does not matter; a flag in place of a file's setting is fine."""
    flags = [["--publish.fail_on_error", "true"], ["--publish.strict", "false"]]
    for given in (flags, flags[::-1]):
        with pytest.raises(SettingsError, match="both are given; remove"):
            rename_flags(given)


def test_names_inside_the_value_of_a_flag_are_renamed() -> None:
    """A flag may give a mapping, or a part of a setting."""
    flags, found = rename_flags([
        ["--publish", "{keep: 3, strict: true, golden: 2}"],
        ["--publish.config.instance_group", "[{count: 2}]"],
        ["--publish.server", "null"],
    ])  # fmt: skip
    assert flags == [
        ["--publish", "{keep: 3, fail_on_error: true, golden: {samples: 2}}"],
        ["--publish.model_config.overrides.instance_group", "[{count: 2}]"],
        ["--publish.server.url", "null"],
    ]
    assert set(found) == {"publish.strict", "publish.golden", "publish.config", "publish.server"}


def test_a_long_deprecation_line_is_shortened() -> None:
    """The settings.yaml of an old run has all former names."""
    line = deprecation_line("run/settings.yaml", RENAMED)
    assert len(line) < 400
    assert f"{len(RENAMED) - 4} more have new names (docs/settings.md)" in line


def test_documentation_has_the_table() -> None:
    """docs/settings.md, which the line names, lists every former name with the new one."""
    text = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    missing = [f"| `{former}` | `{new}` |" for former, new in RENAMED.items()]
    assert [row for row in missing if row not in text] == []


def test_documentation_has_the_defaults() -> None:
    """The YAML in docs/settings.md is what `Section()` gives."""
    text = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    shown = yaml.safe_load(text.partition("```yaml")[2].partition("```")[0])
    defaults = {n: None if n == "client_io" else dataclasses.asdict(k()) for n, k in SECTIONS.items()}
    assert shown == defaults


def test_every_field_has_a_description_and_a_default() -> None:
    """The string below a field is its text in `fit --help`."""
    import ast
    import inspect

    from unitrain import settings

    tree = ast.parse(inspect.getsource(settings))
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        fields = [
            n.target.id for n in kind.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
        texts = [n for n in kind.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
        assert len(texts) == len(fields) + 1, kind.name
    required = {f.name for kind in SECTIONS.values() for f in dataclasses.fields(kind) if not _has_default(f)}
    assert required == {"class_path"}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is field.default_factory is dataclasses.MISSING)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tolerance": 0.1}, "publish.tolerance: expected a mapping, got 0.1"),
        ({"tolerance": None}, "publish.tolerance: expected a mapping, got null"),
    ],
)
def test_value_in_place_of_a_group_is_refused(settings, sentence):
    """In a file, and as a flag."""
    with pytest.raises(SettingsError, match=sentence):
        rename_settings({"publish": settings})
    ((name, value),) = settings.items()
    if value is not None:
        with pytest.raises(SettingsError, match=sentence):
            rename_flags([[f"--publish.{name}", str(value)]])
