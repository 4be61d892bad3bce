"""The evaluation harness on real faces: the gallery and the astronaut, with networks of the pack or the user."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faceanon_core import cli
from faceanon_core.encoder import load_demo_encoder
from faceanon_core.errors import InputError, UnknownNameError, WeightsError
from faceanon_core.evaluation import measures
from faceanon_core.evaluation.attacks import ATTACKS, Bench, run_attack
from faceanon_core.evaluation.baselines import BASELINES, Workshop, blur_face, make_results, pixelate_face, run_baseline
from faceanon_core.evaluation.command import _made_with, write_report
from faceanon_core.evaluation.features import OnnxFeatures
from faceanon_core.evaluation.harness import (
    Gallery,
    Method,
    figures_of,
    find_results,
    find_thresholds,
    measure_method,
    share_of,
)
from faceanon_core.evaluation.observe import Observer, face_crop
from faceanon_core.faces import FaceDetector
from faceanon_core.geometry import LEFT_IRIS, RIGHT_IRIS, inter_ocular
from faceanon_core.identity import threshold_at
from faceanon_core.pipeline import Settings
from faceanon_core.redact import redact_face
from faceanon_core.training.warp import bend_proportions
from faceanon_core.weights import ASSETS, GALLERY

PEOPLE = ("anna", "dewi", "ines", "luis")  # frontal and whole
NETWORK = "demo encoder"


class EncoderEmbedder:
    """The demo encoder's instance head, which was trained to tell faces apart: a real, if weak, recogniser."""

    name, key = NETWORK, "1"

    def __init__(self) -> None:
        self.encoder = load_demo_encoder(ASSETS / "encoder.safetensors")
        self.asked = 0

    @torch.no_grad()
    def embed(self, pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        self.asked += 1
        features = self.encoder.features(face_crop(pixels, landmarks).tensor)
        vector = self.encoder.instance_head(self.encoder.summary(features))[0].numpy()
        return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def embedder() -> EncoderEmbedder:
    return EncoderEmbedder()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of four people, one of them in a folder within."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "within").mkdir()
    for number, path in enumerate(GALLERY / f"{name}.jpg" for name in PEOPLE):
        shutil.copy(path, folder / ("within" if number == 0 else ".") / path.name)
    return folder


@pytest.fixture(scope="module")
def observer(embedder, tmp_path_factory) -> Observer:
    return Observer([embedder], tmp_path_factory.mktemp("seen"))


@pytest.fixture(scope="module")
def gallery(root, observer) -> Gallery:
    return Gallery(root, observer)


@pytest.fixture(scope="module")
def thresholds(gallery) -> dict[str, Any]:
    return {NETWORK: find_thresholds(gallery, NETWORK, {})}


def measured(
    method: Method, gallery: Gallery, observer: Observer, thresholds
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = measure_method(method, gallery, observer, thresholds)
    return rows, figures_of(method, rows, gallery, observer, thresholds)


def test_the_threshold_is_exceeded_by_the_stated_share_of_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = measures.impostor_scores(vectors)
    assert len(scores) == 199 * 100
    assert (scores > threshold_at(scores, 0.01)).sum() == 199


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_newcombe_1998_prints_for_wilson(hits: int, count: int, low: float, high: float) -> None:
    share = measures.share_with_interval(hits, count)
    assert (round(share["low"], 4), round(share["high"], 4)) == (low, high)
    assert share["share"] == hits / count


def test_a_share_of_nothing_says_so() -> None:
    assert share_of([])["of"] == 0


def turned(landmarks: np.ndarray, degrees: float, scale: float = 1.0) -> np.ndarray:
    turn = cv2.getRotationMatrix2D(tuple(map(float, landmarks.mean(0))), degrees, scale)
    return (landmarks @ turn[:, :2].T + turn[:, 2]).astype(np.float32)


def test_a_face_is_at_no_distance_from_itself(crop) -> None:
    for measure in (
        measures.landmark_distance, measures.pose_error, measures.expression_error, measures.gaze_error,
    ):  # fmt: skip
        assert measure(crop.landmarks, crop.landmarks) == pytest.approx(0, abs=1e-3)


def test_a_tilted_head_differs_in_pose_by_the_angle_and_in_nothing_else(crop) -> None:
    tilted = turned(crop.landmarks, 12, 1.3)
    assert measures.pose_error(crop.landmarks, tilted) == pytest.approx(12, abs=0.01)
    assert measures.expression_error(crop.landmarks, tilted) == pytest.approx(0, abs=1e-4)
    assert measures.gaze_error(crop.landmarks, tilted) == pytest.approx(0, abs=1e-4)


def mirrored(rotation: np.ndarray) -> np.ndarray:
    flip = np.diag([-1, 1, 1])
    return flip @ rotation @ flip


def test_a_mirrored_picture_shows_the_mirrored_pose(crop) -> None:
    with FaceDetector() as detector:
        (found,) = detector.detect(np.ascontiguousarray(crop.pixels[:, ::-1]))
    seen, expected = measures.head_rotation(found.landmarks), mirrored(measures.head_rotation(crop.landmarks))
    assert np.degrees(np.linalg.norm(cv2.Rodrigues(seen.T @ expected)[0])) < 3


@pytest.mark.parametrize(("aside", "nodding"), [(10, 0), (-25, 0), (0, 10), (0, -20), (8, 6)])
def test_a_turned_head_differs_in_pose_by_the_angle(crop, aside: float, nodding: float) -> None:
    solutions = getattr(pytest.importorskip("mediapipe"), "solutions", None)
    if solutions is None:
        pytest.skip("this mediapipe has no mesh in the wheel")
    with solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True) as mesh:
        points = mesh.process(crop.pixels).multi_face_landmarks[0].landmark
    head = np.array([[p.x, p.y, p.z] for p in points]) * 256  # z is in the same unit
    turn, _ = cv2.Rodrigues(np.radians([nodding, aside, 0]))
    angle = measures.pose_error(head[:, :2], (head @ turn.T)[:, :2])
    assert angle == pytest.approx(np.hypot(nodding, aside), rel=0.05)


def test_other_proportions_turn_the_measured_pose_little(crop) -> None:
    errors = []
    with FaceDetector() as detector:
        for seed in range(6):
            bent, _ = bend_proportions(crop.pixels, crop.landmarks, seed, amount=1.0)
            errors.append(measures.pose_error(crop.landmarks, detector.detect(bent)[0].landmarks))
    assert np.mean(errors) < 4


def test_a_shift_is_measured_in_distances_between_the_eyes(crop) -> None:
    moved = crop.landmarks + np.array([0.1 * inter_ocular(crop.landmarks), 0], np.float32)
    assert measures.landmark_distance(crop.landmarks, moved) == pytest.approx(0.1, rel=1e-4)


def test_moved_irises_are_a_gaze_error_and_no_change_of_expression(crop) -> None:
    looking = crop.landmarks.copy()
    for iris, outer, inner in ((RIGHT_IRIS, 33, 133), (LEFT_IRIS, 263, 362)):
        across = crop.landmarks[inner] - crop.landmarks[outer]
        looking[list(iris)] += 0.2 * across
    assert measures.gaze_error(crop.landmarks, looking) == pytest.approx(0.2, abs=1e-3)
    assert measures.expression_error(crop.landmarks, looking) == 0


def test_an_opened_mouth_is_an_expression_error(crop) -> None:
    open_mouth = crop.landmarks.copy()
    open_mouth[14] += np.array([0, 0.4 * np.linalg.norm(crop.landmarks[61] - crop.landmarks[291])], np.float32)
    assert measures.expression_error(crop.landmarks, open_mouth) > 0.1
    assert measures.gaze_error(crop.landmarks, open_mouth) == 0


def test_distances_of_distributions_have_their_closed_forms() -> None:
    features = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    assert measures.visual_dna_distance(features, features) == 0
    assert measures.visual_dna_distance(features, features + 2 * features.std(0)) == pytest.approx(2, rel=1e-4)
    assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert measures.frechet_distance(features, features + 3) == pytest.approx(5 * 9, rel=1e-4)


def test_blur_costs_sharpness(crop) -> None:
    assert measures.detail(cv2.GaussianBlur(crop.pixels, (0, 0), 3)) < 0.2 * measures.detail(crop.pixels)


def test_copies_of_the_sources_are_recognised_and_otherwise_perfect(gallery, observer, thresholds, root) -> None:
    rows, figures = measured(find_results(root, gallery.names), gallery, observer, thresholds)
    assert len(rows) == len(PEOPLE)
    identity = figures["identity"][NETWORK]
    assert identity["same_person"]["0.01"]["hits"] == identity["rank1"]["hits"] == len(PEOPLE)
    assert identity["similarity"]["least"] == pytest.approx(1, abs=1e-4)
    assert figures["detected"]["share"] == 1
    assert figures["landmark_distance"]["most"] == pytest.approx(0, abs=1e-4)
    assert figures["attribute_agreement"]["mean"] == figures["sharpness_ratio"]["median"] == 1
    assert figures["distribution"]["frechet"] == pytest.approx(0, abs=0.01)
    assert figures["distribution"]["features"] == "the demo encoder"


def test_results_of_another_size_and_format_are_measured(gallery, observer, thresholds, root, tmp_path: Path) -> None:
    name = gallery.names[0]
    with Image.open(root / name) as opened:
        opened.resize((512, 512)).save(tmp_path / Path(name).with_suffix(".png").name)
    (row,), figures = measured(find_results(tmp_path, gallery.names), gallery, observer, thresholds)
    assert row["picture"] == name and row[f"rank {NETWORK}"] == 1
    assert row["landmark_distance"] < 0.02
    assert figures["pictures"] == 1


def test_a_covered_face_is_not_detected(gallery, observer, thresholds, anonymizer, tmp_path) -> None:
    shop = Workshop(anonymizer, {name: gallery.root / name for name in gallery.names[:3]}, tmp_path)
    rows, figures = measured(run_baseline("solid", shop), gallery, observer, thresholds)
    assert figures["detected"]["hits"] == 0
    assert all(row["landmark_distance"] is None for row in rows)
    assert figures["landmark_distance"] is None
    assert figures["seconds"]["least"] > 0


def test_every_face_of_a_group_is_a_row_of_its_own(observer, two_faces, astronaut, root, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    Image.fromarray(two_faces).save(tmp_path / "sources" / "group.png")
    group = Gallery(tmp_path / "sources", observer)
    covered = two_faces.copy()
    small = observer.detector.detect(two_faces)[1]
    Image.fromarray(redact_face(covered, small)).save(tmp_path / "group.jpg", quality=95)
    bounds = {NETWORK: find_thresholds(group, NETWORK, {})}
    rows, _ = measured(find_results(tmp_path, group.names), group, observer, bounds)
    assert [(row["face"], row["detected"]) for row in rows] == [(1, True), (2, False)]


def test_nothing_is_looked_at_twice_and_a_changed_file_is(embedder, root, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "sources")
    first = Gallery(tmp_path / "sources", Observer([embedder], tmp_path / "seen"))
    asked = embedder.asked
    again = Gallery(tmp_path / "sources", Observer([embedder], tmp_path / "seen"))
    assert embedder.asked == asked
    assert np.array_equal(first.embeddings(NETWORK), again.embeddings(NETWORK))
    changed = tmp_path / "sources" / first.names[1]
    shutil.copy(tmp_path / "sources" / first.names[2], changed)
    Gallery(tmp_path / "sources", Observer([embedder], tmp_path / "seen"))
    assert embedder.asked == asked  # the same picture under another name
    Image.fromarray(np.asarray(Image.open(changed)) // 2).save(changed)
    Gallery(tmp_path / "sources", Observer([embedder], tmp_path / "seen"))
    assert embedder.asked == asked + 1
    other = copy(embedder)
    other.key = "2"
    Gallery(tmp_path / "sources", Observer([other], tmp_path / "seen"))
    assert other.asked > asked + len(PEOPLE)  # another network of that name


def test_what_cannot_be_read_is_named_and_results_are_no_sources(observer, root, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(root, sources)
    shutil.copytree(root, sources / "out")
    (sources / "broken.jpg").write_bytes(b"no picture")
    (sources / "photo.heic").touch()
    gallery = Gallery(sources, observer, sources / "out")
    assert len(gallery.faces) == len(PEOPLE)
    assert gallery.unread.keys() == {"broken.jpg", "photo.heic"}


def test_a_cut_off_run_makes_only_what_is_missing(root, tmp_path: Path) -> None:
    inputs = {path.name: [path] for path in sorted(root.glob("*.jpg"))[:3]}
    made: list[int] = []

    def darken(pictures: list[np.ndarray]) -> np.ndarray:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return pictures[0] // 2

    with pytest.raises(KeyboardInterrupt):
        make_results("dark", "1", darken, inputs, tmp_path)
    made.clear()
    method = make_results("dark", "1", darken, inputs, tmp_path)
    assert len(made) == 1
    assert list(method.results) == list(inputs) and all(path.is_file() for path in method.results.values())
    assert all(cost["seconds"] >= 0 for cost in method.costs.values())


def test_what_fails_closed_is_counted_and_has_no_result(anonymizer, coffee, gallery, observer, thresholds, tmp_path) -> None:
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    sources = {"coffee.png": tmp_path / "coffee.png", gallery.names[0]: gallery.root / gallery.names[0]}
    method = run_baseline("blur", Workshop(anonymizer, sources, tmp_path / "made"))
    _, figures = measured(method, gallery, observer, thresholds)
    assert list(method.results) == [gallery.names[0]]
    assert figures["failed_closed"] == {"coffee.png": "no face was found"}


def test_covers_change_the_face_and_nothing_else(astronaut, face) -> None:
    touched = np.any(redact_face(astronaut, face) != astronaut, axis=2)
    for cover in (blur_face, pixelate_face):
        changed = np.any(cover(astronaut, face) != astronaut, axis=2)
        assert changed[touched].mean() > 0.9
        assert not changed[~touched].any()


def test_calibrated_thresholds_come_first_and_the_others_say_what_they_rest_on(gallery) -> None:
    found = find_thresholds(gallery, NETWORK, {0.01: 0.25})
    assert (found[0.01].value, found[0.01].origin) == (0.25, "the network's calibration card")
    assert found[0.001].origin == "6 pairs of different sources, too few for this rate: take it as a rough bound"


@pytest.fixture(scope="module")
def bench(anonymizer, gallery, observer, thresholds, tmp_path_factory) -> Bench:
    """Two people and a single step: quick, and enough to see that every attack runs on real results."""
    sources = {name: gallery.root / name for name in gallery.names[:2]}
    shop = Workshop(anonymizer, sources, tmp_path_factory.mktemp("made"), Settings(steps=1))
    return Bench(shop, gallery, observer, thresholds)


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_every_attack_gives_a_line_for_all_it_tried(bench: Bench, attack: str) -> None:
    lines = run_attack(attack, bench, [run_baseline("pixelate", bench.workshop)])
    assert len(lines) == {"sharpen": 3, "average": 3, "link": 7, "start": 4, "regions": 5}[attack]
    for line in lines:
        assert line["faces"] == 2
        assert line["identity"][NETWORK]["rank1"]["of"] == 2
    json.dumps(lines)


def test_photographs_that_are_not_anonymized_are_linked(bench: Bench) -> None:
    """Not compared with anonymized ones: the sources are gallery faces, each the fitting target of its own result."""
    lines = {line["label"]: line["identity"][NETWORK] for line in run_attack("link", bench, [])}
    assert lines["not anonymized"]["rank1"]["hits"] == 2
    assert lines["not anonymized"]["similarity"]["mean"] > lines["not anonymized"]["others"]["mean"] + 0.2


def test_a_kept_region_makes_the_result_more_like_its_source(bench: Bench) -> None:
    lines = {line["label"]: line["identity"][NETWORK]["similarity"]["mean"] for line in run_attack("regions", bench, [])}
    assert max(lines[region] for region in ("eyes", "nose", "mouth")) > lines["nothing kept"]


def test_unknown_names_are_refused_with_those_that_exist(bench: Bench) -> None:
    with pytest.raises(UnknownNameError, match="no baseline 'mosaic'; known: blur, pixelate, solid"):
        run_baseline("mosaic", bench.workshop)
    with pytest.raises(UnknownNameError, match="no attack 'luck'; known: sharpen"):
        run_attack("luck", bench, [])


@pytest.fixture(scope="module")
def report(bench: Bench, tmp_path_factory) -> Path:
    """Everything an evaluation writes, of two baselines and an attack."""
    out = tmp_path_factory.mktemp("report")
    methods = [run_baseline(name, bench.workshop) for name in ("solid", "default")]
    methods[0] = replace(methods[0], name="<b>solid & co</b>")
    rows, figures = [], {"made_with": _made_with(bench), "methods": {}, "attacks": {}}
    for method in methods:
        own, figures["methods"][method.name] = bench.measure(method)
        rows += own
    figures["attacks"]["sharpen"] = run_attack("sharpen", bench, methods)
    write_report(figures, rows, methods, bench.gallery, out)
    return out


def test_the_page_holds_everything_itself(report: Path) -> None:
    page = (report / "report.html").read_text("utf-8")
    assert "<script" not in page
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded and all(address.startswith(("data:image/jpeg;base64,", "#")) for address in loaded)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 4


def test_the_page_escapes_names_and_names_its_features(report: Path) -> None:
    page = (report / "report.html").read_text("utf-8")
    assert "<b>solid" not in page and "&lt;b&gt;solid &amp; co" in page
    assert "FID on the demo encoder" in page
    assert "Best and worst cases" in page and "most like the source" in page


def test_csv_and_tables_have_a_line_for_every_face_and_figure(report: Path) -> None:
    with (report / "rows.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4
    assert rows[0]["landmark_distance"] == "" and float(rows[2]["landmark_distance"]) > 0
    tables = (report / "tables.md").read_text("utf-8")
    assert "source found at rank 1" in tables and "Re-identification after sharpening" in tables


def test_a_method_that_refused_everything_has_its_column_and_no_figures(bench: Bench, tmp_path: Path) -> None:
    refused = Method("refused", {}, {name: {"failed": "no face was found"} for name in bench.workshop.sources})
    rows, figures = bench.measure(refused)
    everything = {"made_with": _made_with(bench), "methods": {"refused": figures}, "attacks": {}}
    everything["attacks"]["sharpen"] = run_attack("sharpen", bench, [refused])
    write_report(everything, rows, [refused], bench.gallery, tmp_path)
    tables = (tmp_path / "tables.md").read_text("utf-8")
    assert "| refused to be made | 2 |" in tables and "| a face is detected | - |" in tables


def evaluate(*words: object) -> int:
    return cli.main(["evaluate", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}", "-o", "{root}/out", "--baselines", "blur"], "would lie among the sources"),
        (["{root}", "-o", "{tmp}/out"], "there is nothing to measure"),
        (["{root}", "-o", "{tmp}/out", "--baselines", "blurr"], "no baseline 'blurr'; known: blur"),
        (["{root}", "-o", "{tmp}/out", "--attacks", "all"], "no attack 'all'; known: sharpen"),
        (["{root}", "-o", "{tmp}/out", "--baselines", "blur", "--limit", "0"], "limit must be at least 1"),
        (["{root}", "{tmp}", "-o", "{tmp}/out"], "must not lie among the results; "),
        (["{tmp}/nowhere", "-o", "{tmp}/out", "--baselines", "blur"], "nowhere is no folder"),
        (["{root}", "-o", "{tmp}", "--baselines", "blur"], "holds something else than an evaluation"),
        (["{root}", "-o", "{tmp}/out", "--baselines", "blur"], "none.onnx is missing"),
    ],
)
def test_commands_that_cannot_start_say_why(words, message: str, root: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    filled = [word.format(root=root, tmp=tmp_path) for word in words]
    assert evaluate(*filled, "--recogniser", tmp_path / "none.onnx") == 2
    assert message in capsys.readouterr().err
    assert not (root / "out").exists()


def test_results_under_other_names_are_refused(gallery, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="results must keep their sources' names"):
        find_results(tmp_path, gallery.names)


def test_files_that_are_no_feature_network_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError, match="is missing; name a feature network"):
        OnnxFeatures(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="is no network onnxruntime can read"):
        OnnxFeatures(tmp_path / "broken.onnx")


@pytest.mark.faces
def test_the_command_measures_a_folder_and_a_second_run_gives_the_same(root, network, tmp_path: Path, capsys) -> None:
    for path in sorted(root.glob("*.jpg"))[:3]:
        mirrored = np.asarray(Image.open(path))[:, ::-1]
        (tmp_path / "results").mkdir(exist_ok=True)
        Image.fromarray(mirrored).save(tmp_path / "results" / path.with_suffix(".png").name)
    out = tmp_path / "out"
    words = [root, tmp_path / "results", "-o", out, "--baselines", "blur,solid", "--attacks", "sharpen", "--limit", 2]
    words += ["--recogniser", network, "--features", network]
    if not has_open_input(network):
        words = words[:-2]
    assert evaluate(*words) == 0
    said = capsys.readouterr().out
    assert "results, MobileFaceNet: same person at 1% false accepts" in said and "rank 1 among 4: 100.0%" in said
    written = {name: (out / name).read_bytes() for name in ("rows.csv", "figures.json", "tables.md", "report.html")}
    figures = json.loads(written["figures.json"])
    assert set(figures["methods"]) == {"results", "blur", "solid"}
    same = figures["methods"]["results"]["identity"]["MobileFaceNet"]
    assert same["rank1"]["hits"] == 3  # a mirrored face is still the same person
    assert figures["methods"]["solid"]["detected"]["hits"] == 0
    assert evaluate(*words) == 0
    assert (out / "figures.json").read_bytes() == written["figures.json"]
    assert (out / "rows.csv").read_bytes() == written["rows.csv"]


def test_dlib_judges_beside_the_network_that_checks(root, tmp_path: Path, capsys) -> None:
    paths = sorted(root.glob("*.jpg"))
    for path in paths:
        pixels = np.asarray(Image.open(path))
        shown = pixels[:, ::-1] if path != paths[0] else np.asarray(Image.open(paths[1]))  # the first shows another person
        (tmp_path / "results").mkdir(exist_ok=True)
        Image.fromarray(shown).save(tmp_path / "results" / path.name)
    assert evaluate(root, tmp_path / "results", "-o", tmp_path / "out", "--recogniser", "dlib") == 0
    assert f"results, dlib: same person at 1% false accepts {2 / 3:.1%}" in capsys.readouterr().out
    with (tmp_path / "out" / "rows.csv").open() as handle:
        ranks = {row["picture"]: int(row["rank dlib"]) for row in csv.DictReader(handle)}
    assert ranks[paths[0].name] > 1 and all(ranks[path.name] == 1 for path in paths[1:])


def test_without_dlib_the_judge_says_how_to_get_it(root, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    assert evaluate(root, root, "-o", tmp_path / "out", "--recogniser", "dlib") == 2
    assert "is not installed: pip install dlib-bin" in capsys.readouterr().err


def has_open_input(network: Path) -> bool:
    """Whether it states its input's size, as a feature network must."""
    try:
        OnnxFeatures(network)
    except WeightsError:
        return False
    return True


def test_baselines_are_those_the_help_names(capsys) -> None:
    with pytest.raises(SystemExit):
        evaluate("--help")
    said = capsys.readouterr().out.replace("\n", "")
    assert ",".join(BASELINES) in re.sub(r"\s", "", said) and ",".join(ATTACKS) in re.sub(r"\s", "", said)
