"""Face detection with 478 landmarks. The only module that imports mediapipe.

mediapipe up to 0.10.21 carries its models inside the wheel (`mediapipe.solutions`); later releases need a
`face_landmarker.task` file (`mediapipe.tasks`). Both stand behind one function pair: propose boxes, then fit a mesh.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .checks import check_size
from .errors import InputError, WeightsError
from .geometry import LANDMARK_COUNT, Box, FloatArray, eye_centers, is_same_face, mirror_landmarks, warp_square
from .optional import OPTIONAL_MODELS, file_sha256, model_folder
from .recall import SecondDetector

log = logging.getLogger(__name__)

TILE_OVERLAP = 0.25
MESH_CROP_PX = 320
# Mean distance, in sides of the face, from which a mesh and that of the mirror image say different things of a face.
# 0.006 is usual; on full profiles, where the mesh lies beside the face's edge, it was 0.06 and more (docs/PRIVACY.md).
MIRROR_DISTANCE = 0.045
UNFITTED_SCORE = 0.7  # a proposal at least this sure counts as a face although no mesh fits it; below, as background
PART_SHARE = 0.8  # of an unsure detection must lie in a fitted face to count as a part of it
TURNED_SCORE = 0.75  # what a face lying on its side or upside down must reach; turned patterns look like faces more often
TURNED_MALUS = 0.15  # an upright reading of the same place is preferred unless it is this much less sure
_ROTATIONS = (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)  # one to three quarter turns
COARSE = 3  # faces that are not upright are looked for in views of at least this part of the picture: 1 / COARSE
_FINDS = 2  # one more with every change that lets other faces be found, so that finished folders are looked at again
INSIDE_SHARE = 0.35  # of a box must lie in the picture; less is the mirror image of a face near the border
SAME_PLACE_IOU = 0.3  # of the boxes above which a face in a result takes the place of the source's
TASK_FILE = OPTIONAL_MODELS["face_landmarker"]
TASK_FILE_VARIABLE = "FACEANON_FACE_LANDMARKER"


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the image it was found in."""

    box: Box
    score: float  # detector's confidence, 0..1
    landmarks: FloatArray  # (478, 2) xy
    person: int | None = None  # number from tracking.track_faces; None: not tracked, a person of its own


@dataclass(frozen=True)
class Unfitted:
    """A face that was detected but cannot be processed, so it must not be passed on unseen; `reason` says why."""

    box: Box
    score: float
    reason: str = "no face mesh fits it"


MESHES_DISAGREE = "its mesh is unsure: that of its mirror image lies elsewhere, as on full profiles"


@dataclass(frozen=True)
class Scan:
    """Everything found in a picture, largest first."""

    faces: list[Face]
    unfitted: list[Unfitted]

    @property
    def boxes(self) -> list[Box]:
        """Where anything was found."""
        return [face.box for face in self.faces] + [lost.box for lost in self.unfitted]


class _Backend(Protocol):
    tile_px: int  # side of the smallest tiles to look for faces in

    @property
    def key(self) -> str: ...  # of its models

    def propose(self, image: NDArray[np.uint8]) -> list[tuple[Box, float]]: ...

    def fit_mesh(self, crop: NDArray[np.uint8]) -> FloatArray | None: ...

    def close(self) -> None: ...


class FaceDetector:
    """Finds every face of a picture. Use as a context manager, or call `close`.

    Args:
        min_score: proposals below this confidence are ignored, 0..1.
        task_file: `face_landmarker.task`, used instead of mediapipe's own models. None: the one that the environment
            variable FACEANON_FACE_LANDMARKER names, if any.
        task_folders: where that file is looked for first if none is named and mediapipe has no models of its own, and the
            second detector's; last in `optional.model_folder`.
        cross_check: let a detector of another kind look for faces that mediapipe missed (`recall`).
    Raises: WeightsError if mediapipe needs a task file and there is none.
    """

    def __init__(
        self, min_score: float = 0.5, task_file: Path | None = None, task_folders: Sequence[Path] = (),
        cross_check: bool = True,
    ) -> None:  # fmt: skip
        self.min_score = min_score
        folders = [*task_folders, model_folder()]
        opened = contextlib.ExitStack()
        # at the latest before the interpreter takes itself apart; made before mediapipe is imported, whose own hook, after
        # which there is nothing to close, then comes first
        self._close = weakref.finalize(self, opened.close)
        self._backend = opened.enter_context(contextlib.closing(_open_backend(min_score, task_file, folders)))
        self._second = SecondDetector(folders) if cross_check else None

    @property
    def key(self) -> str:
        """Another text where other faces may be found."""
        second = "" if self._second is None else self._second.key
        return f"{_FINDS} mediapipe {version('mediapipe')} {self._backend.key} {second} {self.min_score}"

    def __enter__(self) -> FaceDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free mediapipe's graphs."""
        self._close()

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """The faces of `scan` alone, for callers that need landmarks and emit nothing."""
        return self._scan_once(image).faces

    def scan(self, image: NDArray[np.uint8]) -> Scan:
        """Find all faces, and the detections that look like faces but cannot be processed.

        Args:
            image: (H, W, 3) uint8 RGB, at least 64 px on the shorter side.
        Raises: InputError if the picture is no such array or too small or large.
        """
        first = self._scan_once(image)
        if self._second is None:
            return first
        reason = f"only {self._second.name} sees it"
        missed = [
            Unfitted(box, 1.0, reason)
            for box in self._second.find(image)
            if not any(is_same_face(box, other) for other in first.boxes)
        ]
        return Scan(first.faces, sorted([*first.unfitted, *missed], key=lambda lost: -lost.box.area))

    def _scan_once(self, image: NDArray[np.uint8]) -> Scan:
        """`scan` with mediapipe alone."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"a picture must be a (height, width, 3) uint8 RGB array, got {image.shape} {image.dtype}")
        check_size(image.shape[1], image.shape[0])
        with _quiet():
            faces, unfitted = self._look(image)
        faces = _distinct(faces)
        unfitted = [lost for lost in unfitted if not any(_belongs_to(lost, face) for face in faces)]
        return Scan(sorted(faces, key=lambda f: -f.box.area), sorted(unfitted, key=lambda u: -u.box.area))

    def _look(self, image: NDArray[np.uint8]) -> tuple[list[Face], list[Unfitted]]:
        """What the proposals turn out to be; several may be one face."""
        faces: list[Face] = []
        unfitted: list[Unfitted] = []
        for proposal in self._proposals(image):
            fit = self._fit(image, proposal)
            if fit is not None and _reaches(image, fit.landmarks):
                if fit.mirror_distance <= MIRROR_DISTANCE:
                    faces.append(Face(Box.around(fit.landmarks), proposal.score, fit.landmarks))
                else:  # however unsure the proposal is, there is something a mesh fits
                    unfitted.append(Unfitted(proposal.box, proposal.score, MESHES_DISAGREE))
            elif proposal.score >= UNFITTED_SCORE:
                unfitted.append(Unfitted(proposal.box, proposal.score))
        return faces, unfitted

    def _proposals(self, image: NDArray[np.uint8]) -> list[_Proposal]:
        height, width = image.shape[:2]
        found: list[_Proposal] = []
        for left, top, side_x, side_y in _views(width, height, self._backend.tile_px):
            view = _cut(image, left, top, side_x, side_y)
            coarse = max(side_x, side_y) * COARSE >= max(width, height)
            for turn in range(4 if coarse else 1):
                for box, score in self._backend.propose(_turned(view, turn)):
                    if turn and score < TURNED_SCORE:
                        continue
                    upright = _turn_back(box, turn, side_x, side_y)
                    place = Box(upright.left + left, upright.top + top, upright.right + left, upright.bottom + top)
                    if place.intersection(Box(0, 0, width, height)) >= INSIDE_SHARE * place.area:
                        found.append(_Proposal(place, score, turn))
        # a face that is found upright is also found turned, with less confidence
        found.sort(key=lambda proposal: -(proposal.score - TURNED_MALUS * (proposal.turn > 0)))
        kept: list[_Proposal] = []
        for proposal in found:
            if not any(is_same_face(proposal.box, other.box) for other in kept):
                kept.append(proposal)
        return kept

    def _fit(self, image: NDArray[np.uint8], proposal: _Proposal) -> _Fit | None:
        """Fit the mesh in square crops of two widths around a proposal; the first that fits wins.

        The mesh of a face beside the proposed one, which such a crop shows as well, is no fit.
        """
        for context in (2.0, 3.0):
            side = max(proposal.box.width, proposal.box.height) * context
            scale = MESH_CROP_PX / side
            x, y = proposal.box.center
            matrix = np.array([[scale, 0, (side / 2 - x) * scale], [0, scale, (side / 2 - y) * scale]], np.float32)
            square, turn = warp_square(image, matrix, MESH_CROP_PX), proposal.turn
            crop = _turned(square, turn)
            points = self._backend.fit_mesh(crop)
            if points is not None:
                upright_turn = (turn + _quarter_turns(points)) % 4
                upright = _turned(square, upright_turn)
                # a mesh fits best where the face is upright; one that fits the other way alone must not be lost
                better = self._backend.fit_mesh(upright) if upright_turn != turn else None
                if better is not None:
                    crop, turn, points = upright, upright_turn, better
                distance = self._mirror_distance(crop, points)
                for _ in range(turn):  # each quarter turn back: pixel centres at integers
                    points = np.stack([MESH_CROP_PX - 1 - points[:, 1], points[:, 0]], axis=1)
                landmarks = (points / scale + np.array([x - side / 2, y - side / 2], np.float32)).astype(np.float32)
                if is_same_face(Box.around(landmarks), proposal.box):
                    return _Fit(landmarks, distance)
        return None

    def _mirror_distance(self, crop: NDArray[np.uint8], points: FloatArray) -> float:
        """Mean distance of a mesh from that of the crop's mirror image, in sides of the face; infinite if none fits that."""
        other = self._backend.fit_mesh(np.asarray(cv2.flip(crop, 1), np.uint8))
        if other is None:
            return float("inf")
        box = Box.around(points)
        distance = np.linalg.norm(mirror_landmarks(other, crop.shape[1]) - points, axis=1).mean()
        return float(distance) / max(box.width, box.height)


def _reaches(image: NDArray[np.uint8], landmarks: FloatArray) -> bool:
    """Whether any of a face lies in the picture; the mirrored margin shows faces that do not."""
    return Box.around(landmarks).intersection(Box(0, 0, image.shape[1], image.shape[0])) > 0


@dataclass(frozen=True)
class _Proposal:
    box: Box
    score: float
    turn: int  # quarter turns of the picture, counter-clockwise, that put the face upright


@dataclass(frozen=True)
class _Fit:
    landmarks: FloatArray  # (478, 2) xy in pixels of the picture
    mirror_distance: float  # see `FaceDetector._mirror_distance`


def _views(width: int, height: int, tile_px: int) -> list[tuple[int, int, int, int]]:
    """Windows (left, top, width, height) to look for faces in; some reach beyond the picture, see `_cut`.

    The whole picture, the whole picture with a margin, and overlapping tiles where it is larger than one tile.
    """
    margin = min(width, height) // 3
    views = [(0, 0, width, height), (-margin, -margin, width + 2 * margin, height + 2 * margin)]
    side = tile_px
    while max(width, height) > side * 1.5:
        margin = min(side // 4, width - 1, height - 1)
        tile_x, tile_y = min(side, width + 2 * margin), min(side, height + 2 * margin)
        for top in _starts(height + 2 * margin, side):
            views += [(left - margin, top - margin, tile_x, tile_y) for left in _starts(width + 2 * margin, side)]
        side *= 3
    return views


def _cut(image: NDArray[np.uint8], left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """A window of the picture; beyond the border it is mirrored, which completes a face that the border cuts in half."""
    right, bottom = left + width, top + height
    inside = image[max(0, top) : bottom, max(0, left) : right]
    beyond = (max(0, -top), max(0, bottom - image.shape[0]), max(0, -left), max(0, right - image.shape[1]))
    if not any(beyond):
        return inside
    mirrored = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REFLECT_101)
    return np.asarray(mirrored, np.uint8)


def _turned(view: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """A contiguous view after so many quarter turns counter-clockwise."""
    turned = cv2.rotate(view, _ROTATIONS[turn - 1]) if turn else np.ascontiguousarray(view)
    return np.asarray(turned, np.uint8)


def _quarter_turns(points: FloatArray) -> int:
    """Turns counter-clockwise that put a face with these landmarks upright, 0..3."""
    right, left = eye_centers(points)
    return round(np.arctan2(left[1] - right[1], left[0] - right[0]) / (np.pi / 2)) % 4


def _turn_back(box: Box, turn: int, width: int, height: int) -> Box:
    """A box found in a view of the given size after `turn` quarter turns counter-clockwise, in the unturned view."""
    for step in range(turn, 0, -1):
        across = width if step % 2 else height  # width of the view before this turn
        box = Box(across - box.bottom, box.left, across - box.top, box.right)
    return box


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = int(np.ceil((length - side) / (side * (1 - TILE_OVERLAP)))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def face_at(place: Box, found: Sequence[Face]) -> Face | None:
    """The face that takes up a place of a picture; None if there is none."""
    best = max(found, key=lambda face: face.box.iou(place), default=None)
    return best if best is not None and best.box.iou(place) > SAME_PLACE_IOU else None


def _belongs_to(lost: Unfitted, face: Face) -> bool:
    """Whether an unfitted detection is that face again, or an unsure one of a part of it, such as a bearded chin."""
    part = lost.box.intersection(face.box) >= PART_SHARE * lost.box.area
    return is_same_face(lost.box, face.box) or (part and lost.score < UNFITTED_SCORE)


def _distinct(faces: list[Face]) -> list[Face]:
    """Drop meshes that landed on the same face; the more confident one stays."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if not any(is_same_face(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


def _open_backend(min_score: float, task_file: Path | None, folders: Sequence[Path]) -> _Backend:
    with _quiet():
        import mediapipe

        named = task_file or os.environ.get(TASK_FILE_VARIABLE)
        if named is None and hasattr(mediapipe, "solutions"):
            return _SolutionsBackend(mediapipe, min_score)
        places = [Path(named)] if named is not None else [folder / TASK_FILE.file for folder in folders]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            lack = f"{named} is no file" if named else f"this mediapipe ({mediapipe.__version__}) has no face models inside"
            raise WeightsError(f"{lack}; {_task_file_help(folders)}")
        try:
            return _TasksBackend(mediapipe, min_score, path)
        except (RuntimeError, ValueError) as error:
            help_text = _task_file_help(folders)
            raise WeightsError(f"{path} is not a face landmarker this mediapipe can read; {help_text}") from error


def _task_file_help(folders: Sequence[Path]) -> str:
    return (
        f"download {TASK_FILE.file} ({TASK_FILE.licence}) from {TASK_FILE.url} and put it into {folders[0]} "
        f"(`faceanon download face_landmarker -o {folders[0]}` does both), or name it in the environment variable "
        f"{TASK_FILE_VARIABLE}, or install mediapipe==0.10.21"
    )


class _SolutionsBackend:
    """mediapipe <= 0.10.21: short- and full-range detectors and the mesh, from the wheel."""

    key = "solutions"
    tile_px = 640  # the full-range detector still finds a face of about 60 px in one

    def __init__(self, mediapipe: Any, min_score: float) -> None:
        solutions = mediapipe.solutions
        self._detectors = [
            solutions.face_detection.FaceDetection(model_selection=kind, min_detection_confidence=min_score)
            for kind in (0, 1)
        ]
        self._mesh = solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.2
        )

    def propose(self, image: NDArray[np.uint8]) -> list[tuple[Box, float]]:
        height, width = image.shape[:2]
        found = []
        for detector in self._detectors:
            for detection in detector.process(image).detections or []:
                box = detection.location_data.relative_bounding_box
                left, top = box.xmin * width, box.ymin * height
                size = Box(left, top, left + box.width * width, top + box.height * height)
                found.append((size, float(detection.score[0])))
        return found

    def fit_mesh(self, crop: NDArray[np.uint8]) -> FloatArray | None:
        meshes = self._mesh.process(crop).multi_face_landmarks
        return _to_pixels(meshes[0].landmark, crop) if meshes else None

    def close(self) -> None:
        for graph in (*self._detectors, self._mesh):
            graph.close()


class _TasksBackend:
    """mediapipe >= 0.10.30: the Tasks API; one landmarker both proposes faces and fits the mesh."""

    tile_px = 320  # it has the short-range detector only, which needs faces twice as large

    def __init__(self, mediapipe: Any, min_score: float, task_file: Path) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        self._task_file = task_file
        self._image_type = mediapipe.Image
        self._image_format = mediapipe.ImageFormat.SRGB

        def landmarker(faces: int, score: float) -> Any:
            options = vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=str(task_file)),
                num_faces=faces,
                min_face_detection_confidence=score,
                min_face_presence_confidence=score,
            )
            return vision.FaceLandmarker.create_from_options(options)

        self._proposer, self._mesh = landmarker(32, min_score), landmarker(1, 0.2)

    def _meshes(self, landmarker: Any, image: NDArray[np.uint8]) -> list[FloatArray]:
        result = landmarker.detect(self._image_type(image_format=self._image_format, data=image))
        return [_to_pixels(mesh, image) for mesh in result.face_landmarks]

    @property
    def key(self) -> str:
        return file_sha256(self._task_file)

    def propose(self, image: NDArray[np.uint8]) -> list[tuple[Box, float]]:
        # the Tasks API reports no score for a landmarked face; 1.0 means "above min_score"
        return [(Box.around(points), 1.0) for points in self._meshes(self._proposer, image)]

    def fit_mesh(self, crop: NDArray[np.uint8]) -> FloatArray | None:
        meshes = self._meshes(self._mesh, crop)
        return meshes[0] if meshes else None

    def close(self) -> None:
        self._proposer.close()
        self._mesh.close()


def _to_pixels(mesh: Any, image: NDArray[np.uint8]) -> FloatArray:
    height, width = image.shape[:2]
    points = np.array([(point.x * width, point.y * height) for point in mesh], np.float32)
    # mediapipe counts from the pixel's corner, OpenCV from its centre
    return (points[:LANDMARK_COUNT] - 0.5).astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide mediapipe's native chatter at the first pictures, which goes to file descriptor 2 past Python's logging."""
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    saved = os.dup(2)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
