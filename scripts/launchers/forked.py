"""Runs a step as a fork: `python -S scripts/launchers/forked.py <socket> -m <module> ...` is `python -m`.

See `scripts/launchers/fork_server.py`. While the server is still loading, the step says so and runs as a
process of its own, with the same result some seconds later. Imports next to nothing, since every step pays
for it.
"""

import json
import os
import signal
import socket
import sys


def ask(server: socket.socket, words: list[str], folder: str) -> int:
    """Has the server run a step; returns its exit code."""
    request = json.dumps({"argv": words, "cwd": folder, "env": dict(os.environ)}).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
    answer = server.recv(1)
    if not answer:
        sys.stderr.write("the fork server ended while the step ran\n")
        return 1
    return answer[0]


def main() -> int:
    """Runs a step; returns its exit code."""
    path, *words = sys.argv[1:]
    folder = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            os.chdir(os.path.dirname(path))  # the name of a socket has at most 107 bytes
            server.connect(os.path.basename(path))
        except (FileNotFoundError, ConnectionRefusedError):
            sys.stderr.write("the fork server is still loading: this step imports by itself\n")
            os.chdir(folder)
            os.execv(sys.executable, [sys.executable, *words])
        return ask(server, words, folder)


if __name__ == "__main__":
    sys.exit(main())
