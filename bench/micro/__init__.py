"""What one exchange costs, stage by stage and without sockets; and the gate that keeps it so.

    python -m bench.micro                  a table: microseconds, instructions, share of an exchange
    python -m bench.micro.gate             instructions of this tree against another commit's

    stages     what is run: botproxy's own functions over one exchange, and a handshake in memory
    counted    the same under valgrind, each stage in a process of its own
    served     a whole botproxy: what handshakes, requests, WebSockets and bodies cost its worker
    parts      one start of a server under callgrind, counted part by part
    bot        what is behind it
    trees      two copies of botproxy: this one, and that of the base commit
    verdict    which changes fail (pure)
    gate       all of that in order

Two more compare a stage with the library that could be used instead: `heads`, `access`.
"""
