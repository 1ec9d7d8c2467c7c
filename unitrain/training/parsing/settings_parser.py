"""Parse settings into a model, a data module and the arguments of a Trainer, by LightningCLI."""

import contextlib
import dataclasses
import difflib
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, set_dumper, set_parsing_settings
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from unitrain import settings as sections
from unitrain.class_paths import import_class
from unitrain.errors import SettingsError, UnitrainError, UsageError
from unitrain.import_aliases import is_of_other_lightning
from unitrain.repository import check_model_name
from unitrain.runs import check_experiment
from unitrain.settings import SECTIONS
from unitrain.training.console import quiet_lightning
from unitrain.training.loggers import check_trainer
from unitrain.training.parsing.settings_errors import explained, failed_init, own_error, trainer_settings
from unitrain.training.parsing.settings_file import CLASS_SECTIONS, RawSettings, classless, dump_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)
set_dumper("yaml", dump_settings)  # jsonargparse's fails on an enum's member, such as a default of Timer


@dataclass(frozen=True)
class ParsedSettings:
    """Settings with the objects that they name.

    Attributes:
        model: module with the weights that its `__init__` gives it.
        datamodule: data module, neither prepared nor set up; None if the module has the loaders.
        trainer_args: arguments of the Trainer except `callbacks`.
        callbacks: callbacks of `trainer.callbacks`.
        sections: unitrain's sections by name; None if a section is off.
        experiment: name of the experiment.
        experiments_dir: folder of the experiments, absolute.
        seed: `seed_everything`.
        step_seeding: switch; the seed of each step then follows from `seed`.
        root: project root.
        resolved: settings as YAML that repeats them: all defaults, without the targets of links.
        flags: flags that were given, as words.
    """

    model: LightningModule
    datamodule: LightningDataModule | None
    trainer_args: dict[str, Any]
    callbacks: list[Callback]
    sections: Mapping[str, Any]
    experiment: str
    experiments_dir: Path
    seed: int
    step_seeding: bool
    root: Path
    resolved: str
    flags: list[str]

    def section(self, name: str) -> Any:
        """Return a section as its dataclass; None if it is off."""
        return self.sections[name]

    @property
    def model_name(self) -> str:
        """Name of the published model."""
        publish = self.section("publish")
        return str((publish and publish.model) or self.experiment)

    def make_trainer(self, **changes: Any) -> Trainer:
        """Create the Trainer.

        Args:
            changes: arguments that replace those of the settings.

        Raises:
            SettingsError: the Trainer refuses an argument.
        """
        with explained_errors():
            return Trainer(**{"callbacks": self.callbacks} | self.trainer_args | changes)

    def check_training(self) -> None:
        """Refuse settings that are well formed but can't be those of a training.

        Raises:
            SettingsError: `trainer.barebones` is on, or a name is not allowed.
        """
        check_trainer(self.trainer_args)
        check_experiment(self.experiment)
        if self.section("publish"):
            try:
                check_model_name(self.model_name)
            except UsageError as error:
                raise SettingsError(f"publish.model: {error}") from error


def load_settings(
    source: RawSettings | str | Path | Mapping[str, Any] | Sequence[Path],
    argv: Sequence[str] = (),
    *,
    root: Path | None = None,
    experiment: str | None = None,
) -> ParsedSettings:
    """Parse settings, and create the objects that they name. Nothing is written.

    Args:
        source: settings file, several of which a later one overrides an earlier one, their content, or both read before.
        argv: further settings as flags, if `source` is not read before.
        root: project root; default: that of the first file.
        experiment: name of the experiment if the settings give none; default: the name of the file's folder.

    Raises:
        SettingsError: a setting is wrong, or the `__init__` of a class failed.
    """
    raw = source if isinstance(source, RawSettings) else RawSettings.read(source, argv)
    root = root or raw.root
    check_classes(raw, root)
    with quiet_lightning(), explained_errors():
        cli = SettingsCLI(raw)
        config = cli.config
        callbacks = cli.trainer_args.pop("callbacks", None) or []
        return ParsedSettings(
            model=cli.model,
            datamodule=cli.datamodule,
            trainer_args=cli.trainer_args,
            callbacks=list(callbacks) if isinstance(callbacks, Sequence) else [callbacks],
            sections={name: cli.config_init.get(name) for name in SECTIONS},
            experiment=config.experiment or experiment or raw.experiment,
            experiments_dir=root / config.experiments_dir,
            seed=config.seed_everything,
            step_seeding=config.step_seeding,
            root=root,
            resolved=cli.parser.dump(config, skip_link_targets=True, skip_none=False, format="yaml"),
            flags=raw.words,
        )


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of jsonargparse and of the Trainer into one sentence; errors of the user's code are raised as they are.

    Raises:
        SettingsError: a setting is wrong.
    """
    try:
        yield
    except UnitrainError:
        raise
    except Exception as error:
        wrong = (ArgumentError, MisconfigurationException, TypeError, ValueError)
        if isinstance(error, wrong) or own_error(error):
            raise explained(error, known_settings()) from error
        raise


class SettingsCLI(LightningCLI):
    """LightningCLI with unitrain's sections beside Lightning's. It creates no Trainer.

    Args:
        raw: settings; their links must be known before parsing.
        instantiate: create the objects that the settings name.

    Attributes:
        trainer_args: arguments of the Trainer.
    """

    def __init__(self, raw: RawSettings, *, instantiate: bool = True) -> None:
        self._content = raw.content
        self._instantiate = instantiate
        self.trainer_args: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*configure_optimizers` will be overridden", UserWarning)
            super().__init__(
                args=raw.argv,
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
            default = None if kind is sections.ClientIO else kind()
            allowed = kind if kind is sections.Monitor else kind | None
            if kind is sections.ClientIO:
                # To jsonargparse a mapping with a class_path is a subclass of the type, never the type itself.
                allowed = dict[str, Any] | None
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            parser.add_argument(f"--{name}", type=allowed, default=default, help=summary)
        for link in links_of(self._content):
            # jsonargparse reports none of these mistakes.
            error = link.form_error() or link.target_error(self._content)
            if error is not None:
                raise error
            parser.link_arguments("data", link.target, compute_fn=link.read, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args` only, not `sys.argv`."""
        self.config = parser.parse_args(args)
        unknown = set(self.config.client_io or ()) - {f.name for f in dataclasses.fields(sections.ClientIO)}
        if unknown:
            raise SettingsError(
                f"client_io: there is no setting `client_io.{min(unknown)}`; it has class_path and init_args"
            )

    def instantiate_classes(self) -> None:
        """Create model and data module; an error of a class's `__init__` names section, class and line."""
        if not self._instantiate:
            return
        try:
            super().instantiate_classes()
        except UnitrainError:
            raise
        except Exception as error:
            where = failed_init(error, {name: self.config.get(name) for name in CLASS_SECTIONS})
            if where is None:
                raise
            raise SettingsError(where) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Keep the arguments of the Trainer, which is created later."""
        self.trainer_args = {**self._get(self.config_init, "trainer", default={}), **kwargs}


def check_classes(raw: RawSettings, root: Path) -> None:
    """Import the classes of model and data module.

    Args:
        raw: settings.
        root: project root.

    Raises:
        SettingsError: a class path is wrong, its module fails to import, or a section is unknown or has no keys.
    """
    for error in (key_error(raw.content), *(class_error(raw, name, root) for name in CLASS_SECTIONS)):
        if error is not None:
            raise error


def key_error(content: Mapping[str, Any]) -> SettingsError | None:
    """Return the error of a section that jsonargparse ignores: a wrong `trainer`, or an unknown one without keys."""
    trainer = content.get("trainer")
    if trainer is not None and not isinstance(trainer, Mapping):
        return SettingsError(f"trainer: expected a mapping of its arguments, got {trainer}")
    top = {name.partition(".")[0] for name in known_settings()}
    for key, value in content.items():
        if key not in top and not value:
            near = difflib.get_close_matches(str(key), top, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "`fit --help` lists them all"
            return SettingsError(f"there is no setting `{key}`; {hint}")
    return None


def class_error(raw: RawSettings, section: str, root: Path) -> SettingsError | None:
    """Return the error of a section's class path; None if its class can be imported."""
    value = raw.content.get(section)
    class_path = value.get("class_path") if isinstance(value, Mapping) else value
    for flag in raw.flags:
        if flag[0] in (f"--{section}", f"--{section}.class_path") and len(flag) > 1:
            class_path = flag[1]
    if class_path is None and classless(raw.content, section):
        return SettingsError(
            f"{section}: the section names no class, as in a config of LightningCLI(Model, Data); write its class as "
            f"`class_path` and its keys below `init_args`, or add --{section}.class_path PACKAGE.CLASS"
        )
    if not isinstance(class_path, str) or "." not in class_path:
        return None  # LightningCLI finds an imported class by its name
    try:
        kind = import_class(class_path, root, functions=True)
    except SettingsError as error:
        return SettingsError(f"{section}: {error}")
    if isinstance(kind, type) and is_of_other_lightning(kind):
        return SettingsError(
            f"{section}: {class_path} is of a second copy of Lightning, since `lightning` and `pytorch_lightning` "
            "were both imported before unitrain; import unitrain before them"
        )
    return None


def known_settings() -> list[str]:
    """Return the dotted name of every setting, except arguments of the user's classes."""
    top = ["experiment", "experiments_dir", "seed_everything", "step_seeding", "trainer", "model", "data", "links", "optimizer",
           "lr_scheduler", *SECTIONS]  # fmt: skip
    inner = [full for name, kind in SECTIONS.items() for full in sections.setting_names(name, kind)]
    return top + inner + trainer_settings()


@dataclass(frozen=True)
class Link:
    """Property of the data module that is an argument of the model.

    Attributes:
        source: `data.NAME`.
        target: `model.init_args.NAME`.
    """

    source: str
    target: str

    @property
    def where(self) -> str:
        """Place of the link in the settings, for messages."""
        return f"links: {self.source}: {self.target}"

    def form_error(self) -> SettingsError | None:
        """Return the error of names that are no link."""
        owner, _, attribute = self.source.partition(".")
        if owner != "data" or not attribute:
            return SettingsError(f"{self.where}: a link starts at `data.NAME`, a property of the data module")
        section, _, argument = self.target.partition(".init_args.")
        if section != "model" or not argument.isidentifier():
            return SettingsError(
                f"{self.where}: a link ends at `model.init_args.NAME`, an argument of the model's __init__"
            )
        return None

    def target_error(self, content: Mapping[str, Any]) -> SettingsError | None:
        """Return the error of a target that has a value already, or that the model's `__init__` lacks."""
        model = content.get("model")
        argument = self.target.rpartition(".")[2]
        if not isinstance(model, Mapping):
            return None
        if argument in (model.get("init_args") or {}):
            return SettingsError(
                f"{self.where}: the settings also give {self.target} a value; remove one of the two"
            )
        return _argument_error(self.where, str(model.get("class_path")), argument)

    def read(self, data: Any) -> Any:
        """Return the value of the property.

        Raises:
            SettingsError: the data module has no such property after its `__init__`.
        """
        value = data
        for part in self.source.split(".")[1:]:
            if not hasattr(value, part):
                names = [n for n in dir(data) if not n.startswith("_")]
                near = difflib.get_close_matches(part, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(
                    f"{self.where}: {type(data).__name__} has no {part} after its __init__{hint}"
                )
            value = getattr(value, part)
        return value


def links_of(content: Mapping[str, Any]) -> list[Link]:
    """Return the links of settings."""
    return [Link(str(source), str(target)) for source, target in (content.get("links") or {}).items()]


def _argument_error(where: str, class_path: str, argument: str) -> SettingsError | None:
    module_name, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module_name), name, None)
    if kind is None:
        return None
    parameters = inspect.signature(kind).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if argument in parameters or open_ended:
        return None
    near = difflib.get_close_matches(argument, parameters, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters) or 'none'}"
    return SettingsError(f"{where}: {name} has no argument {argument}; {hint}")
