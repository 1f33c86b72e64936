"""`framework export`: files that are what the method is, at every size, and that need nothing of ours."""

import copy
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import framework
from framework.deploy import Axis, InferenceForm, Port, forms_of, load_exported
from framework.deploy.running import check, opened
from framework.errors import CheckpointError, ConfigError
from framework.main import main, shown
from framework.nn import KANConv2d, ScaleSpaceDepthwiseConv2d
from models import KMUNet, KOriginsSegmentation, MasterKeyClassifier
from tests.helpers.methods import ATTO, BUILD

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

OLD = Path(__file__).parents[1] / "data" / "before_the_move"
METHODS = ["korigins", "kmunet", "levels_of_experts", "master_key", "finola", "masked_finola"]
#: sizes that no form is followed at
OTHERS = ({"batch": 1, "height": 71, "width": 93, "rows": 7}, {"batch": 5, "height": 98, "width": 67, "rows": 40})


def method(name: str) -> nn.Module:
    if name == "kmunet":  # small, and pruned so that channels go
        made = BUILD[name]()
        conv = made.network.units["down_0_b"].conv
        keep = torch.ones_like(conv.live)
        keep[:, 0] = False
        conv.prune_edges(keep)
        made.network.units["decode_0_a"].conv.prune_edges(_without(made.network.units["decode_0_a"].conv, 0))
        for norm in made.network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.3, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
        return made.eval()
    return framework.load(OLD / name / "last.ckpt")


def _without(conv: KANConv2d, channel: int) -> torch.Tensor:
    keep = torch.ones_like(conv.live)
    keep[:, channel] = False
    return keep


def drawn(form: InferenceForm) -> list[tuple[torch.Tensor, ...]]:
    return [form.draw(sizes, seed) for seed, sizes in enumerate(OTHERS)]


def close(found: np.ndarray, truth: torch.Tensor) -> None:
    expected = truth.detach().float().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_as_onnx_without_torch(name, tmp_path) -> None:
    torch.manual_seed(0)
    module = method(name)
    report = framework.export(module, tmp_path, "onnx")
    assert json.loads((tmp_path / "export.json").read_text())["files"] == report["files"]
    expected = {}
    for form in forms_of(module):
        for i, inputs in enumerate(drawn(form)):
            np.savez(tmp_path / f"{form.name}-{i}.npz", *(x.numpy() for x in inputs))
            expected[f"{form.name}-{i}"] = form.reference(*inputs)
    script = Path(__file__).parent / "onnx_alone.py"
    ran = subprocess.run([sys.executable, "-I", script, tmp_path], capture_output=True, text=True)
    assert ran.stdout.strip() == "ran without torch", ran.stderr
    assert len(expected) == (4 if name == "finola" else 2)
    for stem, truth in expected.items():
        close(np.load(tmp_path / f"{stem}.out.npy"), truth)


PT2 = [("pt2", n) if n == "korigins" else pytest.param("pt2", n, marks=pytest.mark.slow) for n in METHODS]


@pytest.mark.parametrize(("form", "name"), [*PT2, *(("torchscript", n) for n in METHODS)])
def test_every_method_runs_in_torch_at_other_sizes(form, name, tmp_path) -> None:
    torch.manual_seed(0)
    module = method(name)
    report = framework.export(module, tmp_path, form)
    assert len(report["files"]) == len(forms_of(module))
    for made, file in zip(forms_of(module), report["files"], strict=True):
        run = opened(tmp_path / file["file"])
        for inputs in drawn(made):
            close(run(*(x.numpy() for x in inputs)), made.reference(*inputs))


class Halved(nn.Module):
    """Cuts away what is over at the size that it is traced at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : int(x.shape[-1]) // 2] * (2.0 if x.shape[-2] % 2 else 1.0)


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_a_module_that_is_right_at_one_size_only_is_refused_and_leaves_nothing(format, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no-dynamic"):
        framework.export(Halved(), tmp_path / "out", format, example=torch.randn(2, 1, 8, 8))
    assert list(tmp_path.iterdir()) == []
    framework.export(Halved(), tmp_path / "out", format, example=torch.randn(2, 1, 8, 8), dynamic=False)
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir())[0] == ".json"


# ---------------------------------------------------------------------- inference forms


def test_pruned_channels_are_not_in_the_file() -> None:
    whole = BUILD["kmunet"]()
    (of_whole,), (of_pruned,) = forms_of(whole.eval()), forms_of(method("kmunet"))
    counts = [sum(p.numel() for p in form.module.parameters()) for form in (of_whole, of_pruned)]
    assert counts[1] < counts[0]


@pytest.mark.parametrize("tail", ["linear", "clamp", "zero"])
@pytest.mark.parametrize("base", [None, "silu"])
def test_a_plain_spline_unit_is_the_spline_unit(tail, base) -> None:
    torch.manual_seed(0)
    made = KMUNet(width=2, stages=1, tail=tail, base=base, up="transposed", korigins=[0.2, 0.7]).eval()
    (form,) = forms_of(made)
    x = 8 * torch.randn(2, 1, 11, 13)
    torch.testing.assert_close(form.module(x), made(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, KANConv2d) for m in form.module.modules())


def test_scale_space_filters_become_plain_convolutions() -> None:
    made = MasterKeyClassifier(**ATTO, filters="learned-scale").eval()
    (form,) = forms_of(made)
    assert any(isinstance(m, ScaleSpaceDepthwiseConv2d) for m in made.modules())
    assert not any(isinstance(m, ScaleSpaceDepthwiseConv2d) for m in form.module.modules())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(form.module(x), made(x))


def test_folded_origins_have_the_border_of_every_size(tmp_path) -> None:
    torch.manual_seed(0)
    made = KOriginsSegmentation(width=2, class_mean=[9000, 20000], class_std=[300, 300]).eval()
    with torch.no_grad():
        made.network.origin_parameters()[0].copy_(torch.tensor([[8000.0], [9500], [19000], [21000]]))
    framework.export(made, tmp_path, "pt2")
    run = opened(tmp_path / "segmenter.pt2")
    for size in ((1, 1, 3, 3), (2, 1, 5, 4), (1, 1, 31, 8)):
        x = 30000 * torch.rand(size)
        close(run(x.numpy()), made(x))


def test_a_network_exported_by_hand_pads_odd_sizes_though_the_sample_was_even() -> None:
    torch.manual_seed(0)
    network = BUILD["kmunet"]().eval().network
    dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(network, (torch.randn(2, 1, 8, 8),), dynamic_shapes=(dims,)).module()
    for size in ((3, 1, 11, 13), (1, 1, 6, 7)):
        x = torch.randn(size)
        close(program(x).detach().numpy(), network(x))


# ---------------------------------------------------------------------- the module and the process stay as they were


def test_exporting_changes_neither_the_module_nor_the_process(tmp_path) -> None:
    torch.manual_seed(0)
    made = BUILD["kmunet"]().train()
    before, modes = copy.deepcopy(made.state_dict()), [m.training for m in made.modules()]
    drawn_before = torch.get_rng_state()
    framework.export(made, tmp_path / "a", "onnx")
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert [m.training for m in made.modules()] == modes
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key]), key
    # what is cached for all layers of a process
    layer = ScaleSpaceDepthwiseConv2d(8)
    assert torch.isfinite(layer(torch.randn(1, 8, 9, 9))).all()
    KANConv2d(1, 1, 3, max_grid_size=10).extend_grid(2)
    loss = made(torch.randn(2, 1, 8, 8)).square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.network.head.parameters())


# ---------------------------------------------------------------------- the command


def test_the_command_writes_below_the_run_folder_and_replaces_nothing(tmp_path, capsys) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes((OLD / "korigins" / "last.ckpt").read_bytes())
    words = ["export", "--ckpt_path", str(folder / "best.ckpt"), "--format", "torchscript"]
    assert main(words) == 0
    out = tmp_path / "version_0" / "export" / "torchscript"
    assert sorted(p.name for p in out.iterdir()) == ["export.json", "segmenter.ts"]
    report = json.loads((out / "export.json").read_text())
    (file,) = report["files"]
    assert report["dynamic"]
    assert file["classes"] == ["0", "1", "2"]
    assert [axis["name"] for axis in file["inputs"][0]["axes"]] == ["batch", "channels", "height", "width"]
    assert {"eager_ms", "file_ms"} < set(file["speed"])
    was = (out / "segmenter.ts").read_bytes()
    assert shown(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert (out / "segmenter.ts").read_bytes() == was
    fixed = ["--no-dynamic", "--size", "24", "32", "--batch", "1", "--out", str(tmp_path / "fixed")]
    assert main([*words, *fixed]) == 0
    sizes = json.loads((tmp_path / "fixed" / "export.json").read_text())["files"][0]["compared"][0]["sizes"]
    assert (sizes["batch"], sizes["height"], sizes["width"]) == (1, 24, 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int8"], "--format onnx"),
        (["--precision", "int8", "--format", "onnx"], "--calibration"),
        (["--precision", "bf16", "--format", "onnx"], "no bf16"),
        (["--precision", "fp16"], "65504"),
        (["--size", "8", "8"], "--no-dynamic"),
        (["--no-dynamic", "--size", "2", "8"], "height from"),
    ],
)
def test_what_cannot_be_is_said(words, said, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    status = shown(["export", "--ckpt_path", str(OLD / "korigins" / "last.ckpt"), "--out", str(out), *words])
    error = capsys.readouterr().err
    assert status == 2
    assert said in error
    assert len(error.splitlines()) <= 3
    assert not out.exists()


def test_a_module_without_forms_says_what_to_do(tmp_path) -> None:
    with pytest.raises(ConfigError, match="inference_forms"):
        framework.export(nn.Linear(2, 2), tmp_path / "out")
    report = framework.export(nn.Linear(2, 2), tmp_path / "out", example=torch.randn(3, 2))
    assert report["files"][0]["compared"][0]["largest_difference"] < 1e-6


@pytest.mark.parametrize("name", ["master_key", "finola", "kmunet"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits(name, precision, tmp_path) -> None:
    torch.manual_seed(0)
    report = framework.export(method(name), tmp_path, "torchscript", precision=precision)
    for file in report["files"]:
        assert all(0 < row["share"] < 0.1 for row in file["compared"])


# ---------------------------------------------------------------------- reading files of strangers


def linear(folder: Path) -> Path:
    framework.export(nn.Linear(2, 2), folder, example=torch.randn(3, 2))
    return folder / "module.pt2"


def rewritten(path: Path, change) -> Path:
    import zipfile

    other = path.with_name("other.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for entry in source.infolist():
            name, content = change(entry.filename, source.read(entry))
            target.writestr(name, content)
    return other


ATTACKS = {
    "an expression": lambda n, c: (n, c.replace(b"Symbol('s", b"__import__('os').system('s")),
    "a call": lambda n, c: (n, c.replace(b"torch.ops.aten.linear.default", b"torch.hub.load.default")),
    "a pickle": lambda n, c: (n, c.replace(b'"use_pickle": false', b'"use_pickle": true')),
    "example inputs": lambda n, c: (n, b"cos\nsystem\n(S'true'\ntR." if "sample_inputs" in n else c),
    "compiled code": lambda n, c: (n.replace("models/model.json", "data/aotinductor/model/a.so"), c),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_that_could_run_code_is_refused_unread(attack, tmp_path, monkeypatch) -> None:
    path = linear(tmp_path / "out")
    assert load_exported(path)(torch.ones(3, 2)).shape == (3, 2)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="could run code"):
        load_exported(rewritten(path, ATTACKS[attack]))


def test_damaged_weights_are_noticed(tmp_path) -> None:
    path = linear(tmp_path / "out")
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if "data/weights/" in e.filename and e.file_size > 8)
        data = archive.read(entry)
    content = path.read_bytes()
    assert content.count(data) == 1
    path.write_bytes(content.replace(data, bytes([data[0] ^ 1]) + data[1:]))
    with pytest.raises(CheckpointError, match=r"got .*data/weights/.* damaged"):
        load_exported(path)


def test_guards_are_arithmetic_or_refused(tmp_path) -> None:
    from framework.deploy.loading import is_arithmetic

    assert is_arithmetic("torch.sym_max(1, 4*((3 + L['inputs'][0].size()[3]) // 4)) != 1")
    assert is_arithmetic("Mul(Integer(2), Symbol('s94', positive=True, integer=True))")
    for text in ("().__class__", "open('a')", "L.__init__", "(lambda: 1)()", "[x for x in L]", "f'{L}'", "L['a/b']"):
        assert not is_arithmetic(text), text


def test_a_file_of_another_kind_is_named(tmp_path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"a\.pt2"):
        load_exported(path)


def test_ports_draw_what_they_say() -> None:
    port = Port("x", (Axis("batch"), Axis("height", 8, 4), Axis("width", fixed=6)), -1, 1, "")
    assert port.draw({"batch": 3, "height": 9}, torch.Generator()).shape == (3, 12, 6)


@pytest.mark.parametrize(
    ("precision", "traced", "advice"),
    [
        ("fp32", True, "followed at another size, which it kept; take --format pt2 or onnx, or --no-dynamic"),
        ("bf16", True, "followed at another size, which it kept; take --format pt2 or onnx, or --no-dynamic"),
        ("bf16", False, "the method needs more digits than bf16 has; take --precision fp32"),
        ("fp32", False, "what was written computes something else; take another --format"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_own_reason(precision, traced, advice) -> None:
    form = forms_of(method("master_key"))[0]
    rows = [{"sizes": {"batch": 2}, "share": 1e-6}, {"sizes": {"batch": 1}, "share": 0.14}]
    with pytest.raises(ConfigError, match=rf"expected .* in {precision}, got 0\.14 at .*batch.*; .*{advice}"):
        check(form, rows, precision, traced)
    check(form, rows[:1], precision, traced)
