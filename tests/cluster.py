"""A Ray cluster of several nodes on this machine, as a process: prints what a test needs, ends when its input ends.

python tests/cluster.py 2
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Starts a head without cores and this many nodes of one core."""
    nodes = int(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    raylets = []
    for _ in range(nodes):
        node = cluster.add_node(num_cpus=1, include_dashboard=False)
        raylets.append(node.all_processes["raylet"][0].process.pid)
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
