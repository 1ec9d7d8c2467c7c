"""From a settings file and flags to a model, a data module and a trainer, by LightningCLI."""

import dataclasses
import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from unitrain import settings as sections
from unitrain.errors import SettingsError
from unitrain.project import import_class
from unitrain.training.complaints import trainer_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)

TrainerOf = Callable[["SettingsCLI", dict[str, Any]], Trainer]


class SettingsCLI(LightningCLI):
    """LightningCLI with unitrain's sections beside Lightning's own.

    Args:
        argv: as on the command line, `--config` among them.
        raw: the settings file's content, read beforehand: links must be known before parsing.
        make_trainer: called with this object and the trainer's arguments, once model and data are there.
    """

    def __init__(self, argv: Sequence[str], raw: Mapping[str, Any], make_trainer: TrainerOf) -> None:
        self._raw = raw
        self._make_trainer = make_trainer
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*configure_optimizers` will be overridden", UserWarning)
            super().__init__(
                args=list(argv),
                run=False,
                save_config_callback=None,
                seed_everything_default=42,
                trainer_defaults={"deterministic": "warn"},
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "prog": "python -m unitrain fit",
                },
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Its name; default: the settings' folder's."
        )
        parser.add_argument(
            "--experiments_dir", type=str, default="experiments", help="Folder of the runs, by experiment."
        )
        parser.add_argument(
            "--step_seeding",
            type=bool,
            default=True,
            help="Seed every step by seed, epoch and batch, so that a resumed run draws the same random numbers.",
        )
        parser.add_argument(
            "--links",
            type=dict[str, str],
            default={},
            help="Properties of the data module that are arguments of the model: {data.NAME: model.init_args.NAME}.",
        )
        for name, kind in SECTIONS.items():
            default = None if kind is sections.Client else kind()
            allowed = kind if kind is sections.Monitor else kind | None
            if kind is sections.Client:
                # To jsonargparse a mapping with a class_path is a subclass of the type, never the type itself.
                allowed = dict[str, Any] | None
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            parser.add_argument(f"--{name}", type=allowed, default=default, help=summary)
        for source, target in (self._raw.get("links") or {}).items():
            _add_link(parser, str(source), str(target), self._raw)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; `args` is all there is, whatever sys.argv holds."""
        self.config = parser.parse_args(args)
        unknown = set(self.config.client or ()) - {f.name for f in dataclasses.fields(sections.Client)}
        if unknown:
            raise SettingsError(
                f"client: there is no setting `client.{min(unknown)}`; it has class_path and init_args"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return self._make_trainer(self, {**self._get(self.config_init, "trainer", default={}), **kwargs})

    def section(self, name: str) -> Any:
        """A section of the settings, as its dataclass; None where it is off."""
        return self.config_init.get(name)

    def resolved(self) -> str:
        """The settings as YAML that reruns them: every default written out, links' targets left out."""
        text: str = self.parser.dump(self.config, skip_link_targets=True, skip_none=False, format="yaml")
        return text


SECTIONS: dict[str, type] = {
    "monitor": sections.Monitor,
    "ema": sections.Ema,
    "early_stopping": sections.EarlyStopping,
    "embeddings": sections.Embeddings,
    "summaries": sections.Summaries,
    "publish": sections.Publish,
    "client": sections.Client,
}


def read_settings(path: Path) -> dict[str, Any]:
    """A settings file's content.

    Raises:
        SettingsError: it is missing, no YAML, or no mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except FileNotFoundError as error:
        raise SettingsError(f"--config: there is no file {path}{_near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config: {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    return raw


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which of a key that stands twice would silently take the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                text = f"`{key.value}` stands twice in one mapping, expected once; remove one of the two"
                raise yaml.composer.ComposerError(None, None, text, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return node


def check_classes(raw: Mapping[str, Any], argv: Sequence[str], root: Path) -> None:
    """Import the model's and the data module's class, for an error that names what is missing.

    Args:
        raw: the settings file's content.
        argv: flags, which come before it.
        root: the project root.

    Raises:
        SettingsError: a class path is wrong, or its module fails to import.
    """
    trainer = raw.get("trainer")
    if trainer is not None and not isinstance(trainer, Mapping):  # jsonargparse says nothing of it
        raise SettingsError(f"trainer: expected a mapping of its arguments, got {trainer}")
    for section in ("model", "data"):
        value = raw.get(section)
        class_path = value.get("class_path") if isinstance(value, Mapping) else value
        for name, flag in zip(argv[::2], argv[1::2], strict=False):
            if name in (f"--{section}", f"--{section}.class_path"):
                class_path = flag
        if isinstance(class_path, str):
            if "." not in class_path:
                continue  # a class that is already imported: LightningCLI knows it by its name
            try:
                import_class(class_path, root)
            except SettingsError as error:
                raise SettingsError(f"{section}: {error}") from error


def known_settings() -> list[str]:
    """Every setting by its dotted name, but for those of a person's own classes."""
    top = ["experiment", "experiments_dir", "seed_everything", "step_seeding", "trainer", "model", "data", "links", "optimizer",
           "lr_scheduler", *SECTIONS]  # fmt: skip
    inner = [f"{name}.{f.name}" for name, kind in SECTIONS.items() for f in dataclasses.fields(kind)]
    return top + inner + trainer_settings()


def _add_link(parser: LightningArgumentParser, source: str, target: str, raw: Mapping[str, Any]) -> None:
    """Give the model a property of the data module; every mistake is refused: jsonargparse says nothing of them."""
    where = f"links: {source}: {target}"
    owner, _, attribute = source.partition(".")
    if owner != "data" or not attribute:
        raise SettingsError(f"{where}: a link starts at `data.NAME`, a property of the data module")
    section, _, argument = target.partition(".init_args.")
    if section != "model" or not argument.isidentifier():
        raise SettingsError(
            f"{where}: a link ends at `model.init_args.NAME`, an argument of the model's __init__"
        )
    model = raw.get("model")
    if isinstance(model, Mapping):
        if argument in (model.get("init_args") or {}):
            raise SettingsError(f"{where}: the settings also give {target} a value; remove one of the two")
        _check_argument(where, str(model.get("class_path")), argument)

    def read(data: Any) -> Any:
        value = data
        for part in attribute.split("."):
            if not hasattr(value, part):
                names = [n for n in dir(data) if not n.startswith("_")]
                near = difflib.get_close_matches(part, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"{where}: {type(data).__name__} has no {part} after its __init__{hint}")
            value = getattr(value, part)
        return value

    parser.link_arguments("data", target, compute_fn=read, apply_on="instantiate")


def _check_argument(where: str, class_path: str, argument: str) -> None:
    module_name, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module_name), name, None)
    if kind is None:
        return
    parameters = inspect.signature(kind).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if argument not in parameters and not open_ended:
        near = difflib.get_close_matches(argument, parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters) or 'none'}"
        raise SettingsError(f"{where}: {name} has no argument {argument}; {hint}")


def _near_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    found = sorted(str(p) for p in folder.glob("*.y*ml"))
    return f"; there is {', '.join(found[:3])}" if found else ""
