"""The pictures of the nodes' help pages: `python tests/help_tools.py` makes them anew, on one core in a few minutes.

Everything is made by our own command line and the demo model, of scikit-image's portrait of Eileen Collins (NASA, public
domain) or of nobody.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from make_parser import draw_glasses

from faceanon_core.check import check_picture
from faceanon_core.cli import main
from faceanon_core.crop import crop_face
from faceanon_core.dlib_recogniser import DlibRecogniser
from faceanon_core.faces import FaceDetector
from faceanon_core.parsing import LABELS
from faceanon_core.report import CheckedFace, contact_sheet, verdict_table, worst_first
from faceanon_core.semantic_parser import load_semantic_parser
from faceanon_core.target import gallery_sheet

PICTURES = Path(__file__).resolve().parent.parent / "web" / "docs" / "pictures"
MOST_BYTES = 40_000
MOST_BYTES_OF_GALLERY = 65_000  # many faces with small print
SEED = 3
Pixels = NDArray[np.uint8]


class Maker:
    """Runs the command line on the portrait, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.portrait = folder, data.astronaut()[10:230, 115:335].copy()
        Image.fromarray(self.portrait).save(folder / "portrait.png")

    def run(self, *words: object) -> Pixels:
        """The picture that `faceanon anonymize` makes of the portrait."""
        output = self.folder / "new.png"
        output.unlink(missing_ok=True)
        code = main(
            ["anonymize", str(self.folder / "portrait.png"), "-o", str(output), "--seed", str(SEED), *map(str, words)]
        )
        assert code == 0, words
        return np.asarray(Image.open(output))

    def row(self, cases: dict[str, list[str]]) -> Pixels:
        """The source and the results side by side, with titles."""
        pictures = [self.portrait, *(self.run(*words) for words in cases.values())]
        return contact_sheet([pictures], ["source", *cases])


def main_pictures(maker: Maker) -> dict[str, Pixels]:
    """All of them, by file name."""
    natural = ["--proportions", "0.45"]  # what is kept is alike, so nothing checks these
    keep = {f"keep {name}": ["--keep", name, *natural] for name in ("eyes", "mouth")}
    keep["keep all but nose"] = ["--keep", "skin,eyes,brows,mouth", *natural]
    keep["only left_eye"] = ["--regions", "left_eye", *natural]
    asked = {text: ["--attributes", text] for text in ("sex=male", "age=senior", "skin=tan", "expression=smile")}
    chart = maker.folder / "chart.png"
    maker.run("--hold-pose", 1, "--chart", chart)
    return {
        "regions": maker.row(keep),
        "attributes": maker.row({"nothing asked": [], **asked}),
        "strength": maker.row({f"strength {s}": ["--strength", str(s), "--target", "chidi"] for s in (0, 1, 2)}),
        "hold_pose": maker.row({f"hold pose {s}": ["--hold-pose", str(s)] for s in (0, 1, 2)}),
        "chart": np.asarray(Image.open(chart)),
        "candidates": candidates(maker.folder),
        "gallery": gallery_sheet(),
        "parser": parsed(maker.portrait),
        "report_preview": checked(maker.portrait, maker.run()),
    }


def candidates(folder: Path) -> Pixels:
    """The sheet of `faceanon synthesize`."""
    sheet = folder / "sheet.png"
    assert main(["synthesize", "-o", str(sheet), "--attributes", "sex=male,age=adult", "--count", "4"]) == 0
    return np.asarray(Image.open(sheet))


def parsed(portrait: Pixels) -> Pixels:
    """A face with drawn glasses, and what the tests' small SegFormer sees in it."""
    with FaceDetector() as detector:
        (face,) = detector.detect(portrait)
    crop = crop_face(portrait, face, 256)
    pixels = crop.pixels.copy()
    draw_glasses(pixels, crop.landmarks, 20)
    labels = load_semantic_parser(Path(__file__).parent / "data" / "face_parsing").parse(pixels, crop.landmarks)
    colours = cv2.applyColorMap((np.arange(len(LABELS)) * 255 // len(LABELS)).astype(np.uint8), cv2.COLORMAP_TURBO)[
        :, 0, ::-1
    ]
    shown = np.where(labels[..., None] > 0, (0.4 * pixels + 0.6 * colours[labels]), pixels).astype(np.uint8)
    return contact_sheet([[pixels, shown]], ["crop", "regions it finds"])


def checked(portrait: Pixels, new: Pixels) -> Pixels:
    """What *Identity Check* and *Report Preview* make of noise, a darker copy and a new face."""
    with FaceDetector() as detector:
        scan = detector.scan(portrait)
        box, noisy = scan.faces[0].box, portrait.copy()
        inside = noisy[round(box.top) : round(box.bottom), round(box.left) : round(box.right)]
        inside[:] = np.random.default_rng(SEED).integers(0, 256, inside.shape)
        results = [noisy, portrait // 4 * 3, new]
        checks = [check_picture(portrait, result, scan, [DlibRecogniser()], detector)[0] for result in results]
    faces = [CheckedFace(row, check.face.box, check.verdicts, check.problem) for row, check in enumerate(checks)]
    return verdict_table(worst_first(faces), results, [portrait] * len(results))


def save(name: str, pixels: Pixels) -> None:
    """Write a JPEG as large and as good as fits."""
    most = MOST_BYTES_OF_GALLERY if name == "gallery" else MOST_BYTES
    for width_px, quality in itertools.product((768, 640), range(92, 40, -4)):
        height = round(pixels.shape[0] * width_px / pixels.shape[1])
        picture = Image.fromarray(cv2.resize(pixels, (width_px, height), interpolation=cv2.INTER_AREA))
        picture.save(PICTURES / f"{name}.jpg", quality=quality, optimize=True)
        if (PICTURES / f"{name}.jpg").stat().st_size <= most:
            return
    raise AssertionError(f"{name} does not fit into {most} bytes")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        for name, pixels in main_pictures(Maker(Path(made))).items():
            save(name, pixels)
