"""A checkpoint is data: whatever it names, nothing of it is called or imported."""

import copy
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.commands.precedence import _data_layer
from framework.errors import CheckpointError
from framework.main import main
from framework.trust import DEEPEST, MOST, check_hyper_parameters
from models import KOriginsSegmentation
from tests.conftest import TINY

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
CYCLIC = {"class_path": "torch.optim.lr_scheduler.CyclicLR", "init_args": {"base_lr": 0.1, "max_lr": 0.2}}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of one tiny fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitted"))
        patch.setattr("sys.argv", ["framework"])
        cli = main(["fit", *TINY, "--trainer.max_epochs=1", "--trainer.logger=false"])
        return torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A module in the working directory that leaves a file when it is imported or called."""
    (tmp_path / "trap.py").write_text(
        "from pathlib import Path\n\nimport torch\n\nPath('imported').touch()\n\n\n"
        "def call(*args, **kwargs):\n    Path('called').touch()\n    return torch.optim.SGD(args[0], lr=0.1)\n\n\n"
        "class Sneaky(torch.optim.SGD):\n    def __init__(self, params, **kwargs):\n"
        "        Path('called').touch()\n        super().__init__(params, lr=0.1)\n"
    )
    (tmp_path / "trap.yaml").write_text("class_path: trap.Sneaky\n")
    yield tmp_path
    sys.modules.pop("trap", None)


def spec(path: Any, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def deep(value: Any, times: int) -> Any:
    for _ in range(times):
        value = {"init_args": value}
    return value


def wide() -> list:
    bomb: list = ["x"]
    for _ in range(12):
        bomb = [bomb] * 10
    return bomb


#: what a checkpoint's hyper-parameters may be changed to
BAD: dict[str, dict[str, Any]] = {
    "a function of the system": {"lr_scheduler": spec("os.system", command="touch called")},
    "a function as optimizer": {"optimizer": spec("os.system", command="touch called")},
    "a class of another kind": {"optimizer": spec("subprocess.Popen", args="touch called", shell=True)},
    "a class of torch that is no optimizer": {"optimizer": spec("torch.nn.Linear", in_features=1, out_features=1)},
    "a function of torch": {"optimizer": spec("torch.load", f="trap.py")},
    "an optimizer as scheduler": {"lr_scheduler": ADAM},
    "a module of the working directory": {"optimizer": spec("trap.Sneaky")},
    "a function of the working directory": {"lr_scheduler": spec("trap.call")},
    "a word instead of a class": {"optimizer": "trap.call"},
    "a file instead of a class": {"lr_scheduler": "trap.yaml"},
    "a partial's pieces": {"optimizer": {"func": "os.system"}},
    "a class within the arguments": {"optimizer": spec("torch.optim.Adam", lr=spec("trap.Sneaky"))},
    "a function within the arguments": {
        "lr_scheduler": spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda="trap.call")
    },
    "a list of functions": {"lr_scheduler": spec("torch.optim.lr_scheduler.LambdaLR", lr_lambda=["trap.call"])},
    "another argument": {"width": spec("trap.Sneaky")},
    "deep inside": {"width": deep(spec("trap.Sneaky"), 20)},
    "too deep to look": {"width": deep(spec("trap.Sneaky"), DEEPEST + 1)},
    "too much to look at": {"width": wide()},
    "a dotted class path": {"optimizer.class_path": "os.system", "optimizer.init_args.command": "touch called"},
    "a dotted class path beside a good one": {"lr_scheduler": CYCLIC, "lr_scheduler.init_args.scale_fn": "trap.call"},
    "a dotted class of the working directory": {"optimizer": None, "optimizer.class_path": "trap.Sneaky"},
    "dots within the arguments": {"optimizer": spec("torch.optim.Adam", **{"lr.class_path": "trap.Sneaky"})},
    "dots within the class": {"optimizer": {**ADAM, "init_args.lr": {"class_path": "trap.Sneaky"}}},
    "dots of another argument": {"width.class_path": "trap.Sneaky"},
    "dots within another argument": {"width": {"a.class_path": "trap.Sneaky"}},
    "a key with a sign": {"optimizer+": "trap.Sneaky"},
    "a key that is no text": {"width": {3: spec("trap.Sneaky")}},
    "a file of weights": {"width": {"checkpoint_path": "trap.yaml"}},
    "an address": {"width": {"url": "https://example.org/weights.pth"}},
    "another instantiator": {"_instantiator": "trap.call"},
}


def written(content: dict[str, Any], changes: dict[str, Any], **keys: Any) -> str:
    changed = {**copy.deepcopy(content), **keys}
    changed["hyper_parameters"] = {**changed["hyper_parameters"], **changes}
    torch.save(changed, "bad.ckpt")
    return "bad.ckpt"


def assert_nothing_ran(folder: Path) -> None:
    assert not (folder / "imported").exists()
    assert not (folder / "called").exists()
    assert "trap" not in sys.modules


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_the_command_line_takes_no_code_from_a_checkpoint(run, trap, content, verb, name) -> None:
    path = written(content, BAD[name])
    with pytest.raises(CheckpointError, match=r"ckpt_path: .*hyper_parameters"):
        run(verb, *TINY, "--trainer.max_epochs=2", "--trainer.logger=false", "--ckpt_path", path)
    assert_nothing_ran(trap)


@pytest.mark.parametrize("name", BAD)
def test_python_takes_no_code_from_a_checkpoint(trap, monkeypatch, content, name) -> None:
    monkeypatch.chdir(trap)
    monkeypatch.syspath_prepend(str(trap))
    with pytest.raises(CheckpointError, match=r"ckpt_path: .*hyper_parameters"):
        KOriginsSegmentation.load_from_checkpoint(written(content, BAD[name]))
    assert_nothing_ran(trap)


@pytest.mark.parametrize("path", ["trap.Sneaky", "os.system", "subprocess.Popen", "models.KOrigins", "torch.nn.Linear"])
def test_a_checkpoint_brings_no_class_that_is_not_ours(run, trap, content, path) -> None:
    words = [w for w in TINY if w not in ("-c", "korigins/quickstart") and not w.startswith("--model")]
    path = written(content, {}, class_path=path)
    with pytest.raises(CheckpointError, match="which is no method of ours"):
        run("test", *words, "--data=SquaresDataModule", "--trainer.logger=false", "--ckpt_path", path)
    assert_nothing_ran(trap)


def test_what_the_user_names_himself_is_taken(run, trap, content) -> None:
    path = written(content, {"optimizer": spec("trap.Sneaky")})
    words = [*TINY, "--trainer.logger=false", "--ckpt_path", path]
    run("test", *words, "--model.optimizer=trap.Sneaky")
    assert (trap / "imported").exists()


def test_what_the_user_imports_is_taken(run, trap, content, monkeypatch) -> None:
    monkeypatch.setattr("framework.trust.vouched_modules", set())
    path = written(content, {"optimizer": spec("trap.Sneaky")})
    run("test", *TINY, "--trainer.logger=false", "--ckpt_path", path, "--import", "trap")
    assert (trap / "imported").exists()


def test_no_checkpoint_makes_us_download(content) -> None:
    assert check_hyper_parameters({"pretrained": True, "optimizer": ADAM})["pretrained"] is False
    for name in ("hf-hub:somebody/model", "hf_hub:somebody/model", "local-dir:trap"):
        with pytest.raises(CheckpointError, match="that timm carries itself"):
            check_hyper_parameters({"model": name, "optimizer": ADAM})


def test_a_users_own_mapping_may_have_dots_in_its_keys(trap) -> None:
    own = {"widths": {"layer1.conv": 3}, "optimizer": ADAM}
    assert check_hyper_parameters(own, ours=False) == own
    for value in ({"class_path": "a.B", "x.y": 1}, {"init_args": {"x.class_path": "trap.Sneaky"}}):
        with pytest.raises(CheckpointError, match="one name, without dots|no class of its own"):
            check_hyper_parameters({"widths": value}, ours=False)


def test_ordinary_hyper_parameters_stay_as_they_are(content) -> None:
    stored = content["hyper_parameters"]
    assert check_hyper_parameters(stored) == stored
    assert 10 * len(str(stored)) < MOST


class Runs:
    def __reduce__(self):
        return os.system, ("touch called",)


def test_a_pickle_inside_is_not_run_either(run, trap, content) -> None:
    torch.save({**content, "more": Runs()}, "bad.ckpt") if Path("bad.ckpt").parent.exists() else None
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint: .* whose code would run"):
        run("test", *TINY, "--trainer.logger=false", "--ckpt_path", "bad.ckpt")
    assert_nothing_ran(trap)
    assert pickle.dumps(Runs())


def test_a_checkpoint_names_no_folder_and_no_file_of_the_data(trap, content) -> None:
    stored = {"class_path": "datamodules.segmentation.SegmentationDataModule", "normalize": "none", "root": "/etc",
              "split_file": "passwd", "predict_images": "/etc", "num_workers": 9}  # fmt: skip
    torch.save({**content, "preprocessing": stored}, trap / "data.ckpt")
    layer = _data_layer(trap / "data.ckpt", [], [], "test")
    assert layer == {"data": {"class_path": "SegmentationDataModule", "init_args": {"normalize": "none"}}}


# ---------------------------------------------------------------------- files that hang or fill memory


def test_a_pipe_is_no_checkpoint(run, tiny) -> None:
    os.mkfifo("pipe.ckpt")
    with pytest.raises(CheckpointError, match="a folder, pipe or device has that name"):
        run("test", *tiny, "--ckpt_path", "pipe.ckpt")


def test_a_file_that_unpacks_to_much_more_is_refused_before_it_is_unpacked(run, tiny, content) -> None:
    torch.save(content, "good.ckpt")
    with zipfile.ZipFile("good.ckpt") as good, zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in good.infolist():
            bomb.writestr(part.filename, good.read(part))
        with bomb.open(f"{good.namelist()[0].split('/')[0]}/data/999", "w") as zeros:
            for _ in range(64):
                zeros.write(bytes(2**20))
    assert Path("bomb.ckpt").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match=r"unpack to \d{8}; a checkpoint unpacks to at most 4 times its size"):
        run("test", *tiny, "--ckpt_path", "bomb.ckpt")
