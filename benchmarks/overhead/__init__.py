"""CPU of a call: ours and its peers against one loopback server, as multiples of bare httpx in the same run.

Each library runs in a process of its own, which counts its own CPU time; the server's is not in it. Libraries take
turns for several rounds and the best round counts, since other work on the machine can only slow a round down.
"""
