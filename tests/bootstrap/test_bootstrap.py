"""colab_bootstrap.sh: gets the project, installs what is missing, starts the job, and loses nothing."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from tests.helpers.working_tree import SCRIPT, git

LAST_LINE = b'{ main "$@"; exit; }\n'


def test_it_is_short_and_ends_with_the_call_of_main():
    text = SCRIPT.read_bytes()
    assert text.endswith(b"\n" + LAST_LINE) and text.count(b"\n") <= 150


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_recipe_it_only_prints_the_usage(world, words):
    done = world.piped(*words)
    assert (
        done.returncode == 0
        and done.stdout.startswith(b"Usage: colab_bootstrap.sh RECIPE")
        and not done.stderr
    )
    assert not list(world.home.iterdir())


def test_flags_without_a_recipe_are_refused(world):
    done = world.piped("--num_layers", "4")
    assert done.returncode == 2 and b"name a recipe" in done.stderr and not list(world.home.iterdir())


def cuts() -> list[int]:
    """Lengths to cut the script at: around every line's end, through functions' names and the last line, and
    others.
    """
    text = SCRIPT.read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    last = len(text) - len(LAST_LINE)
    chosen = {i + d for i in ends for d in (-1, 0, 2, 5)} | set(range(last, len(text)))
    chosen |= {i for name in re.finditer(rb"(?m)^\w+\(\)", text) for i in range(name.start(), name.end())}
    chosen |= set(random.Random(3).sample(range(len(text)), 100))
    return sorted(i for i in chosen if i < len(text) - 1)  # without the last newline it is complete


def test_no_function_name_cut_short_is_a_command():
    """`make_venv` cut after four letters would run the Makefile of whatever folder the user is in."""
    names = re.findall(r"(?m)^(\w+)\(\)", SCRIPT.read_text())
    beginnings = sorted({name[:length] for name in names for length in range(1, len(name))})
    known = subprocess.run(
        ["bash", "-c", 'type -a -- "$@"', "bash", *beginnings], capture_output=True, text=True
    )
    assert len(names) > 8 and known.stdout == ""


def run_cut(world, lengths: list[int]) -> None:
    text = SCRIPT.read_bytes()
    for length in lengths:
        done = world.piped("demo", script=text[:length])
        assert not list(world.home.iterdir()) and not world.calls("") and b"Usage" not in done.stdout, length


def test_cut_off_anywhere_it_does_nothing(world):
    run_cut(world, cuts())


@pytest.mark.slow
def test_cut_off_at_every_byte_it_does_nothing(world):
    run_cut(world, list(range(len(SCRIPT.read_bytes()) - 1)))


def test_from_nothing_to_the_job(world):
    done = world.piped("demo", "--num_layers", "4", "--data_dir", "my texts")
    assert done.returncode == 0, done.stderr
    assert git(world.clone, "status", "--short") == "" and git(world.clone, "log", "--format=%s") == "first\n"
    assert world.calls("venv") == ["-m venv .venv"]
    (install,) = world.calls("pip")
    assert install.startswith(f"{world.clone}/.venv/bin/python -m pip install ") and install.endswith(
        " -e .[demo]"
    )
    assert "-c .venv/.newllm-setup-constraints" in install
    constraints = (world.clone / ".venv" / ".newllm-setup-constraints").read_text()
    assert "\ntorch==2.13.0\n" in constraints and "\ntriton" not in constraints
    (job,) = world.calls("newllm_lib")
    command = "-m newllm_lib demo --background --num_layers 4 --data_dir my texts"
    assert job == f"{world.clone} {world.clone}/.venv/bin/python {command}"
    assert f"(started in {world.home})" in done.stdout.decode() and b"was not empty" not in done.stdout


def test_the_guides_line_reaches_the_command_flag_for_flag(world):
    flags = (
        "--num_layers 4 --max_samples 100000 --max_seq_length 256 --epochs 100 --context_dim 256 "
        "--batch_size 1024"
    )
    done = world.piped("ultrachat", *flags.split(), "--learning_rate", "4e-4", "--patience", "20")
    assert done.returncode == 0, done.stderr
    (job,) = world.calls("newllm_lib")
    assert job.endswith(
        f"-m newllm_lib train --background ultrachat {flags} --learning_rate 4e-4 --patience 20"
    )


def test_a_second_start_installs_nothing_and_takes_what_is_new(world):
    world.piped("demo")
    (world.repository / "news").write_text("new")
    git(world.repository, "add", ".")
    git(world.repository, "commit", "--quiet", "--message", "second")
    done = world.piped("wikitext", "--epochs", "3", "--foreground")
    assert done.returncode == 0, done.stderr
    assert (world.clone / "news").exists() and len(world.calls("pip")) == 1
    assert world.calls("newllm_lib")[-1].endswith(
        "-m newllm_lib train --background wikitext --epochs 3 --foreground"
    )


def test_what_is_installed_is_looked_at_again_when_setup_py_changed(world):
    world.piped("demo")
    with open(world.clone / "setup.py", "a") as file:
        file.write("# changed\n")
    world.piped("demo")
    assert len(world.calls("pip")) == 2


@pytest.mark.parametrize("upstream", ["another file", "the same file", "gone"])
def test_local_changes_and_checkpoints_are_kept(world, upstream):
    world.piped("demo")
    (world.clone / "setup.py").write_text("# mine\n")
    (world.clone / "checkpoints").mkdir()
    (world.clone / "checkpoints" / "best").write_text("weights")
    if upstream == "gone":
        world.repository.rename(world.repository.with_name("moved"))
    else:
        (world.repository / ("setup.py" if upstream == "the same file" else "news")).write_text("# theirs\n")
        git(world.repository, "add", ".")
        git(world.repository, "commit", "--quiet", "--message", "second")
    done = world.piped("demo")
    assert done.returncode == 0, done.stderr
    assert (b"used as it is" in done.stdout) == (upstream != "another file")
    assert (world.clone / "setup.py").read_text() == "# mine\n"
    assert (world.clone / "checkpoints" / "best").read_text() == "weights"


def test_inside_a_clone_that_clone_is_used(world, in_clone):
    (world.programs / "git").unlink()  # nothing to fetch, so nothing to need
    for start in (world.clone, world.clone / "newllm_lib", world.home):
        done = in_clone("demo", start=start)
        assert done.returncode == 0, done.stderr
        assert world.calls("newllm_lib")[-1].startswith(f"{world.clone} ")
        assert b"was not empty" not in done.stdout
    done = world.piped("demo", folder=world.clone)
    assert done.returncode == 0 and not (world.clone / "new-llm").exists()


def test_inside_a_folder_of_the_clone_it_is_found_by_git(world, in_clone):
    done = world.piped("demo", folder=world.clone / "newllm_lib")
    assert done.returncode == 0, done.stderr
    assert world.calls("newllm_lib")[-1].startswith(f"{world.clone} ")


def test_another_place_even_with_spaces_and_an_empty_folder_there(world):
    place = world.home / "my models" / "new llm"
    place.mkdir(parents=True)
    done = world.piped("demo", NEWLLM_DIR=str(place))
    assert done.returncode == 0, done.stderr
    assert world.calls("newllm_lib")[0].startswith(f"{place} ") and list(world.home.iterdir()) == [
        place.parent
    ]


def test_a_folder_that_is_no_clone_is_left_alone(world):
    world.clone.mkdir()
    (world.clone / "thesis.txt").write_text("years of work")
    done = world.piped("demo")
    assert done.returncode == 1 and b"no clone of New-LLM" in done.stderr and done.stderr.count(b"\n") == 1
    assert [p.name for p in world.clone.iterdir()] == ["thesis.txt"] and not world.calls("pip")


def test_a_repository_that_cannot_be_reached(world):
    done = world.piped("demo", NEWLLM_REPO_URL=str(world.home / "nowhere"))
    assert done.returncode == 1 and b"could not be cloned" in done.stderr.splitlines()[-1]
    assert not list(world.home.iterdir())


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("git", b"git is missing"), ("python3", b"no Python 3.10 or newer"), ("venv", b"has no venv module")],
)
def test_a_missing_tool_is_one_line(world, missing, expected):
    if missing != "venv":
        (world.programs / missing).unlink()
    done = world.piped("demo", NO_VENV="1" if missing == "venv" else "")
    assert done.returncode == 1 and expected in done.stderr
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"colab_bootstrap: ")


def test_an_old_python_is_not_taken(world):
    old = world.programs / "old"
    old.write_text('#!/bin/bash\n[ "$1" = -c ] && exit 1\nexit 99\n')
    old.chmod(0o755)
    done = world.piped("demo", NEWLLM_PYTHON=str(old))
    assert done.returncode == 1 and b"no Python 3.10 or newer" in done.stderr


def test_a_failed_installation_says_why_and_is_tried_again(world):
    done = world.piped("demo", PIP_FAILS="1")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert (
        b"No matching distribution found for torch>=2.11" in done.stderr
        and b".newllm-setup-log" in done.stderr
    )
    assert not world.calls("newllm_lib")
    assert world.piped("demo").returncode == 0 and len(world.calls("pip")) == 2


def test_a_torch_that_is_there_is_used(world):
    assert world.piped("demo", TORCH="1").returncode == 0
    assert world.calls("venv") == ["-m venv --system-site-packages .venv"]


FAKE_UV = """#!/bin/bash
echo "$0 -m uv $*" >>"$CALLS"
if [ -n "$UV_FAILS" ]; then printf 'Using Python\n  error: no network\n'; exit 2; fi
printf 'Resolved 2 packages in 7ms\n + newllm==0.2.0 (from file:///here)\n + torch==2.13.0+cpu\n'
"""


def with_uv(world) -> None:
    (world.programs / "uv").write_text(FAKE_UV)
    (world.programs / "uv").chmod(0o755)


def test_uv_installs_where_it_is_found(world):
    with_uv(world)
    done = world.piped("demo")
    (install,) = world.calls("uv")
    python, constraints = f"{world.clone}/.venv/bin/python", ".venv/.newllm-setup-constraints"
    assert install.endswith(f"-m uv pip install --python {python} -c {constraints} -e .[demo]")
    assert not world.calls("pip") and b"\nAdded: torch 2.13.0+cpu\n" in done.stdout, done
    assert b"nothing has to be restarted" in done.stdout
    assert world.piped("demo").returncode == 0 and len(world.calls("uv")) == 1


def test_pip_takes_over_where_uv_fails(world):
    with_uv(world)
    done = world.piped("demo", UV_FAILS="1")
    assert done.returncode == 0 and b"uv could not install it (error: no network): pip tries." in done.stdout
    assert len(world.calls("pip")) == 1 and b"Added: chitchat-dataset 0.9.0" in done.stdout


def test_uv_is_not_asked_where_packages_of_the_system_are_shared(world):
    """It would install a second torch."""
    with_uv(world)
    world.piped("demo", TORCH="1")
    assert not world.calls("uv") and len(world.calls("pip")) == 1


def test_of_two_copies_of_a_package_the_one_that_python_takes_is_kept(tmp_path):
    """A later folder of the path may hold an older copy, as a system's own packages do."""
    for folder, version in (("first", "2.0"), ("second", "1.0")):
        about = tmp_path / folder / f"twice-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Twice\nVersion: {version}\n")
    path = os.pathsep.join(str(tmp_path / folder) for folder in ("first", "second"))
    done = subprocess.run(
        [sys.executable, "-m", "newllm_lib.pip_report", "keep", "."],
        capture_output=True,
        text=True,
        check=True,
        cwd=SCRIPT.parent,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("twice==")] == ["twice==2.0"]


def test_on_colab_the_system_python_keeps_every_package_it_has(world):
    done = world.piped("demo", COLAB_RELEASE_TAG="release-colab", NEWLLM_DIR=str(world.clone))
    assert done.returncode == 0, done.stderr
    assert not world.calls("venv") and not (world.clone / ".venv").exists()
    (install,) = world.calls("pip")
    assert install.startswith(f"{world.programs}/python3 -m pip install ")
    kept = (world.clone / ".newllm-setup-constraints").read_text().splitlines()
    installed = subprocess.run(
        [world.environment["REAL_PYTHON"], "-m", "pip", "freeze"],
        capture_output=True,
        text=True,
        env=world.environment,
    )
    versions = {line for line in installed.stdout.lower().replace("_", "-").splitlines() if "==" in line}
    assert {line for line in versions if line.startswith(("torch==", "numpy==", "transformers=="))} <= set(
        kept
    )
    assert git(world.clone, "status", "--short") == ""
    assert not any(line.startswith("newllm") for line in kept)


def test_an_installation_on_colab_says_five_lines(world):
    """From nothing, before the job's own: what is fetched, where pip's words are, what came, what stayed, and
    no restart.
    """
    colab = {"COLAB_RELEASE_TAG": "release-colab", "NEWLLM_DIR": str(world.clone)}
    done = world.piped("demo", PIP_ADDS="not-here-1.2 nor-this-0.9.0", **colab)
    lines = done.stdout.decode().partition("newllm says")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["Cloning", "Installing", "Added:", "Left", "Installed"], (
        done
    )
    assert lines[2] == "Added: not-here 1.2, nor-this 0.9.0"
    assert re.fullmatch(r"Left as they were: torch \d.*, numpy \d.* and \d+ more", lines[3])
    assert re.fullmatch(r"Installed in \d+ s; nothing has to be restarted", lines[4])
    assert b"Installing" not in world.piped("demo", **colab).stdout  # once is enough


def test_a_package_that_was_moved_is_named_and_asks_for_a_restart(world):
    """pip's constraints forbid it; should it come to pass, nobody must be left guessing."""
    there = metadata.version("packaging")
    done = world.piped(
        "--setup-only",
        PIP_ADDS="packaging-1.0",
        COLAB_RELEASE_TAG="release-colab",
        NEWLLM_DIR=str(world.clone),
    )
    assert (
        f"Moved: packaging {there} to 1.0\n" in done.stdout.decode() and b"restart the session" in done.stdout
    )


def test_setup_alone_for_the_makefile(world, in_clone):
    assert in_clone("--setup-only", "demo,dev").returncode == 0
    assert in_clone("--setup-only", "demo,dev").returncode == 0
    assert in_clone("demo").returncode == 0  # demo is among what was installed
    assert [call.split()[-1] for call in world.calls("pip")] == [".[demo,dev]"]
    assert len(world.calls("newllm_lib")) == 1


def test_the_exit_code_is_the_jobs(world):
    assert world.piped("demo", "--foreground", JOB_CODE="130").returncode == 130


def test_two_starts_at_once_make_one_clone_and_one_installation(world):
    starts = []
    for _ in range(2):
        process = subprocess.Popen(
            ["bash", "-s", "--", "demo"],
            cwd=world.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**world.environment, "PIP_SECONDS": "0.5"},
        )
        process.stdin.write(SCRIPT.read_bytes())
        process.stdin.close()
        process.stdin = None
        starts.append(process)
    outputs = [process.communicate(timeout=60) for process in starts]
    assert [process.returncode for process in starts] == [0, 0], outputs
    assert len(world.calls("pip")) == 1 and len(world.calls("newllm_lib")) == 2
    assert [p.name for p in world.home.iterdir()] == ["new-llm"]
    assert any(b"waiting for it" in out for out, _ in outputs)


def test_a_token_in_the_repositorys_address_is_said_nowhere(world):
    for user in ("me:s3cret", "s3cret", "me:p@s3cret"):
        address = f"https://{user}@example.invalid/x"
        done = world.piped("demo", NEWLLM_REPO_URL=address)
        assert done.returncode == 1 and b"https://example.invalid/x could not be cloned" in done.stderr
        assert b"s3cret" not in done.stdout + done.stderr


def test_nothing_of_the_current_folder_is_run(world):
    (world.home / "google").mkdir()
    for name in ("fcntl", "google/__init__", "google/colab", "json", "os", "torch", "newllm_lib"):
        (world.home / f"{name}.py").write_text(
            f"open({str(world.home / 'was_run')!r}, 'a').write(__name__)\n"
        )
    assert world.piped("demo").returncode == 0 and len(world.calls("newllm_lib")) == 1
    assert not (world.home / "was_run").exists()


def test_it_goes_on_when_its_reader_leaves(world):
    environment = {**world.environment, "NEWLLM_DIR": "new-llm"}
    words = [shutil.which("bash"), "-c", f"bash {SCRIPT} demo | :"]
    subprocess.run(words, cwd=world.home, env=environment, check=True)
    assert len(world.calls("newllm_lib")) == 1


def test_an_environment_that_broke_is_mended_and_not_believed(world):
    world.piped("demo")
    assert world.piped("demo").returncode == 0 and len(world.calls("pip")) == 1
    python = world.clone / ".venv" / "bin" / "python"
    python.write_text("#!/bin/bash\nexit 127\n")  # the system's Python was removed
    done = world.piped("demo")
    assert done.returncode == 0 and b"is not whole any more" in done.stdout and len(world.calls("pip")) == 2


def test_another_python_than_the_environments_is_said(world):
    world.piped("demo")
    other = world.programs / "other"
    said = '*"sep="*) echo 3.99.0 ;; *"(sys.executable)"*) echo "$0" ;; *) exec "${0%other}python3" "$@"'
    other.write_text(f'#!/bin/bash\ncase "$*" in {said} ;; esac\n')
    other.chmod(0o755)
    said = world.piped("demo", NEWLLM_PYTHON=str(other)).stdout
    assert b".venv has Python 3.1" in said and b"move .venv away" in said
    assert b"has Python" not in world.piped("demo").stdout


def test_the_clone_of_another_user_is_used_and_never_changed(world):
    """As for a user who is not root: what may only be read is used where it is whole."""
    world.piped("demo")
    subprocess.run(["chmod", "-R", "a-w", str(world.clone)], check=True)
    not_root = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]

    def as_a_guest(*words: str):
        command = [*(not_root if os.getuid() == 0 else []), "bash", "-s", "--", *words]
        return subprocess.run(
            [shutil.which(command[0]), *command[1:]],
            cwd=world.home,
            env=world.environment,
            input=SCRIPT.read_bytes(),
            capture_output=True,
        )

    try:
        done = as_a_guest("demo", "--num_layers", "4")
        assert done.returncode == 0, done.stderr
        assert b"used as it is" in done.stdout and len(world.calls("newllm_lib")) == 2
        done = as_a_guest("--setup-only", "demo,dev")  # something is missing
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1
        assert b"which is not whole: take one of your own" in done.stderr
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(world.clone)], check=True)
    (world.clone / ".venv" / "bin" / "python").write_text("#!/bin/bash\nexit 126\n")  # in another's home
    subprocess.run(["chmod", "-R", "a-w", str(world.clone)], check=True)
    try:
        done = as_a_guest("demo")
        assert (
            done.returncode == 1
            and done.stderr.count(b"\n") == 1
            and b"you may not write into" in done.stderr
        )
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(world.clone)], check=True)
