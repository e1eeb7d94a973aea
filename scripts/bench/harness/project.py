"""A workspace of vout, with a daemon of its own."""

import json
import os
import pathlib
import signal
import subprocess

from harness import measure

# A daemon that computed nothing for so long has nothing to do.
SETTLED_SECONDS = 0.3

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Project:
    """A directory with a `vout.toml`, and what can be done with it."""

    def __init__(self, lab, path: pathlib.Path, config: str, transport: str | None):
        self.lab = lab
        self.path = path
        self.env = dict(lab.env)
        if transport is not None:
            self.env["VOUT_TRANSPORT"] = transport
        path.mkdir(parents=True, exist_ok=True)
        (path / "vout.toml").write_text(config)

    def timed(self, command: list, place) -> measure.Sample:
        """Times a command; its CPU time includes the daemon's."""
        before = self.daemon_cpu()
        sample = measure.timed(command, place, self.env, self.lab.log)
        sample["cpu"] += self.daemon_cpu() - before
        return sample

    def vout(self, *arguments) -> measure.Sample:
        """Runs `vout`."""
        return self.timed([self.lab.vout, *arguments], self.path)

    def run(self, *arguments) -> measure.Sample:
        """Runs tasks, or a command."""
        return self.vout("run", *arguments)

    def report(self, *arguments) -> dict:
        """Runs a task and returns its report."""
        file = self.lab.scratch / "report.json"
        self.run("--report", file, *arguments)
        return json.loads(file.read_text())[0]

    def expect_hit(self, task: str) -> dict:
        """Runs a task, which must be a hit: else what follows would measure something else."""
        report = self.report(task)
        if report["status"] != "hit":
            raise measure.Failed(f"{task} in {self.path} is a {report['status']}: {report['reason']}")
        return report

    def mount(self) -> None:
        """Mounts the workspace."""
        self.vout("mount")

    def unmount(self) -> None:
        """Unmounts the workspace, leaving out what is virtual."""
        self._plain("unmount", "--discard", self.path)

    def status(self) -> dict:
        """Returns what the daemon says about itself."""
        return json.loads(self._plain("status", "--json").stdout)

    def daemon_memory(self) -> dict[str, float]:
        """Returns the daemon's resident size now and at its peak, in MiB."""
        lines = pathlib.Path(f"/proc/{self.status()['daemon_pid']}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
        return {"now": sizes["VmRSS"], "peak": sizes["VmHWM"]}

    def end_daemon(self) -> None:
        """Ends the daemon, if there is one, and waits until it is gone."""
        pid = self._daemon_pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        measure.wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), f"the daemon of {self.path} ends")

    def close(self) -> None:
        """Unmounts, ends the daemon and removes the workspace."""
        try:
            self.unmount()
        except measure.Failed:
            subprocess.run(["umount", "-l", self.path], check=False, stderr=subprocess.DEVNULL)
        self.end_daemon()
        subprocess.run(["rm", "-rf", self.path], check=True)

    def _plain(self, *arguments) -> subprocess.CompletedProcess:
        # Not from inside the workspace, which a working directory would keep mounted.
        command = [str(self.lab.vout), *map(str, arguments)]
        cwd = self.path if arguments[0] == "status" else "/"
        done = subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise measure.Failed(f"{' '.join(command)}: {done.stderr}")
        return done

    def _daemon_pid(self) -> int | None:
        """Finds the daemon without asking it, as asking would start one."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if (process / "comm").read_text() == "vout-mountd\n":
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if os.fsencode(self.path) in words:
                        return int(process.name)
            except OSError:
                continue
        return None

    def settle(self) -> None:
        """Waits until the daemon has nothing to do."""
        quiet = 0
        last = self.daemon_cpu()

        def is_quiet() -> bool:
            nonlocal quiet, last
            now = self.daemon_cpu()
            quiet, last = (quiet + 1, last) if now == last else (0, now)
            return quiet * measure.LOOK_SECONDS >= SETTLED_SECONDS

        measure.wait_until(is_quiet, f"the daemon of {self.path} has nothing to do")

    def daemon_cpu(self) -> float:
        """Returns the seconds that the daemon has computed so far."""
        pid = self._daemon_pid()
        if pid is None:
            return 0.0
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
