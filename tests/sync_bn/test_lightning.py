import pytest
from torch import nn

# The package itself needs torch alone.
pytest.importorskip("lightning")
from lightning.pytorch.plugins.layer_sync import LayerSync

from sync_bn import BatchRenorm, Correction, SyncBatchNorm
from sync_bn.lightning import BatchRenormPlugin, SyncBatchNormPlugin


def test_plugin_converts_and_reverts_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    plugin: LayerSync = SyncBatchNormPlugin()

    assert type(plugin.apply(model)[1]) is SyncBatchNorm  # type: ignore[index]
    assert type(plugin.revert(model)[1]) is nn.BatchNorm2d  # type: ignore[index]


def test_plugin_leaves_alone_what_it_has_not_converted() -> None:
    model = nn.Sequential(SyncBatchNorm(3, activation="relu"), nn.BatchNorm2d(3))
    plugin = SyncBatchNormPlugin()

    plugin.revert(plugin.apply(model))

    assert [type(layer) for layer in model] == [SyncBatchNorm, nn.BatchNorm2d]


def test_plugin_of_batch_renorm_converts_with_its_correction_and_reverts() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    plugin: LayerSync = BatchRenormPlugin(correction=Correction(r_max=2.0))

    converted = plugin.apply(model)[1]  # type: ignore[index]
    assert type(converted) is BatchRenorm
    assert converted.correction.r_max == 2
    assert type(plugin.revert(model)[1]) is nn.BatchNorm2d  # type: ignore[index]
