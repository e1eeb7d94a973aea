"""The programs that vout is compared with, each from its package, installed once below target/bench/peers."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

DEBIAN = ["fuse-overlayfs", "bindfs"]
# libfuse's own example of a mirror, which is in no package as a program. The first release to know the ring is 3.18.
LIBFUSE = "passthrough_hp"
LIBFUSE_NEEDS = ["dpkg-dev", "g++", "libnuma-dev", "liburing-dev", "meson", "ninja-build"]
NPM = {"turbo": "turbo", "nx": "nx", "moon": "@moonrepo/cli", "vp": "vite-plus"}


class Peers:
    """Finds programs by their short name."""

    def __init__(self, place: pathlib.Path, install: bool):
        self.place = place
        self.found: dict[str, pathlib.Path] = {}
        self.modules = place / "npm" / "node_modules"
        place.mkdir(parents=True, exist_ok=True)
        for wanted in (self._debian, self._npm, self._pypi, self._libfuse):
            try:
                wanted(install)
            except (subprocess.CalledProcessError, OSError) as problem:
                print(f"bench: some peers cannot be installed and are left out: {problem}", file=sys.stderr)

    def get(self, name: str) -> pathlib.Path | None:
        """Returns the program, or None where it could not be installed."""
        return self.found.get(name)

    def versions(self) -> dict[str, str]:
        """Returns the version of each peer's package."""
        return {name: self._version(name) for name in sorted(self.found)}

    def _version(self, name: str) -> str:
        if name in NPM:
            package = self.modules / NPM[name] / "package.json"
            return json.loads(package.read_text())["version"]
        if name == LIBFUSE:
            return self._libfuse_source().name.removeprefix("fuse3-")
        if name in DEBIAN:
            command = ["dpkg-query", "-W", "-f", "${Version}", name]
        else:
            command = [self.place / "pypi" / "bin" / "pip", "show", name]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = re.search(r"(?m)^(?:Version: )?(\d\S*)$", said)
        return found.group(1) if found else "of unknown version"

    def _debian(self, install: bool) -> None:
        missing = [name for name in DEBIAN if shutil.which(name) is None]
        if missing and install:
            self._apt_get(*missing)
        self._note({name: shutil.which(name) for name in DEBIAN})

    def _apt_get(self, *packages: str) -> None:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        subprocess.run(command, check=True, env=quiet, stdout=subprocess.DEVNULL)

    def _npm(self, install: bool) -> None:
        home = self.place / "npm"
        home.mkdir(exist_ok=True)
        if install and not (home / "node_modules" / ".complete").exists():
            (home / "package.json").write_text('{"private": true}\n')
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM.values()]
            subprocess.run(command, cwd=home, check=True)
            (home / "node_modules" / ".complete").touch()
        programs = {name: self.modules / ".bin" / name for name in NPM}
        # The native program of Turborepo, as the script that finds it costs a start of node.
        native = [path for path in self.modules.glob("**/bin/turbo") if path.stat().st_size > 1 << 20]
        if native:
            programs["turbo"] = native[0]
        self._note(programs)

    def _pypi(self, install: bool) -> None:
        home = self.place / "pypi"
        program = home / "bin" / "ratarmount"
        if install and not program.exists():
            if subprocess.run(["python3", "-c", "import ensurepip"], capture_output=True, check=False).returncode:
                self._apt_get("python3-venv")
            subprocess.run(["python3", "-m", "venv", home], check=True)
            subprocess.run([home / "bin" / "pip", "install", "--quiet", "ratarmount"], check=True)
        self._note({"ratarmount": program})

    def _libfuse(self, install: bool) -> None:
        """Builds libfuse's example from the source package of Debian's development branch."""
        home = self.place / "libfuse"
        program = home / "build" / "example" / LIBFUSE
        if install and not program.exists():
            self._apt_get(*LIBFUSE_NEEDS)
            home.mkdir(exist_ok=True)
            self._apt_source(home, "fuse3")
            quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            options = ["--buildtype=release", "-Dtests=false", "-Dutils=false", "-Denable-io-uring=true"]
            subprocess.run(["meson", "setup", *options, home / "build", self._libfuse_source()], **quiet)
            subprocess.run(["ninja", "-C", home / "build", f"example/{LIBFUSE}"], **quiet)
        self._note({LIBFUSE: program})

    def _libfuse_source(self) -> pathlib.Path:
        return next(path for path in (self.place / "libfuse").glob("fuse3-*") if path.is_dir())

    def _apt_source(self, home: pathlib.Path, package: str) -> None:
        """Unpacks a source package of unstable, from wherever this machine gets its packages."""
        command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
        known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        archive = next((uri for uri in known if uri.rstrip("/").endswith("/debian")), None)
        if archive is None:
            raise OSError("no Debian archive is configured")
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (home / "sources.list").write_text(f"deb-src [signed-by={key}] {archive} unstable main\n")
        (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        apt_get = [
            "apt-get", "-qq", "-o", f"Dir::Etc::SourceList={home}/sources.list",
            "-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={home}/lists",
            "-o", "APT::Sandbox::User=root",
        ]
        subprocess.run([*apt_get, "update"], check=True)
        done = subprocess.run([*apt_get, "source", "--only-source", package], cwd=home, check=False, capture_output=True)
        if done.returncode:
            raise OSError(f"no source of {package}: {done.stderr.decode()}")

    def _note(self, programs: dict) -> None:
        for name, program in programs.items():
            if program is not None and pathlib.Path(program).exists():
                self.found[name] = pathlib.Path(program)
