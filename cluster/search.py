"""``gnnrl-ray search`` on the cluster that this is started on.

ray submit cluster.yaml search.py -- --network resnet56 --dataset cifar10 --env-runners 8
ray job submit --working-dir cluster -- python search.py --network resnet56 ...
python search.py --address auto --network resnet56 ...
"""

import os
import sys

from gnnrl_ray.cli import main

if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--"]
    if "--address" not in arguments and "RAY_ADDRESS" not in os.environ:
        arguments += ["--address", "auto"]
    sys.argv[1:] = ["search", *arguments]
    main()
