"""A run's settings as text, and as a session of TensorBoard's HParams tab, where runs compare.

A session names no metrics: the tab then takes every scalar of the run, of which it shows the last, and the
columns are those of all runs together rather than of the first.
"""

import time
from pathlib import Path
from typing import Any

import yaml

_LEFT_OUT = ("client", "links", "experiments_dir")  # they have no part in what a training comes to
_LONGEST = 200


def add_settings(writer: Any, path: Path) -> None:
    """Put the settings into the Text tab, as they reproduce the run."""
    lines = path.read_text(encoding="utf-8").splitlines()
    writer.add_text("settings", "\n".join(f"    {line}" for line in lines), 0)


def flat_settings(path: Path) -> dict[str, bool | float | str]:
    """The settings by their dotted names: numbers, switches and texts; lists and what is empty are left out."""
    flat: dict[str, bool | float | str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, bool | int | float | str) and len(str(value)) <= _LONGEST:
            flat[prefix] = value

    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    walk("", {key: value for key, value in content.items() if key not in _LEFT_OUT})
    return flat


def add_session_start(writer: Any, settings: dict[str, bool | float | str], *, group: str) -> None:
    """Begin the run's session, running until it is ended.

    Args:
        group: the session's name in the tab.
    """
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    session = SessionStartInfo(start_time_secs=time.time(), group_name=group)
    for name, value in settings.items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, str):
            session.hparams[name].string_value = value
        else:
            session.hparams[name].number_value = value
    _add(writer, SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session))


def add_session_end(writer: Any, *, success: bool) -> None:
    """End the run's session."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
    session = SessionEndInfo(status=status, end_time_secs=time.time())
    _add(writer, SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=session))


def _add(writer: Any, tag: str, data: Any) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.metadata import PLUGIN_DATA_VERSION, PLUGIN_NAME

    data.version = PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    writer.file_writer.add_summary(Summary(value=[value]))
