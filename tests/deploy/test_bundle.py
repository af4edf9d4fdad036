"""A bundle with tiny wheels: made, interrupted, moved, damaged, installed, upgraded. Real pip, venvs and files; no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy import cli_bundle
from deploy.__main__ import main as deploy_main
from deploy.offline import bundle, completeness, sbom, sources, wheels
from deploy.offline.installer import command, unpacking, verifying
from deploy.offline.installer.errors import InstallError
from rag.errors import RagError

HERE = ".".join(map(str, sys.version_info[:2]))
PLATFORM = f"manylinux_2_17_{os.uname().machine}"
QUIET: Any = lambda text: None  # noqa: E731


def wheel(folder: Path, name: str, version: str, *needs: str, body: str = "") -> Path:
    """A pure wheel, as a build tool would write it."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}/__init__.py": body or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{each},,\n" for each in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(each, text)
    return path


def program(root: Path, version: str = "1") -> Path:
    """A small program with the shape of ours, and beside it what must stay at home."""
    files = {
        "app.py": f"VERSION = {version!r}\n",
        "requirements.txt": "-r requirements-remote.txt\nleaf==1.0\n",
        "requirements-remote.txt": "stem==2.0\n",
        "rag/__init__.py": "",
        "rag/words/de.txt": "der\n",
        "samples/guide/one.md": "# One\n",
        ".streamlit/config.toml": "[server]\nport = 8502\n",
        ".streamlit/secrets.toml": "password = 'planted-secret'\n",
        ".env": "RAGDECK_TOKEN=planted-secret\n",
        "data/traces.db": "planted-secret",
        "rag/id_ed25519": "planted-secret",
        "rag/server.key": "planted-secret",
        "tests/test_app.py": "planted-secret",
        "letters/private.txt": "planted-secret",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def wanted(root: Path, links: Path | None, **more: Any) -> bundle.Wanted:
    found = wheels.Sources((str(links),), (), True) if links else wheels.Sources()
    requirements = "requirements.txt" if links else None
    target = wheels.Target(HERE, PLATFORM)
    return bundle.Wanted(root, "1.0", target, requirements, found, **{"part_bytes": 1_000_000, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of several parts: two wheels, pip's, the program, a model, settings."""
    base = tmp_path_factory.mktemp("made")
    wheel(base / "links", "stem", "2.0")
    wheel(base / "links", "leaf", "1.0", "stem>=1", "never; extra == 'all'")
    program(base / "program")
    model(base / "minilm")
    asked = wanted(
        base / "program",
        base / "links",
        models=(bundle.Model(str(base / "minilm"), "EMBEDDING_MODEL"),),
        config=(("dashboard.toml", "[query]\nmax_running = 2\n"), ("env", "VLLM_MODEL=small\nHF_HUB_OFFLINE=0\n")),
        secrets=("RAGDECK_TOKEN",),
    )
    bundle.make(asked, base / "bundle", base / "work", "2026-01-01T00:00:00+00:00", QUIET)
    return base / "bundle"


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def made_old(folder: Path) -> None:
    """The parts in a folder are of long ago: one that is written again is newer, however coarse the file system's clock is."""
    for path in folder.glob("part-*"):
        os.utime(path, (1.0, 1.0))


def copy(made: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in made.rglob("*"):
        target = to / path.relative_to(made)
        target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    return to


def install(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own install.py, by a Python without our packages."""
    python = Path(sys.base_prefix) / "bin" / f"python{HERE}"
    command = [str(python if python.exists() else sys.executable), "-I", "-c", RUN, str(folder / "install.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/")


RUN = "import runpy, sys, os; sys.argv = sys.argv[1:]; sys.path.insert(0, os.path.dirname(sys.argv[0])); runpy.run_path(sys.argv[0], run_name='__main__')"


def test_a_bundle_holds_the_program_and_nothing_private(made: Path):
    manifest = json.loads((made / "manifest.json").read_text())
    names = {file["path"] for file in manifest["files"]}
    assert {"app/app.py", "app/rag/words/de.txt", "app/samples/guide/one.md", "app/.streamlit/config.toml"} <= names
    assert {"wheels/leaf-1.0-py3-none-any.whl", "wheels/stem-2.0-py3-none-any.whl"} <= names
    assert any(name.startswith("wheels/pip-") for name in names)
    assert not any(b"planted-secret" in path.read_bytes() for path in made.rglob("*") if path.is_file())
    assert len(manifest["parts"]) > 1


def test_the_checksums_are_those_of_sha256sum(made: Path):
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ")[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    assert {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} == {
        *listed,
        "SHA256SUMS",
        "parts.json",
    }


def test_the_parts_are_one_tar_archive(made: Path):
    whole = b"".join(path.read_bytes() for path in sorted(made.glob("part-*.tar")))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        manifest = json.loads((made / "manifest.json").read_text())
        assert archive.getnames() == [file["path"] for file in manifest["files"]]
        content = archive.extractfile("app/app.py")
        assert content is not None and content.read() == b"VERSION = '1'\n"


def test_the_bill_of_materials_is_valid_cyclonedx(made: Path):
    text = (made / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    packages = {each["name"]: each for each in bill["components"]}
    assert packages["leaf"]["purl"] == "pkg:pypi/leaf@1.0"
    assert packages["leaf"]["licenses"] == [{"license": {"id": "MIT"}}]
    depends = {each["ref"]: each["dependsOn"] for each in bill["dependencies"]}
    assert depends["pkg:pypi/leaf@1.0"] == ["pkg:pypi/stem@2.0"]
    assert any(each["type"] == "machine-learning-model" for each in bill["components"])


def test_another_program_leaves_the_parts_of_the_models_as_they_are(tmp_path: Path):
    """A new version of a bundle of 200 GB: only what differs is written, and carried."""
    big = model(tmp_path / "big")
    (big / "vocab.txt").write_bytes(os.urandom(3_500_000))
    for number in ("1", "2"):
        program(tmp_path / "program", number + " a version of another length" * int(number))
        asked = wanted(tmp_path / "program", None, models=(bundle.Model(str(big)),))
        bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
        if number == "1":
            made_old(tmp_path / "bundle")
            before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").glob("part-*")}
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").glob("part-*")}
    assert len(after) == 4 and {name for name in after if before[name] != after[name]} == {"part-00004.tar"}
    command.install(tmp_path / "bundle", tmp_path / "there", sys.executable, QUIET, QUIET)
    assert "2 a version" in (tmp_path / "there" / "app" / "app.py").read_text()


def test_made_again_it_is_the_same_to_the_last_byte(tmp_path: Path):
    asked = wanted(program(tmp_path / "program"), None)
    made = [bundle.make(asked, tmp_path / "bundle", tmp_path / "work", f"2026-01-0{day}T00:00:00+00:00", QUIET) for day in (1, 2)]
    assert made[0].digest == made[1].digest, "its checksum may have been told already"
    bill = json.loads((tmp_path / "bundle" / "sbom.cdx.json").read_text())
    assert bill["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"


def test_a_full_or_read_only_disk_is_an_error_with_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*given: object) -> None:
        raise OSError(28, "No space left on device", "/mnt/x/part-00001.unfinished")

    monkeypatch.setattr(cli_bundle.bundle, "make", refuse)
    assert deploy_main(["bundle", "--out", str(tmp_path / "b"), "--no-wheels"]) == 2
    said = capsys.readouterr().err
    assert "/mnt/x/part-00001.unfinished: No space left on device" in said and "--out" in said


def test_the_bill_names_each_file_of_a_model_and_each_image(tmp_path: Path):
    folder = model(tmp_path / "small")
    (folder / "README.md").write_text("---\nlanguage: he\nlicense: apache-2.0\n---\n# Small\n")
    asked = wanted(
        program(tmp_path / "program"), None, models=(bundle.Model(str(folder), "EMBEDDING_MODEL"), bundle.Model(str(folder)))
    )
    bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
    text = (tmp_path / "bundle" / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    (found,) = [each for each in json.loads(text)["components"] if each["type"] == "machine-learning-model"]
    assert found["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    digests = {each["name"]: each["hashes"][0]["content"] for each in found["components"]}
    assert digests["model.safetensors"] == verifying.sha256(folder / "model.safetensors") and len(digests) == 4
    bill = sbom.bill("1", "2026-01-01T00:00:00+00:00", "x", [], [], [("vllm:v1", "0" * 64)])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert bill["components"][0]["hashes"][0]["content"] == "0" * 64


MIT, BSD, APACHE = (f"Classifier: License :: OSI Approved :: {name} License\n" for name in ("MIT", "BSD", "Apache Software"))


@pytest.mark.parametrize(
    "fields, licences",
    [
        ("License-Expression: mit\n", [{"license": {"id": "MIT"}}]),
        ("License-Expression: Apache-2.0 or BSD-2-Clause\n" + BSD, [{"expression": "Apache-2.0 OR BSD-2-Clause"}]),
        ("License-Expression: LicenseRef-Own\n", [{"expression": "LicenseRef-Own"}]),
        ("License: BSD-3-Clause\n" + BSD, [{"license": {"id": "BSD-3-Clause"}}]),
        (MIT, [{"license": {"id": "MIT"}}]),
        (BSD, [{"license": {"name": "BSD License"}}]),
        ("License: MIT\n" + APACHE + BSD, [{"license": {"name": "Apache Software License AND BSD License"}}]),
        ("License: Copyright (c) 2026\n", [{"license": {"name": "Copyright (c) 2026"}}]),
        ("", None),
    ],
)
def test_a_licence_is_an_spdx_id_where_the_metadata_say_which(fields: str, licences: Any):
    told = sbom.described(f"Metadata-Version: 2.1\nName: a\nVersion: 1\n{fields}")
    assert sbom.component(told).get("licenses") == licences
    bill = sbom.bill("1", "2026-01-01T00:00:00+00:00", "x", [told], [], [])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


def test_it_installs_without_our_packages_and_without_a_network(made: Path, tmp_path: Path):
    moved = copy(made, tmp_path / "usb")
    done = install(moved, "--to", str(tmp_path / "there"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["changed"], report["secrets_to_set"]) == (True, ["RAGDECK_TOKEN"])
    there = tmp_path / "there"
    shown = subprocess.run([there / "python.sh", "-c", "import leaf, stem, sys; print(leaf.VERSION, stem.VERSION, sys.prefix)"],
                           capture_output=True, text=True)  # fmt: skip
    assert shown.stdout.split() == ["1.0", "2.0", str(there / ".venv")], shown.stderr
    scripts = [path for path in (there / ".venv" / "bin").iterdir() if path.is_file() and not path.is_symlink()]
    assert scripts and not any(b"there.new" in path.read_bytes() for path in scripts)
    variables = dict(
        line.split("=", 1) for line in (there / "app" / ".env").read_text().splitlines() if "=" in line and line[0] != "#"
    )
    assert (variables["HF_HUB_OFFLINE"], variables["VLLM_MODEL"]) == ("1", "small")
    assert Path(variables["EMBEDDING_MODEL"], "model.safetensors").is_file()
    assert stat.S_IMODE((there / ".env").stat().st_mode) == 0o600
    assert "max_running = 2" in (there / "app" / "dashboard.toml").read_text()
    assert not (tmp_path / "there.new").exists()


def test_again_changes_nothing_and_a_new_bundle_keeps_data_and_settings(tmp_path: Path):
    for number in ("1", "2"):
        asked = wanted(program(tmp_path / "program", number), None)
        bundle.make(asked, tmp_path / f"bundle{number}", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
    there, notes = tmp_path / "there", list[str]()
    assert command.install(tmp_path / "bundle1", there, sys.executable, QUIET, notes.append) is True
    (there / "data" / "traces.db").write_text("mine")
    (there / ".env").write_text("RAGDECK_TOKEN=set-here\n")
    assert command.install(tmp_path / "bundle1", there, sys.executable, QUIET, notes.append) is False
    assert command.install(tmp_path / "bundle2", there, sys.executable, QUIET, notes.append) is True
    assert (there / "app" / "app.py").read_text() == "VERSION = '2'\n"
    assert (there / "data" / "traces.db").read_text() == "mine"
    assert (there / "app" / ".env").read_text() == "RAGDECK_TOKEN=set-here\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("there")) == ["there", "there.previous"]
    assert (tmp_path / "there.previous" / "app" / "app.py").read_text() == "VERSION = '1'\n", "the way back"


@pytest.mark.parametrize("moment", ["before the new one was whole", "before the data moved", "before the settings moved"])
def test_an_upgrade_that_ended_in_between_is_finished_by_the_next_run(tmp_path: Path, moment: str):
    for number in ("1", "2"):
        asked = wanted(program(tmp_path / "program", number), None)
        bundle.make(asked, tmp_path / f"bundle{number}", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
    there = tmp_path / "there"
    command.install(tmp_path / "bundle1", there, sys.executable, QUIET, QUIET)
    (there / "data" / "traces.db").write_text("mine")
    (there / ".env").write_text("RAGDECK_TOKEN=set-here\n")
    there.rename(tmp_path / "there.previous")
    command.install(tmp_path / "bundle2", tmp_path / "other", sys.executable, QUIET, QUIET)
    (tmp_path / "other").rename(tmp_path / "there.new")
    if moment == "before the new one was whole":
        (tmp_path / "there.new" / "installed.json").rename(tmp_path / "there.new" / "unfinished.json")
    if moment == "before the settings moved":
        os.replace(tmp_path / "there.previous" / "data" / "traces.db", tmp_path / "there.new" / "data" / "traces.db")
        (tmp_path / "there.previous" / "data").rmdir()
    command.install(tmp_path / "bundle2", there, sys.executable, QUIET, QUIET)
    assert (there / "data" / "traces.db").read_text() == "mine"
    assert (there / "app" / ".env").read_text() == "RAGDECK_TOKEN=set-here\n"
    assert (there / "app" / "app.py").read_text() == "VERSION = '2'\n"
    assert not (tmp_path / "there.new").exists()


def test_an_installation_that_runs_is_not_upgraded(tmp_path: Path):
    for number in ("1", "2"):
        asked = wanted(program(tmp_path / "program", number), None)
        bundle.make(asked, tmp_path / f"bundle{number}", tmp_path / "work", "2026-01-01T00:00:00+00:00", QUIET)
    there = tmp_path / "there"
    command.install(tmp_path / "bundle1", there, sys.executable, QUIET, QUIET)
    running = subprocess.Popen([sys.executable, "-c", "input()"], cwd=there / "app", stdin=subprocess.PIPE)
    (there / "dashboard.pid").write_text(str(running.pid))
    with pytest.raises(InstallError, match="is running"):
        command.install(tmp_path / "bundle2", there, sys.executable, QUIET, QUIET)
    running.communicate(b"\n", timeout=30)
    assert command.install(tmp_path / "bundle2", there, sys.executable, QUIET, QUIET) is True


def test_a_failed_installation_leaves_what_was_there(tmp_path: Path):
    bundle.make(wanted(program(tmp_path / "program"), None), tmp_path / "bundle", tmp_path / "work", "", QUIET)
    with pytest.raises(InstallError, match="does not run"):
        command.install(tmp_path / "bundle", tmp_path / "there", "/nowhere/python3", QUIET, QUIET)
    assert not (tmp_path / "there").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("not ours")
    with pytest.raises(InstallError, match="something else"):
        command.install(tmp_path / "bundle", tmp_path / "there", sys.executable, QUIET, QUIET)
    assert (tmp_path / "there" / "letter.txt").read_text() == "not ours"


def test_each_missing_or_damaged_file_is_named_before_anything_is_written(made: Path, tmp_path: Path):
    moved = copy(made, tmp_path / "usb")
    (moved / "part-00001.tar").unlink()
    damaged = bytearray((moved / "part-00002.tar").read_bytes())
    damaged[-1] ^= 1
    (moved / "part-00002.tar").write_bytes(damaged)
    (moved / "sbom.cdx.json").write_text("{}")
    done = install(moved, "--to", str(tmp_path / "there"))
    assert done.returncode == 1
    for problem in ("part-00001.tar: missing", "part-00002.tar: its checksum is wrong", "sbom.cdx.json: its checksum is wrong"):
        assert problem in done.stderr
    assert not (tmp_path / "there").exists() and not (tmp_path / "there.new").exists()


def rogue(folder: Path, member: tarfile.TarInfo, content: bytes, named: str) -> dict[str, Any]:
    """A bundle whose checksums are right and whose archive wants out."""
    folder.mkdir()
    with tarfile.open(folder / "part-00001.tar", "w") as archive:
        archive.addfile(member, io.BytesIO(content))
    files = [{"path": named, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mode": 0o644}]
    return {"parts": [{"name": "part-00001.tar"}], "files": files}


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "a\\..\\out.txt", "./a", "", "a//b"])
def test_a_file_that_wants_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InstallError, match="no place below the target"):
        verifying.safe_path(name)
    member = tarfile.TarInfo(name or "..")
    member.size = 4
    manifest = rogue(tmp_path / "bundle", member, b"evil", name)
    with pytest.raises(InstallError):
        unpacking.unpack(tmp_path / "bundle", manifest, tmp_path / "there", QUIET)
    assert not (tmp_path / "out.txt").exists() and not Path("/tmp/out.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    member = tarfile.TarInfo("app/a")
    member.type, member.linkname = kind, "/etc/passwd"
    manifest = rogue(tmp_path / "bundle", member, b"", "app/a")
    with pytest.raises(InstallError, match="not what its manifest says"):
        unpacking.unpack(tmp_path / "bundle", manifest, tmp_path / "there", QUIET)


def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path):
    manifest = rogue(tmp_path / "bundle", tarfile.TarInfo("app/extra.py"), b"", "app/a")
    with pytest.raises(InstallError, match=r"app/extra\.py"):
        unpacking.unpack(tmp_path / "bundle", manifest, tmp_path / "there", QUIET)


def test_a_bundle_for_another_machine_is_refused(tmp_path: Path):
    manifest = {"python": HERE, "platform": "manylinux_2_28_sparc64", "contents": {}, "total_bytes": 1}
    with pytest.raises(InstallError, match="sparc64"):
        verifying.check_machine(manifest, sys.executable, tmp_path / "there")
    with pytest.raises(InstallError, match=r"for Python 3\.1,"):
        verifying.check_machine({**manifest, "python": "3.1"}, sys.executable, tmp_path / "there")
    newer = {**manifest, "platform": f"manylinux_2_99_{os.uname().machine}"}
    with pytest.raises(InstallError, match=r"glibc 2\.99"):
        verifying.check_machine(newer, sys.executable, tmp_path / "there")


def test_a_model_that_is_not_whole_is_not_packed(tmp_path: Path):
    folder = model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    asked = wanted(program(tmp_path / "program"), None, models=(bundle.Model(str(folder)),))
    with pytest.raises(RagError, match="has no tokenizer"):
        bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "", QUIET)


def test_two_folders_of_one_name_have_a_place_each(tmp_path: Path):
    folders = [model(tmp_path / where / "small") for where in ("one", "two")]
    asked = wanted(program(tmp_path / "program"), None, models=tuple(bundle.Model(str(folder)) for folder in folders))
    bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "", QUIET)
    names = {file["path"] for file in json.loads((tmp_path / "bundle" / "manifest.json").read_text())["files"]}
    assert {"models/folders/small/config.json", "models/folders/small-2/config.json"} <= names


def test_a_hub_model_travels_as_files_in_the_layout_of_the_cache(tmp_path: Path):
    repository = tmp_path / "hub" / "models--me--small"
    blobs = model(repository / "blobs")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (snapshot / name).symlink_to(blobs / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    asked = wanted(
        program(tmp_path / "program"), None, models=(bundle.Model("me/small", "EMBEDDING_MODEL"),), cache=tmp_path / "hub"
    )
    bundle.make(asked, tmp_path / "bundle", tmp_path / "work", "", QUIET)
    command.install(tmp_path / "bundle", tmp_path / "there", sys.executable, QUIET, QUIET)
    place = completeness.find("me/small", tmp_path / "there" / "models" / "hub")
    assert place.revision == "abc" and completeness.problems(place) == []
    assert place.folder is not None and not (place.folder / "config.json").is_symlink()
    assert "EMBEDDING_MODEL" not in (tmp_path / "there" / ".env").read_text(), "the name goes on to work"


def test_secrets_stay_and_are_named(tmp_path: Path):
    root = program(tmp_path / "program")
    (root / "dashboard.toml").write_text(
        '[server]\ntoken = "planted-secret"\nport = 9000\n[llm]\nbase_url = "http://me:planted-secret@10.0.0.2:8001"\n'
        '[[services]]\nname = "vllm"\nkind = "openai-chat"\nurl = "http://10.0.0.2:8001"\napi_key = "planted-secret"\n'
    )
    given = cli_bundle_arguments(tmp_path)
    environ = {"VLLM_API_KEY": "planted-secret", "REDIS_URL": "redis://:planted-secret@10.0.0.3", "AWS_KEY": "planted-secret",
               "VLLM_MODEL": "small one"}  # fmt: skip
    asked = cli_bundle.wanted(given, root, environ)
    texts = dict(asked.config)
    assert "planted-secret" not in json.dumps(texts)
    assert "port = 9000" in texts["dashboard.toml"] and "http://10.0.0.2:8001" in texts["dashboard.toml"]
    assert "VLLM_MODEL='small one'" in texts["env"]
    said = " ".join(asked.secrets)
    for name in ("server.token", "services.vllm.api_key", "llm.base_url", "VLLM_API_KEY", "REDIS_URL", "RAGDECK_TOKEN"):
        assert name in said


def cli_bundle_arguments(tmp_path: Path) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    cli_bundle.add_arguments(parser)
    return parser.parse_args(["--out", str(tmp_path / "bundle"), "--no-wheels", "--platform", PLATFORM])


def test_urls_lose_their_user_and_other_text_stays():
    assert sources.without_user("redis://me:pass@host:1/0?x=1") == "redis://host:1/0"
    assert sources.without_user("name@example") == "name@example"
