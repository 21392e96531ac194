"""What is no teacher: one clear line with the way out, and no code of the file is run."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.build import save_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from tests.helpers.teachers import KNOWN_SIZES, SMALL, random_teacher, random_vit_mae, write_hub_folder

Weights = dict[str, Tensor]
STATE: Weights = random_teacher(KNOWN_SIZES).state_dict()


def refused(spec: str | Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        read_teacher(str(spec))
    message = str(caught.value)
    assert "\n" not in message
    return message


def without(prefix: str) -> Weights:
    return {name: tensor for name, tensor in STATE.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tinny", r"Did you mean tiny\?"),
        ("mae-gigantic", r"unknown teacher 'mae-gigantic'; known: tiny, mae-base, mae-large, mae-huge"),
        ("nowhere/at/all.pth", "no such file"),
        ("./nowhere", "no such file or folder"),
        ("memory://nowhere/mae.pth", "no such file"),
        ("memory://nowhere/folder", "it holds none of teacher.safetensors"),
        ("pipe:cat weights.pth", "refused"),
        ("some/model", r"cannot fetch some/model .*tiny"),
    ],
)
def test_what_is_not_there(spec: str, match: str) -> None:
    refused(spec, match)


@pytest.mark.parametrize(
    ("width", "way_out"), [(192, "mae-base"), (768, "mae_visualize_vit_base.pth"), (1024, "mae-large")]
)
def test_an_encoder_alone_is_refused_with_one_that_has_a_decoder(
    width: int, way_out: str, tmp_path: Path
) -> None:
    weights = {"cls_token": torch.zeros(1, 1, width), "blocks.0.norm1.weight": torch.ones(width)}
    torch.save({"model": weights}, tmp_path / "mae_pretrain_vit.pth")
    message = refused(tmp_path / "mae_pretrain_vit.pth", "encoder without its decoder")
    assert way_out in message


def test_a_hugging_face_encoder_is_refused(tmp_path: Path) -> None:
    random_vit_mae().vit.save_pretrained(tmp_path / "encoder")
    refused(tmp_path / "encoder", "encoder without its decoder")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: without("decoder_pred.bias"), r"lacks 1 parameters .*: decoder_pred\.bias"),
        (lambda: without("decoder_embed"), r"lacks the parameter decoder_embed\.weight"),
        (lambda: without("blocks.0.attn"), r"lacks 4 parameters .*: blocks\.0\.attn"),
        (lambda: without("cls_token"), "no class token"),
        (lambda: {**STATE, "head.weight": torch.zeros(1)}, r"1 parameters that no MAE has: head\.weight"),
        (lambda: {**STATE, "norm.bias": torch.zeros(7)}, r"norm\.bias has the shape \[7\].*\[192\]"),
        (lambda: {**STATE, "norm.bias": torch.full((192,), torch.nan)}, r"norm\.bias holds values .*damaged"),
        (lambda: {**STATE, "pos_embed": torch.zeros(1, 16, 192)}, "not a class token and a square grid"),
        (lambda: {**STATE, "pos_embed": torch.zeros(17, 192)}, "not a class token and a square grid"),
        (lambda: {**STATE, "decoder_pos_embed": torch.zeros(1, 10, 512)}, r"decoder_pos_embed has the shape"),
        (dict, "no class token"),
    ],
)
def test_wrong_parameters(change: Callable[[], Weights], match: str, tmp_path: Path) -> None:
    torch.save({"model": change()}, tmp_path / "mae.pth")
    (tmp_path / "mae.json").write_text('{"config": {"heads": 3, "decoder_heads": 16}}')
    refused(tmp_path / "mae.pth", rf"^mae\.pth.*{match}")


class Attack:
    """Unpickling this would write a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Attack(tmp_path / "trace")}, tmp_path / "mae.pth")
    refused(tmp_path / "mae.pth", r"it holds \S+, and loading that could run code; save its weights alone")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["html", "empty", "cut", "list", "numbers"])
def test_what_holds_no_weights(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mae{suffix}"
    if suffix == ".pth":
        torch.save({"list": [1, 2], "numbers": {"model": {"cls_token": 1}}}.get(kind, STATE), path)
    else:
        safetensors.torch.save_file(STATE, path)
    data = path.read_bytes()
    path.write_bytes(
        {"html": b"<html>404</html>", "empty": b"", "cut": data[: len(data) // 2]}.get(kind, data)
    )
    if suffix == ".safetensors" and kind in ("list", "numbers"):
        path.with_suffix(".json").write_text('{"config": {"heads": 12, "decoder_heads": 16}}')
        assert read_teacher(str(path)).config.heads == 12
        return
    refused(path, r"mae\.(pth|safetensors)")


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    save_teacher(random_teacher(SMALL), str(tmp_path), name="mine")
    about = json.loads((tmp_path / "teacher.json").read_text())

    def rewritten(**changes: Any) -> None:
        (tmp_path / "teacher.json").write_text(json.dumps({**about, **changes}))

    rewritten(digest="0" * 64)
    refused(tmp_path, "not the weights that the JSON file beside them describes")
    rewritten(config={**about["config"], "colour": 3})
    refused(tmp_path, "no teacher has the setting 'colour'; it may be image_size")
    rewritten(config={**about["config"], "depth": 10**9})
    refused(tmp_path, "depth is 1000000000 in its settings, 3 in its weights")
    rewritten(config={**about["config"], "image_size": 24_000})
    refused(tmp_path, "a grid of 3000 patches a side, the limit is 181")
    rewritten(config={**about["config"], "decoder_heads": 0})
    refused(tmp_path, "decoder_heads is 0")
    rewritten(config={**about["config"], "norm_eps": -1.0})
    refused(tmp_path, "norm_eps is -1.0")
    rewritten(config={**about["config"], "heads": 5})
    refused(tmp_path, "width 32 must divide by 5 heads")
    rewritten(config={**about["config"], "heads": "4"})
    refused(tmp_path, "heads is '4', which is no int")
    rewritten(config=[1])
    refused(tmp_path, '"config" in its JSON file')
    (tmp_path / "teacher.json").write_text("{")
    refused(tmp_path, "teacher.json is damaged")
    (tmp_path / "teacher.json").write_text("[1]")
    refused(tmp_path, "a JSON list, not an object")
    (tmp_path / "teacher.json").unlink()
    refused(tmp_path, "does not tell its image_size")
    save_teacher(random_teacher(SMALL), str(tmp_path), name="mine")
    with pytest.raises(UserError, match="output space 'bright'"):
        read_teacher(str(tmp_path), output_space="bright")


def test_another_hugging_face_model_is_refused(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path / "t", random_vit_mae())
    config = json.loads((folder / "config.json").read_text())
    for change in ({"model_type": "vit"}, {"hidden_act": "relu"}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        refused(folder, "a teacher is a vit_mae with gelu")


def test_weights_beyond_half_precision_are_not_saved_as_such(tmp_path: Path) -> None:
    model = random_teacher(SMALL)
    with torch.no_grad():
        model.norm.weight[0] = 1e6
    with pytest.raises(UserError, match=r"norm\.weight holds values that are not finite"):
        save_teacher(model, str(tmp_path), name="mine", half=True)
    assert not list(tmp_path.iterdir())


def test_what_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    wide = {**STATE, "mask_token": torch.zeros(1).expand(1, 1, 10**13)}
    torch.save({"model": wide}, tmp_path / "expanded.pth")
    refused(tmp_path / "expanded.pth", "mask_token claims more values than it has")
    torch.save({"model": {"cls_token": torch.zeros(2**22)}}, tmp_path / "sound.pth")
    with (
        zipfile.ZipFile(tmp_path / "sound.pth") as sound,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in sound.infolist():
            bomb.writestr(entry.filename, sound.read(entry))
    refused(tmp_path / "bomb.pth", r"bytes that unpack to 167\d+")


def test_heads_that_no_file_tells_are_asked_for(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "mine.pth")
    message = refused(tmp_path / "mine.pth", "does not tell its heads and decoder_heads")
    assert '{"config": {"heads": 3, "decoder_heads": 16}}' in message
    assert "heads 3 and decoder_heads 16 are usual for its widths; others give other scores" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("kind", [dict, argparse.Namespace])
def test_wrapped_weights_and_arguments_of_any_kind_are_read(prefix: str, kind: Any, tmp_path: Path) -> None:
    arguments = kind(model="mae_vit_base_patch16", norm_pix_loss=True)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    torch.save({"model": wrapped, "args": arguments}, tmp_path / "mine.pth")
    config = read_teacher(str(tmp_path / "mine.pth")).config
    assert (config.width, config.heads, config.output_space) == (192, 3, "normalised")
