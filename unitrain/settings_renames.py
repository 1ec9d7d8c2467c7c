"""Former names of settings: read as the new ones, with one deprecation line that names both.

The names apply to settings files, flags, Python mappings and the settings.yaml of older runs.

Example:
    >>> settings, found = rename_settings({"publish": {"golden": 2, "strict": True}})
    >>> settings
    {'publish': {'fail_on_error': True, 'golden': {'samples': 2}}}
    >>> found
    {'publish.strict': 'publish.fail_on_error', 'publish.golden': 'publish.golden.samples'}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unitrain.errors import SettingsError

RENAMED = {
    "client": "client_io",
    "ema.warm_up": "ema.decay_warmup",
    "publish.strict": "publish.fail_on_error",
    "publish.num_versions": "publish.model_config.num_versions",
    "publish.max_batch_size": "publish.model_config.max_batch_size",
    "publish.max_queue_delay_microseconds": "publish.model_config.max_queue_delay_microseconds",
    "publish.warm_up": "publish.model_config.model_warmup",
    "publish.config": "publish.model_config.overrides",
    "publish.opset": "publish.onnx.opset",
    "publish.dynamic_axes": "publish.onnx.dynamic_axes",
    "publish.external_data_above_bytes": "publish.onnx.external_data_above_bytes",
    "publish.golden": "publish.golden.samples",
    "publish.golden_max_bytes": "publish.golden.max_bytes",
    "publish.absolute_tolerance": "publish.tolerance.absolute",
    "publish.relative_tolerance": "publish.tolerance.relative",
    "publish.tolerances": "publish.tolerance.by_dtype",
    "publish.integer_share": "publish.tolerance.integer_share",
    "publish.server": "publish.server.url",
    "publish.server_wait_s": "publish.server.timeout_s",
    "publish.require_improvement": "publish.policy",
}
"""New name by former name. A former name that is now a group (`publish.golden`) is recognized by its plain value."""
LISTED = 8
"""Maximum number of renamed settings that one deprecation line lists."""
_IMPROVEMENT = "publish.require_improvement"

_GROUPS = frozenset(new.rpartition(".")[0] for new in RENAMED.values() if new.count(".") > 1)
"""Groups of settings in `publish`."""


def rename_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings under their new names, and the renamed ones as {former name: new name}.

    Args:
        settings: content of a settings file, by section.

    Raises:
        SettingsError: a setting is given under both names, or null replaces a group of settings.
    """
    renamed, found = _copied(settings), {}
    for former, new in RENAMED.items():
        section, _, key = former.rpartition(".")
        parent = _value(renamed, section) if section else renamed
        if not isinstance(parent, dict) or key not in parent:
            continue
        value = parent[key]
        if new.startswith(f"{former}.") and isinstance(value, Mapping):
            continue  # the group, which has the setting's former name
        del parent[key]
        if former == _IMPROVEMENT:
            if not value:  # no effect
                continue
            value = "best"
            _refuse_contradiction(parent.pop("policy", value))
        if not _put(renamed, new, value):
            raise SettingsError(_given_twice(former, new))
        found[former] = new
    _check_groups(renamed)
    return renamed, found


def rename_flags(
    pairs: Sequence[Sequence[str]],
) -> tuple[list[list[str]], dict[str, str]]:
    """Return flags under the settings' new names, and the renamed ones as {former name: new name}.

    >>> flags, found = rename_flags([["--publish.golden", "2"], ["--client.init_args.n", "3"]])
    >>> flags
    [['--publish.golden.samples', '2'], ['--client_io.init_args.n', '3']]
    >>> found
    {'publish.golden': 'publish.golden.samples', 'client': 'client_io'}

    Args:
        pairs: flags with their values, names with two hyphens and underscores: `[["--publish.keep", "3"]]`.

    Raises:
        SettingsError: a setting is given under both names.
    """
    given = {pair[0][2:]: pair[1] for pair in pairs if len(pair) > 1}
    renamed: list[list[str]] = []
    found: dict[str, str] = {}
    for name, *words in ((pair[0][2:], *pair[1:]) for pair in pairs):
        value = _parsed(words[0]) if words else None
        former = next((former for former in RENAMED if _is_former(name, value, former)), None)
        if former == _IMPROVEMENT:
            if value:
                _refuse_contradiction(given.get("publish.policy", "best"))
                renamed.append(["--publish.policy", "best"])
                found[former] = RENAMED[former]
        elif former is not None:
            new = RENAMED[former] + name.removeprefix(former)
            if new in given:
                raise SettingsError(_given_twice(name, new))
            renamed.append([f"--{new}", *words])
            found[former] = RENAMED[former]
        elif isinstance(value, Mapping) and any(former.startswith(f"{name}.") for former in RENAMED):
            nested: dict[str, Any] = {}
            _put(nested, name, value)
            nested, inner = rename_settings(nested)
            renamed.append([f"--{name}", _dumped(_value(nested, name)) if inner else words[0]])
            found |= inner
        else:
            if name in _GROUPS and words:
                _check_group(name, value)
            renamed.append([f"--{name}", *words])
    return renamed, found


def deprecation_line(where: str, found: Mapping[str, str]) -> str:
    """Return the line that names the new settings.

    >>> deprecation_line("settings.yaml", {"publish.strict": "publish.fail_on_error"})
    'settings.yaml: publish.strict is now publish.fail_on_error; the former name works until 0.4'

    Args:
        where: settings file, or the command whose flags were renamed.
        found: new name by former name; not empty.
    """
    names = [
        "publish.require_improvement is deprecated, since true is publish.policy: best, the default"
        if former == _IMPROVEMENT
        else f"{former} is now {new}"
        for former, new in found.items()
    ]
    if len(names) > LISTED:
        names = [*names[: LISTED // 2], f"{len(names) - LISTED // 2} more have new names (docs/settings.md)"]
    several = "former names work" if len(found) > 1 else "former name works"
    return f"{where}: {', '.join(names)}; the {several} until 0.4"


def _is_former(name: str, value: Any, former: str) -> bool:
    """Return whether a flag sets a setting, or part of it, under its former name."""
    if RENAMED[former].startswith(f"{former}."):
        return name == former and not isinstance(value, Mapping)
    return name == former or name.startswith(f"{former}.")


def _check_groups(settings: Mapping[str, Any]) -> None:
    for group in _GROUPS:
        section, _, key = group.rpartition(".")
        parent = _value(settings, section)
        if isinstance(parent, Mapping) and key in parent:
            _check_group(group, parent[key])


def _check_group(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        shown = "null; remove it to use its defaults" if value is None else repr(value)
        raise SettingsError(f"{name}: expected a mapping, got {shown}")


def _copied(value: Any) -> Any:
    """Return a copy whose mappings are new; all other values are shared."""
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _value(settings: Any, name: str) -> Any:
    """Return the value under a dotted name; None if missing."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _put(settings: dict[str, Any], name: str, value: Any) -> bool:
    """Set the value under a dotted name; return False if the name is taken."""
    *groups, key = name.split(".")
    for group in groups:
        inner: Any = settings.setdefault(group, {})
        if not isinstance(inner, dict):
            return False
        settings = inner
    if key in settings:
        return False
    settings[key] = value
    return True


def _parsed(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _dumped(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False).strip()


def _given_twice(former: str, new: str) -> str:
    return f"{former} is the former name of {new}, and both are given; remove {former}"


def _refuse_contradiction(policy: Any) -> None:
    """Refuse `require_improvement: true` beside another policy than `best`."""
    if policy != "best":
        raise SettingsError(
            f"publish.require_improvement: true means publish.policy: best, but the policy is {policy}; "
            "remove require_improvement"
        )
