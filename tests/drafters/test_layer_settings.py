"""What a config.json says of a head's layers: whatever cannot be is one line, found before any layer is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.drafters.block_head import BlockHead
from specdec.drafters.eagle_head import EagleHead
from specdec.heads import CONFIG
from specdec.target import Target

from ..heads import make_head
from ..models import make_model

HEADS: dict[str, Any] = {"block": BlockHead, "eagle": EagleHead}


@pytest.fixture(scope="module", params=HEADS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A head's class, and a folder of one."""
    folder = tmp_path_factory.mktemp(request.param)
    make_head(request.param, Target(make_model(vocab_size=8))).save(folder)
    return HEADS[request.param], folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab_size": 8}, "unknown setting of `decoder` in the config.json of .* 'vocab_size'"),
        ({"num_key_value_head": 2}, "Did you mean 'num_key_value_heads'"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"intermediate_size": 0}, "intermediate_size is 0; expected a value like"),
        ({"num_attention_heads": 2.0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor of num_attention_heads, "),
        ({"hidden_act": "siluu"}, "unknown hidden_act 'siluu'. Did you mean"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, "nonsense"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "has dynamic rotary scaling"),
    ],
)
def test_settings_of_no_layer_are_refused(
    saved: tuple[Any, Path], change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    head, folder = saved
    config = json.loads((folder / CONFIG).read_text())
    check_refused(head, tmp_path, folder, {**config, "decoder": config["decoder"] | change}, told)


def test_a_decoder_is_a_mapping(saved: tuple[Any, Path], tmp_path: Path) -> None:
    head, folder = saved
    config = json.loads((folder / CONFIG).read_text())
    check_refused(head, tmp_path, folder, {**config, "decoder": 3}, "is 3; expected the settings")


def check_refused(head: Any, new: Path, folder: Path, config: dict[str, Any], told: str) -> None:
    for file in folder.iterdir():
        (new / file.name).symlink_to(file)
    (new / CONFIG).unlink()
    (new / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told) as refused:
        head.load(new)
    assert str(new) in str(refused.value)
    assert "\n" not in str(refused.value)
