"""What decodes the JPEGs of a run: measured once, stored, kept by whatever continues the run; the device's pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlrun.config import ranks
from dlrun.config.ranks import Rank
from dlrun.config.settings import Settings
from dlrun.data import Data, jpegs
from dlrun.data.jpegs import NoRoom
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.inference import predictor
from dlrun.training import jpeg
from dlrun.training.experiment import build
from dlrun.training.shared_data import SharedData, read_data
from support.commands import Outcome
from support.composed import composed
from support.ranks import CLEAN, ended, rows, started
from support.tars import labelled, tar

pytest.importorskip("braceexpand", reason="the extra shards is not installed")
# torchvision 0.29 announces that it will drop its decoder one day
pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")
CUDA, CPU, MPS = torch.device("cuda"), torch.device("cpu"), torch.device("mps")
WORDS = (
    "dataset=shards", "dataset.urls=train-{000..001}.tar", "dataset.image_size=8", "dataset.cache=none",
    "dataset.memory_gb=0", "model=mlp", "model.width=4", "model.norm=none", "trainer.threads=1", "trainer.report=false",
    "trainer.batch_size=8", "trainer.diagnostics=false", "trainer.device=cpu", "check=none", "augment=crop_flip",
)  # fmt: skip


@pytest.fixture
def two(here: Path) -> Path:
    """Two tars of twenty samples, in the working folder."""
    for k in range(2):
        tar(here / f"train-{k:03}.tar", labelled(range(20 * k, 20 * k + 20)))
    return here


@pytest.fixture
def data(two: Path) -> Callable[..., Data]:
    """The data of some words."""
    return lambda *words: read_data(composed(*WORDS, *words).plain["dataset"], [])


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What `rate` finds, in place of a clock; by `asked` how often it was called. NVJPEG is there."""
    found = {"processor": 1000.0, "device": 3000.0, "asked": 0.0}

    def rate(images: Any, how: str, device: torch.device) -> float:
        found["asked"] += 1
        assert len(images) <= jpeg.IMAGES
        return found[how]

    monkeypatch.setattr(jpeg, "rate", rate)
    monkeypatch.setattr(jpeg, "broken", lambda device: "")
    return found


@pytest.mark.parametrize(("device", "taken"), [(3000.0, "device"), (900.0, "processor")])
def test_auto_takes_the_faster_on_cuda_and_says_both_rates(
    device: float, taken: str, data: Callable[..., Data], rates: dict[str, float]
) -> None:
    rates["device"] = device
    cfg, lines = jpeg.chosen(composed(*WORDS), data(), CUDA, False)
    assert cfg.plain["dataset"]["jpeg"] == taken
    (line,) = lines
    assert re.findall(r"[\d,]*\d", line) == ["31", f"{device:,.0f}", "1,000"]
    assert re.findall(r"dataset\.jpeg=\w+", line) == ["dataset.jpeg=auto", f"dataset.jpeg={taken}"]
    again, said = jpeg.chosen(cfg, data(), CUDA, True)
    assert (again, said, rates["asked"]) == (cfg, (), 2)


def test_processes_of_a_machine_share_its_processor(
    data: Callable[..., Data], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates["device"] = 600.0
    found = data()
    assert jpeg.chosen(composed(*WORDS), found, CUDA, False)[0].plain["dataset"]["jpeg"] == "processor"
    monkeypatch.setattr(ranks, "own", lambda: Rank(0, 4, 0, 2))
    cfg, (line,) = jpeg.chosen(composed(*WORDS), found, CUDA, False)
    assert cfg.plain["dataset"]["jpeg"] == "device"
    assert re.findall(r"[\d,]*\d", line) == ["31", "600", "500", "2"]


@pytest.mark.parametrize(
    ("device", "begun", "words"),
    [
        (CPU, False, ()),
        (MPS, False, ()),
        (CUDA, True, ()),  # what it left open stays open
        (CUDA, False, ("dataset.memory_gb=4",)),
        (CUDA, False, ("dataset.decoder=2",)),
        (CUDA, False, ("dataset.resize=letterbox",)),
        (CUDA, False, ("dataset.channels=1",)),
        (CUDA, False, ("dataset.jpeg=processor",)),
    ],
)
def test_nothing_is_measured_where_nothing_is_to_choose(
    device: torch.device, begun: bool, words: tuple[str, ...], data: Callable[..., Data], rates: dict[str, float]
) -> None:
    cfg = composed(*WORDS, *words)
    assert jpeg.chosen(cfg, data(*words), device, begun) == (cfg, ())
    assert rates["asked"] == 0
    assert not jpeg.on_device(cfg)


def test_without_nvjpeg_auto_takes_the_processor_and_device_is_refused(
    data: Callable[..., Data], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg, "broken", lambda device: "no nvJPEG")
    cfg, (line,) = jpeg.chosen(composed(*WORDS), data(), CUDA, False)
    assert cfg.plain["dataset"]["jpeg"] == "processor"
    assert line.startswith("dataset.jpeg=auto: ")
    assert " cuda (no nvJPEG); dataset.jpeg=processor " in line
    assert rates["asked"] == 0
    with pytest.raises(UserError) as error:
        jpeg.chosen(composed(*WORDS, "dataset.jpeg=device"), data(), CUDA, False)
    assert str(error.value).startswith("dataset.jpeg=device: ")
    assert str(error.value).endswith(" cuda (no nvJPEG); type dataset.jpeg=processor")


def test_a_card_without_memory_leaves_auto_to_the_processor(
    data: Callable[..., Data], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(images: Any, how: str, device: torch.device) -> float:
        raise NoRoom("no memory is left")

    monkeypatch.setattr(jpeg, "rate", full)
    cfg, (line,) = jpeg.chosen(composed(*WORDS), data(), CUDA, False)
    assert cfg.plain["dataset"]["jpeg"] == "processor"
    assert re.fullmatch(r"dataset\.jpeg=auto: cuda .* memory .*; dataset\.jpeg=processor .*", line)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.resize=letterbox", "letterbox and bilinear"),
        ("dataset.interpolation=bicubic", "crop and bicubic"),
        ("dataset.decoder=2", "dataset.decoder=3, found 2"),
        ("dataset.channels=1", "dataset.channels=3, found 1"),
    ],
)
def test_keys_that_do_not_go_with_device_are_named(word: str, said: str, data: Callable[..., Data]) -> None:
    with pytest.raises(UserError) as error:
        jpeg.chosen(composed(*WORDS, "dataset.jpeg=device", word), data(word), CPU, False)
    assert said in str(error.value)
    assert str(error.value).endswith("; type dataset.jpeg=processor")


def test_images_in_memory_are_decoded_once_by_the_processor(data: Callable[..., Data]) -> None:
    words = ("dataset.jpeg=device", "dataset.memory_gb=4")
    cfg, (line,) = jpeg.chosen(composed(*WORDS, *words), data(*words), CPU, False)
    assert cfg.plain["dataset"]["jpeg"] == "processor"
    assert "dataset.cache=none dataset.memory_gb=0" in line


def test_rates_are_those_of_decoding(data: Callable[..., Data]) -> None:
    images: Any = data().train.images
    assert all(1 < jpeg.rate(images, how, CPU) < 1e6 for how in ("processor", "device"))


def test_a_sweep_reads_its_data_once_whatever_decodes_them(two: Path) -> None:
    shared = SharedData(share=False)
    nodes = [composed(*WORDS, f"dataset.jpeg={how}").plain["dataset"] for how in ("auto", "device", "processor")]
    assert len({id(shared.read(node, [])) for node in nodes}) == 1


def test_a_key_jpeg_of_a_class_of_others_is_theirs() -> None:
    node = {"_target_": "mine.images", "jpeg": "device"}
    assert (jpegs.asked(node), jpegs.unasked(node)) == ("processor", node)
    assert jpegs.unasked({"_target_": "dlrun.data.files.image_folder", "jpeg": "auto"}) == {
        "_target_": "dlrun.data.files.image_folder"
    }


def weights(folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(Path(folder, "checkpoints/last.pt"), weights_only=True)["model"]
    return found


def same(one: str, other: str) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def jpeg_of(folder: str) -> str:
    return str(reading.config(Path(folder))["dataset"].get("jpeg"))


def test_a_run_keeps_what_was_measured_at_its_start(
    two: Path, dlrun: Callable[..., Outcome], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg, "MEASURED", ("cpu",))
    words = ("train", *WORDS, "trainer.epochs=3")
    begun = dlrun(*words, "run.dir=parts", "trainer.stop_after=1")
    assert re.search(r"^dataset\.jpeg=auto: 31 .* 3,000 .* cpu", begun.out, re.MULTILINE), begun.err
    assert (jpeg_of("parts"), rates["asked"]) == ("device", 2)
    rates["device"] = 1.0
    assert dlrun("resume", "parts").code == 0
    assert (jpeg_of("parts"), rates["asked"]) == ("device", 2)
    assert dlrun(*words, "run.dir=slow").code == 0
    assert (jpeg_of("slow"), rates["asked"]) == ("processor", 4)
    monkeypatch.setattr(jpeg, "MEASURED", ("cuda",))
    assert dlrun(*words, "dataset.jpeg=device", "run.dir=whole").code == 0
    assert dlrun(*words, "run.dir=usual").code == 0
    assert (jpeg_of("usual"), rates["asked"]) == ("auto", 4)
    assert same("parts", "whole")
    assert same("slow", "usual")
    assert not same("whole", "usual")


def test_verbs_that_read_files_say_that_the_processor_decodes_them(two: Path, dlrun: Callable[..., Outcome]) -> None:
    for how in ("device", "processor"):
        done = dlrun("train", *WORDS, "trainer.epochs=1", f"dataset.jpeg={how}", f"run.dir={how}")
        assert ("dataset.jpeg=device: no CUDA" in done.out) is (how == "device"), done.err
        for verb in (
            ("predict", how, "train-000.tar", "--out", f"{how}.csv"),
            ("embed", how, "train-000.tar", "--out", f"{how}.npz"),
            ("export", how, "--to", "torch_export", "--out", f"{how}.pt2"),
        ):
            said = dlrun(*verb)
            assert said.code == 0, said.err
            assert (predictor.ELSEWHERE in said.out.splitlines()) is (how == "device")


def test_a_run_of_an_older_version_keeps_its_pixels(
    two: Path, dlrun: Callable[..., Outcome], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", *WORDS, "trainer.epochs=2")
    assert dlrun(*words, "run.dir=whole").code == 0
    assert dlrun(*words, "run.dir=old", "trainer.stop_after=1").code == 0
    config = yaml.safe_load(Path("old/config.yaml").read_text())
    assert config["dataset"].pop("jpeg") == "auto"
    Path("old/config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(jpeg, "MEASURED", ("cpu",))  # it is continued on a card
    assert not jpeg.on_device(build(Settings.of(reading.config(Path("old")))).cfg)  # also before its first checkpoint
    assert dlrun("resume", "old").code == 0
    assert same("old", "whole")
    assert rates["asked"] == 0


@pytest.mark.slow
def test_two_processes_decode_on_their_devices_and_resume_with_the_same_bits(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)
    words = ("train", *WORDS, "dataset.jpeg=device", "trainer.epochs=2", "trainer.precision=fp32")
    for world, name, more in ((1, "one", ()), (2, "both", ()), (2, "parts", ("trainer.stop_after=1",))):
        assert [done.code for done in ended(started(two, world, *words, *more, f"run.dir={name}"))] == [0] * world
    assert ended(started(two, 2, "resume", "parts"))[0].code == 0
    assert same("parts", "both")
    for alone, together in zip(rows(two / "one"), rows(two / "both"), strict=True):
        assert together == pytest.approx(alone, rel=2e-3, abs=1e-5)
