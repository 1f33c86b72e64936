"""The classifier: loading networks as they were trained, the replacement protocol, what is trained and what is not."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torch import nn

from framework.commands.precedence import layer_arguments
from framework.errors import CheckpointError, ConfigError
from framework.nn import ScaleSpaceDepthwiseConv2d, approximate, depthwise_convolutions, idealised_bank, match_filters
from models import MasterKeyClassifier
from models.master_key.method import depthwise_kernels
from models.master_key.network import build_network, convert_keys, load_file_into, read_state_dict
from tests.helpers.methods import ATTO, NoiseData
from tests.helpers.small import quiet

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}


def classifier(**options) -> MasterKeyClassifier:
    options = {"model": "convnextv2_atto", "num_classes": 4, "model_args": SMALL} | options
    return MasterKeyClassifier(**options)


def saved(network: nn.Module, path: Path) -> str:
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return str(path)


def small(seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("convnextv2_atto", **({"num_classes": 4, "model_args": SMALL} | options))


def batch(classes: int = 4, count: int = 4, size: int = 32) -> dict[str, torch.Tensor]:
    return {
        "image": torch.randn(count, 3, size, size),
        "label": torch.arange(count) % classes,
        "index": torch.arange(count),
    }


def test_convnextv2_tiny_loads_a_checkpoint_and_is_replaced(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = build_network("convnextv2_tiny")
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    method = MasterKeyClassifier(
        "convnextv2_tiny", filters="B", checkpoint=saved(trained, tmp_path / "tiny.safetensors"), freeze_filters=True
    )
    convolutions = depthwise_convolutions(method.network)
    assert len(convolutions) == 18
    assert [c.out_channels for c in convolutions.values()] == [96] * 3 + [192] * 3 + [384] * 9 + [768] * 3
    assert sum(c.out_channels for c in convolutions.values()) == 6624
    assert {c.kernel_size for c in convolutions.values()} == {(7, 7)}
    method.initialise()
    bank = idealised_bank("B")
    kernels = {f"{name}.weight" for name in convolutions}
    for name, value in method.network.state_dict().items():
        was = trained.state_dict()[name]
        if name in kernels:
            expected = approximate(match_filters(was.flatten(0, 1), bank), bank).unsqueeze(1)
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7)
        else:
            assert torch.equal(value, was), name
    held = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert not held & {id(c.weight) for c in convolutions.values()}
    assert len(held) == len(list(method.parameters())) - 18


def test_a_checkpoint_is_loaded_by_name(tmp_path: Path) -> None:
    network = small(1)
    method = classifier(checkpoint=saved(network, tmp_path / "w.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    method.initialise()
    method.eval()
    assert torch.equal(method(x), network.eval()(x))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"model_ema": s, "model": {}}])
def test_torch_files_are_read_whatever_holds_the_weights(tmp_path: Path, wrap) -> None:
    network = small()
    torch.save(wrap(network.state_dict()), tmp_path / "w.pth")
    assert set(read_state_dict(tmp_path / "w.pth")) == set(network.state_dict())


def test_keys_by_regular_expression_and_by_torchvision_order() -> None:
    network = small()
    foreign = {"backbone." + k.replace("conv_dw", "dwconv"): v for k, v in network.state_dict().items()}
    ours = convert_keys(foreign, network, {r"^backbone\.": "", "dwconv": "conv_dw"})
    assert set(ours) == set(network.state_dict())
    mobilenet = build_network("mobilenetv2_100")
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.mobilenet_v2().state_dict()
    converted = convert_keys(theirs, mobilenet, "torchvision/mobilenet_v2")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in mobilenet.state_dict().items()}


def test_official_convnext_v2_names_are_converted_by_timm() -> None:
    network = small()
    state = {"stages.0.0.dwconv.weight": torch.ones(1), "stages.0.0.norm.weight": torch.ones(8)}
    state |= {"downsample_layers.0.0.weight": torch.ones(1), "stages.0.0.grn.gamma": torch.zeros(1, 1, 1, 32)}
    converted = convert_keys(state, network, "timm")
    assert "stages.0.blocks.0.conv_dw.weight" in converted
    assert "stem.0.weight" in converted


def test_a_self_supervised_checkpoint_has_neither_classifier_nor_last_norm(tmp_path: Path) -> None:
    trained = small(1)
    official = {k: v for k, v in trained.state_dict().items() if not k.startswith("head.")}
    path = tmp_path / "fcmae.pt"
    torch.save(
        {"model": {to_official(k): v.reshape(1, 1, 1, -1) if "grn" in k else v for k, v in official.items()}}, path
    )
    network = small(2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    load_file_into(network, str(path), "timm", load_head=False)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("head.") else trained.state_dict()[key]), key
    with pytest.raises(CheckpointError, match=r"4 missing \(head\.norm\.weight"):
        load_file_into(network, str(path), "timm")
    # a last norm that the file has is used
    torch.save({**trained.state_dict()}, path)
    load_file_into(network, str(path), load_head=False)
    assert torch.equal(network.head.norm.weight, trained.head.norm.weight)


def to_official(key: str) -> str:
    """timm's name of a ConvNeXt V2 tensor as the authors write it."""
    renames = {r"^stem\.": "downsample_layers.0.", r"^stages\.(\d)\.downsample": r"downsample_layers.\1"}
    renames |= {r"\.blocks\.": ".", "conv_dw": "dwconv", "mlp.grn.weight": "grn.gamma", "mlp.grn.bias": "grn.beta"}
    for pattern, replacement in {**renames, r"mlp\.fc": "pwconv"}.items():
        key = re.sub(pattern, replacement, key)
    return key


def test_identity_modules_and_model_arguments() -> None:
    network = build_network(
        "mobilenet_edgetpu_100", model_args={"pad_type": "same"}, identity_modules=["blocks.0.0.bn1.act"]
    )
    assert isinstance(network.blocks[0][0].bn1.act, nn.Identity)
    with pytest.raises(ConfigError, match=r"identity_modules: the network has no module 'blocks\.9\.0'"):
        build_network("mobilenet_edgetpu_100", identity_modules=["blocks.9.0"])


def test_the_protocol_matches_on_one_network_and_writes_into_another(tmp_path: Path) -> None:
    tuned, pretrained = small(1), small(2)
    method = classifier(
        filters="B",
        freeze_filters=True,
        checkpoint=saved(pretrained, tmp_path / "fcmae.safetensors"),
        match_checkpoint=saved(tuned, tmp_path / "ft.safetensors"),
        load_head=False,
    )
    head = method.network.head.fc.weight.clone()
    method.initialise()
    bank = idealised_bank("B")
    for name, conv in depthwise_convolutions(method.network).items():
        y = tuned.get_submodule(name).weight.flatten(0, 1)
        torch.testing.assert_close(
            conv.weight.double(), approximate(match_filters(y, bank), bank).unsqueeze(1), rtol=0, atol=1e-7
        )
        assert torch.equal(conv.bias, pretrained.get_submodule(name).bias)
    assert torch.equal(method.network.stem[0].weight, pretrained.stem[0].weight)
    assert torch.equal(method.network.head.fc.weight, head)


def test_a_frozen_network_holds_no_depthwise_weight_in_its_optimizer() -> None:
    method = classifier(filters="B", freeze_filters=True)
    optimizer = method.configure_optimizers()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    kernels = [conv.weight for conv in depthwise_convolutions(method.network).values()]
    assert not held & {id(w) for w in kernels}
    assert len(held) == len(list(method.parameters())) - len(kernels)
    method.setup("fit")
    method.step(batch(), "train")["loss"].backward()
    assert all(w.grad is None for w in kernels)


def test_learned_scale_trains_sigma_a_and_b(tmp_path: Path) -> None:
    method = classifier(
        filters="learned-scale", start_sigma=1.5, checkpoint=saved(small(3), tmp_path / "w.safetensors")
    )
    method.initialise()
    layers = [m for m in method.network.modules() if isinstance(m, ScaleSpaceDepthwiseConv2d)]
    assert len(layers) == 4
    np.testing.assert_allclose(layers[0].sigma.detach(), 1.5, atol=1e-5)
    matched = ScaleSpaceDepthwiseConv2d.from_conv(small(3).stages[0].blocks[0].conv_dw)
    assert torch.equal(layers[0].operator, matched.operator)
    method.step(batch(), "train")["loss"].backward()
    for layer in layers:
        assert bool((layer.raw_sigma.grad != 0).any())
        assert bool((layer.scale.grad != 0).any())
    frozen = classifier(filters="learned-scale", freeze_filters=True)
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if "raw_sigma" in n or n.endswith("dw.scale"))


def test_learned_scale_takes_over_tensorflow_s_padding() -> None:
    options = {"model": "mobilenet_edgetpu_100", "num_classes": 4, "model_args": {"pad_type": "same"}}
    torch.manual_seed(0)
    method = classifier(**options, filters="learned-scale").eval()
    layers = {n: m for n, m in method.network.named_modules() if isinstance(m, ScaleSpaceDepthwiseConv2d)}
    assert [m.padding for m in layers.values() if m.stride == (2, 2)] == ["same"] * 2
    plain = build_network(**options).eval()
    state = {k: v for k, v in method.network.state_dict().items() if not k.startswith(tuple(layers))}
    state |= {f"{name}.weight": m.kernel().detach() for name, m in layers.items()}
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 65, 96)
    with torch.no_grad():
        torch.testing.assert_close(method(x), plain(x), rtol=1e-4, atol=1e-5)
    method(x).square().sum().backward()
    assert all(bool((m.raw_sigma.grad != 0).any()) for m in layers.values())


def test_layer_decay_and_no_weight_decay_on_vectors() -> None:
    method = classifier(layer_decay=0.5, optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0}})
    optimizer = method.configure_optimizers()
    names = {id(p): n for n, p in method.network.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decays = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert rates["head.fc.weight"] == 1.0
    assert rates["stem.0.weight"] == min(rates.values()) < 0.1
    assert rates["stages.0.blocks.0.conv_dw.weight"] < rates["stages.3.blocks.0.conv_dw.weight"]
    assert decays["stem.0.bias"] == 0
    assert decays["stem.0.weight"] > 0


def test_the_published_recipe_has_the_published_rates() -> None:
    text = (Path(__file__).parents[2] / "configs" / "master_key" / "convnextv2_tiny_frozen.yaml").read_text()
    config = yaml.safe_load(text)
    model, data, fit = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    pictures = data["batch_size"] * fit["devices"] * fit["accumulate_grad_batches"]
    assert pictures == 256 * 4 * 8
    assert float(model["optimizer"]["init_args"]["lr"]) == pytest.approx(8e-4 * pictures / 256)
    method = MasterKeyClassifier("convnextv2_tiny", layer_decay=model["layer_decay"], optimizer=model["optimizer"])
    names = {id(p): n for n, p in method.network.named_parameters()}
    groups = method.configure_optimizers().param_groups
    rates = {names[id(p)]: g["lr"] / 2.56e-2 for g in groups for p in g["params"]}
    # one step of decay a block, and what halves the resolution goes with the block behind it
    assert rates["head.fc.weight"] == rates["head.norm.weight"] == pytest.approx(1)
    assert rates["stages.3.blocks.2.mlp.fc1.weight"] == pytest.approx(0.9)
    assert rates["stages.1.blocks.0.mlp.fc1.weight"] == rates["stages.1.downsample.1.weight"] == pytest.approx(0.9**15)
    assert rates["stages.0.blocks.0.mlp.fc1.weight"] == pytest.approx(0.9**18)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_targets_are_distributions_that_follow_the_pictures(options: dict) -> None:
    method = classifier(**options)
    image = torch.stack([torch.full((3, 16, 16), float(i)) for i in range(4)])
    target = torch.eye(4)
    mixed, soft = method._mix(image, target)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    # the mean of the mixed picture is the mixture of the two pictures' values
    expected = soft @ torch.arange(4.0)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=0, atol=1e-5)
    again, _ = method._mix(image, target)
    assert torch.equal(mixed, again)


def test_bad_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'convnextv2_tinny'; nearest: .*convnextv2_tiny"):
        classifier(model="convnextv2_tinny")
    with pytest.raises(ConfigError, match="ResNet has no depthwise convolution"):
        classifier(model="resnet18", model_args=None)
    with pytest.raises(ConfigError, match="banks: expected some of"):
        classifier(filters="E").initialise()
    with pytest.raises(ConfigError, match="model_args: convnextv2_atto cannot be built"):
        classifier(model_args={"depthz": 1})
    with pytest.raises(ConfigError, match="give one of the two"):
        classifier(pretrained=True, checkpoint="x")
    with pytest.raises(ConfigError, match="mixup, cutmix >= 0"):
        classifier(mixup=-1.0)
    with pytest.raises(ConfigError, match="only with a bank"):
        classifier(match_checkpoint="x")
    with pytest.raises(CheckpointError, match="there is no file"):
        classifier(checkpoint=str(tmp_path / "none.pth")).initialise()


def test_checkpoints_that_do_not_match_say_which_and_how_many(tmp_path: Path) -> None:
    network = small()
    state = network.state_dict()
    renamed = {k.replace("conv_dw", "dwconv"): v for k, v in state.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    with pytest.raises(CheckpointError, match=r"8 missing \(stages\.0\.blocks\.0\.conv_dw\..*8 unexpected"):
        load_file_into(network, str(tmp_path / "renamed.safetensors"))
    other = saved(small(num_classes=7), tmp_path / "seven.safetensors")
    with pytest.raises(CheckpointError, match=r"trained for 7 classes, model\.num_classes is 4.*load_head: false"):
        load_file_into(network, other)
    load_file_into(network, other, load_head=False)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_file_into(network, str(tmp_path / "broken.safetensors"))
    with pytest.raises(ConfigError, match="torchvision/resnet18 has .* another architecture"):
        load_file_into(network, other, "torchvision/resnet18")
    with pytest.raises(ConfigError, match="key_mapping: expected names, timm"):
        load_file_into(network, other, "magic")


def test_class_counts_that_differ_from_the_data_are_named(run) -> None:
    words = ["-c", "master_key/quickstart", "--model.num_classes=9", "--trainer.enable_progress_bar=false"]
    with pytest.raises(ConfigError, match=r"model\.num_classes: the data has 8 classes, got 9"):
        run("fit", *words)


def test_a_run_s_own_checkpoint_needs_no_other_file(run, tmp_path: Path) -> None:
    weights = saved(small(5, num_classes=8), tmp_path / "w.safetensors")
    words = ["-c", "master_key/quickstart", "-c", "trainer/debug", "--trainer.enable_progress_bar=false"]
    words += [f"--model.checkpoint={weights}", f"--model.model_args={SMALL}", "--data.image_size=32"]
    words += ["--model.filters=learned-scale", "--trainer.callbacks=null", "--trainer.fast_dev_run=false"]
    cli = run("fit", *words)
    kernels = depthwise_kernels(cli.model.network)
    (tmp_path / "w.safetensors").unlink()
    path = cli.trainer.checkpoint_callback.last_model_path or cli.trainer.checkpoint_callback.best_model_path
    again = run("test", *words, "--ckpt_path", path)
    assert all(torch.equal(k, depthwise_kernels(again.model.network)[n]) for n, k in kernels.items())


def test_a_run_s_own_checkpoint_downloads_nothing(monkeypatch, tmp_path: Path) -> None:
    create, asked = timm.create_model, []

    def offline(*args, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    method = classifier(pretrained=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(method)
    path = tmp_path / "own.ckpt"
    trainer.save_checkpoint(path)
    loaded = MasterKeyClassifier.load_from_checkpoint(path, weights_only=True)
    assert asked == [True, False]
    assert method.hparams["pretrained"] is True
    for key, value in method.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    # what `framework test --ckpt_path` builds the class with, whatever the configuration says
    words = ["test", "-c", '{"model": {"init_args": {"pretrained": true}}}', "--ckpt_path", str(path)]
    layers = layer_arguments(words, ["test"], tmp_path)
    assert layers.hparams is not None
    assert layers.hparams["pretrained"] is False
    assert layers.notes == ["model.pretrained: False from the checkpoint (the config file had True)"]


def test_timm_model_names_of_the_documentation_exist() -> None:
    for name in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"):
        assert timm.is_model(f"convnextv2_{name}")


def test_every_batch_of_a_step_is_mixed_by_a_draw_of_its_own(tmp_path) -> None:
    class Shares(MasterKeyClassifier):
        def _mix(self, image, target):
            mixed, shares = super()._mix(image, target)
            self.drawn.append((self.global_step, float(shares.max(1).values.min())))
            return mixed, shares

    drawn = []
    for gathered in (1, 2, 4):
        module = Shares(**ATTO, mixup=1.0)
        module.drawn = []
        words = {"max_epochs": 2, "enable_checkpointing": False, "limit_val_batches": 0}
        trainer = quiet(tmp_path, **words, accumulate_grad_batches=gathered)
        trainer.fit(module, NoiseData(3, 32, batch_size=2))
        drawn.append(module.drawn)
    steps = [[step for step, _ in one] for one in drawn]
    assert steps == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 2, 2, 3, 3], [0] * 4 + [1] * 4]
    # one batch a step: drawn from (step, rank), as always
    for step, share in drawn[0]:
        expected = np.random.default_rng([step, 0]).beta(1.0, 1.0)
        assert share == pytest.approx(max(expected, 1 - expected), rel=1e-5) or share == pytest.approx(1.0)
    for one in drawn[1:]:
        assert len({share for _, share in one if share < 1}) == len([share for _, share in one if share < 1]) > 4
