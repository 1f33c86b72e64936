"""Every shipped configuration parses and builds; quickstarts run end to end with an overlay that shrinks them."""

from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.commands.cli import BuildOnly
from framework.commands.precedence import layer_arguments
from framework.commands.yaml_files import as_yaml, parse
from framework.configs import config_names, config_roots, find_config, run_name
from framework.errors import ConfigError
from models import MaskedFinola, MasterKeyClassifier

NAMES = dict(config_names())
# an overlay changes another configuration; these are what it is tried on
BASES = {
    "korigins/overlays": ("korigins/e2_krfl18", "korigins/e1_rfl18"),
    "kmunet/overlays": ("kmunet/dsb2018",),
    "master_key/overlays": ("master_key/tiny_imagenet_20",),
    "finola/overlays": ("finola/tiny_imagenet",),
    "trainer": ("korigins/quickstart",),
}
PLAIN_ONLY = {"standardized", "batch_norm", "data_bias", "bias_lr"}
QUICKSTARTS = [name for name in NAMES if name.endswith("/quickstart")]
#: too large to run here, with the height of their images
LARGE = {
    "finola/paper": 256,
    "finola/imagenet_c128_m1": 256,
    "finola/imagenet_c128_m16": 256,
    "finola/imagenet_c512_m1": 256,
    "finola/imagenet_c1024_m16": 256,
    "finola/imagenet_c2048_m1": 256,
    "finola/masked_block": 256,
    "finola/masked_element": 256,
    "kmunet/slides": 512,
    "korigins/paper": 400,
    "master_key/convnextv2_tiny_frozen": 224,
}
SLOW = {"finola/imagenet_c128_m1", "finola/imagenet_c128_m16", "finola/imagenet_c512_m1", "finola/imagenet_c1024_m16"}
OF_KODAK = [
    name
    for name in NAMES
    if name.startswith("levels_of_experts/") and "/studies/" not in name and name not in QUICKSTARTS
]


def words_for(name: str) -> list[str]:
    folder, _, stem = name.rpartition("/")
    if folder in BASES:
        return ["-c", BASES[folder][-1 if stem in PLAIN_ONLY else 0], "-c", name]
    return ["-c", name]


@pytest.mark.parametrize("name", [name for name in NAMES if "/studies/" not in name])
def test_every_configuration_parses_and_builds(name, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["framework"])
    cli = BuildOnly(args=["fit", *words_for(name)])
    assert cli.model.hparams  # some models build their networks in setup, from the data
    assert cli.datamodule is not None


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LARGE])
def test_large_configurations_take_images_of_their_size(name, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["framework"])
    cli = BuildOnly(args=["fit", *words_for(name)])
    model, size = cli.model.eval(), LARGE[name]
    assert cli.model.configure_optimizers()
    channels = 1 if name.startswith(("kmunet", "korigins")) else 3
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # shapes without memory and arithmetic
        image = torch.zeros(2, channels, size, size)
        out = model.predict_all(image, [(0, 0), (1, 2)])[0] if isinstance(model, MaskedFinola) else model(image)
    if isinstance(model, MasterKeyClassifier):
        assert out.shape == (2, 1000)
    else:
        assert out.shape == (2, 3 if channels == 3 else model.hparams["num_classes"], size, size)


@pytest.mark.parametrize("name", OF_KODAK)
def test_configurations_of_all_kodak_divide_its_images_and_build_their_networks(name, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["framework"])
    model = BuildOnly(args=["fit", *words_for(name)]).model
    model.configure_images(["landscape", "portrait"], [[512, 768], [768, 512]])
    assert model.configure_optimizers()


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


def test_a_configuration_builds_on_those_that_it_names(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "first.yaml").write_text("base: korigins/recipe\nmodel: {init_args: {rfl: 18, width: 4}}\n")
    (tmp_path / "second.yaml").write_text(
        "base: [first.yaml, korigins/overlays/batch_norm]\ndata: {init_args: {side: 32}}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = BuildOnly(args=["fit", "-c", "second.yaml", "--model.width=6"]).config["fit"]
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (model["rfl"], model["width"], model["batch_norm"], model["num_classes"]) == (18, 6, True, 3)
    assert (data["side"], data["batch_size"]) == (32, 3)
    assert config["trainer"]["max_epochs"] == 50


def test_a_name_of_a_run_is_that_of_the_configuration_and_not_of_its_base() -> None:
    assert layer_arguments(["fit", "-c", "korigins/e1_rfl18"], ["fit"], Path("runs")).name == "korigins/e1_rfl18"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: one.yaml\n", "base: .* in a circle"),
        ("base: {a: 1}\n", "base: expected the name or path of a configuration, or a list"),
        ("base: korigins/recipes\n", "no shipped configuration of this name; did you mean korigins/recipe"),
    ],
)
def test_a_base_that_cannot_be_is_named(text, message, tmp_path, monkeypatch) -> None:
    (tmp_path / "one.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        layer_arguments(["fit", "-c", "one.yaml"], ["fit"], Path("runs"))


def test_a_configuration_with_a_base_has_the_values_of_its_text(tmp_path, monkeypatch) -> None:
    """Astral letters, infinities, exponents without a point and texts that look like something else."""
    values = {
        "root": '"d\U0001f600/\u00e9\u4e2d"',
        "images": "'1e-3'",
        "masks": "'null'",
        "exposure": "[1e-3, 1E+2]",
        "eval_exposure": "2e0",
        "normalize": "none",
    }
    text = "data:\n  class_path: SegmentationDataModule\n  init_args:\n"
    text += "".join(f"    {key}: {value}\n" for key, value in values.items())
    text += "model: {class_path: KMUNet, init_args: {num_classes: 2}}\n"
    text += "trainer: {gradient_clip_val: .inf, val_check_interval: 1e-1}\n"
    (tmp_path / "whole.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "nothing.yaml").write_text("seed_everything: 1\n")
    (tmp_path / "based.yaml").write_text(f"base: nothing.yaml\n{text}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    whole, based = (BuildOnly(args=["fit", "-c", f"{name}.yaml"]).config["fit"] for name in ("whole", "based"))
    assert based["data"] == whole["data"]
    assert based["trainer"] == whole["trainer"]
    data = based["data"]["init_args"]
    assert (data["root"], data["images"], data["masks"]) == ("d\U0001f600/\u00e9\u4e2d", "1e-3", "null")
    assert data["exposure"] == [0.001, 100.0]
    assert based["trainer"]["gradient_clip_val"] == float("inf")
    assert based["trainer"]["val_check_interval"] == 0.1


@pytest.mark.parametrize(
    "value",
    ["\U0001f600", "1e-3", "null", "", "a: b", "x" * 300 + " y" * 300, 1e-20, 1e22, 0.1, float("inf"), -float("inf"),
     None, True, 3, [[1, "2"], {}], {"a": [], "b": {"c": (1e-5, None)}}],
)  # fmt: skip
def test_values_are_one_line_that_is_read_as_they_were(value) -> None:
    from jsonargparse._loaders_dumpers import yaml_load

    text = as_yaml(value)
    assert "\n" not in text
    assert repr(yaml_load(text)) == repr(value).replace("(1e-05, None)", "[1e-05, None]")
    assert repr(parse(text)) == repr(yaml_load(text))
    with pytest.raises(TypeError, match="expected plain values, got object"):
        as_yaml([object()])
