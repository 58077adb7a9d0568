"""A Phase 7 run on a CPU has no kernels, and no `_triton` in its name; its older name finds it too."""

from __future__ import annotations

from newllm_lib.recipe import load_recipe
from newllm_lib.runs import Run, find_run, resolve_path, write_status


def test_the_name_says_what_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = lambda **more: load_recipe("phase7_small", more).run_path().name  # noqa: E731
    assert name(sized_for="t4") == "phase7_small_triton" and name(sized_for="cpu") == "phase7_small"
    assert name(sized_for="t4", kernels="off") == "phase7_small"
    assert name(sized_for="cpu", data_dir=str(tmp_path / "mix")) == "phase7_small_mix"


def test_a_run_with_the_older_name_goes_on_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "phase7_small_triton_7").mkdir(parents=True)
    path = lambda **more: load_recipe("phase7_small", {"sized_for": "cpu", **more}).run_path().name  # noqa: E731
    assert path() == "phase7_small" and path(max_samples=7) == "phase7_small_triton_7"
    (tmp_path / "checkpoints" / "phase7_small_7").mkdir()
    assert path(max_samples=7) == "phase7_small_7"


def test_the_guides_names_and_paths_find_a_run_without_kernels_and_the_other_way_round(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, older = Run("checkpoints/phase7_small_mix"), Run("checkpoints/phase8_small_triton")
    for one in (run, older):
        (one.path / "best").mkdir(parents=True)
        write_status(one, state="done")
    assert (
        find_run("phase7_small_triton_mix").name == run.name and find_run("phase8_small").name == older.name
    )
    guides = "checkpoints/phase7_small_triton_mix/phase7_best.pt"
    assert resolve_path(guides) == "checkpoints/phase7_small_mix/best"
    assert resolve_path("checkpoints/phase8_small_triton/best") == "checkpoints/phase8_small_triton/best"
    assert resolve_path("checkpoints/new_llm_triton") == "checkpoints/new_llm_triton"
