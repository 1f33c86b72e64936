"""Every shipped configuration parses and builds; quickstarts run end to end with an overlay that shrinks them."""

import pytest
import yaml

from framework.cli import FrameworkCLI
from framework.configs import config_names, config_roots, find_config, run_name
from framework.errors import ConfigError

NAMES = dict(config_names())
# an overlay changes another configuration; these are what it is tried on
BASES = {
    "korigins/overlays": ("korigins/e2_krfl18", "korigins/e1_rfl18"),
    "master_key/overlays": ("master_key/tiny_imagenet_20",),
    "finola/overlays": ("finola/tiny_imagenet",),
    "trainer": ("korigins/quickstart",),
}
PLAIN_ONLY = {"standardized", "batch_norm", "data_bias", "bias_lr"}
QUICKSTARTS = [name for name in NAMES if name.endswith("/quickstart")]


class BuildOnly(FrameworkCLI):
    """Parses a command and builds model and data, on the meta device, without a Trainer."""

    def instantiate_trainer(self, **kwargs):
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def words_for(name: str) -> list[str]:
    folder, _, stem = name.rpartition("/")
    if folder in BASES:
        return ["-c", BASES[folder][-1 if stem in PLAIN_ONLY else 0], "-c", name]
    return ["-c", name]


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_parses_and_builds(name, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["framework"])
    cli = BuildOnly(args=["fit", *words_for(name)])
    assert cli.model.hparams  # some models build their networks in setup, from the data
    assert cli.datamodule is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_describes_itself_in_its_first_line(name) -> None:
    first = NAMES[name].read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@pytest.mark.parametrize("name", QUICKSTARTS)
@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_quickstarts_run_every_verb(name, verb, run) -> None:
    words = ["-c", name, "-c", "trainer/debug", "--trainer.enable_progress_bar=false"]
    if verb == "predict":
        words += ["--trainer.callbacks+=PredictionWriter"]
    cli = run(verb, *words)
    assert cli.trainer.state.finished


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_a_quickstart_names_no_file_of_data(name) -> None:
    data = yaml.safe_load(NAMES[name].read_text())["data"].get("init_args", {})
    assert not any(key in data for key in ("root", "path", "download"))


def test_names_and_paths_find_the_same_file() -> None:
    root = config_roots()[-1]
    assert find_config("korigins/quickstart") == find_config(str(root / "korigins" / "quickstart.yaml"))
    assert find_config("configs/korigins/quickstart.yaml").name == "quickstart.yaml"


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"-c korigins/e2_krfl19: .*did you mean .*korigins/e2_krfl18"):
        find_config("korigins/e2_krfl19")


@pytest.mark.parametrize(
    ("config", "name"),
    [("korigins/quickstart", "korigins/quickstart"), ("./mine.yaml", "mine"), ("/a/b/c.yaml", "b/c")],
)
def test_run_folders_are_named_after_the_config(config, name) -> None:
    assert run_name(config) == name
