# The daemon with the sample configuration and a sandbox as its upstream, for the measurements of scripts/bench-*.
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

BINARY = os.environ["SSMTP_MAILER_BINARY"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fail(text):
    sys.exit("FAILED: " + text)


def until(what, condition, limit=600):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            fail(f"not within {limit} s: {what}")
        time.sleep(0.05)


class Relay:
    """The daemon with the sample configuration, and a sandbox as its upstream."""

    def __init__(self, settings=(), upstream=()):
        """`settings` are lines for [global], `upstream` lines behind the section of the sample's upstream."""
        self.folder = tempfile.mkdtemp(prefix="ssmtp-mailer-bench.")
        self.port, self.upstream_port = free_port(), free_port()
        self.daemon = self.sandbox = None
        self.log = f"{self.folder}/relay.log"
        self.etc = f"{self.folder}/etc"
        shutil.copytree("etc/ssmtp-mailer", self.etc)
        main = self.configuration = f"{self.etc}/ssmtp-mailer.conf"
        text = open(main).read().replace("/etc/ssmtp-mailer", self.etc).replace("/var/log/ssmtp-mailer.log", self.log)
        text = text.replace("enable_rate_limiting = true", "enable_rate_limiting = false")
        text += f"\nlisten = 127.0.0.1:{self.port}\nqueue_dir = {self.folder}/queue\n"
        text += f"admin_socket = {self.folder}/admin.sock\n"
        if os.geteuid() == 0:
            text += "user = root\n"
        text += "".join(line + "\n" for line in settings)
        open(main, "w").write(text)
        domain = f"{self.etc}/domains/dreamlikelabs.com.conf"
        text = open(domain).read().replace("smtp.gmail.com", "localhost").replace("587", str(self.upstream_port))
        text += f"tls_ca_file = {self.folder}/gmail/ca.pem\n"
        text += "".join(line + "\n" for line in upstream)
        open(domain, "w").write(text)
        os.chmod(domain, 0o600)
        self.start_sandbox()

    def start_sandbox(self):
        os.makedirs(f"{self.folder}/gmail", exist_ok=True)
        out = f"{self.folder}/sandbox.out"
        before = os.path.getsize(out) if os.path.exists(out) else 0
        self.sandbox = subprocess.Popen(
            [BINARY, "sandbox", "--port", str(self.upstream_port), "--directory", f"{self.folder}/gmail", "--discard"],
            stdout=open(out, "a"), stderr=subprocess.STDOUT)
        until("the sandbox is ready", lambda: b"sandbox ready" in open(out, "rb").read()[before:], 20)

    def stop_sandbox(self):
        self.sandbox.terminate()
        self.sandbox.wait()
        self.sandbox = None

    def start(self):
        """Returns the seconds until the log says that the daemon is ready."""
        place = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        begin = time.monotonic()
        self.daemon = subprocess.Popen(
            [BINARY, "serve", "--config", self.configuration], stdout=subprocess.DEVNULL,
            stderr=open(f"{self.folder}/daemon.err", "a"))

        def is_ready():
            if self.daemon.poll() is not None:
                fail("the daemon has ended: " + open(f"{self.folder}/daemon.err").read())
            if not os.path.exists(self.log):
                return False
            with open(self.log, "rb") as log:
                log.seek(place)
                return b"is ready on" in log.read()

        until("the daemon is ready", is_ready)
        return time.monotonic() - begin

    def stop(self):
        begin = time.monotonic()
        self.daemon.send_signal(signal.SIGTERM)
        if self.daemon.wait(60) != 0:
            fail("the daemon ended with " + str(self.daemon.returncode))
        return time.monotonic() - begin

    def run(self, *arguments):
        """A command: its seconds and its output."""
        begin = time.monotonic()
        done = subprocess.run(
            [BINARY, *arguments, "--config", self.configuration], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            fail(" ".join(arguments) + ": " + done.stderr.decode())
        return time.monotonic() - begin, done.stdout

    def status(self):
        return json.loads(self.run("status", "--json")[1])

    def memory(self, key="VmRSS"):
        """In MiB."""
        for line in open(f"/proc/{self.daemon.pid}/status"):
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        return 0

    def end(self):
        for program in (self.daemon, self.sandbox):
            if program and program.poll() is None:
                program.kill()
                program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
