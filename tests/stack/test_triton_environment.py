import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mlites.errors import InputError
from mlites.stack import triton_environment


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlites"


def build_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pin nothing that has to be downloaded: what is built, when and where is the same."""
    monkeypatch.setattr(triton_environment, "PINS", ("pip",))
    monkeypatch.setattr(triton_environment, "IMPORTS", ("pip",))


def environments(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_it_is_built_once_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_small(monkeypatch)
    said: list[str] = []
    first = triton_environment.prepare(said.append)
    assert triton_environment.prepare(said.append) == first
    assert len(said) == 1 and environments(cache) == [first.name]
    version = subprocess.run(
        [first / "bin" / "python3", "-c", "import pip, sys; print(sys.prefix)"], capture_output=True
    )
    assert version.stdout.decode().strip() == str(first)


def test_other_pins_get_another_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_small(monkeypatch)
    first = triton_environment.prepare(lambda message: None)
    monkeypatch.setattr(triton_environment, "PINS", ("pip", "pip"))
    assert triton_environment.prepare(lambda message: None) != first


def test_a_killed_builder_leaves_nothing_that_is_taken_for_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_small(monkeypatch)
    script = (
        "import os, signal\n"
        "from mlites.stack import triton_environment as t\n"
        "t.PINS = t.IMPORTS = ('pip',)\n"
        "t._provide_libpython = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.BUNDLED_LIBPYTHON = (9, 9)\n"
        "t.prepare(print)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (rest,) = environments(cache)
    assert rest.startswith(".triton-")
    whole = triton_environment.prepare(lambda message: None)
    assert environments(cache) == [whole.name]


def test_an_environment_whose_python_is_gone_is_built_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_small(monkeypatch)
    first = triton_environment.prepare(lambda message: None)
    (first / "bin" / "python3").unlink()
    (first / "bin" / "python3").symlink_to("/nowhere")
    assert triton_environment.prepare(lambda message: None) == first
    assert (first / "bin" / "python3").exists()


def test_a_package_that_cannot_be_had_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_environment, "PINS", ("pip==0.0.1.dev0",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError) as caught:
        triton_environment.prepare(lambda message: None)
    assert "cannot install pip==0.0.1.dev0: ERROR: No matching distribution" in str(caught.value)
    assert str(caught.value).endswith("or set MLITES_TRITON_URL to a Triton of your own")
    assert "\n" not in str(caught.value) and environments(cache) == []


def test_packages_that_pythonpath_leads_to_are_installed_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_small(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    folder = triton_environment.prepare(lambda message: None)
    assert (triton_environment.site_packages(folder) / "pip").is_dir()


def test_an_environment_that_cannot_import_what_it_must_is_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment, "PINS", ("pip",))
    with pytest.raises(InputError, match=r"cannot import numpy and onnxruntime: ModuleNotFoundError: No module named"):
        triton_environment.prepare(lambda message: None)
    assert environments(cache) == []


def test_a_python_without_a_stub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_environment, "STUBS", ((3, 9),))
    with pytest.raises(
        InputError, match=r"the embedded Triton runs under Python 3\.9, this is 3\.1\d; use one of those"
    ):
        triton_environment.prepare(lambda message: None)


def test_libpython_is_linked_from_where_python_says(tmp_path: Path) -> None:
    triton_environment._provide_libpython(tmp_path)
    (link,) = tmp_path.iterdir()
    assert link.name == f"libpython3.{sys.version_info.minor}.so.1.0" and link.exists()


def test_without_libpython_anywhere_the_message_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment, "_library_folders", lambda: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    version = f"3.{sys.version_info.minor}"
    with pytest.raises(InputError, match=rf"not on this machine; apt install libpython{version}"):
        triton_environment._provide_libpython(tmp_path)


def test_libpython_comes_from_the_distributions_package_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt-get and dpkg-deb as programs of the same names that pack and unpack a package made here."""
    name = f"libpython3.{sys.version_info.minor}.so.1.0"
    programs, target = tmp_path / "bin", tmp_path / "lib"
    programs.mkdir()
    target.mkdir()
    (programs / "apt-get").write_text('#!/bin/sh\n[ "$1" = download ] && echo "$2" > package.deb\n')
    (programs / "dpkg-deb").write_text(f'#!/bin/sh\nmkdir -p "$3/usr/lib" && cp "$2" "$3/usr/lib/{name}"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setattr(triton_environment, "_library_folders", lambda: iter(()))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    triton_environment._provide_libpython(target)
    assert (target / name).read_text() == f"libpython3.{sys.version_info.minor}\n"


def test_library_folders_name_existing_places_first() -> None:
    folders = list(triton_environment._library_folders())
    assert folders[0] == Path(sysconfig.get_config_var("LIBDIR"))
    assert Path("/usr/lib") in folders


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert triton_environment.cache_folder() == tmp_path / ".cache" / "mlites"


def test_pip_of_the_new_environment_is_used_where_ours_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment.importlib.util, "find_spec", lambda name: None)
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    shutil.copy("/bin/true", fake)
    assert triton_environment._pip(tmp_path) == [str(fake), "-m", "pip"]
    fake.unlink()
    shutil.copy("/bin/false", fake)
    with pytest.raises(InputError, match=r"no pip to install Triton with; apt install python3-pip python3\.1\d-venv"):
        triton_environment._pip(tmp_path)
    assert os.access(fake, os.X_OK)
