"""Real builds, bare and in a view."""

import os
import shutil

from harness.files import fill
from harness.measure import timed
from harness.row import Bar, Row, Variant
from harness.rows.trips import waited_for


class Build(Row):
    """A command in the bare workspace, in a view, and in a view with its outputs stored."""

    transports = ("dev", "uring")
    fixture = ""
    command: dict[str, list[str]] = {}
    made: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()
    config = ""

    def cases(self):
        return list(self.command)

    def variants(self, case):
        return [Variant("bare"), *self.served("view"), *self.served("view, stored")]

    def setup(self, case):
        self.project = {
            transport: self.prepared(f"{self.name}-{transport}", transport)
            for transport in self.per_transport()
        }
        # One that no daemon serves, so that the bare build is one.
        self.bare = self.prepared(f"{self.name}-bare", None)

    def prepared(self, name, transport):
        """Makes a project ready to be built."""
        project = self.lab.project(name, self.config, transport)
        self.lab.fixture(self.fixture, project)
        return project

    def before(self, case, variant):
        for name in self.made:
            shutil.rmtree(self.of(variant).path / name, ignore_errors=True)

    def of(self, variant):
        """Returns the project of a variant."""
        return self.bare if variant.name == "bare" else self.project[variant.transport]

    def measure(self, case, variant):
        command = self.command[case]
        project = self.of(variant)
        if variant.name == "bare":
            return timed(command, project.path, project.env, self.lab.log)
        passed_on = [word for name in self.passed_on for word in ("--env", name)]
        how = "--no-cache" if variant.name == "view" else "--force"
        report = self.lab.scratch / "report.json"
        sample = project.run(how, "--report", report, *passed_on, "--", *command)
        return {**sample, "requests": waited_for(report)}


class CBuild(Build):
    name = "build-c"
    title = "C build, `make -j2`"
    fixture = "c"
    # -O0 makes the compiler do little, and so the file system much.
    command = {flags: ["make", "-j2", f"CFLAGS={flags}", "build/squeeze"] for flags in ("-O0", "-O1")}
    made = ("build",)
    bars = (Bar("view", 1.03, "bare", cases=("-O0",)), Bar("view uring", 1.0, "view dev", cases=("-O0",)))
    seconds = 90


class CargoBuild(Build):
    name = "build-cargo"
    title = "`cargo build` with dependencies, cold target"
    fixture = "cargo"
    command = {"": ["cargo", "build", "--offline"]}
    made = ("target",)
    passed_on = ("RUSTUP_HOME", "CARGO_HOME")
    bars = (Bar("view", 1.05, "bare"), Bar("view uring", 1.0, "view dev"))
    rounds = 5
    seconds = 90


class ViteBuild(Build):
    name = "build-vite"
    title = "Vite and TypeScript production build"
    fixture = "ts"
    command = {"": ["sh", "-c", "node_modules/.bin/tsc && node_modules/.bin/vite build"]}
    made = ("dist",)
    bars = (Bar("view", 1.10, "bare"), Bar("view uring", 1.08, "bare"), Bar("view uring", 1.0, "view dev"))
    seconds = 60


class NpmCi(Build):
    name = "npm-ci"
    title = "`npm ci` of a few hundred packages"
    packages = ["webpack", "webpack-cli", "eslint", "jest", "typescript"]
    command = {"": ["npm", "ci", "--prefer-offline", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]}
    made = ("node_modules",)
    passed_on = ("npm_config_cache",)
    bars = (Bar("view", 1.5, "bare"),)
    rounds = 3
    seconds = 90

    def setup(self, case):
        # Filled once; what is measured then takes everything from there.
        cache = self.lab.results / "npm-cache"
        self.lab.env["npm_config_cache"] = str(cache)
        self.lock = self.lab.results / "npm-lock"
        if not (self.lock / "package-lock.json").exists():
            self.lock.mkdir(exist_ok=True)
            (self.lock / "package.json").write_text('{"name": "bench", "version": "1.0.0", "private": true}\n')
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
            timed([*command, *self.packages], self.lock, self.lab.env, self.lab.log)
            timed(self.command[""], self.lock, self.lab.env, self.lab.log)
            shutil.rmtree(self.lock / "node_modules")
        super().setup(case)

    def prepared(self, name, transport):
        project = self.lab.project(name, "", transport)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(self.lock / file, project.path / file)
        project.env["npm_config_cache"] = os.fspath(self.lab.results / "npm-cache")
        return project


# Takes a repository `origin` with branches `main` and `other`.
GIT_WORK = ["sh", "-c", "git clone -q origin made && cd made && git checkout -q other && git checkout -q main"]


def make_repository(lab, origin, count):
    """Makes a repository with two branches whose files all differ."""

    def git(*arguments):
        who = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
        timed(["git", *who, *arguments], origin, lab.env, lab.log)

    origin.mkdir()
    git("init", "-q", "-b", "main")
    for branch, size_bytes in (("main", 2_000), ("other", 2_001)):
        shutil.rmtree(origin / "src", ignore_errors=True)
        fill(origin / "src", count, size_bytes)
        git("checkout", "-q", "-B", branch)
        git("add", "-A")
        git("commit", "-q", "-m", branch)
    git("checkout", "-q", "main")


class Git(Build):
    name = "git"
    title = "git clone of 5 k files, and a checkout of other contents and back"
    command = {"": GIT_WORK}
    made = ("made",)
    bars = (Bar("view", 1.5, "bare"),)
    rounds = 5
    seconds = 60

    def prepared(self, name, transport):
        project = self.lab.project(name, "", transport)
        make_repository(self.lab, project.path / "origin", 1_000 if self.lab.options.quick else 5_000)
        return project
