"""A Docker engine for the tests, on machines that have none: installed, started, ended again.

An engine that runs already is used and left alone. Otherwise, as root, one is started with folders
and a socket of its own. Programs that are missing are installed only where the variable CI is set:
a test run does not change a person's machine. Debian 12 has no Compose 2 of its own, so its two
plugins are taken out of the packages of the next release, into a folder of this run.

Where the public base image cannot be pulled, a stand-in of the same name is made from the packages
of the distribution.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from medserve.errors import ConfigError
from scripts import images

__all__ = ["BASE", "EngineMissing", "base_image", "running_engine", "torch_index"]

BASE = "python:3.11-slim-bookworm"
_PLUGINS = ("docker-buildx", "docker-compose")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_NEXT_RELEASE = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


class EngineMissing(Exception):
    """Why no engine can run here."""


@contextlib.contextmanager
def running_engine(folder: Path) -> Iterator[docker.DockerClient]:
    """An engine with Compose 2 and BuildKit; sets DOCKER_HOST and DOCKER_CONFIG if it starts one.

    Raises:
        EngineMissing: there is none, and none can be started.
    """
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(contextlib.closing(images.engine()))
        except ConfigError:
            client = stack.enter_context(_own_engine(folder))
        if not _works("docker", "compose", "version") or not _works("docker", "buildx", "version"):
            _install_plugins(folder)
        yield client


@contextlib.contextmanager
def _own_engine(folder: Path) -> Iterator[docker.DockerClient]:
    if os.geteuid() != 0:
        raise EngineMissing("no Docker engine runs, and only root can start one")
    if shutil.which("dockerd") is None:
        _install("docker.io")
    host = f"unix://{folder / 'docker.sock'}"
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid"}
    command = ["dockerd", "--host", host, "--log-level", "warn"]
    command += [f"--{flag}={folder / name}" for flag, name in places.items()]
    with (folder / "dockerd.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        os.environ["DOCKER_HOST"] = host
        try:
            with contextlib.closing(_client(process, Path(log.name))) as client:
                yield client
        finally:
            os.environ.pop("DOCKER_HOST")
            process.terminate()
            process.wait()
            shutil.rmtree(folder / "data", ignore_errors=True)  # gigabytes


def _client(process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    """The client, once the engine answers."""
    for _ in range(120):
        with contextlib.suppress(ConfigError):
            return images.engine()
        if process.poll() is not None:
            break
        time.sleep(0.5)
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
    raise EngineMissing(f"dockerd does not run here: {''.join(last) or 'it does not answer'}")


def _install_plugins(folder: Path) -> None:
    """Put docker-compose and docker-buildx of the next Debian where the client looks for them."""
    _refuse_outside_ci("Docker's plugins compose and buildx")
    source, lists = folder / "next.sources", folder / "lists"
    source.write_text(_NEXT_RELEASE, encoding="utf-8")
    (lists / "partial").mkdir(parents=True)
    apt = ["apt-get", "--quiet", "-o", f"Dir::Etc::sourcelist={source}"]
    apt += ["-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={lists}"]
    _run(*apt, "update", cwd=folder)
    _run(*apt, "download", *_PLUGINS, cwd=folder)
    target = folder / "config" / "cli-plugins"
    target.mkdir(parents=True)
    for name in _PLUGINS:
        [package] = folder.glob(f"{name}_*.deb")
        _run("dpkg", "--extract", str(package), str(folder / name), cwd=folder)
        shutil.copy2(folder / name / "usr/libexec/docker/cli-plugins" / name, target / name)
    # Podman looks for its own credentials where DOCKER_CONFIG says, and fails without the file.
    (target.parent / "config.json").write_text("{}\n", encoding="utf-8")
    os.environ["DOCKER_CONFIG"] = str(target.parent)


def base_image(client: docker.DockerClient, folder: Path) -> None:
    """Make sure that the base image is there: kept, pulled, or made."""
    if client.images.list(name=BASE):
        return
    pulled = subprocess.run(["docker", "pull", "--quiet", BASE], capture_output=True, check=False)
    if pulled.returncode == 0:
        return
    if shutil.which("mmdebstrap") is None:
        _install("mmdebstrap")
    archive = folder / "base.tar"
    _run(*_debootstrap(archive), cwd=folder)
    settings = ["ENV LANG=C.UTF-8", 'CMD ["python3"]']
    # What pip and npm need behind a proxy with a certificate of its own, as this machine has it.
    settings += [f"ENV PIP_CERT={_CERTIFICATES}", f"ENV NODE_EXTRA_CA_CERTS={_CERTIFICATES}"]
    changes = [part for line in settings for part in ("--change", line)]
    _run("docker", "import", *changes, str(archive), BASE, cwd=folder)
    archive.unlink()


def _debootstrap(archive: Path) -> list[str]:
    """The command that makes a root like that of the public image: small, with Python's names."""
    packages = "ca-certificates,netbase,tzdata,python3.11,python3.11-venv"
    unused = "usrmerge perl perl-modules-5.36 libperl5.36 libfile-find-rule-perl"
    unused += " libnumber-compare-perl libtext-glob-perl"
    hooks = [
        f'chroot "$1" apt-get purge --yes --quiet {unused}',
        'rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*',
        'rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED',
        'for name in python python3; do ln -s /usr/bin/python3.11 "$1"/usr/local/bin/$name; done',
        f"copy-in {_CERTIFICATES} /etc/ssl/certs",
    ]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include=usr-is-merged,{packages}"]
    command += ['--aptopt=APT::Install-Recommends "false"']
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    command += [f"--customize-hook={hook}" for hook in hooks]
    return [*command, "bookworm", str(archive)]


@contextlib.contextmanager
def torch_index(folder: Path, version: str) -> Iterator[str]:
    """Address of an index with the CPU build of torch that this machine's pip finds, "" if none.

    Where pip is set up with a copy of that build, the build of the image takes it from there.
    """
    wheels = folder / "index" / "torch"
    wheels.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    found = subprocess.run(
        [*command, str(wheels), f"torch=={version}+cpu"], capture_output=True, check=False
    )
    if found.returncode:
        yield ""
        return
    port = 0
    serve = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(
        serve, cwd=wheels.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        said = server.stdout.readline()  # Serving HTTP on 127.0.0.1 port 40123 (…
        try:
            yield f"http://127.0.0.1:{said.split(' port ')[1].split()[0]}"
        finally:
            server.terminate()
    shutil.rmtree(wheels)


def _install(package: str) -> None:
    _refuse_outside_ci(package)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "--quiet", "--quiet"]
    for command in (
        [*quiet, "update"],
        [*quiet, "install", "--no-install-recommends", "-y", package],
    ):
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise EngineMissing(f"{package} cannot be installed: {run.stderr.strip()[-200:]}")


def _refuse_outside_ci(what: str) -> None:
    if os.geteuid() != 0 or not os.environ.get("CI") or shutil.which("apt-get") is None:
        raise EngineMissing(f"needs {what}; installed only by root, with apt, where CI is set")


def _run(*command: str, cwd: Path) -> None:
    """Run a step; its last words are the reason if it fails."""
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if run.returncode:
        raise EngineMissing(f"{command[0]}: {(run.stderr or run.stdout).strip()[-300:]}")


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
