# What scripts/bench-queue runs: the release build between a pipelining sender and the sandbox.
import multiprocessing
import os
import re
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time

from relay import Relay, fail, free_port, until

LINE = b"0123456789" * 7 + b"abcdef\r\n"


def make_relay():
    # Mail for this one never leaves: nobody listens there.
    stuck = [
        "[domain:stuck.example]", "enabled = true", "smtp_server = localhost", f"smtp_port = {free_port()}",
        "auth_method = NONE", "relay_account = stuck@stuck.example", "use_ssl = false", "use_starttls = false"]
    relay = Relay(["max_client_connections_per_ip = 500"], stuck)
    relay.stop_sandbox()  # its authority is there now
    return relay


def say(name, value):
    print(f"{name:<44} {value}", flush=True)


def disk(folder):
    return sum(
        os.lstat(os.path.join(base, name)).st_blocks * 512 for base, _, names in os.walk(folder) for name in names)


# The sender: each connection has a flight of whole messages under way (PIPELINING, CHUNKING), and sends the next when
# all of the last are answered.
BATCH = 50


def flight(first, count, body):
    parts = []
    for number in range(first, first + count):
        head = b"From: jane@example.org\r\nTo: contact-sales@mailer.dreamlikelabs.com\r\nSubject: %d\r\n\r\n" % number
        parts.append(
            b"MAIL FROM:<jane@example.org>\r\nRCPT TO:<contact-sales@mailer.dreamlikelabs.com>\r\nBDAT %d LAST\r\n%b%b"
            % (len(head) + len(body), head, body))
    return b"".join(parts)


def flood(port, first, count, sessions, result):
    """Sends `count` messages of about a KiB; puts what was acknowledged into `result`."""
    body = LINE * 12
    selector = selectors.DefaultSelector()
    next_number, last = first, first + count
    acknowledged = 0
    for _ in range(sessions):
        s = socket.create_connection(("127.0.0.1", port))
        s.recv(4096)
        s.sendall(b"EHLO client.example\r\n")
        answer = b""
        while b"\r\n250 " not in answer:
            answer += s.recv(4096)
        selector.register(s, selectors.EVENT_READ, [0])
    open_sessions = sessions
    keys = list(selector.get_map().values())
    for key in keys:
        batch = min(BATCH, last - next_number)
        if batch > 0:
            key.fileobj.sendall(flight(next_number, batch, body))
            next_number += batch
            key.data[0] = 3 * batch
    while any(key.data[0] for key in keys):
        for key, _ in selector.select():
            data = key.fileobj.recv(65536)
            lines = data.count(b"\n")
            if not data or data.count(b"250 2.") < lines - 1 or b"\n4" in data or b"\n5" in data:
                result.put((acknowledged, data[:200]))
                return
            key.data[0] -= lines
            acknowledged += data.count(b"Queued as")
            if key.data[0] == 0 and next_number < last:
                batch = min(BATCH, last - next_number)
                key.fileobj.sendall(flight(next_number, batch, body))
                next_number += batch
                key.data[0] = 3 * batch
    result.put((acknowledged, None))


def million(count):
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if room < count * 3000:
        fail(f"{count} messages need about {count * 3000 >> 20} MiB in {tempfile.gettempdir()}, {room >> 20} are free")
    relay = make_relay()
    try:
        relay.start()
        idle = relay.memory()
        relay.run("send", "--from", "jane@example.org", "--to", "old@stuck.example", "--subject", "old", "--body", "old")
        processes, sessions = 2, 20
        result = multiprocessing.Queue()
        share = [count // processes + (1 if i < count % processes else 0) for i in range(processes)]
        begin = time.monotonic()
        senders = [
            multiprocessing.Process(target=flood, args=(relay.port, sum(share[:i]), share[i], sessions, result))
            for i in range(processes)]
        for sender in senders:
            sender.start()
        answers = [result.get() for _ in senders]
        seconds = time.monotonic() - begin
        for sender in senders:
            sender.join()
        if any(trouble for _, trouble in answers) or sum(n for n, _ in answers) != count:
            fail(f"not everything was taken: {answers}")
        say("messages", f"{count:,}")
        say("accepted and synced", f"{count / seconds:,.0f} a second, {seconds:.1f} s")
        say("memory idle / filled / most (MiB)",
            f"{idle:.0f} / {relay.memory():.0f} / {relay.memory('VmHWM'):.0f}")
        state = relay.status()
        if state["queue_messages"] != count + 1:
            fail(f"{state['queue_messages']} messages are in the queue")
        used = disk(relay.folder + "/queue")
        say("disk", f"{used / 2**20:,.0f} MiB, {used / count:,.0f} octets a message")
        say("stop", f"{relay.stop():.2f} s")
        say("restart until ready", f"{relay.start():.2f} s")
        say("memory after the restart / most (MiB)", f"{relay.memory():.0f} / {relay.memory('VmHWM'):.0f}")
        say("queue list --limit 20", f"{relay.run('queue', 'list', '--limit', '20')[0]:.2f} s")
        seconds, listed = relay.run("queue", "list")
        if listed.count(b"\n") < count:
            fail("the list is too short")
        say("queue list, whole", f"{seconds:.1f} s")
        say("status", f"{relay.run('status')[0]:.2f} s")
        say("memory after listing / most (MiB)", f"{relay.memory():.0f} / {relay.memory('VmHWM'):.0f}")
        drain(relay, count)
    finally:
        relay.end()


def drain(relay, count):
    # Each sandbox has an authority of its own, and the daemon has read that of the first.
    relay.stop()
    relay.start_sandbox()
    place = os.path.getsize(relay.log)
    relay.start()
    begin = time.monotonic()
    worst, most, free_of = 0.0, 0, 0
    while True:
        state = relay.status()
        left, live, held = state["queue_messages"], state["queue_bytes"], state["queue_disk_bytes"]
        # The promise is twice the live octets, once they are many beside a segment.
        if live > 64 << 20:
            worst = max(worst, held / live)
        most = max(most, held - 2 * live)
        if left <= 1:
            break
        if time.monotonic() - begin > 3600:
            fail(f"{left} messages are left")
        time.sleep(0.25)
    seconds = time.monotonic() - begin
    say("drained, with one old message stuck", f"{count / seconds:,.0f} a second, {seconds:.1f} s")
    say("disk / live while draining, at most", f"{worst:.2f} (live > 64 MiB); beyond 2 x live: {most / 2**20:.0f} MiB")
    say("memory while draining (MiB)", f"{relay.memory():.0f}, at most {relay.memory('VmHWM'):.0f}")
    # Oldest first: how far behind an older one may a message have been overtaken?
    sent = re.compile(rb" ([0-9A-Za-z]+): to=<.*status=sent")
    order = []
    with open(relay.log, "rb") as log:
        log.seek(place)
        for line in log:
            found = sent.search(line)
            if found:
                order.append(found[1])
    rank = {name: i for i, name in enumerate(sorted(set(order)))}
    ahead = max(abs(rank[name] - i) for i, name in enumerate(order)) if len(rank) == len(order) else None
    say("delivered, of them twice", f"{len(rank):,}, {len(order) - len(rank)}")
    say("oldest first: out of place by at most", ahead if ahead is not None else "unknown, there are duplicates")


def large(count, megabytes):
    relay = make_relay()
    try:
        relay.start_sandbox()
        relay.start()
        idle = relay.memory()
        size = megabytes * 1_000_000
        body = (LINE * (size // len(LINE) + 1))[:size - 200]
        head = b"From: jane@example.org\r\nTo: contact-sales@mailer.dreamlikelabs.com\r\nSubject: large\r\n\r\n"
        text = memoryview(head + body[:-2] + b"\r\n")
        selector = selectors.DefaultSelector()
        clients = []
        for i in range(count):
            s = socket.create_connection(("127.0.0.1", relay.port))
            s.recv(4096)
            s.sendall(b"EHLO client.example\r\n")
            answer = b""
            while b"\r\n250 " not in answer:
                answer += s.recv(4096)
            # Half of them with DATA, half with BDAT.
            chunked = i % 2 == 0
            last = b"BDAT %d LAST\r\n" % len(text) if chunked else b"DATA\r\n"
            wanted = 2 if chunked else 3
            s.sendall(b"MAIL FROM:<jane@example.org>\r\nRCPT TO:<contact-sales@mailer.dreamlikelabs.com>\r\n" + last)
            answer = b""
            while answer.count(b"\n") < wanted:
                answer += s.recv(4096)
            s.setblocking(False)
            clients.append([s, 0, chunked])
            selector.register(s, selectors.EVENT_WRITE, clients[-1])
        begin = time.monotonic()
        taken, peak = 0, 0.0
        while taken < count:
            for key, events in selector.select():
                client = key.data
                if events & selectors.EVENT_WRITE:
                    try:
                        client[1] += client[0].send(text[client[1]:client[1] + (1 << 18)])
                    except BlockingIOError:
                        continue
                    if client[1] == len(text):
                        if not client[2]:
                            client[0].send(b".\r\n")
                        selector.modify(client[0], selectors.EVENT_READ, client)
                else:
                    answer = client[0].recv(4096)
                    if not answer.startswith(b"250 "):
                        fail(f"a message was not taken: {answer!r}")
                    taken += 1
                    selector.unregister(client[0])
        accepted = time.monotonic() - begin
        say("messages", f"{count} of {megabytes} MB, all at once")
        say("accepted and synced", f"{accepted:.1f} s, {count * size / accepted / 1e6:,.0f} MB/s")
        say("memory then / most (MiB)", f"{relay.memory():.0f} / {relay.memory('VmHWM'):.0f}")
        until("all are delivered", lambda: relay.status()["queue_messages"] == 0)
        say("all delivered after", f"{time.monotonic() - begin:.1f} s")
        say("memory idle / after / most (MiB)",
            f"{idle:.0f} / {relay.memory():.0f} / {relay.memory('VmHWM'):.0f}")
        # The last contents go once their removal is synced.
        until("the contents are gone", lambda: not os.listdir(relay.folder + "/queue/content"), 10)
        say("disk after", f"{disk(relay.folder + '/queue') >> 10} KiB")
    finally:
        relay.end()


def main():
    words = sys.argv[1:]
    for word in words[1:]:
        if not word.isdigit() or int(word) == 0:
            sys.exit(f"bench-queue: {word}: write a number from 1 on")
    numbers = [int(word) for word in words[1:]]
    if words[0] == "million":
        million(numbers[0] if numbers else 1_000_000)
    else:
        large(numbers[0] if numbers else 100, numbers[1] if len(numbers) > 1 else 35)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
main()
