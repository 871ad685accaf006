# What scripts/bench-door runs: the release build in front of the sandbox, attackers in a process of their own, and one
# client that behaves.
import asyncio
import multiprocessing
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time

from relay import Relay, until

CLIENTS, SECONDS = int(sys.argv[1]), int(sys.argv[2])
RATE = 100
TO = "contact-sales@mailer.dreamlikelabs.com"
OPEN = f"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<{TO}>\r\n".encode()


def make_relay():
    many = CLIENTS + 3000
    relay = Relay(
        [
            "trusted_networks = 127.0.0.1", f"max_client_connections = {many}",
            f"max_client_connections_per_ip = {many}"],
        ["daily_limit = 0"])
    folder = f"{relay.etc}/ssl"
    os.makedirs(folder, exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
         f"{folder}/key.pem", "-out", f"{folder}/cert.pem", "-days", "30", "-subj", "/CN=door.test"],
        check=True, stderr=subprocess.DEVNULL)
    return relay


def memory(relay):
    """RSS and PSS in MiB."""
    found = {}
    for line in open(f"/proc/{relay.daemon.pid}/smaps_rollup"):
        key = line.split(":")[0]
        if key in ("Rss", "Pss"):
            found[key] = int(line.split()[1]) / 1024
    return found["Rss"], found["Pss"]


# Attackers: each is one connection from 127.0.0.2 that does its worst until it is told to stop, and comes again.


async def connect(port, tls=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    await reader.readline()
    if tls:
        writer.write(b"EHLO a.test\r\nSTARTTLS\r\n")
        while not (await reader.readline()).startswith(b"220 "):
            pass
        await writer.start_tls(tls)
    return reader, writer


async def idle(port, tls=None):
    reader, writer = await connect(port, tls)
    writer.write(b"EHLO a.test\r\n")
    while not (await reader.readline()).startswith(b"250 "):
        pass
    return reader, writer


async def drip(port):
    reader, writer = await connect(port)
    writer.write(OPEN + b"DATA\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(1)


async def flood(port, opening, piece):
    reader, writer = await connect(port)
    writer.write(opening)
    while True:
        writer.write(piece)
        await writer.drain()
        if reader.at_eof():
            return


async def slow_reader(port):
    reader, writer = await connect(port)
    writer.transport.pause_reading()
    writer.write(b"HELP\r\n" * 190)
    await asyncio.sleep(3600)


async def stall(port):
    reader, writer = await connect(port)
    writer.write(b"STARTTLS\r\n")
    await reader.readline()
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await asyncio.sleep(3600)


async def half_chunk(port):
    reader, writer = await connect(port)
    writer.write(OPEN + b"BDAT 1000000\r\n\r\n" + b"x" * 250_000)
    await asyncio.sleep(3600)


async def storm(port):
    await connect(port)
    raise ConnectionError


async def handshakes(port):
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    await connect(port, tls)
    raise ConnectionError


ATTACKS = {
    "an octet a second in DATA": (500, drip),
    "a line without an end": (20, lambda port: flood(port, b"", b"x" * 65536)),
    "a header without an end": (20, lambda port: flood(port, OPEN + b"DATA\r\n", (b"X-A: " + b"x" * 900 + b"\r\n") * 64)),
    "NOOP without an end": (20, lambda port: flood(port, b"", b"NOOP\r\n" * 8192)),
    "replies that are not read": (500, slow_reader),
    "STARTTLS and no more": (500, stall),
    "a quarter of a BDAT": (500, half_chunk),
    "connections without an end": (50, storm),
    "TLS handshakes without an end": (8, handshakes),
}


def attack(name, port, ready, stop):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    kept = []

    async def again(act):
        while not stop.is_set():
            try:
                await asyncio.wait_for(act(port), 3600)
            except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await asyncio.sleep(0.01)

    async def run():
        if name.startswith("idle"):
            tls = None
            if name == "idle TLS":
                tls = ssl.create_default_context()
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            for first in range(0, CLIENTS, 50):
                kept.extend(await asyncio.gather(*(idle(port, tls) for _ in range(min(50, CLIENTS - first)))))
        else:
            count, act = ATTACKS[name]
            for _ in range(count):
                kept.append(asyncio.ensure_future(again(act)))
            await asyncio.sleep(1)
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.1)
        os._exit(0)

    asyncio.run(run())


class GoodClient:
    """Sends RATE messages a second over four connections, whatever the answers take."""

    def __init__(self, port):
        self.port, self.took, self.refused = port, [], []
        self.body = b"Subject: good\r\n\r\n" + b"0123456789" * 100 + b"\r\n.\r\n"

    def run(self, seconds):
        threads = [threading.Thread(target=self.send, args=(i, seconds)) for i in range(4)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - begin

    def send(self, number, seconds):
        s = socket.create_connection(("127.0.0.1", self.port), 60)
        f = s.makefile("rb")

        def reply():
            while True:
                line = f.readline()
                if line[3:4] != b"-":
                    return line

        reply()
        s.sendall(b"EHLO good.test\r\n")
        reply()
        begin = time.monotonic() + number / RATE
        for i in range(seconds * RATE // 4):
            due = begin + i * 4 / RATE
            time.sleep(max(due - time.monotonic(), 0))
            start = time.monotonic()
            s.sendall(f"MAIL FROM:<a@b.test>\r\nRCPT TO:<{TO}>\r\nDATA\r\n".encode())
            for _ in range(3):
                last = reply()
            if last.startswith(b"354"):
                s.sendall(self.body)
                last = reply()
            if last.startswith(b"250"):
                self.took.append(time.monotonic() - start)
            else:
                self.refused.append(last)
        s.close()


def percentile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] * 1000 if values else float("nan")


def measure(relay, name):
    """One attack, and a good client meanwhile. A row of the table."""
    ready, stop = multiprocessing.Event(), multiprocessing.Event()
    attacker = None
    if name != "nobody":
        attacker = multiprocessing.Process(target=attack, args=(name, relay.port, ready, stop))
        attacker.start()
        if not ready.wait(300):
            sys.exit(f"FAILED: the attackers did not get ready: {name}")
    time.sleep(1)
    before = memory(relay)
    peak, done = [before[0]], threading.Event()

    def watch():
        while not done.wait(0.2):
            peak[0] = max(peak[0], memory(relay)[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    good = GoodClient(relay.port)
    took = good.run(SECONDS)
    done.set()
    watcher.join()
    sessions = relay.status()["sessions"]
    if attacker:
        stop.set()
        attacker.join(30)
        if attacker.is_alive():
            attacker.kill()
            attacker.join()
    print(
        f"{name:<30} {sessions:>8} {before[0]:>6.0f} {before[1]:>6.0f} {peak[0]:>6.0f}   "
        f"{len(good.took):>5} {len(good.refused):>7} {len(good.took) / took:>5.0f}   "
        f"{percentile(good.took, 0.5):>6.1f} {percentile(good.took, 0.99):>7.1f} {percentile(good.took, 1):>7.1f}",
        flush=True)
    return before, len(good.took)


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < CLIENTS + 5000:
        sys.exit(f"FAILED: `ulimit -n` is {hard}: {CLIENTS} clients need more")
    relay = make_relay()
    try:
        print(f"{'':<30} sessions    RSS    PSS   peak    sent refused   a s      p50     p99     max ms   (memory in MiB)")
        total, used = 0, {}
        for name in ["nobody", "idle clear", "idle TLS", *ATTACKS]:
            # A fresh process each: memory that one attack has left must not be counted for the next.
            relay.start()
            used[name], count = measure(relay, name)
            total += count
            until("all is delivered", lambda: relay.status()["queue_messages"] == 0)
            report = relay.status()
            delivered = sum(account["delivered"] for account in report["accounts"])
            if delivered != count:
                print(f"  LOST: {count} accepted, {delivered} delivered")
            reached = {key: value for key, value in report["limits"].items() if value}
            if reached:
                print(f"{'':<30} limits: {reached}")
            relay.stop()
        for name in ("idle clear", "idle TLS"):
            each = (used[name][0] - used["nobody"][0]) * 1024 / CLIENTS
            print(f"{name}: {each:.1f} KiB a client")
        print(f"{total} messages of the good client, all accounted for unless a line above says LOST")
    finally:
        relay.end()


if __name__ == "__main__":
    main()
