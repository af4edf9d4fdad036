"""What an upgrade keeps, the way back, and every place that an installation cannot go to. Real folders, mounts and processes."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.offline import bundle, running
from deploy.offline.installer import command, environment, errors, swapping, verifying
from deploy.offline.installer.errors import InstallError
from tests.deploy.test_bundle import QUIET, model, program, wanted


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions as bundles, without wheels; the first with a model that the second does not hold, and one that moved."""
    for number, models in (("1", ("old", "gone")), ("2", ("new",))):
        named = {"gone": "RERANKER_MODEL"}
        packed = tuple(
            bundle.Model(str(model(tmp_path / "models" / name)), named.get(name, "EMBEDDING_MODEL")) for name in models
        )
        asked = wanted(program(tmp_path / "program", number), None, models=packed)
        bundle.make(asked, tmp_path / f"bundle{number}", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
    return tmp_path / "bundle1", tmp_path / "bundle2"


def install(source: Path, to: Path) -> list[str]:
    notes: list[str] = []
    command.install(source, to, sys.executable, QUIET, notes.append)
    return notes


def test_kept_settings_name_the_models_of_the_new_bundle(two: tuple[Path, Path], tmp_path: Path):
    there = tmp_path / "there"
    install(two[0], there)
    with (there / ".env").open("a") as file:
        file.write("VLLM_MODEL=mine\nRAGDECK_LOCAL_MODEL=/models/of/mine\n")
    notes = install(two[1], there)
    lines = (there / "app" / ".env").read_text().splitlines()
    assert f"EMBEDDING_MODEL={there}/models/folders/new" in lines
    assert "VLLM_MODEL=mine" in lines and "RAGDECK_LOCAL_MODEL=/models/of/mine" in lines
    assert not any("RERANKER_MODEL" in line for line in lines), "its folder is not there any more"
    assert any("RERANKER_MODEL" in note for note in notes)


def test_settings_that_took_the_place_of_a_link_are_kept(two: tuple[Path, Path], tmp_path: Path):
    """`sed -i` makes a file of the link, and dashboard.toml is put beside the program as the README says."""
    there = tmp_path / "there"
    install(two[0], there)
    (there / "app" / ".env").unlink()
    (there / "app" / ".env").write_text("RAGDECK_TOKEN=by-sed\n")
    (there / "app" / "dashboard.toml").write_text("[query]\nmax_running = 3\n")
    install(two[1], there)
    assert "RAGDECK_TOKEN=by-sed" in (there / "app" / ".env").read_text()
    assert "max_running = 3" in (there / "app" / "dashboard.toml").read_text()
    assert (there / "app" / ".env").is_symlink() and (there / "app" / "dashboard.toml").is_symlink()


def test_the_way_back_has_its_own_settings_and_the_data_of_now(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    there = tmp_path / "there"
    install(two[0], there)
    (there / ".env").write_text("VLLM_MODEL=one\n")
    install(two[1], there)
    (there / ".env").write_text("VLLM_MODEL=two\n")
    (there / "data" / "traces.db").write_text("later")
    for version, name in (("1", "one"), ("2", "two")):
        assert command.main(["--to", str(there), "--back"], two[1]) == 0, "and forth again"
        assert (there / "app" / "app.py").read_text() == f"VERSION = '{version}'\n"
        assert f"VLLM_MODEL={name}" in (there / "app" / ".env").read_text()
        assert (there / "data" / "traces.db").read_text() == "later"
    swapping.remove(tmp_path / "there.previous")
    assert command.main(["--to", str(there), "--back"], two[1]) == 1
    assert "holds no installation to go back to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["there.new", "there.previous"])
def test_folders_of_somebody_else_with_the_names_that_are_needed_stay(two: tuple[Path, Path], tmp_path: Path, name: str):
    there = tmp_path / "there"
    install(two[0], there)
    (tmp_path / name).mkdir()
    (tmp_path / name / "letter.txt").write_text("not ours")
    with pytest.raises(InstallError, match=f"{name} holds something else"):
        install(two[1], there)
    assert (tmp_path / name / "letter.txt").read_text() == "not ours"
    assert (there / "app" / "app.py").read_text() == "VERSION = '1'\n"


def test_an_installation_with_a_lost_file_does_not_pass_for_whole(two: tuple[Path, Path], tmp_path: Path):
    there = tmp_path / "there"
    install(two[0], there)
    (there / "app" / "rag" / "words" / "de.txt").unlink()
    (there / "data" / "traces.db").write_text("mine")
    (note, *_) = install(two[0], there)
    assert "app/rag/words/de.txt" in note
    assert (there / "app" / "rag" / "words" / "de.txt").is_file() and (there / "data" / "traces.db").read_text() == "mine"


def test_what_a_killed_run_left_takes_no_room_from_the_next(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    swapping.begin(tmp_path / "there.new", {"id": "x"})
    (tmp_path / "there.new" / "models").mkdir()
    seen: list[bool] = []
    real = verifying.check_machine
    monkeypatch.setattr(command, "check_machine", lambda *given: (seen.append((tmp_path / "there.new").exists()), real(*given)))
    install(two[0], tmp_path / "there")
    assert seen == [False]


def test_a_run_that_fails_in_the_middle_leaves_nothing_behind(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "there.new" / "data"))

    monkeypatch.setattr(command, "write_settings", full)
    with pytest.raises(OSError, match="No space left"):
        install(two[0], tmp_path / "there")
    assert not (tmp_path / "there").exists() and not (tmp_path / "there.new").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO])
def test_the_system_s_errors_name_the_place_and_a_step(number: int):
    message, step = errors.explained(OSError(number, os.strerror(number), "/mnt/x"))
    assert message.startswith("/mnt/x: ") and step == errors.STEPS[number]


def test_two_installers_do_not_write_beside_the_same_folder(two: tuple[Path, Path], tmp_path: Path):
    with swapping.alone(tmp_path / "there"), pytest.raises(InstallError, match=r"another install\.py is at work"):
        install(two[0], tmp_path / "there")


def test_a_dashboard_that_start_sh_started_is_seen(two: tuple[Path, Path], tmp_path: Path):
    there = tmp_path / "there"
    install(two[0], there)
    (there / "app" / "app.py").write_text("print('up', flush=True); input()\n")
    with subprocess.Popen([there / "start.sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        with pytest.raises(InstallError, match="is running"):
            install(two[1], there)
        process.communicate(b"\n", timeout=30)


def test_a_path_with_spaces_hebrew_and_a_hash(two: tuple[Path, Path], tmp_path: Path):
    there = tmp_path / "my folder" / "שלום #1 it's"
    install(two[0], there)
    from dotenv import dotenv_values

    read = dotenv_values(there / "app" / ".env", interpolate=False)
    assert read["EMBEDDING_MODEL"] == f"{there}/models/folders/old" and Path(str(read["EMBEDDING_MODEL"])).is_dir()
    said = subprocess.run([there / "start.sh"], capture_output=True, text=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C"})
    assert said.returncode == 0, said.stderr


# In a mount namespace of its own; the last line prints what came of it.
MOUNTED = """
set -e
mount -t tmpfs -o {options} none {folder}
{python} -m deploy install {bundle} --to {to} || echo "exit code $?" >&2
ls -A {folder} >&2
"""


@pytest.mark.parametrize(
    "options, below, said",
    [
        ("size=64k", "/there", "bytes are needed at"),
        ("size=1m,ro", "/there", "cannot be written"),
        ("size=1m,noexec", "/there", "is mounted noexec"),
        ("size=1m", "", "is a mount point"),
    ],
)
def test_places_that_cannot_take_it(two: tuple[Path, Path], tmp_path: Path, options: str, below: str, said: str):
    folder = tmp_path / "mounted"
    folder.mkdir()
    script = MOUNTED.format(options=options, folder=folder, python=sys.executable, bundle=two[0], to=f"{folder}{below}")
    command_line = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command_line, cwd=running.HERE, capture_output=True, text=True, timeout=60)
    error, *rest = done.stderr.splitlines()
    assert error.startswith("error: ") and said in error and str(folder) in error, done.stderr
    assert rest[0].startswith("       ") and rest[1:] == ["exit code 1"], "a next step, a code, and nothing left there"


def test_who_may_enter_after_a_strict_umask_is_said(two: tuple[Path, Path], tmp_path: Path):
    assert not any("umask" in note for note in install(two[0], tmp_path / "open"))
    before = os.umask(0o077)
    try:
        notes = install(two[0], tmp_path / "there")
    finally:
        os.umask(before)
    assert [note for note in notes if "umask" in note and f"chown -R USER {tmp_path / 'there'}" in note]
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o700, "as the umask wants it"


def test_a_disk_that_runs_full_while_it_is_written_is_left_as_it_was(two: tuple[Path, Path], tmp_path: Path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from deploy.offline.installer import command, verifying;"
        "command.check_machine = lambda *given: None;"  # as where something else fills the disk meanwhile
        f"sys.exit(command.main(['--to', {str(folder / 'there')!r}], Path({str(two[0])!r})))"
    )
    script = (
        f'mount -t tmpfs -o size=8k,nr_inodes=100 none {folder}; {sys.executable} -c "{code}"; echo $? >&2; ls -A {folder} >&2'
    )
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], cwd=running.HERE,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"error: {folder}/there.new") or "No space left" in lines[0], done.stderr
    assert "The disk is full" in lines[1] and lines[2:] == ["1"]


def test_a_file_in_place_of_the_folder_and_a_parent_without_right_are_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InstallError, match="is a file"):
            verifying.check_place(place)


def test_an_older_python_is_told_which_one_it_takes(two: tuple[Path, Path]):
    """As Python 3.6 meets it: it cannot even parse the installer, so install.py says it before it imports that."""
    code = "import sys; sys.version_info = (3, 6, 8); sys.argv = ['install.py']; import runpy; runpy.run_path(%r, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code % str(two[0] / "install.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr and "is 3.6" in done.stderr and "Traceback" not in done.stderr
    compile((two[0] / "install.py").read_text(), "install.py", "exec", dont_inherit=True)
    import ast

    ast.parse((two[0] / "install.py").read_text(), feature_version=(3, 6))


def test_a_python_without_venv_is_refused_before_anything_is_unpacked(tmp_path: Path):
    """A fake of Debian's python3-minimal: a Python that has no `venv`, and says so as it does."""
    fake = tmp_path / "python3"
    refuse = "-m) echo 'python3: No module named venv' >&2; exit 1;;"
    fake.write_text(f'#!/bin/sh\ncase $1 in {refuse} *) exec {sys.executable} "$@";; esac\n')
    fake.chmod(0o755)
    here = f"manylinux_2_17_{os.uname().machine}"
    manifest = {
        "python": "{}.{}".format(*sys.version_info),
        "platform": here,
        "total_bytes": 1,
        "contents": {"wheels": {"count": 1}},
    }
    with pytest.raises(InstallError, match=f"{fake} can make no venv: .*venv") as refused:
        verifying.check_machine(manifest, str(fake), tmp_path / "there")
    assert "python3-venv" in refused.value.next_step
    verifying.check_machine({**manifest, "contents": {}}, str(fake), tmp_path / "there")


def test_swapped_and_renamed_parts_are_recognised(tmp_path: Path):
    asked = wanted(program(tmp_path / "program"), None, part_bytes=1_000_000)
    (tmp_path / "program" / "samples" / "long.md").write_bytes(os.urandom(2_500_000))
    bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "", QUIET)
    names = [tmp_path / "bundle" / f"part-0000{number}.tar" for number in (1, 2, 3)]
    names[0].rename(tmp_path / "x")
    names[1].rename(names[0])
    (tmp_path / "x").rename(names[1])
    names[2].rename(tmp_path / "bundle" / "PART-00003.TAR")
    with pytest.raises(InstallError) as refused:
        verifying.verify(tmp_path / "bundle", verifying.read_manifest(tmp_path / "bundle"), QUIET)
    said = str(refused.value)
    assert "part-00001.tar: it is part-00002.tar, wrongly named" in said and "part-00002.tar: it is part-00001.tar" in said
    assert "PART-00003.TAR has the size of part-00003.tar" in said and str(tmp_path / "bundle") in said


def test_verify_prints_the_checksum_that_was_told_by_another_way(two: tuple[Path, Path], capsys: pytest.CaptureFixture):
    assert command.main(["--verify", "--json"], two[0]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == verifying.sha256(two[0] / "SHA256SUMS")


def test_docker_without_its_daemon_leaves_a_note_and_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real Docker client where there is one, else a fake that fails as it does."""
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon at unix:///nowhere. Is it running?' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.tar").write_text("")
    ((name, reason),) = environment.load_images(tmp_path, QUIET)
    assert name == "a.tar" and "Cannot connect to the Docker daemon" in reason
