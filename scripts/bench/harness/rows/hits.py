"""Hits: of one task at many sizes, of a graph, and of a task that read much."""

import json
import subprocess

from harness.files import MANY, fill, fill_alike, listing, size_and_count
from harness.measure import timed
from harness.row import Bar, Row, Variant


def generator(source) -> str:
    """Returns the configuration of a task that makes `out` a copy of a tree."""
    return f'[tasks.gen]\ncommand = "cp -r {source} out"\n'


class Hit(Row):
    name = "hit"
    title = "hit"
    bars = (
        Bar("mounted, missing", 0.015, kind="most"),
        Bar("mounted, in place", 0.015, kind="most"),
        Bar("unmounted", 0.8, "tar --zstd -x"),
    )
    in_order = True
    rounds = 5
    seconds = 330

    def cases(self):
        if self.lab.options.quick:
            return ["100x4096", "1000x8192", "10000x8192"]
        sizes = ["100x4096", "1000x8192", "10000x8192", "50000x4096", "200000x512", "8x134217728"]
        return sizes + (["80x134217728", f"{MANY}x64"] if self.lab.options.heavy else [])

    def is_alone(self, case):
        """Returns whether a case has room for a mounted project only, which is mounted anew where files are to be missing."""
        return size_and_count(case)[0] >= MANY

    def variants(self, case):
        if self.is_alone(case):
            return [*self.served("mounted, missing"), *self.served("mounted, in place")]
        peers = [f"{peer}, {state}" for peer in self.with_peers(case) for state in ("missing", "in place")]
        return [
            *self.served("mounted, missing"),
            *self.served("mounted, in place"),
            Variant("unmounted"),
            Variant("tar --zstd -x"),
            *map(Variant, peers),
        ]

    def with_peers(self, case):
        """Returns the peers to compare with; none at sizes that take them minutes."""
        count, size_bytes = size_and_count(case)
        if count > (50_000 if self.lab.options.heavy else 10_000) or count * size_bytes > 2 << 30:
            return []
        return [peer for peer in ("turbo", "vp", "moon", "nx") if self.lab.peers.get(peer)]

    def setup(self, case):
        source = self.lab.place / "source"
        fill(source, *size_and_count(case))
        self.mounted = {
            transport: self.lab.project(f"mounted-{transport}", generator(source), transport)
            for transport in self.per_transport()
        }
        if self.is_alone(case):
            for project in self.mounted.values():
                project.run("gen")
                subprocess.run(["rm", "-rf", project.path / "out"], check=True)
            return
        for project in self.mounted.values():
            project.mount()
            project.run("gen")
            project.expect_hit("gen")
        self.unmounted = self.lab.project("unmounted", generator(source))
        self.unmounted.run("gen")
        self.archive = self.unmounted.expect_hit("gen")["archive"]
        self.peers = {peer: self.peer(peer, source) for peer in self.with_peers(case)}
        (self.lab.place / "tar").mkdir()

    def before(self, case, variant):
        what, _, state = variant.label.partition(", ")
        if self.is_alone(case):
            if not state.startswith("in place"):
                project = self.mounted[variant.transport]
                project.unmount()
                project.mount()
            return
        place = {"unmounted": self.unmounted.path, "tar --zstd -x": self.lab.place / "tar"}.get(what)
        if what in self.peers:
            place = self.peers[what][0]
        if what == "mounted":
            place = self.mounted[variant.transport].path
        if not state.startswith("in place"):
            subprocess.run(["rm", "-rf", place / "out"], check=True)

    def measure(self, case, variant):
        what = variant.name.partition(", ")[0]
        if what == "mounted":
            return self.mounted[variant.transport].run("gen")
        if what == "unmounted":
            return self.unmounted.run("gen")
        if what == "tar --zstd -x":
            command = ["tar", "--zstd", "-xf", self.archive]
            return timed(command, self.lab.place / "tar", self.lab.env, self.lab.log)
        place, command = self.peers[what]
        return timed(command, place, self.lab.env, self.lab.log)

    def peer(self, name, source):
        """Makes a peer's project, runs it once, and returns where and what to run."""
        place = self.lab.place / name
        place.mkdir()
        task = f"cp -r {source} out"
        program = self.lab.peers.get(name)
        package = {"name": "bench", "version": "1.0.0", "private": True, "packageManager": "npm@10.0.0"}
        lock = {"name": "bench", "lockfileVersion": 3, "packages": {}}
        files = {"package.json": package, "package-lock.json": lock}
        if name == "turbo":
            package["scripts"] = {"gen": task}
            files["turbo.json"] = {"tasks": {"gen": {"outputs": ["out/**"]}}}
            command = [program, "run", "gen"]
        elif name == "vp":
            package["type"] = "module"
            options = {"command": task, "input": ["package.json"], "output": ["out/**"]}
            files["vite.config.js"] = f"export default {{ run: {{ tasks: {{ gen: {json.dumps(options)} }} }} }};\n"
            files["pnpm-workspace.yaml"] = "packages: []\n"
            command = [program, "run", "gen"]
        elif name == "nx":
            files["nx.json"] = {"analytics": False}
            target = {"command": task, "cache": True, "outputs": ["{projectRoot}/out"]}
            files["project.json"] = {"name": "bench", "root": ".", "targets": {"gen": target}}
            files["project.json"]["targets"]["gen"]["inputs"] = ["{projectRoot}/package.json"]
            command = [program, "run", "bench:gen"]
        else:
            files[".moon/workspace.yml"] = "projects:\n  bench: '.'\n"
            files["moon.yml"] = (
                f"tasks:\n  gen:\n    command: '{task}'\n    inputs: ['package.json']\n    outputs: ['out']\n"
            )
            command = [program, "run", "bench:gen"]
        for path, content in files.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(content if isinstance(content, str) else json.dumps(content))
        (place / ".gitignore").write_text("node_modules\nout\n.turbo\n.nx\n.moon/cache\n")
        if name in ("vp", "nx"):
            (place / "node_modules").symlink_to(self.lab.peers.modules)
        for arguments in (["init", "-q"], ["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b", "commit", "-qm", "b"]):
            subprocess.run(["git", *arguments], cwd=place, check=True)
        timed(command, place, self.lab.env, self.lab.log)
        return place, command


class NoOp(Row):
    name = "no-op"
    title = "re-run, nothing changed, by recorded inputs"
    bars = (
        Bar("mounted", 0.015, kind="most", cases=("10000",)),
        Bar("mounted", 0.040, kind="most", cases=("100000",)),
        Bar("mounted, exclusive", 0.015, kind="most", cases=("10000",)),
        Bar("mounted, exclusive", 0.040, kind="most", cases=("100000",)),
        # Of 1,000 inputs most is the start of the program.
        Bar("unmounted", 1.2, "statx", cases=("10000", "100000")),
    )
    rounds = 9
    seconds = 75

    def cases(self):
        sizes = ["1000", "10000"] if self.lab.options.quick else ["1000", "10000", "100000"]
        return [*sizes, str(MANY)] if self.lab.options.heavy else sizes

    def variants(self, case):
        mounted = [*self.served("mounted"), *self.served("mounted, exclusive")]
        return [*mounted, Variant("unmounted"), Variant("statx")]

    def setup(self, case):
        reader = self.lab.programs["touch-files"]
        config = f'[tasks.read]\ncommand = "{reader} read 1 list"\n'
        exclusive = config + "[mount]\nexclusive = true\n"
        self.project = {
            (name, transport): self.lab.project(f"no-op-{place}-{transport}", config, transport)
            for name, place, config in (
                ("mounted", "mounted", config),
                ("mounted, exclusive", "exclusive", exclusive),
            )
            for transport in self.per_transport()
        }
        self.unmounted = self.lab.project("no-op-unmounted", config)
        projects = [*self.project.values(), self.unmounted]
        fill_alike([project.path / "src" for project in projects], int(case), 64)
        for project in projects:
            (project.path / "list").write_text(listing(project.path / "src", project.path))
        for project in self.project.values():
            project.mount()
        for project in projects:
            project.run("read")
            project.expect_hit("read")

    def measure(self, case, variant):
        if variant.name == "statx":
            command = [self.lab.programs["touch-files"], "stat", 1, "list"]
            return timed(command, self.unmounted.path, self.lab.env, self.lab.log)
        project = self.unmounted if variant.name == "unmounted" else self.project[variant.name, variant.transport]
        return project.run("read")


class Graph(Row):
    name = "graph"
    title = "graph of tasks, all hits, by tasks"
    bars = (
        Bar("mounted", 0.150, kind="most", cases=("200",)),
        Bar("unmounted", 0.150, kind="most", cases=("200",)),
    )
    rounds = 7
    seconds = 60

    def cases(self):
        return ["10", "50"] if self.lab.options.quick else ["10", "50", "200"]

    def variants(self, case):
        return [*self.served("mounted"), Variant("unmounted")]

    def setup(self, case):
        tasks = int(case)
        config = "".join(
            f'[tasks.t{number}]\ncommand = "cp src/{number} out/{number}"\n'
            + (f'depends_on = ["t{number // 2}"]\n' if number > 1 else "")
            for number in range(1, tasks + 1)
        )
        self.all = [f"t{number}" for number in range(1, tasks + 1)]
        self.project = {
            transport: self.lab.project(f"graph-{transport}", config, transport)
            for transport in self.per_transport()
        }
        self.unmounted = self.lab.project("graph-unmounted", config)
        for project in [*self.project.values(), self.unmounted]:
            for name in ("src", "out"):
                (project.path / name).mkdir()
            for number in range(1, tasks + 1):
                (project.path / "src" / str(number)).write_text(f"{number}\n" * 100)
        for project in self.project.values():
            project.mount()
        for project in [*self.project.values(), self.unmounted]:
            project.run(*self.all)

    def measure(self, case, variant):
        project = self.unmounted if variant.name == "unmounted" else self.project[variant.transport]
        return project.run(*self.all)
