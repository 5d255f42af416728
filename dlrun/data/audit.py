"""Copies, leaks, contradictory labels and blank images across all splits (D1, D2).

Behind the checks data_audit and data_duplicates (`dlrun check`), and the audit.csv of a run. Two images are
identical if a 128-bit digest of their pixels is, as the network gets them: decoded, resized, before
normalisation and augmentation. So copies in another format or size are found, and so are images that only
resizing made identical, since the network cannot tell them apart either. Near duplicates (another compression, size,
brightness, a mirror image, a slight crop) are those of dlrun/data/near.py, and across splits those of
dlrun/data/moved.py. Blank images are listed as such, not as
copies, and those that only their transparency hides are named so. Sizes are those of the files in train.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from dlrun.data.bad import without
from dlrun.data.first_pass import sampled
from dlrun.data.headers import Files, looked_at, veiled
from dlrun.data.images import files_of
from dlrun.data.moved import moved
from dlrun.data.near import Pair, near
from dlrun.data.scan import scan
from dlrun.data.splits import Bad, Data, Split

__all__ = ["VEILED", "Audit", "Finding", "audit", "left_out", "listed"]

VEILED = "blank through its transparency alone"
KINDS = ("bad", "group", "contradiction", "leak", "duplicate", "near duplicate", "constant")


@dataclass(frozen=True)
class Finding:
    """One row of audit.csv; for a leak, contradiction, (near) duplicate, `other` is the earlier image.

    For a group in two splits they are its first images there, and `detail` is its name.
    """

    kind: str
    split: str
    id: str
    label: str = ""
    other_split: str = ""
    other_id: str = ""
    other_label: str = ""
    detail: str = ""

    def row(self) -> dict[str, str]:
        """The columns of audit.csv in their order."""
        return asdict(self)


def listed(bad: Iterable[Bad]) -> list[Finding]:
    """Return unusable samples as findings."""
    return [Finding("bad", item.split, item.id, detail=item.reason) for item in bad]


def left_out(data: Data) -> list[Finding]:
    """Return the files that were left out, up to a thousand for each reason."""
    paths = data.account.paths if data.account else {}
    return [Finding("left_out", "", path, detail=reason) for reason, found in paths.items() for path in found]


@dataclass(frozen=True)
class Audit:
    """All findings, by kind; `sizes` are the numbers of samples of the splits, `files` describes those of train.

    `alike`: most images look like several others, so that near duplicates cannot be told from them.
    """

    findings: list[Finding]
    sizes: dict[str, int]
    files: Files | None = None
    alike: bool = False
    total: int = 0  # of the images of which `sizes` are a sample

    @property
    def sample(self) -> str:
        """How many images were compared, if not all were."""
        some = sum(self.sizes.values())
        return "" if some >= self.total else f"a sample of {some:,} of {self.total:,} images was looked at"

    def of(self, kind: str, split: str = "", other: str = "") -> list[Finding]:
        """Return the findings of a kind; `split` and `other` select the two splits, empty means any."""
        found = [one for one in self.findings if one.kind == kind]
        return [one for one in found if split in ("", one.split) and other in ("", one.other_split)]


@dataclass(frozen=True)
class _Place:
    split: str
    id: str
    label: str


def audit(data: Data) -> Audit:
    """Compare all samples with each other. Reads the test split, which `data` then keeps for the end of the run.

    `data.audit` is this, cached: two checks, audit.csv and the next runs on the same `data` share it. Only this
    report depends on test. A sample of val or test is a leak once per earlier split (train, val, test) that contains
    it; every sample after the first of its split is a duplicate; every sample whose label differs from that of the
    first identical one is a contradiction, whatever their splits. A near duplicate is listed with the most similar
    image of its split and of each earlier one, and with the most similar one of another label.
    """
    test, dropped = data.test()
    whole = {"train": data.train, "val": data.val, "test": test}
    bad = [*data.dropped, *dropped]
    splits = {name: _looked(name, sampled(split, data.read_share), bad) for name, split in whole.items()}
    found = listed(bad)
    first: dict[bytes, tuple[str, int]] = {}
    alike: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)  # all but the first
    digests: list[bytes] = []
    for name, split in splits.items():
        marks = split.images.marks
        assert marks is not None
        digests += marks.digests
        for number, digest in enumerate(marks.digests):
            if marks.constant[number]:
                here = _place(data, splits, (name, number))
                found.append(Finding("constant", here.split, here.id, here.label, detail=_detail(split, number)))
            elif first.setdefault(digest, (name, number)) != (name, number):
                alike[digest].append((name, number))
    for digest, others in alike.items():
        found += _pairs([_place(data, splits, place) for place in (first[digest], *others)])
    found += _divided(data, splits)
    images = [split.images for split in splits.values()]
    pairs = near(images)
    found += _similar(data, splits, digests, () if pairs is None else [*pairs, *moved(images)])
    found.sort(key=lambda one: KINDS.index(one.kind))  # stable: within a kind, in the order of the splits
    files = files_of(data.train.images)
    sizes = {name: len(split) for name, split in splits.items()}
    total = sum(map(len, whole.values()))
    return Audit(found, sizes, None if files is None else looked_at(files), pairs is None, total)


def _similar(data: Data, splits: dict[str, Split], digests: list[bytes], pairs: Iterable[Pair]) -> Iterator[Finding]:
    """Yield the near duplicates of pairs that are not identical, in the order of the splits."""
    places = [(name, number) for name, split in splits.items() for number in range(len(split))]
    chosen: dict[tuple[int, str], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: -pair.similarity):
        if digests[pair.number] != digests[pair.other]:
            here, there = places[pair.number], places[pair.other]
            chosen.setdefault((pair.number, there[0]), pair)
            if splits[here[0]].labels[here[1]] != splits[there[0]].labels[there[1]]:
                chosen.setdefault((pair.number, "another label"), pair)
    for pair in sorted(set(chosen.values())):
        one, other = (_place(data, splits, places[number]) for number in pair[:2])
        about = (
            f"similarity {pair.similarity:.2f}{', mirrored' if pair.mirrored else ''}{', moved' if pair.moved else ''}"
        )
        yield replace(_pair("near duplicate", one, other), detail=about)


def _divided(data: Data, splits: dict[str, Split]) -> Iterator[Finding]:
    """Yield a finding for each group and each split after the first that has images of it."""
    first: dict[str, tuple[str, int]] = {}
    for name, split in splits.items():
        here: dict[str, int] = {}
        for number, group in enumerate([] if split.groups is None else split.groups.tolist()):
            here.setdefault(group, number)
        for group, number in here.items():
            other = first.setdefault(group, (name, number))
            if other[0] != name:
                pair = _pair("group", _place(data, splits, (name, number)), _place(data, splits, other))
                yield replace(pair, detail=group)


def _detail(split: Split, number: int) -> str:
    """What makes an image blank, if it is its transparency."""
    files = files_of(split.images)
    return VEILED if files is not None and veiled(files.files[number]) else ""


def _place(data: Data, splits: dict[str, Split], place: tuple[str, int]) -> _Place:
    name, number = place
    label = int(splits[name].labels[number])
    return _Place(name, splits[name].ids[number], data.word(label))


def _pairs(places: list[_Place]) -> Iterator[Finding]:
    """Yield the findings of one group of identical images, given in the order of the splits."""
    seen: dict[str, _Place] = {}  # the first of each split
    for place in places:
        if place.label != places[0].label:
            yield _pair("contradiction", place, places[0])
        for split, other in seen.items():
            yield _pair("duplicate" if split == place.split else "leak", place, other)
        seen.setdefault(place.split, place)


def _pair(kind: str, one: _Place, other: _Place) -> Finding:
    return Finding(kind, one.split, one.id, one.label, other.split, other.id, other.label)


def _looked(name: str, split: Split, bad: list[Bad]) -> Split:
    """The samples of a split with their marks; those that cannot be read are added to `bad`."""
    if split.images.marks is not None:
        return split
    # files that did not come through prepare, or did in part
    found = scan(split.images, keep=False)
    return without(name, replace(split, images=found.images), found.bad, bad)
